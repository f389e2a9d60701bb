//! Two databases compared through the library, on real servers.
//!
//! **Invariant:** what the verdict has to be is written beside what was put into the two tables, never computed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod alike;
mod cases;
mod definitions;
mod dirty;
mod generated;
mod hard_tables;
mod lake;
mod lake_cases;
mod lake_damage;
mod lake_naming;
mod many;
mod moving;
mod naming;
mod pairs;
mod repairs;
mod support;
#[path = "../../../columnar/tests/it/values.rs"]
mod values;
