//! What a run has shown, as one line of JSON, and a campaign as a table.
//!
//! **Invariant:** what was not measured is not printed as zero.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::plan::Profile;

/// Why a run is bad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What saw it: `promise`, `difference`, `exit`, `count`, `stuck`, `second instance`, `verify`, `rig`.
    pub seen_by: &'static str,
    /// What was seen.
    pub detail: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.seen_by, self.detail)
    }
}

/// The rows of both sides, compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Rows of the source that were compared.
    pub rows: u64,
    /// Rows that the target does not have.
    pub lost: u64,
    /// Rows that the target has more often.
    pub duplicated: u64,
    /// Rows of the target that the source does not have in that form.
    pub wrong: u64,
}

/// What the verifications of a run have found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Those that came to a verdict.
    pub verdicts: u64,
    /// Rows that they have read, of both sides together.
    pub rows: u64,
    /// For how long the stream stood for each.
    pub pauses: Vec<Duration>,
    /// How long each took.
    pub lengths: Vec<Duration>,
    /// Verdicts other than `identical` where nothing was planted, and rows that were named but not planted.
    pub false_alarms: u64,
    /// Differences that were planted and read.
    pub planted: u64,
    /// Of those, the ones that were called different and named row by row (of a lake: table by table), and no others.
    pub found: u64,
    /// Of those, the ones that `tidemark repair` has mended.
    pub repaired: u64,
    /// Verifications that were killed.
    pub killed: u64,
    /// Those that gave up: transactions of the source went on for too long, or a TRUNCATE waited for them.
    pub given_up: u64,
}

impl Verified {
    fn json(&self) -> Value {
        let millis = |all: &[Duration]| all.iter().map(Duration::as_millis).collect::<Vec<_>>();
        json!({
            "verdicts": self.verdicts,
            "rows": self.rows,
            "pause_ms": millis(&self.pauses),
            "length_ms": millis(&self.lengths),
            "false_alarms": self.false_alarms,
            "planted": self.planted,
            "found": self.found,
            "repaired": self.repaired,
            "killed": self.killed,
            "given_up": self.given_up,
        })
    }

    fn add(&mut self, other: &Self) {
        self.verdicts += other.verdicts;
        self.rows += other.rows;
        self.pauses.extend(&other.pauses);
        self.lengths.extend(&other.lengths);
        self.false_alarms += other.false_alarms;
        self.planted += other.planted;
        self.found += other.found;
        self.repaired += other.repaired;
        self.killed += other.killed;
        self.given_up += other.given_up;
    }
}

/// All that is known of one run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// What it was about.
    pub profile: Profile,
    /// How the follower was configured; empty where it has no such file.
    pub configuration: String,
    /// Whether the target was a lake.
    pub is_lake: bool,
    /// How many lanes applied.
    pub lanes: u32,
    /// How often several lanes were seen to have moved, and to stand apart.
    pub lane_moves: (u64, u64),
    /// Major version of both servers.
    pub version: u32,
    /// From start to end.
    pub took: Duration,
    /// Why it is bad; none for a good one.
    pub failure: Option<Failure>,
    /// How often each kind of fault happened.
    pub faults: BTreeMap<&'static str, u32>,
    /// Faults with their times and positions.
    pub events: Vec<String>,
    /// How often the follower was started again.
    pub restarts: u32,
    /// How often it ended how.
    pub exits: BTreeMap<String, u32>,
    /// Transactions that the storm committed.
    pub transactions: u64,
    /// Rows compared at the end; none when it did not come to that.
    pub verdict: Option<Verdict>,
    /// How often the promises were judged while it ran.
    pub glances: u64,
    /// From each kill until the position moved again.
    pub recoveries: Vec<Duration>,
    /// The follower's largest memory, where it is a process.
    pub peak_rss_kb: u64,
    /// The most WAL that the source kept.
    pub peak_wal_bytes: u64,
    /// The report of `--until now`.
    pub drained: Option<Value>,
    /// What its verifications have found, where it had any.
    pub verified: Option<Verified>,
    /// Where a failed run was kept.
    pub kept: Option<String>,
}

impl Outcome {
    /// The run as one object.
    pub fn json(&self) -> Value {
        let millis: Vec<u128> = self.recoveries.iter().map(Duration::as_millis).collect();
        let verdict = self.verdict.map(|v| {
            json!({"rows": v.rows, "lost": v.lost, "duplicated": v.duplicated, "wrong": v.wrong})
        });
        json!({
            "seed": self.seed,
            "outcome": if self.failure.is_none() { "good" } else { "bad" },
            "failure": self.failure.as_ref().map(ToString::to_string),
            "profile": format!("{:?}", self.profile).to_lowercase(),
            "configuration": self.configuration,
            "target": if self.is_lake { "lake" } else { "postgres" },
            "lanes_seen": (self.lanes > 1).then_some(json!({"moves": self.lane_moves.0, "apart": self.lane_moves.1})),
            "pg": self.version,
            "seconds": (self.took.as_secs_f64() * 10.0).round() / 10.0,
            "faults": self.faults,
            "restarts": self.restarts,
            "exits": self.exits,
            "transactions": self.transactions,
            "compared": verdict,
            "glances": self.glances,
            "recovery_ms": millis,
            "peak_rss_kb": (self.peak_rss_kb > 0).then_some(self.peak_rss_kb),
            "peak_wal_bytes": self.peak_wal_bytes,
            "until_now": self.drained,
            "verified": self.verified.as_ref().map(Verified::json),
            "events": if self.failure.is_some() { json!(self.events) } else { Value::Null },
            "kept": self.kept,
        })
    }
}

/// The table of a campaign.
pub(super) fn table(outcomes: &[Outcome]) -> String {
    let bad: Vec<u64> = outcomes.iter().filter(|o| o.failure.is_some()).map(|o| o.seed).collect();
    let sum = |of: &dyn Fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    let verdicts: Vec<Verdict> = outcomes.iter().filter_map(|outcome| outcome.verdict).collect();
    let total = |of: &dyn Fn(&Verdict) -> u64| verdicts.iter().map(of).sum::<u64>().to_string();
    let mut faults: BTreeMap<&str, u32> = BTreeMap::new();
    for outcome in outcomes {
        for (kind, count) in &outcome.faults {
            *faults.entry(kind).or_default() += count;
        }
    }
    let mut recoveries: Vec<Duration> =
        outcomes.iter().flat_map(|outcome| outcome.recoveries.clone()).collect();
    recoveries.sort_unstable();
    let verified = all_verified(outcomes);
    let mut rows = vec![
        ("seeds".to_owned(), outcomes.len().to_string()),
        (
            "bad seeds".to_owned(),
            if bad.is_empty() { "0".to_owned() } else { format!("{}: {bad:?}", bad.len()) },
        ),
        ("  in several lanes".to_owned(), count(outcomes, |o| o.lanes > 1)),
        ("  into a lake".to_owned(), count(outcomes, |o| o.is_lake)),
        ("faults".to_owned(), faults.values().sum::<u32>().to_string()),
    ];
    rows.extend(faults.iter().map(|(kind, count)| (format!("  {kind}"), count.to_string())));
    rows.extend([
        ("restarts of the follower".to_owned(), sum(&|o| u64::from(o.restarts)).to_string()),
        (
            "transactions verified".to_owned(),
            sum(&|o| if o.verdict.is_some() { o.transactions } else { 0 }).to_string(),
        ),
        ("rows verified".to_owned(), total(&|v| v.rows)),
        ("lost".to_owned(), total(&|v| v.lost)),
        ("duplicated".to_owned(), total(&|v| v.duplicated)),
        ("wrong".to_owned(), total(&|v| v.wrong)),
        ("states judged while running".to_owned(), sum(&|o| o.glances).to_string()),
        ("lanes seen to have moved".to_owned(), sum(&|o| o.lane_moves.0).to_string()),
        ("  and to stand apart".to_owned(), sum(&|o| o.lane_moves.1).to_string()),
        ("recovery after kill -9, p50 / p99 / max (kills)".to_owned(), percentiles(&recoveries)),
        ("peak memory of tidemark".to_owned(), largest(outcomes, |o| o.peak_rss_kb * 1024)),
        ("peak WAL kept by the source".to_owned(), largest(outcomes, |o| o.peak_wal_bytes)),
    ]);
    rows.extend(verified.as_ref().map(verified_rows).into_iter().flatten());
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    rows.iter().map(|(name, value)| format!("| {name:width$} | {value} |\n")).collect()
}

/// What all of them have verified; none where none has.
fn all_verified(outcomes: &[Outcome]) -> Option<Verified> {
    let mut each = outcomes.iter().filter_map(|outcome| outcome.verified.as_ref());
    let mut all = each.next()?.clone();
    each.for_each(|verified| all.add(verified));
    all.pauses.sort_unstable();
    all.lengths.sort_unstable();
    Some(all)
}

fn verified_rows(all: &Verified) -> Vec<(String, String)> {
    let number = |name: &str, value: u64| (name.to_owned(), value.to_string());
    vec![
        number("verifications under the storm", all.verdicts),
        number("  rows that they read", all.rows),
        number("  false alarms", all.false_alarms),
        number("  differences planted", all.planted),
        number("  and found, each row named and no other", all.found),
        number("  and mended by repair", all.repaired),
        number("  killed half-way", all.killed),
        number("  given up for a transaction or a TRUNCATE", all.given_up),
        ("  time of one, p50 / p99 / max".to_owned(), percentiles(&all.lengths)),
        ("  the stream stood for, p50 / p99 / max".to_owned(), percentiles(&all.pauses)),
    ]
}

fn count(outcomes: &[Outcome], of: impl Fn(&Outcome) -> bool) -> String {
    outcomes.iter().filter(|outcome| of(outcome)).count().to_string()
}

fn largest(outcomes: &[Outcome], of: impl Fn(&Outcome) -> u64) -> String {
    match outcomes.iter().map(of).max() {
        None | Some(0) => "not measured".to_owned(),
        Some(bytes) => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}

fn percentiles(sorted: &[Duration]) -> String {
    let at = |share: f64| {
        let index = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len());
        format!("{:.3}", sorted[index - 1].as_secs_f64())
    };
    match sorted.len() {
        0 => "not measured".to_owned(),
        count => format!("{} / {} / {} s ({count})", at(0.5), at(0.99), at(1.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let hundred: Vec<Duration> = (1..=100).map(|n| Duration::from_millis(n * 10)).collect();
        assert_eq!(percentiles(&hundred), "0.500 / 0.990 / 1.000 s (100)");
        assert_eq!(percentiles(&hundred[..1]), "0.010 / 0.010 / 0.010 s (1)");
        assert_eq!(percentiles(&[]), "not measured");
    }
}
