//! Connections, COPY OUT and CopyBoth against a real PostgreSQL, and hostile servers played by a listener.

#![expect(clippy::unwrap_used, reason = "a failure anywhere in a test is the test's failure")]

mod cluster;
mod connect;
mod copy_both;
mod copy_out;
mod rogue;
mod tls;
