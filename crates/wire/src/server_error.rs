//! An error as the server told it, without what must not be repeated.
//!
//! **Invariant:** no row value is kept: the detail and context fields (`Key (id)=(5)`, `COPY t, line 1, column a: "x"`) are
//! dropped, and a message of class 22 (data exception) is cut before the value that it quotes. Control characters are
//! escaped and lengths bounded, because a server may be hostile.
//!
//! PostgreSQL manual: protocol, "Error and Notice Message Fields".

use std::fmt;

use postgres_protocol::message::backend::ErrorFields;

/// Characters of a message that are kept.
const MESSAGE_CHARS_MAX: usize = 500;

/// The server's answer when it refuses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerError {
    severity: String,
    sqlstate: String,
    message: String,
    hint: Option<String>,
    schema: Option<String>,
    table: Option<String>,
    column: Option<String>,
    constraint: Option<String>,
}

impl ServerError {
    /// Reads the fields of an ErrorResponse; what is malformed is left out.
    pub(crate) fn read(mut fields: ErrorFields<'_>) -> Self {
        use postgres_protocol::message::backend::ErrorField;
        let next = |fields: &mut ErrorFields<'_>| -> Option<(u8, String)> {
            let field: Option<ErrorField<'_>> =
                fallible_iterator::FallibleIterator::next(fields).ok().flatten();
            field.map(|field| {
                (field.type_(), String::from_utf8_lossy(field.value_bytes()).into_owned())
            })
        };
        let mut error = Self::default();
        while let Some((kind, value)) = next(&mut fields) {
            error.set(kind, &value);
        }
        error.redacted()
    }

    fn set(&mut self, kind: u8, value: &str) {
        let value = printable(value);
        match kind {
            b'S' if self.severity.is_empty() => self.severity = value,
            b'V' => self.severity = value,
            b'C' => self.sqlstate = value,
            b'M' => self.message = value,
            b'H' => self.hint = Some(value),
            b's' => self.schema = Some(value),
            b't' => self.table = Some(value),
            b'c' => self.column = Some(value),
            b'n' => self.constraint = Some(value),
            _ => {}
        }
    }

    /// Class 22 quotes values behind the first colon.
    fn redacted(mut self) -> Self {
        if self.sqlstate.starts_with("22")
            && let Some(cut) = self.message.find([':', '"'])
        {
            self.message.truncate(cut);
            self.message = self.message.trim_end().to_owned();
        }
        self
    }

    /// Takes a secret out of everything the server said: a rogue server may send back what it was sent.
    pub(crate) fn without(mut self, secret: &str) -> Self {
        if !secret.is_empty() {
            for text in [&mut self.severity, &mut self.sqlstate, &mut self.message]
                .into_iter()
                .chain(self.hint.as_mut())
            {
                *text = text.replace(secret, "***");
            }
            for text in [&mut self.schema, &mut self.table, &mut self.column, &mut self.constraint]
            {
                if text.as_ref().is_some_and(|text| text.contains(secret)) {
                    *text = None;
                }
            }
        }
        self
    }

    /// The five-character code.
    pub fn sqlstate(&self) -> &str {
        &self.sqlstate
    }

    /// `ERROR`, `FATAL` or `PANIC`.
    pub fn severity(&self) -> &str {
        &self.severity
    }

    /// The primary message, without values.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The server's own hint.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The schema that the error is about.
    pub fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// The table that the error is about.
    pub fn table(&self) -> Option<&str> {
        self.table.as_deref()
    }

    /// The column that the error is about.
    pub fn column(&self) -> Option<&str> {
        self.column.as_deref()
    }

    /// The constraint that was violated.
    pub fn constraint(&self) -> Option<&str> {
        self.constraint.as_deref()
    }

    /// Whether the server closes the connection after this error.
    pub fn ends_session(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }
}

impl From<&tokio_postgres::error::DbError> for ServerError {
    fn from(error: &tokio_postgres::error::DbError) -> Self {
        let own = |text: Option<&str>| text.map(printable);
        Self {
            // The untranslated severity decides, as `severity()` may be in the server's language.
            severity: error
                .parsed_severity()
                .map_or_else(|| printable(error.severity()), |severity| severity.to_string()),
            sqlstate: error.code().code().to_owned(),
            message: printable(error.message()),
            hint: own(error.hint()),
            schema: own(error.schema()),
            table: own(error.table()),
            column: own(error.column()),
            constraint: own(error.constraint()),
        }
        .redacted()
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.sqlstate)
    }
}

/// Bounds the length and escapes control characters.
fn printable(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(MESSAGE_CHARS_MAX) {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(fields: &[(u8, &str)]) -> ServerError {
        let mut error = ServerError::default();
        for (kind, value) in fields {
            error.set(*kind, value);
        }
        error.redacted()
    }

    #[test]
    fn values_are_cut_from_data_exceptions() {
        let error = error(&[
            (b'C', "22P02"),
            (b'M', "invalid input syntax for type integer: \"4111 1111\""),
            (b'D', "detail 4111"),
            (b'W', "COPY t, line 1, column a: \"4111 1111\""),
        ]);
        assert_eq!(error.to_string(), "invalid input syntax for type integer (SQLSTATE 22P02)");
        assert!(!format!("{error:?}").contains("4111"));
    }

    #[test]
    fn a_hostile_message_is_bounded_and_escaped() {
        let long = format!("\u{1b}[31m{}", "x".repeat(10_000));
        let error = error(&[(b'C', "XX000"), (b'M', &long)]);
        assert!(error.message().len() < 600);
        assert!(!error.message().contains('\u{1b}'));
    }

    #[test]
    fn a_secret_that_is_sent_back_is_taken_out() {
        let error = error(&[(b'M', "you said hunter2"), (b'H', "hunter2!")]).without("hunter2");
        assert!(!format!("{error:?} {error}").contains("hunter2"));
    }
}
