//! Shows on the user's own data and servers that a verification finds what it has to.
//!
//! **Invariant:** what compares the copies is what `verify` runs: the same pairs, hashers, scans, readings and naming. A
//! mutation counts as found only with the verdict, the numbers of rows, and, where rows have a key, the rows and the column
//! that were planted; an untouched copy has to be identical. The source is only read, no table of a user is written to, and no
//! value is told.
//!
//! ```text
//! source: a sample ──COPY──> target: schema tidemark_selftest_<job>
//!     each mutation, in each sample that lets it be planted (else in a table of our own) -> one_N, other_N
//!         some of them at a time -> Run, as of two databases that stand still -> judged -> dropped
//! ```

mod mutation;
mod plant;
mod sample;
mod scratch;
#[cfg(test)]
mod tests;

pub use scratch::cleanup_selftest;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark_model::RelationName;
use tidemark_pipeline::{Error, Job, Kind, PostgresTarget, Result, Target};
use tidemark_report::{DiffCounts, DiffKind, Level, Redaction, Redactor, Verdict};
use tidemark_source::read_catalog;
use tokio_util::sync::CancellationToken;

use crate::outcome::{Outcome, TableOutcome};
use crate::pair::{Pair, Paired};
use crate::run::Run;
use crate::scan::interrupted;
use crate::side::Side;
use crate::{Lines, Request, Skipped, Which, quiesced};
use mutation::{MUTATIONS, Mutation};
use plant::{Planted, Planter, keys_of, tables};
use sample::Sample;
use scratch::Scratch;

/// Copies that are there at a time, so that neither disk nor the server's table of locks is filled.
const AT_A_TIME: usize = 60;

/// What came of a self-test.
#[derive(Debug)]
pub struct Selftest {
    /// Every mutation.
    pub mutations: Vec<Tried>,
    /// The tables that a sample was taken of, with its rows.
    pub tables: Vec<(RelationName, u64)>,
    /// Those that none could be taken of, and why.
    pub left_out: Vec<Skipped>,
    /// Pairs of copies that were compared.
    pub copies: u64,
    /// From the first connection to the last row.
    pub duration: Duration,
}

/// What came of one mutation.
#[derive(Debug)]
pub struct Tried {
    /// Its name, for scripts.
    pub name: &'static str,
    /// What it does.
    pub says: &'static str,
    /// The tables in whose sample it was planted; `None` is the table of our own.
    pub tables: Vec<Option<RelationName>>,
    /// In which of them it was not found.
    pub missed: Vec<Missed>,
}

/// A mutation that was not found, or not as what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missed {
    /// The table whose sample it was planted in; `None` is the table of our own.
    pub table: Option<RelationName>,
    /// The column.
    pub column: Option<String>,
    /// What had to be found.
    pub expected: String,
    /// What was.
    pub found: String,
}

impl Selftest {
    /// Whether every mutation was tried, and found wherever it was planted.
    pub fn found_all(&self) -> bool {
        self.mutations.iter().all(|tried| tried.missed.is_empty())
    }

    /// Mutations that could be planted nowhere: the target's encoding has no form for them.
    pub fn untried(&self) -> impl Iterator<Item = &Tried> {
        self.mutations.iter().filter(|tried| tried.tables.is_empty())
    }
}

/// Copies a sample to the target, plants every mutation, and looks whether it is found. Of the request only the job, the
/// readers and the progress are of importance.
///
/// # Errors
/// The target is no PostgreSQL or lacks the right to make a schema, a side cannot be reached or read, or another self-test of
/// the job runs. What was made is dropped.
///
/// # Cancel safety
/// A dropped future leaves the schema there; the next self-test drops it, or [`cleanup_selftest`].
pub async fn selftest(request: &Request, stop: &CancellationToken) -> Result<Selftest> {
    Box::pin(tested(request, stop, &|_| {})).await
}

/// The same by an engine that was tampered with.
async fn tested(
    request: &Request,
    stop: &CancellationToken,
    tamper: &(dyn Fn(&mut Pair) + Sync),
) -> Result<Selftest> {
    let Target::Postgres(target) = &request.job.target else {
        let message =
            "verify selftest: the target is a lake, and the copies are made in a PostgreSQL";
        return Err(Error::new(Kind::Usage, message).hint(
            "name one for them with --target: any database that has the source's types will do",
        ));
    };
    let began = Instant::now();
    let application =
        format!("{}:verify", tidemark_model::names::application_name(&request.job.name));
    let source =
        Side::open(Which::Source, &request.job.source, (&application, request.job.lock_timeout))
            .await?;
    let scratch = Scratch::open(&target.spec, &request.job.name).await?;
    let bench = Bench { request: inner(request, target), application, scratch, stop, tamper };
    let tested = Box::pin(bench.test(request, &source)).await;
    let closed = bench.scratch.close().await;
    let mut tested = tested?;
    closed?;
    tested.duration = began.elapsed();
    Ok(tested)
}

/// What compares the copies: two databases that stand still, which are one here.
fn inner(request: &Request, target: &PostgresTarget) -> Request {
    let job = Job { source: target.spec.clone(), tables: Vec::new(), ..request.job.clone() };
    // Keys are compared with those that were planted, and shown to nobody.
    let lines = Lines::new(Box::new(std::io::sink()), Redactor::new(Redaction::None, [0; 32]));
    Request {
        readers: request.readers,
        progress: Arc::clone(&request.progress),
        ..Request::new(job, Level::Rows, lines)
    }
}

struct Bench<'a> {
    request: Request,
    application: String,
    scratch: Scratch,
    stop: &'a CancellationToken,
    tamper: &'a (dyn Fn(&mut Pair) + Sync),
}

/// A mutation in a sample.
struct Case<'a> {
    mutation: usize,
    sample: &'a Sample,
    planted: Planted,
}

impl Bench<'_> {
    async fn test(&self, request: &Request, source: &Side) -> Result<Selftest> {
        let (samples, left_out) = sample::take(request, source, &self.scratch).await?;
        let own =
            sample::own(&self.scratch, async || Ok(read_catalog(&self.scratch.client).await?))
                .await?;
        let mut tested = Selftest {
            mutations: MUTATIONS.iter().map(Tried::new).collect(),
            tables: samples
                .iter()
                .filter_map(|sample| Some((sample.of.clone()?, sample.rows)))
                .collect(),
            left_out,
            copies: 0,
            duration: Duration::ZERO,
        };
        let cases = self.cases(&samples, &own).await?;
        tested.copies = cases.len() as u64;
        for some in cases.chunks(AT_A_TIME) {
            self.compare(some, &mut tested).await?;
        }
        Ok(tested)
    }

    /// Where each mutation is planted: in every sample that lets it be, or else in our own table.
    async fn cases<'b>(&self, samples: &'b [Sample], own: &'b Sample) -> Result<Vec<Case<'b>>> {
        let mut cases = Vec::new();
        for (number, mutation) in MUTATIONS.iter().enumerate() {
            let before = cases.len();
            for sample in samples.iter().chain([own]) {
                if self.stop.is_cancelled() {
                    return Err(interrupted());
                }
                if sample.of.is_none() && cases.len() > before {
                    continue;
                }
                let planter = Planter { scratch: &self.scratch, sample };
                let planted = Box::pin(planter.plan(mutation)).await?;
                cases.extend(planted.map(|planted| Case { mutation: number, sample, planted }));
            }
        }
        Ok(cases)
    }

    /// Makes the copies of these, compares them and drops them.
    async fn compare(&self, cases: &[Case<'_>], tested: &mut Selftest) -> Result<()> {
        for (number, case) in cases.iter().enumerate() {
            let planter = Planter { scratch: &self.scratch, sample: case.sample };
            planter.make(&case.planted, number).await?;
        }
        let outcome = Box::pin(self.verify(cases.len())).await?;
        for (number, case) in cases.iter().enumerate() {
            let name = format!("one_{number}");
            let found = outcome.tables.iter().find(|table| table.name.name == name);
            let found = found.ok_or_else(|| gone(&name))?;
            let keys = keys_of(&self.scratch, case.sample, &case.planted).await?;
            let tried = &mut tested.mutations[case.mutation];
            tried.tables.push(case.sample.of.clone());
            tried.missed.extend(case.judge(found, &keys));
        }
        let tables: Vec<String> =
            (0..cases.len()).flat_map(|number| tables(&self.scratch, number)).collect();
        self.scratch.drop_tables(&tables).await
    }

    /// Verifies `one_N` against `other_N`.
    async fn verify(&self, pairs: usize) -> Result<Outcome> {
        let (job, schema) = (&self.request.job, &self.scratch.schema);
        let how = (self.application.as_str(), job.lock_timeout);
        let one = Side::open(Which::Source, &job.source, how).await?;
        let other = Side::open(Which::Target, &job.source, how).await?;
        let mut bounds = one.bounds().await?;
        let mut paired = Paired::default();
        for number in 0..pairs {
            let relation = |side: &Side, word: &str| {
                let name = RelationName::new(schema, format!("{word}_{number}"));
                side.catalog.relation(&name).cloned().ok_or_else(|| gone(&name.name))
            };
            let both = (&relation(&one, "one")?, &relation(&other, "other")?);
            let mut pair =
                Pair::new(job, self.request.level, both, &mut bounds, &mut paired.findings)?;
            (self.tamper)(&mut pair);
            paired.pairs.push(pair);
        }
        let run = Run::of(&self.request, self.stop, (one, other), paired)?;
        Box::pin(quiesced::compare(run)).await
    }
}

impl Tried {
    fn new(mutation: &Mutation) -> Self {
        Self { name: mutation.name, says: mutation.says, tables: Vec::new(), missed: Vec::new() }
    }
}

/// The text of a key, by column.
type Key = Vec<(String, String)>;

impl Case<'_> {
    /// Nothing if what was planted is what was found.
    fn judge(&self, found: &TableOutcome, keys: &[(DiffKind, Key)]) -> Option<Missed> {
        let Planted { verdict, rows, column, .. } = &self.planted;
        let column = column.map(|at| self.sample.columns[at].name.clone());
        let missed = |what: &str| Missed {
            table: self.sample.of.clone(),
            column: column.clone(),
            expected: told(*verdict, *rows),
            found: match &found.named {
                _ if !what.is_empty() => what.to_owned(),
                Some(named) => told(found.verdict, named.rows),
                None => format!("{}, which rows is not known", found.verdict.word()),
            },
        };
        let named = found.named.as_ref();
        if found.verdict != *verdict || named.is_none_or(|named| named.rows != *rows) {
            return Some(missed(""));
        }
        if self.planted.is_equal_by_sums && found.source.value != found.target.value {
            return Some(missed("different by the sums"));
        }
        let named = named?;
        let has_key = |(kind, key): &(DiffKind, Key)| {
            named.examples.iter().any(|(found, shown)| {
                let is_same = |(column, text): &(String, String)| {
                    shown.columns().any(|(of, value)| of == column && value.as_text() == *text)
                };
                found == kind && key.iter().all(is_same)
            })
        };
        if !keys.iter().all(has_key) {
            return Some(missed("another row"));
        }
        let columns: Vec<&str> = named.columns.iter().map(|found| found.column.as_str()).collect();
        let is_told = self.planted.is_keyed && column.is_some();
        (is_told && columns != column.iter().map(String::as_str).collect::<Vec<_>>())
            .then(|| missed("another column"))
    }
}

/// A verdict and the numbers of rows, for people.
fn told(verdict: Verdict, rows: DiffCounts) -> String {
    let kinds = [
        (DiffKind::Missing, rows.missing),
        (DiffKind::Extra, rows.extra),
        (DiffKind::Changed, rows.changed),
        (DiffKind::Equivalent, rows.equivalent),
    ];
    let counts = kinds.into_iter().filter(|(_, rows)| *rows > 0);
    counts.fold(verdict.word().to_owned(), |text, (kind, rows)| {
        format!("{text}, {rows} {}", kind.word())
    })
}

fn gone(table: &str) -> Error {
    Error::new(Kind::TargetRefused, format!("verify selftest: table {table} of its schema is gone"))
        .hint("somebody dropped it; run the same command again")
}
