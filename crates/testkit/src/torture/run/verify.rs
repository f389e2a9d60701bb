//! Verifications in turn while the storm blows, of what is the same and of what has a planted difference.
//!
//! **Invariant:** a verdict other than `identical` where nothing was planted is a bad run. So is one that does not call a
//! planted difference different, or that names another row, or not each. What was planted is taken away before the next one,
//! by `tidemark repair` or by the rig, and the next one must be identical.
//!
//! An alarm ends the verifications, not the run: at the end the oracle says whether it was a false one.

use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use super::super::follower::Ended;
use super::super::report::{Failure, Verified};
use super::super::rig::DATABASE;
use super::plant::{Plant, short};
use super::{Run, Step, rig_error};

/// Keeps these random numbers apart from the plan's.
const SALT: u64 = 0x7665_7269_6679;
/// So many come to a verdict, whatever the time.
const VERDICTS_MIN: u64 = 4;
/// One that takes longer is stuck.
const ENDS_WITHIN: Duration = Duration::from_secs(240);
/// So many in a row may give up.
const GIVEN_UP_MAX: u32 = 12;
/// How long the servers may take to end the sessions of one that was killed.
const ENDED_WITHIN: Duration = Duration::from_secs(60);

/// Lets them follow each other until the time of the plan is over.
pub(super) fn in_turn(run: &mut Run<'_>) -> Step {
    run.verified = Some(Verified::default());
    let mut random = StdRng::seed_from_u64(run.trial.seed ^ SALT);
    let until = Instant::now() + run.plan.length;
    let mut is_planted = false;
    while run.alarm.is_none() && (counted(run).verdicts < VERDICTS_MIN || Instant::now() < until) {
        if random.random_ratio(1, 8) {
            killed(run, &mut random)?;
        }
        match is_planted {
            true => planted(run, &mut random)?,
            false => undisturbed(run, &mut random)?,
        }
        is_planted = !is_planted;
    }
    nothing_is_left(run)
}

fn counted<'a>(run: &'a mut Run<'_>) -> &'a mut Verified {
    run.verified.get_or_insert_default()
}

/// How deep, how wide and how fast, by chance.
fn arguments(run: &Run<'_>, random: &mut StdRng) -> Vec<String> {
    let mut one = |of: &[&'static str]| of[random.random_range(0..of.len())];
    let report = run.rig.path().join("report").display().to_string();
    let mut arguments = vec!["verify", "--redact", "none", "--level", one(&["digest", "rows"])];
    match one(&["", "1", "2", "4"]) {
        "" => {}
        jobs => arguments.extend(["--jobs", jobs]),
    }
    match one(&["", "", "40MiB", "100MiB"]) {
        "" => {}
        rate => arguments.extend(["--rate", rate]),
    }
    let arguments = arguments.into_iter().map(str::to_owned);
    arguments.chain(["--report".to_owned(), report]).collect()
}

/// A verdict, and what it is of.
struct Found {
    how: String,
    ended: Ended,
    report: Value,
    /// As [`short`] writes them, sorted.
    lines: Vec<String>,
}

impl Found {
    fn read(run: &Run<'_>, how: String, ended: Ended) -> anyhow::Result<Self> {
        let directory = run.rig.path().join("report");
        let read = |name: &str| {
            fs::read_to_string(directory.join(name)).with_context(|| format!("read {name}"))
        };
        let lines: Result<Vec<Value>, _> =
            read("diff.ndjson")?.lines().map(serde_json::from_str).collect();
        let mut lines: Vec<String> = lines?.iter().map(short).collect();
        lines.sort();
        Ok(Self { how, ended, report: serde_json::from_str(&read("report.json")?)?, lines })
    }

    fn tables(&self) -> impl Iterator<Item = &Value> {
        self.report["tables"].as_array().into_iter().flatten()
    }

    /// What is not as it must be where nothing was planted.
    fn is_no_identity(&self) -> Option<String> {
        let is_good = self.ended == Ended::Code(0)
            && self.report["verdict"] == "identical"
            && self.lines.is_empty();
        (!is_good).then(|| format!("not identical although nothing was planted: {}", self.told()))
    }

    /// What is not as it must be with this difference.
    fn misses(&self, plant: &Plant, is_lake: bool) -> Option<String> {
        let others = self.tables().filter(|table| table["table"] != plant.table.as_str());
        let mut others = others.filter(|table| table["verdict"] != "identical");
        let of_it = self.tables().find(|table| table["table"] == plant.table.as_str());
        // Rows of a lake need not be named.
        let may_be_unnamed = is_lake
            && of_it.is_some_and(|table| table["missing"].is_null())
            && self.lines.is_empty();
        let is_good = self.ended == Ended::Code(1)
            && of_it.is_some_and(|table| table["verdict"] == "different")
            && others.next().is_none()
            && (self.lines == plant.lines || may_be_unnamed);
        let planted = || format!("{} in {}, {:?}", plant.what, plant.table, plant.lines);
        (!is_good).then(|| format!("planted: {}; found: {}", planted(), self.told()))
    }

    fn told(&self) -> String {
        let tables = self.tables().filter(|table| table["verdict"] != "identical");
        let tables: Vec<String> = tables
            .map(|table| {
                format!("{} {} {}", table["table"], table["verdict"], table["skipped_reason"])
            })
            .collect();
        let lines: Vec<&String> = self.lines.iter().take(20).collect();
        format!(
            "{} ended with {:?}, {} at {}\n{}\n{} lines: {lines:?}",
            self.how,
            self.ended,
            self.report["verdict"],
            self.report["lsn"],
            tables.join("\n"),
            self.lines.len()
        )
    }
}

/// Nothing is planted: whatever is not identical is an alarm.
fn undisturbed(run: &mut Run<'_>, random: &mut StdRng) -> Step {
    let found = verdict(run, random)?;
    if let Some(wrong) = found.is_no_identity() {
        alarm(run, wrong);
        counted(run).false_alarms += 1;
    }
    Ok(())
}

/// A difference is there until it was read, and gone before the next one.
fn planted(run: &mut Run<'_>, random: &mut StdRng) -> Step {
    let lake = run.follower.questions().lake;
    let plant = Plant::any(random, run.rig).map_err(rig_error)?;
    run.event(&format!("planted: {} in {}", plant.what, plant.table));
    let undo = plant.put(run.rig, lake.as_deref()).map_err(rig_error)?;
    let found = verdict(run, random)?;
    counted(run).planted += 1;
    match found.misses(&plant, lake.is_some()) {
        Some(wrong) => {
            let strange = found.lines.iter().any(|line| !plant.lines.contains(line));
            counted(run).false_alarms += u64::from(strange);
            alarm(run, wrong);
        }
        None => counted(run).found += 1,
    }
    if lake.is_none() && plant.can_be_repaired && run.alarm.is_none() && random.random() {
        return repaired(run);
    }
    plant.take_away(run.rig, undo).map_err(rig_error)
}

/// Lets the report be repaired, while the stream goes on.
fn repaired(run: &mut Run<'_>) -> Step {
    let report = run.rig.path().join("report").display().to_string();
    for _ in 0..GIVEN_UP_MAX {
        let ended = ended(run, &["repair", &report, "--apply"])?;
        match ended {
            Ended::Code(0) => {
                run.event("repaired");
                counted(run).repaired += 1;
                return Ok(());
            }
            Ended::Code(8) => counted(run).given_up += 1,
            other => {
                let detail = format!("repair ended with {other:?}\n{}", run.follower.said());
                return Err(Failure { seen_by: "verify", detail });
            }
        }
    }
    Err(none_came_to_an_end(run))
}

/// A verification that comes to a verdict; those that give up are counted.
fn verdict(run: &mut Run<'_>, random: &mut StdRng) -> Step<Found> {
    for _ in 0..GIVEN_UP_MAX {
        let arguments = arguments(run, random);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let began = Instant::now();
        let ended = ended(run, &arguments)?;
        let how = arguments[3..arguments.len() - 2].join(" ");
        run.event(&format!("verify {how} ended with {ended:?}"));
        match ended {
            Ended::Code(0 | 1 | 3 | 4) => {
                let found = Found::read(run, how, ended).map_err(rig_error)?;
                count(counted(run), &found, began.elapsed());
                return Ok(found);
            }
            Ended::Code(8) => counted(run).given_up += 1,
            other => {
                let detail = format!("verify {how} ended with {other:?}\n{}", run.follower.said());
                return Err(Failure { seen_by: "verify", detail });
            }
        }
    }
    Err(none_came_to_an_end(run))
}

fn count(verified: &mut Verified, found: &Found, length: Duration) {
    verified.verdicts += 1;
    verified.lengths.push(length);
    let barriers = found.report["point"]["barriers"].as_array().into_iter().flatten();
    let pauses = barriers.filter_map(|barrier| barrier["pause_ms"].as_u64());
    verified.pauses.extend(pauses.map(Duration::from_millis));
    for table in found.tables() {
        let rows = ["source_rows", "target_rows"].map(|side| table[side].as_u64().unwrap_or(0));
        verified.rows += rows.iter().sum::<u64>();
    }
}

/// One that is killed somewhere on its way: the stream must go on as if it had never been.
fn killed(run: &mut Run<'_>, random: &mut StdRng) -> Step {
    let arguments = arguments(run, random);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut child = start(run, &arguments)?;
    let length = Duration::from_millis(random.random_range(20..2_500));
    let held = run.until(length, |_, _| matches!(child.try_wait(), Ok(Some(_))));
    // It may have come to its end.
    child.kill().ok();
    child.wait().ok();
    held?;
    run.event(&format!("a verification was killed after {length:?}"));
    counted(run).killed += 1;
    let head = run.head()?;
    run.wait("go on after a verification was killed", |seen| seen.position >= head)
}

fn start(run: &mut Run<'_>, arguments: &[&str]) -> Step<Child> {
    let child = run.follower.command(arguments).map_err(rig_error)?;
    child.ok_or_else(|| Failure {
        seen_by: "rig",
        detail: "this follower has no other commands".to_owned(),
    })
}

/// Runs a command to its end, and tends the follower meanwhile.
fn ended(run: &mut Run<'_>, arguments: &[&str]) -> Step<Ended> {
    let mut child = start(run, arguments)?;
    let mut status = None;
    let waited = run.until(ENDS_WITHIN, |_, _| {
        status = child.try_wait().ok().flatten();
        status.is_some()
    });
    if status.is_none() {
        child.kill().ok();
        child.wait().ok();
    }
    waited?;
    status.map(Ended::from).ok_or_else(|| {
        let what = arguments[0];
        let detail = format!("{what} does not end within {ENDS_WITHIN:?}\n{}", run.follower.said());
        Failure { seen_by: "stuck", detail }
    })
}

fn alarm(run: &mut Run<'_>, wrong: String) {
    run.event(&wrong);
    run.alarm = Some(Failure { seen_by: "verify", detail: wrong });
}

fn none_came_to_an_end(run: &Run<'_>) -> Failure {
    let said = run.follower.said();
    let detail = format!("{GIVEN_UP_MAX} verifications in a row gave up\n{said}");
    Failure { seen_by: "stuck", detail }
}

/// No slot and no session of a verification is on a server, and the follower was in none's way.
fn nothing_is_left(run: &mut Run<'_>) -> Step {
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE temporary";
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'tidemark%:verify'";
    let rig = run.rig;
    let is_gone = |sql: &str, cluster: &crate::Cluster| {
        cluster.psql(DATABASE, sql).is_ok_and(|count| count == "0")
    };
    let are_gone = run.until(ENDED_WITHIN, |_, _| {
        is_gone(slots, &rig.source)
            && is_gone(sessions, &rig.source)
            && is_gone(sessions, &rig.target)
    })?;
    if !are_gone {
        let detail = "a slot or a session of a verification is left".to_owned();
        return Err(Failure { seen_by: "verify", detail });
    }
    if run.restarts > 0 {
        let detail = format!("the follower ended beside a verification\n{}", run.follower.said());
        return Err(Failure { seen_by: "exit", detail });
    }
    Ok(())
}
