//! What can go wrong while rows are hashed.
//!
//! **Invariant:** a message names the row's number and the column, never a value.

/// Why rows could not be hashed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are not what COPY writes for these columns.
    #[error("hash row {row} of a batch: {what}")]
    MalformedRow {
        /// Row within the batch, from 0.
        row: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// One field is not what the type's send function writes.
    #[error("hash row {row} of a batch, column \"{column}\": {what}")]
    MalformedField {
        /// Row within the batch, from 0.
        row: usize,
        /// The column's name.
        column: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The batch's row ends do not fit its bytes.
    #[error("hash a batch of {rows} rows: the row ends do not fit the bytes")]
    MalformedBatch {
        /// Rows that the batch says it holds.
        rows: usize,
    },
    /// The batch is in another form than the hasher was made for.
    #[error("hash a batch: it is not in the form that the hasher was made for")]
    OtherForm,
    /// Value forms are built from binary fields only.
    #[error("hash rows of COPY text: value forms need COPY binary")]
    TextHasNoValueForm,
    /// A table has at most 1600 columns, and there must be one for the leaf key.
    #[error("hash rows of {columns} columns: at most 1600, and the leaf key must be one of them")]
    Columns {
        /// How many were given.
        columns: usize,
    },
    /// Locators can be merged or compared only if they were made alike.
    #[error(
        "merge or compare locators: they differ in key columns, size, digest key or kind of hash"
    )]
    OtherLocator,
    /// The hasher has no locator, or the numbers of its key columns do not fit it.
    #[error(
        "locate rows by {columns} key columns: the locator is of another key, or there is none"
    )]
    LocatorKey {
        /// How many were given.
        columns: usize,
    },
    /// The text is not a digest key.
    #[error("read a digest key: it is not 64 hexadecimal digits")]
    BadKey,
}
