//! The report of a migration, from what was written down when it happened.
//!
//! **Invariant:** it needs no server: the journals of both directions hold everything that it tells.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidemark_ledger::{JournalEntry, LedgerReader, RunRecord, note};
use tidemark_model::{Finding, Lsn, Severity};
use tidemark_pipeline::{CHECKED, COPIED, Error, Kind, Result};
use tidemark_report::{
    AttemptReport, FindingReport, Level, MIGRATION_VERSION, MigrationReport, MigrationSide,
    Settled, Stage, StepReport, Verdict, VerificationReport,
};

use crate::runbook::{Direction, Entry, Event, State, Step};
use crate::sides::back_of;

/// What the journal calls a verification that somebody asked for.
const VERIFIED: &str = "verified";

/// A verification of a job that follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// What it found.
    pub verdict: Verdict,
    /// The position of both sides.
    pub lsn: Option<Lsn>,
    /// How closely.
    pub level: Level,
    /// Tables that were compared.
    pub tables: u64,
    /// Their rows.
    pub rows: u64,
}

/// Notes a verification in the job's journal.
///
/// # Errors
/// There is no ledger, or it cannot be written.
pub fn note_verified(state_dir: &Path, verified: &Verified) -> Result<()> {
    let detail = serde_json::to_value(verified).expect("it is plain data");
    Ok(note(state_dir, VERIFIED, &detail)?)
}

/// What the last verification has found, steps of a cutover included.
///
/// # Errors
/// There is no ledger, or it cannot be read.
pub fn last_verdict(state_dir: &Path) -> Result<Option<Verdict>> {
    Ok(last_verified(state_dir)?.map(|(_, verified)| verified.verdict))
}

/// The verification that ended last, whoever asked for it, and when it did.
pub(crate) fn last_verified(state_dir: &Path) -> Result<Option<(i64, Verified)>> {
    let journal = LedgerReader::open(state_dir)?.journal()?;
    let entries = State::of(journal.clone()).entries;
    Ok(all_verified(&journal, &entries).pop().map(|(at_ms, verified, _)| (at_ms, verified)))
}

/// Notes what a look at both sides has found, where there is a journal by now.
///
/// # Errors
/// The ledger is damaged or cannot be written.
pub fn note_checked(state_dir: &Path, findings: &[Finding]) -> Result<()> {
    let detail = serde_json::to_value(findings).expect("it is plain data");
    match note(state_dir, CHECKED, &detail) {
        Err(tidemark_ledger::Error::Missing { .. }) => Ok(()),
        noted => Ok(noted?),
    }
}

/// What was done so far of the migration of a state directory.
///
/// # Errors
/// The job has never run, or a ledger cannot be read.
pub fn report(state_dir: &Path, job: &str) -> Result<MigrationReport> {
    let ledger = LedgerReader::open(state_dir)?;
    let journal = ledger.journal()?;
    let state = State::of(journal.clone());
    let run = ledger.run()?.ok_or_else(|| {
        Error::new(Kind::Usage, format!("report: job {job:?} has never run"))
            .hint("start it with tidemark sync")
    })?;
    let back = match LedgerReader::open(&back_of(state_dir)) {
        Ok(reader) => Some((reader.run()?, reader.journal()?)),
        Err(tidemark_ledger::Error::Missing { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let (back_run, back_journal) = back.unwrap_or_default();
    let completed = state.entries.iter().rev().find(|entry| entry.event == Event::Completed);
    let mut findings = findings(&journal);
    // What is so on both sides is told once.
    let is_told = |of: &FindingReport| {
        let one = (&of.code, &of.object, &of.message);
        findings.iter().any(|told| (&told.code, &told.object, &told.message) == one)
    };
    let of_back: Vec<_> =
        self::findings(&back_journal).into_iter().filter(|of| !is_told(of)).collect();
    findings.extend(of_back);
    Ok(MigrationReport {
        report_version: MIGRATION_VERSION,
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        written_at: time(tidemark_ledger::now_ms()),
        job: job.to_owned(),
        stage: stage(&state, &run),
        source: Some(side(&run)),
        target: back_run.as_ref().map(side),
        copied_from: first(&journal, CHECKED).or_else(|| Some(time(run.started_at_ms))),
        copied_to: first(&journal, COPIED),
        tables: ledger.relations()?.len() as u64,
        attempts: attempts(&state.entries),
        verifications: verifications(&journal, &state.entries),
        findings,
        completed_at: completed.map(|entry| time(entry.at_ms)),
        checksum: None,
    })
}

/// When this was noted first: a fallback makes the run of the way there anew.
fn first(journal: &[JournalEntry], event: &str) -> Option<String> {
    journal.iter().find(|line| line.event == event).map(|line| time(line.at_ms))
}

fn stage(state: &State, run: &RunRecord) -> Stage {
    match state.direction {
        _ if state.is_complete => Stage::Complete,
        _ if state.attempt.is_some() => Stage::Switching,
        Direction::Back => Stage::Hypercare,
        Direction::Forward if run.phase == "follow" => Stage::Following,
        Direction::Forward => Stage::Copying,
    }
}

fn side(run: &RunRecord) -> MigrationSide {
    MigrationSide {
        version: run.server_version,
        system_identifier: run.system_identifier.to_string(),
        database: run.database.clone(),
    }
}

fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map(|at| at.to_string()).unwrap_or_default()
}

fn attempts(entries: &[Entry]) -> Vec<AttemptReport> {
    let mut attempts: Vec<AttemptReport> = Vec::new();
    for entry in entries {
        if (entry.step, entry.event) == (None, Event::Begun) {
            attempts.push(AttemptReport {
                way: entry.way.word().to_owned(),
                began_at: time(entry.at_ms),
                ended_at: None,
                outcome: Settled::Open,
                because: None,
                lsn: None,
                write_block_ms: None,
                steps: Vec::new(),
            });
        }
        // Nothing comes before an attempt but the line that ends the migration.
        let Some(attempt) = attempts.last_mut() else { continue };
        match (entry.step, entry.event) {
            (Some(step), Event::Begun) => attempt.steps.push(begun(step, entry)),
            (Some(step), _) => end(attempt, step, entry),
            (None, Event::TakingBack) => {
                attempt.because = entry.detail["because"].as_str().map(str::to_owned);
            }
            (None, Event::Done | Event::Aborted) => {
                let is_done = entry.event == Event::Done;
                attempt.outcome = if is_done { Settled::Done } else { Settled::TakenBack };
                attempt.ended_at = Some(time(entry.at_ms));
                attempt.lsn = entry.detail["lsn"].as_str().map(str::to_owned);
                attempt.write_block_ms = entry.detail["write_block_ms"].as_u64();
            }
            (None, Event::Begun | Event::Failed | Event::Completed) => {}
        }
    }
    attempts
}

fn begun(step: Step, entry: &Entry) -> StepReport {
    StepReport {
        step: step.word().to_owned(),
        began_at: time(entry.at_ms),
        duration_ms: None,
        outcome: Settled::Open,
        detail: Value::Null,
    }
}

/// The step that was begun last under this name ends.
fn end(attempt: &mut AttemptReport, step: Step, entry: &Entry) {
    let begun = attempt.steps.iter_mut().rfind(|begun| begun.step == step.word());
    let Some(begun) = begun else { return };
    let began = begun.began_at.parse::<jiff::Timestamp>().map(jiff::Timestamp::as_millisecond);
    begun.duration_ms = began.ok().and_then(|began| u64::try_from(entry.at_ms - began).ok());
    begun.outcome = if entry.event == Event::Done { Settled::Done } else { Settled::Failed };
    begun.detail = whole(entry.detail.clone());
}

/// Numbers with a fraction as text: a checksum is over whole ones.
fn whole(value: Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => Value::String(number.to_string()),
        Value::Array(items) => Value::Array(items.into_iter().map(whole).collect()),
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(|(name, value)| (name, whole(value))).collect())
        }
        other => other,
    }
}

/// Verifications with their times and the way that they were a step of, oldest first.
fn all_verified(
    journal: &[JournalEntry],
    entries: &[Entry],
) -> Vec<(i64, Verified, Option<&'static str>)> {
    let read = |detail: &Value| serde_json::from_value(detail.clone()).ok();
    let asked = journal.iter().filter(|line| line.event == VERIFIED);
    let asked = asked.filter_map(|line| Some((line.at_ms, read(&line.detail)?, None)));
    let is_proof = |entry: &&Entry| matches!(entry.step, Some(Step::Prove | Step::Verify));
    let steps = entries.iter().filter(is_proof);
    let steps =
        steps.filter_map(|entry| Some((entry.at_ms, read(&entry.detail)?, Some(entry.way.word()))));
    let mut all: Vec<_> = asked.chain(steps).collect();
    all.sort_by_key(|(at_ms, ..)| *at_ms);
    all
}

fn verifications(journal: &[JournalEntry], entries: &[Entry]) -> Vec<VerificationReport> {
    let report = |(at_ms, verified, step_of): (i64, Verified, Option<&str>)| VerificationReport {
        at: time(at_ms),
        verdict: verified.verdict,
        lsn: verified.lsn.map(|lsn| lsn.to_string()),
        level: verified.level,
        tables: verified.tables,
        rows: verified.rows,
        step_of: step_of.map(str::to_owned),
    };
    all_verified(journal, entries).into_iter().map(report).collect()
}

/// What was found by all looks of one direction; what the last one did not find any more is settled.
fn findings(journal: &[JournalEntry]) -> Vec<FindingReport> {
    let mut seen: BTreeMap<(String, String), (FindingReport, i64)> = BTreeMap::new();
    let mut last = 0;
    for line in journal.iter().filter(|line| line.event == CHECKED) {
        let Ok(found) = serde_json::from_value::<Vec<Finding>>(line.detail.clone()) else {
            continue;
        };
        last = line.at_ms;
        for finding in found.into_iter().filter(|finding| finding.severity > Severity::Note) {
            let severity = serde_json::to_value(finding.severity).unwrap_or_default();
            let key = (finding.code.clone(), finding.object.clone());
            let first_seen =
                seen.get(&key).map_or_else(|| time(last), |(first, _)| first.first_seen.clone());
            let report = FindingReport {
                severity: severity.as_str().unwrap_or_default().to_owned(),
                code: finding.code,
                object: finding.object,
                message: finding.message,
                fix: finding.fix,
                first_seen,
                last_seen: time(last),
                is_settled: false,
            };
            seen.insert(key, (report, last));
        }
    }
    let settled =
        |(report, at): (FindingReport, i64)| FindingReport { is_settled: at < last, ..report };
    seen.into_values().map(settled).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::runbook::Way;

    fn line(event: &str, at_ms: i64, detail: Value) -> JournalEntry {
        JournalEntry { at_ms, run: None, event: event.to_owned(), detail }
    }

    fn entry(step: Option<Step>, event: Event, at_ms: i64, detail: Value) -> Entry {
        Entry { at_ms, way: Way::Cutover, step, event, detail }
    }

    #[test]
    fn what_the_last_look_did_not_find_is_settled_and_notes_are_left_out() {
        let finding = |code: &str, severity: &str| json!({ "severity": severity, "code": code, "object": "o", "message": "m", "fix": null });
        let journal = [
            line(CHECKED, 1, json!([finding("slot-left", "warning"), finding("size", "note")])),
            line("other", 2, json!([])),
            line(
                CHECKED,
                3,
                json!([finding("slot-left", "warning"), finding("row-security", "blocking")]),
            ),
            line(CHECKED, 4, json!([finding("slot-left", "warning")])),
        ];
        let found = findings(&journal);
        let told: Vec<_> = found.iter().map(|one| (one.code.as_str(), one.is_settled)).collect();
        assert_eq!(told, [("row-security", true), ("slot-left", false)]);
        assert_eq!(
            (found[1].first_seen.as_str(), found[1].last_seen.as_str()),
            ("1970-01-01T00:00:00.001Z", "1970-01-01T00:00:00.004Z")
        );
    }

    #[test]
    fn a_step_that_a_killed_process_began_stands_there_twice_and_why_it_was_taken_back() {
        let fence = Some(Step::Fence);
        let attempts = attempts(&[
            entry(None, Event::Begun, 10, json!({})),
            entry(fence, Event::Begun, 11, json!({})),
            entry(fence, Event::Begun, 20, json!({})),
            entry(fence, Event::Failed, 25, json!({ "error": "no", "share": 0.5 })),
            entry(None, Event::TakingBack, 26, json!({ "because": "no" })),
            entry(None, Event::Aborted, 27, json!({})),
        ]);
        let [attempt] = &attempts[..] else { panic!("{attempts:?}") };
        assert_eq!((attempt.outcome, attempt.because.as_deref()), (Settled::TakenBack, Some("no")));
        let told: Vec<_> =
            attempt.steps.iter().map(|step| (step.outcome, step.duration_ms)).collect();
        assert_eq!(told, [(Settled::Open, None), (Settled::Failed, Some(5))]);
        assert_eq!(attempt.steps[1].detail["share"], "0.5");
    }
}
