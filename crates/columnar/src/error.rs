//! What can go wrong while rows become columns.
//!
//! **Invariant:** a message names the column, its type and what was wrong; it never holds a value.

use thiserror::Error;

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a table or a batch of rows could not become columns.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// A row, or a value in a column, does not have the form that the protocol says.
    #[error("decode {place}: malformed, {what}")]
    Malformed {
        /// `row`, or the column with its type.
        place: String,
        /// What did not fit.
        what: &'static str,
    },
    /// A value has no form in the column's Arrow type, and the policy is to stop.
    #[error("decode column \"{column}\" ({type_name}): {what} has no form in the lake")]
    Unrepresentable {
        /// The column's name.
        column: String,
        /// Its type as PostgreSQL prints it.
        type_name: String,
        /// The kind of value, such as `infinity`.
        what: &'static str,
    },
    /// Text of the column is not UTF-8 (a SQL_ASCII database can hold such bytes).
    #[error("decode column \"{column}\" ({type_name}): its text is not valid UTF-8")]
    NotUtf8 {
        /// The column's name.
        column: String,
        /// Its type as PostgreSQL prints it.
        type_name: String,
    },
    /// The buffers of a column would exceed the 2 GiB that Arrow's offsets reach.
    #[error("decode column \"{column}\" ({type_name}): more than 2 GiB in one record batch")]
    TooLarge {
        /// The column's name.
        column: String,
        /// Its type as PostgreSQL prints it.
        type_name: String,
    },
    /// More columns than a SELECT list can have.
    #[error("compile columns: {count} are more than PostgreSQL allows in a SELECT list (1664)")]
    TooManyColumns {
        /// How many there were.
        count: usize,
    },
    /// The rows are not in COPY's binary form.
    #[error("decode rows: not in binary form")]
    NotBinary,
    /// The decoder has reported an error before; what it holds is not whole.
    #[error("decode rows: the decoder has failed before and must be dropped")]
    Failed,
}

impl Error {
    /// What the operator can do about it, if anything.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unrepresentable { .. } => {
                Some("set unrepresentable = \"null\" or \"text\" for this table")
            }
            Self::NotUtf8 { .. } => Some(
                "the source database is probably SQL_ASCII: repair the text there, or leave the column out",
            ),
            Self::TooLarge { .. } => Some("take smaller batches"),
            _ => None,
        }
    }
}

/// What went wrong inside a column, before its name is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Malformed(&'static str),
    Unrepresentable(&'static str),
    NotUtf8,
    TooLarge,
}

impl Fault {
    /// The error of a column with this name and type.
    pub(crate) fn of_column(self, column: &str, type_name: &str) -> Error {
        let (column, type_name) = (column.to_owned(), type_name.to_owned());
        match self {
            Self::Malformed(what) => {
                Error::Malformed { place: format!("column \"{column}\" ({type_name})"), what }
            }
            Self::Unrepresentable(what) => Error::Unrepresentable { column, type_name, what },
            Self::NotUtf8 => Error::NotUtf8 { column, type_name },
            Self::TooLarge => Error::TooLarge { column, type_name },
        }
    }

    /// The error of a row.
    pub(crate) fn of_row(what: &'static str) -> Error {
        Error::Malformed { place: "row".to_owned(), what }
    }
}
