//! Whole snapshots through the library, on real servers: what arrives is what was there, at every limit.
//!
//! **Invariant:** what is right is decided by something that shares no code with the mover: `psql` and SHA-256 for rows and
//! definitions, pyarrow for lakes. Tests wait for states, never for time; each has databases of its own in two clusters of
//! this process.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod digests;
mod encodings;
mod lake;
mod limits;
mod live;
mod schema;
mod subset;
mod support;
mod values;
