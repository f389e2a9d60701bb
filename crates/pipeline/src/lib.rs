//! From a source to a target: plan, snapshot, progress, and the running job's control socket.
//!
//! **Invariant:** a chunk counts only when both sides said that they are done with it and rows out = rows in; it is in the
//! ledger only after it is durable in the target. Every queue is bounded in bytes by one budget.
//!
//! The way of a row (see `docs/architecture.md`):
//!
//! ```text
//! source::Reader --COPY OUT--> Tuples --digest::RowHasher--> Tuples --ChunkWriter::accept--> target
//!                              (budget)      (cpu pool)
//! ```
//!
//! **Not here:** how a server is read (`source`), how a target is written (`sink`), how people see it (`cli`).

mod check;
mod cleanup;
mod control;
mod error;
mod job;
mod plan;
mod progress;
mod reconcile;
mod reset;
mod snapshot;
mod status;
mod stream;
mod target;

pub use check::{check, has_tables, limit_waits, patiently, ties_between_waves};
pub use cleanup::cleanup;
pub use control::{CONTROL_VERSION, Held, ask_status};
pub use error::{Error, Kind, Result};
pub use job::{
    Beginning, DdlPolicy, Job, LakeTarget, OnFull, PostgresTarget, StreamJob, TableOptions, Target,
    Wave,
};
pub use progress::{ActiveTable, Phase, Progress, ProgressView};
pub use reconcile::{Moment, Reconcile, ReconciledTable};
pub use reset::reset;
pub use snapshot::{
    CHECKED, COPIED, ChunkRunner, Report, TableReport, blocking, run_chunk, snapshot_only,
};
pub use status::{
    Hypercare, Lag, SequenceRoom, SnapshotStatus, Status, StreamStatus, WaveStatus, refuse_running,
    stored_status,
};
pub use stream::{SyncReport, Until, sync, sync_reconciled};
pub use tidemark_sink::NotEmpty;
pub use tidemark_sink::parquet::Compression;
pub use tidemark_sink::postgres::{SchemaMode, Triggers};
