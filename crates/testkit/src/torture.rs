//! Torture: follows a storm through every kind of fault, by a seed, and lets the oracle judge what came of it.
//!
//! **Invariant:** a run is good only if the target keeps the storm's promises at every glance, holds exactly the source's
//! rows at the end, holds every transaction that the storm says it committed, and the follower ended in no other way
//! than it may. Whatever cannot be looked at makes the run bad.
//!
//! ```text
//! storm --> source <-- fault proxy <-- follower --> fault proxy --> target
//!             |                            |                          |
//!           crash, end a session     kill, freeze, second          crash, end a session
//!             +----------- watch: promises, position, memory, WAL ----+
//! ```
//!
//! One run: load the tables, start the storm, start the follower, a few faults while it copies, then faults until the
//! time of the plan is over; heal, stop the storm, stop the follower, `--until now`, compare.
//!
//! `scripts/torture` runs campaigns; the end-to-end tests run a few fixed seeds.

mod campaign;
mod configuration;
mod follower;
mod plan;
mod report;
mod rig;
mod run;
mod watch;

pub use campaign::{Campaign, Options, parse};
pub use configuration::Configuration;
pub use follower::Ended;
pub use plan::{Fault, Plan, Planned, Profile, Side};
pub use report::{Failure, Outcome, Verdict};
pub use run::{Sabotage, Subject, Trial, run};
