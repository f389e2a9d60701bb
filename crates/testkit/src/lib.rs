//! Real PostgreSQL clusters, workloads, a fault proxy and an independent oracle, for tests and benches.
//!
//! **Invariant:** nothing here uses Tidemark's own crates: a rig that shares the mover's code agrees
//! with its mistakes. All comparison goes through `psql` and SHA-256.
//!
//! **Invariant:** no server outlives the process that started it, however that process ends.
//!
//! ```text
//! Cluster      one server: own data directory, port and socket; stop, kill, restart, promote
//! oracle       compares two databases by psql and SHA-256, never by our own code
//! workload     TPC-H, a live writer, a storm of every kind of transaction, the type matrix, hostile names, the schema zoo
//! lake         what a lake says its tables hold, by pyarrow
//! proxy        a TCP proxy that cuts, stalls, slows and corrupts at an exact byte
//! torture      a seeded campaign: a storm on the source, faults everywhere, the oracle at the end
//! ```
//!
//! Development only: product crates name it under `[dev-dependencies]`.

mod cluster;
pub mod lake;
pub mod oracle;
mod process;
pub mod proxy;
mod session;
pub mod torture;
pub mod workload;

pub use cluster::{
    Auth, Builder, Cluster, Database, Installation, Locale, PASSWORD, Tls, Version, shared,
    shared_filled, user_for_files,
};
pub use workload::{Storm, StormOptions, StormReport};
