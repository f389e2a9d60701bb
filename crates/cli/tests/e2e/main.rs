//! The built binary against real clusters, judged by the testkit's oracle (psql and SHA-256).
//!
//! **Invariant:** every test has databases, a directory and a job of its own; what is random prints its seed. A test that
//! stops a server has servers of its own.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod crash;
mod cutover;
mod delta;
mod delta_exact;
mod ending;
mod existing;
mod failover;
mod filters;
mod follow;
mod following;
mod half;
mod instances;
mod joining;
mod lake;
mod lake_joining;
mod lake_unfinished;
mod lake_verify;
mod lanes;
mod large;
mod mistakes;
mod network;
mod pooler;
mod privileges;
mod readiness;
mod reconcile;
mod selftest;
mod sessions;
mod standby;
mod status;
mod support;
mod torture;
mod unfinished;
mod verify;
mod versions;
mod waits;
mod waves;
mod whole;
