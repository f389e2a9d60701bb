//! What is done to the storm's tables while they are followed: rewritten, given up, altered.
//!
//! **Invariant:** the storm's own statements go on all the same: they name no column that comes later, and nobody else
//! writes to the rows that are written to here.

use std::time::{Duration, Instant};

use super::super::follower::{Ended, end_within};
use super::super::plan::{Fault, Side};
use super::super::report::Failure;
use super::super::rig::DATABASE;
use super::{Run, Step, inject, rig_error};

/// How long a job that was stopped may be held by what it left on the target.
const LET_GO_WITHIN: Duration = Duration::from_secs(60);
/// How long a kill waits for a join that may be over already.
const JOINS_WITHIN: Duration = Duration::from_secs(10);
/// No promise is about them, so the others can be judged while they join; of two that are truncated together, each alone.
const JOINING: [&str; 9] = [
    "storm.woven",
    "storm.document",
    "storm.bag",
    "storm.bulk_note",
    "storm.copied",
    "storm.document_full",
    "storm.parted_1",
    "storm.bulk",
    "storm.document_index",
];
/// Tables with rows that no client of the storm touches, and which.
const ALTERED: [(&str, &str); 4] = [
    ("storm.document", "id < 0 AND id % 9 = 0"),
    ("storm.bag", "what LIKE 'w%'"),
    ("storm.document_full", "id < 0 AND id % 9 = 1"),
    ("storm.document_index", "id < 0 AND id % 9 = 2"),
];
/// Columns that are carried over: their types and what is written there.
const COLUMNS: [(&str, &str); 4] = [
    ("text", "'late'"),
    ("integer DEFAULT 7", "8"),
    ("numeric DEFAULT 1.50", "NULL"),
    ("timestamptz", "'2026-01-02 03:04:05+00'"),
];

pub(super) fn rewrite(run: &mut Run<'_>) -> Step<bool> {
    let tables =
        ["storm.document", "storm.bag", "storm.ledger_copy", "storm.parted_1", "storm.account"];
    let mut is_done = false;
    for table in tables {
        let sql = format!("SET lock_timeout = '2s'; VACUUM FULL {table}; REINDEX TABLE {table};");
        // A lock that is not to be had is no fault.
        is_done |= run.rig.source.psql(DATABASE, &sql).is_ok();
    }
    run.rig.source.psql(DATABASE, "CHECKPOINT; SELECT pg_switch_wal()").map_err(rig_error)?;
    Ok(is_done)
}

/// Lets one to three tables join again, with rows of theirs lost on the target that only a new copy brings back.
pub(super) fn rejoin(run: &mut Run<'_>, number: u32, kill_after: Option<Duration>) -> Step<bool> {
    let number = number as usize;
    // Half of the time the one that always has transactions open.
    let first = if number.is_multiple_of(2) { 0 } else { number / 2 % JOINING.len() };
    let count = 1 + number / 20 % 3;
    let tables: Vec<&str> =
        (0..count).map(|place| JOINING[(first + 4 * place) % JOINING.len()]).collect();
    inject::stop(run)?;
    give_up(run, &tables)?;
    run.event(&format!("given up: {}", tables.join(", ")));
    if run.follower.questions().lake.is_none() {
        let table = tables[0];
        let sql = format!("DELETE FROM {table} WHERE ctid IN (SELECT ctid FROM {table} LIMIT 5)");
        run.rig.target.psql(DATABASE, &sql).map_err(rig_error)?;
    }
    run.start_again()?;
    if let Some(length) = kill_after {
        // Where they joined must outlive the process until the stream has passed it, which is a matter of moments.
        if number.is_multiple_of(3) || run.follower.questions().lake.is_some() {
            run.hold(length)?;
        } else {
            run.until(JOINS_WITHIN, |_, seen| seen.is_joining)?;
        }
        inject::kill(run)?;
        run.watch.other_fault();
        *run.faults.entry(Fault::Kill.kind()).or_default() += 1;
    }
    Ok(true)
}

/// The sessions of the run before may hold the job for a while.
fn give_up(run: &mut Run<'_>, tables: &[&str]) -> Step {
    let until = Instant::now() + LET_GO_WITHIN;
    loop {
        let arguments = [&["reset"], tables, &["--yes"]].concat();
        let child = run.follower.command(&arguments).map_err(rig_error)?;
        let ended = child.map(|child| end_within(child, LET_GO_WITHIN)).transpose();
        let ended = ended.map_err(rig_error)?.flatten();
        match ended {
            Some(Ended::Code(0)) => return Ok(()),
            Some(Ended::Code(8 | 9)) if Instant::now() < until => {}
            ended => {
                let detail = format!(
                    "reset of {} ended with {ended:?}\n{}",
                    tables.join(", "),
                    run.follower.said()
                );
                return Err(Failure { seen_by: "exit", detail });
            }
        }
    }
}

/// Adds a column and fills it for some rows, in one transaction or in two.
pub(super) fn add_column(run: &mut Run<'_>, number: u32) -> Step<bool> {
    let number = number as usize;
    let (table, rows) = ALTERED[number % ALTERED.len()];
    let (definition, value) = COLUMNS[number / 4 % COLUMNS.len()];
    let between = if (number / 16).is_multiple_of(2) { "" } else { "COMMIT; BEGIN;" };
    // As many columns as there were events: no two have one name.
    let column = format!("late_{}", run.events.len());
    let sql = format!(
        "SET lock_timeout = '3s'; BEGIN; ALTER TABLE {table} ADD COLUMN {column} {definition}; {between} \
         UPDATE {table} SET {column} = {value} WHERE {rows}; COMMIT;"
    );
    let source = run.rig.cluster(Side::Source);
    if source.psql(DATABASE, &sql).is_ok() {
        return Ok(true);
    }
    // A lock that is not to be had is no fault.
    let is_there = format!(
        "SELECT count(*) FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attname = '{column}'"
    );
    match source.psql(DATABASE, &is_there).map_err(rig_error)?.as_str() {
        "0" => Ok(false),
        _ => {
            let detail = format!("the column {column} was added to {table} and not filled");
            Err(Failure { seen_by: "rig", detail })
        }
    }
}
