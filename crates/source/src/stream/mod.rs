//! The source side of the stream: connecting, positions, messages, changes.
//!
//! **Invariant:** a stream begins only where the slot, the server and what was saved fit together ([`check_continuation`]):
//! the server itself would move our start forward without a word (`hazards.md` B25). Nothing is acknowledged here by
//! itself: only what is passed to [`ReplicationWriter::status`].
//!
//! ```text
//! identify, inspect_slot -> check_continuation, check_publication      before any write to a target
//! [CatchUp -> Round ->] ReplicationStream -> ReplicationReader -> Frames -> Frame -> Message       (message.rs)
//!                                         \- ReplicationWriter::status                Row at commit -> Relations (decode.rs)
//! ```
//!
//! **Not here:** transactions, spilling and the spool, what is durable (`pipeline`).
//!
//! PostgreSQL manual, sections 55.4 and 55.5 (streaming replication protocols), chapter 49 (logical decoding).

mod catch_up;
mod connect;
mod continuation;
mod decode;
mod fields;
mod frames;
#[doc(hidden)]
pub mod fuzz;
mod message;
mod published;
mod slot;
mod zombie;

pub use catch_up::{CatchUp, CatchUpOptions, Round};
pub use connect::{ReplicationReader, ReplicationStream, ReplicationWriter, StreamOptions};
pub use continuation::{Saved, check_continuation};
pub use decode::{Decoded, Relations, encode_relation};
pub use fields::Malformed;
pub use frames::Frames;
pub use message::{Frame, Message, RowKind};
pub use published::{Expected, PublicationState, check_publication};
pub(crate) use published::{misfit, published_tables};
pub use slot::{
    Identity, SlotState, advance_slot, emit_barrier, has_committed, head, identify, inspect_slot,
    retained_by_others,
};
