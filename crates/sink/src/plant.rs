//! Whether a deliberate defect is switched on, for the campaign that must find it (`scripts/torture --planted`).
//!
//! **Invariant:** without the feature `planted-bugs` nothing is ever planted, and the compiler removes what this guards; no
//! build that a user gets has the feature.

/// Whether this defect is switched on: `TIDEMARK_PLANT` in the environment.
#[cfg(feature = "planted-bugs")]
pub fn is_planted(name: &str) -> bool {
    static PLANT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    PLANT.get_or_init(|| std::env::var("TIDEMARK_PLANT").unwrap_or_default()) == name
}

/// Whether this defect is switched on: never.
#[cfg(not(feature = "planted-bugs"))]
pub const fn is_planted(_name: &str) -> bool {
    false
}
