//! Canonical rows, keyed sums, leaves.
