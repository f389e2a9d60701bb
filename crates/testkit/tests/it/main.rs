//! The rig against itself: each test shows that a part of it can see what it is there to see.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cluster;
mod oracle;
mod proxy;
mod storm;
mod torture;
mod workload;
