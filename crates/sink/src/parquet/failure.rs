//! What an error of the operating system, the object store or the encoder means for the run.
//!
//! **Invariant:** decided here and nowhere else in this sink. What a user or the machine can mend (full disk, no right,
//! no network) is `Unavailable`; a defect of ours is `Internal`.

use std::io;

use parquet::errors::ParquetError;
use tidemark_model::RelationName;

use crate::{Disposition, Error};

/// An error of a local file.
pub(super) fn io(attempt: impl Into<String>, error: io::Error) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some("free some space and run the same command again")
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Some("the target directory must be writable for the user that runs this")
        }
        io::ErrorKind::FileTooLarge => {
            Some("raise the limit on file sizes or set a smaller parquet.file_bytes")
        }
        io::ErrorKind::NotADirectory => Some("the target must be a directory"),
        _ => None,
    };
    with_hint(Error::new(Disposition::Unavailable, attempt).because(error), hint)
}

/// An error of an object store; it has been retried by the client already.
pub(super) fn object_store(attempt: impl Into<String>, error: object_store::Error) -> Error {
    use object_store::Error as E;
    let hint = match &error {
        E::NotFound { .. } => Some("the bucket must exist"),
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
            Some("the keys must allow to list, read, write and delete below the prefix")
        }
        _ => None,
    };
    with_hint(Error::new(Disposition::Unavailable, attempt).because(error), hint)
}

/// An error of the Parquet library: an I/O error underneath keeps its meaning, everything else is a defect.
pub(super) fn parquet(
    attempt: impl Into<String>,
    relation: &RelationName,
    error: ParquetError,
) -> Error {
    let error = match error {
        ParquetError::External(cause) => match cause.downcast::<io::Error>() {
            Ok(cause) => return io(attempt, *cause).on(relation),
            Err(cause) => ParquetError::External(cause),
        },
        other => other,
    };
    Error::new(Disposition::Internal, attempt).on(relation).because(error)
}

fn with_hint(error: Error, hint: Option<&str>) -> Error {
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
