//! What is wrong with a configuration, and where.
//!
//! **Invariant:** the text names file, line and column where there is one, and the key; it shows no line of the file,
//! because a line may hold a secret.

use std::fmt;
use std::io;

use crate::exit::Failure;

/// Where something stands in a file; line and column count from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named.
    pub file: String,
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read the configuration file {file:?}")]
    Read {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something in it is wrong.
    #[error("{place}: {message}")]
    At {
        /// Where.
        place: Place,
        /// What; begins with the key where there is one.
        message: String,
        /// The way out.
        hint: Option<String>,
    },
    /// A flag, or something that is missing.
    #[error("{message}")]
    Plain {
        /// What.
        message: String,
        /// The way out.
        hint: Option<String>,
    },
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let hint = match &error {
            ConfigError::Read { .. } => {
                Some("`tidemark config example > tidemark.toml` makes one".to_owned())
            }
            ConfigError::At { hint, .. } | ConfigError::Plain { hint, .. } => hint.clone(),
        };
        let failure = Self::of(crate::exit::ExitCode::Usage, &error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}
