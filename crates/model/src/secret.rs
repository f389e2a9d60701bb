//! Text that must not be seen.
//!
//! **Invariant:** neither `Debug` nor `Display` nor serialisation shows the text; only [`Secret::reveal`] does, so that
//! every use can be found by that name.

use std::fmt;

/// A password or another secret.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
