//! The online migration: the moment in which the application goes over to the other side, and the way back.
//!
//! **Invariant:** every step is in the journal before it begins and after it is done, and may be done again: a migration that
//! is killed at any moment goes on from there, or is taken back until the other side is opened. At most one side takes
//! writes of the application; the stream always goes from that side to the other.
//!
//! ```text
//! proof of every table -> fence -> drain to a barrier -> sequences -> proof of what was touched -> the stream back
//!       -> open the other side -> switch hook -> turn the stream -> retire the old one
//! ```
//!
//! A fallback is the same with the sides exchanged. [`delta`] moves what a source without a slot has that the target has not,
//! by reading the source once; a run that was killed is repeated and comes to the same end.
//!
//! **Not here:** how a stream is followed (`pipeline`), how a side is read, its rows are hashed and equality is proven
//! (`verify`), how the target is written (`sink`).

pub mod delta;
mod fence;
mod follow;
mod hook;
mod hypercare;
mod rights;
mod runbook;
mod sequences;
mod sides;
mod story;
mod switch;
mod wave_fence;

pub use fence::Fence;
pub use follow::sync;
pub use hook::Hook;
pub use hypercare::{ask_status, stored_status};
pub use runbook::{Attempt, Direction, Entry, Event, State, Step, Way, state};
pub use sides::{active, cleanup, job_of, place, refuse_begun};
pub use story::{Verified, last_verdict, note_checked, note_verified, report};
pub use switch::{Ended, How, Migration, Plan, abort, complete, run};
