//! Files of reports, which are there whole or not at all.

use std::path::Path;

use crate::exit::{ExitCode, Failure};

/// The name that a file has as long as it is written.
pub(crate) fn unfinished(name: &str) -> String {
    format!(".{name}.part")
}

/// Writes a file of a directory under another name first.
///
/// # Errors
/// It cannot be written; the earlier one is as it was.
pub(crate) fn write(directory: &Path, name: &str, text: &str) -> Result<(), Failure> {
    let (path, unfinished) = (directory.join(name), directory.join(unfinished(name)));
    std::fs::write(&unfinished, text)
        .and_then(|()| std::fs::rename(&unfinished, &path))
        .map_err(|error| unwritable(&path, &error))
}

pub(crate) fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(ExitCode::Unavailable, format!("write the report {}", path.display()))
        .because(error)
        .hint("make room, or name another directory")
}
