//! The only place that shows connection strings: without their secrets (`hazards.md` S8).
//!
//! **Invariant:** when it is not clear where a secret ends, more is hidden, never less. Both forms of libpq are known: the
//! URL (user information and `?password=`) and the keyword form (`password='...'`).
//!
//! PostgreSQL manual, section 34.1.1.

use std::ffi::OsString;

/// What stands in the place of a secret.
pub const HIDDEN: &str = "***";

/// Parameters of libpq that are secrets.
const SECRET_KEYWORDS: [&str; 5] =
    ["password", "sslpassword", "oauth_client_secret", "secret_access_key", "session_token"];

/// A connection string or URL without its secrets.
pub fn connection(text: &str) -> String {
    // Of a web server's paths and parameters nobody knows which are secrets.
    if let Some(("http" | "https", rest)) = text.split_once("://") {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let host = rest[..end].rsplit_once('@').map_or(&rest[..end], |(_, host)| host);
        return format!("{}{host}/{HIDDEN}", &text[..text.len() - rest.len()]);
    }
    hide_user_information(&hide_parameters(text))
}

/// Any text that may contain connection strings, such as an error message of a library. Each word is looked at by itself,
/// except that a quoted value of a keyword may hold blanks.
pub fn text(text: &str) -> String {
    let text = hide_parameters(text);
    if !text.contains("://") {
        return text;
    }
    text.split_inclusive(char::is_whitespace).map(hide_user_information).collect()
}

/// A message in which every argument of the command line that holds a secret is replaced by its redacted form. Blanks
/// inside an argument are no obstacle here, because the whole argument is known.
pub fn arguments_in(message: &str, args: &[OsString]) -> String {
    let mut message = message.to_owned();
    for arg in args.iter().skip(1) {
        let arg = arg.to_string_lossy();
        let value = match arg.split_once('=') {
            Some((flag, value)) if flag.starts_with('-') => value,
            _ => &arg,
        };
        let shown = connection(value);
        if shown != value {
            message = message.replace(value, &shown);
        }
    }
    text(&message)
}

/// `scheme://user:secret@host` to `scheme://user:***@host`. A secret that was not percent-encoded may hold `@` and `/`, so
/// it is taken to end at the last `@`.
fn hide_user_information(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let Some((user_information, host)) = rest.rsplit_once('@') else {
        return text.to_owned();
    };
    let Some((user, _)) = user_information.split_once(':') else {
        return text.to_owned();
    };
    format!("{scheme}://{user}:{HIDDEN}@{host}")
}

/// `password=...` anywhere: in a query up to `&` or a blank, in keyword form a quoted or a plain value.
fn hide_parameters(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, value)) = next_secret(rest) {
        shown.push_str(before);
        shown.push_str(HIDDEN);
        rest = &value[secret_len(value)..];
    }
    shown.push_str(rest);
    shown
}

/// Splits just before the value of the next secret parameter.
fn next_secret(text: &str) -> Option<(&str, &str)> {
    let lower = text.to_ascii_lowercase();
    SECRET_KEYWORDS
        .iter()
        .filter_map(|keyword| value_start(&lower, keyword))
        .min()
        .map(|start| text.split_at(start))
}

fn value_start(lower: &str, keyword: &str) -> Option<usize> {
    let mut from = 0;
    while let Some(found) = lower[from..].find(keyword) {
        let end = from + found + keyword.len();
        let rest = &lower[end..];
        let after_blanks = rest.trim_start();
        if let Some(value) = after_blanks.strip_prefix('=') {
            let value = value.trim_start_matches(' ');
            let value_at = lower.len() - value.len();
            // What is hidden already, and a sentence that only mentions the keyword, end the search for this place.
            if !value.is_empty() && !value.starts_with(HIDDEN) {
                return Some(value_at);
            }
        }
        from = end;
    }
    None
}

/// Length of a value: quoted with backslash escapes, or up to a blank or `&`. An unclosed quote hides everything.
fn secret_len(value: &str) -> usize {
    let mut chars = value.char_indices();
    if !value.starts_with('\'') {
        let mut escaped = false;
        for (at, c) in chars {
            if !escaped && (c.is_whitespace() || c == '&') {
                return at;
            }
            escaped = !escaped && c == '\\';
        }
        return value.len();
    }
    chars.next();
    let mut escaped = false;
    for (at, c) in chars {
        if c == '\'' && !escaped {
            return at + 1;
        }
        escaped = !escaped && c == '\\';
    }
    value.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_hidden_in_every_form() {
        for (given, shown) in [
            ("postgres://u:S3cr3t-%40@h/db", "postgres://u:***@h/db"),
            ("postgres://u:S3/cr@3t@h:5432/db?a=b", "postgres://u:***@h:5432/db?a=b"),
            ("postgres://u@h/db?password=S3cr3t&x=1", "postgres://u@h/db?password=***&x=1"),
            ("postgres://u@h/db?sslpassword=S3cr3t", "postgres://u@h/db?sslpassword=***"),
            ("host=h password=S3cr3t user=u", "host=h password=*** user=u"),
            (r"host=h password = 'S3 cr\'3t' user=u", "host=h password = *** user=u"),
            (r"password=S3\ cr3t user=u", "password=*** user=u"),
            ("password='S3cr3t user=u", "password=***"),
            ("https://u:S3cr3t@h/S3cr3t?token=S3cr3t", "https://h/***"),
            ("PASSWORD=S3cr3t", "PASSWORD=***"),
            ("postgres://u@h/db", "postgres://u@h/db"),
            ("s3://bucket/prefix", "s3://bucket/prefix"),
        ] {
            assert_eq!(connection(given), shown);
            assert_eq!(connection(shown), shown);
        }
    }

    #[test]
    fn a_message_with_several_connection_strings_keeps_its_words() {
        assert_eq!(
            text("copy postgres://a:x@h1/d to postgres://b:y@h2/d with password=z failed"),
            "copy postgres://a:***@h1/d to postgres://b:***@h2/d with password=*** failed"
        );
        assert_eq!(text("password authentication failed"), "password authentication failed");
    }

    #[test]
    fn an_argument_with_blanks_is_replaced_as_a_whole() {
        let args = [OsString::from("tidemark"), OsString::from("--sorce=postgres://u:a b@h/d")];
        assert_eq!(
            arguments_in("unexpected 'postgres://u:a b@h/d'", &args),
            "unexpected 'postgres://u:***@h/d'"
        );
    }
}
