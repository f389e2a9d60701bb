//! A target of Parquet files, compared with the source at one position.
//!
//! **Invariant:** a table is called identical only where every file that the commits up to the position list was read to its
//! end, and the sum of the rows that they describe is the source's; a file that is not there, or cannot be read in full,
//! makes its table incomplete, and is named. Values are decoded here, from Arrow straight to the canonical form: nothing of
//! what wrote the lake takes part.
//!
//! ```text
//! exact: source snapshot at the barrier, stream held --> the last commit says the barrier --> stream goes on
//!   table: commits up to that one -> files of each table
//!     source: COPY -> digest, with the declared mappings          |  both at once
//!     merge: files (files) -> rows (rows, cells) -> the sum of the present rows
//!   naming: where the sums differ, both again -> what is kept of each row (body, text) -> the rows that differ
//! ```
//!
//! Files that commits list are removed by a `reset` only, which no job makes that follows; so the stream may go on while they
//! are read (`docs/adr/2026-11-21-how-a-lake-is-proven.md`).

mod body;
mod cells;
mod files;
mod merge;
mod naming;
mod pair;
mod rows;
mod table;
mod text;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use futures::{StreamExt as _, TryStreamExt as _};
use tidemark_digest::RowHasher;
use tidemark_model::{Lsn, Relation, RowSum};
use tidemark_pipeline::{Error, Held, Kind, Result};
use tidemark_report::{Level, Verdict};
use tidemark_sink::parquet::{Commit, Lake, Root};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::exact::{Stream, stand, taken_again, with_stream};
use crate::naming::{Excess, Named};
use crate::outcome::{Outcome, Point, SideReport, TableOutcome, side_report};
use crate::scan::{Take, Tools, plan_chunks, scan};
use crate::side::{Side, View};
use crate::{Reads, Request, Which};

use merge::{Merge, Merged};
use pair::{LakePair, Paired};

/// What keeps a table from being read.
#[derive(Debug)]
enum Trouble {
    /// Of this table nothing can be said, and why.
    Table(String),
    /// The verification ends.
    Run(Error),
    /// What is to be held does not fit into memory.
    Full,
}

impl Trouble {
    /// Why nothing can be said of a table.
    fn of_table(self) -> Result<String> {
        match self {
            Self::Table(because) => Ok(because),
            Self::Run(error) => Err(error),
            Self::Full => Ok("it does not fit into limits.memory".to_owned()),
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Run(error)
    }
}

/// Both sides at one position: the commit of the lake, and the source's snapshot.
struct Met {
    lsn: Lsn,
    pause: Duration,
    commit: Commit,
    source: View,
}

/// Compares a job's source with its lake.
pub(crate) async fn verify(
    request: &Request,
    root: Root,
    stop: &CancellationToken,
) -> Result<Outcome> {
    let began = Instant::now();
    let (job, lake) = (&request.job, Lake::new(root));
    if request.reads == Reads::Dirty {
        tracing::warn!("nothing is kept of the leaves of a lake: everything is read");
    }
    let application = format!("{}:verify", tidemark_model::names::application_name(&job.name));
    let how = (application.as_str(), job.lock_timeout);
    let source = Side::open(Which::Source, &job.source, how).await?;
    let first = first_commit(&lake, request, &source).await?;
    let tools = Tools::new(request, stop)?;
    let run = LakeRun { request, tools, source, lake, began };
    if request.level == Level::Schema {
        // No moment is needed for definitions.
        let last = run.lake.last().await?.unwrap_or(first);
        let paired = run.pair(&last, Lsn::new(u64::MAX)).await?;
        return Ok(run.outcome(paired, Vec::new(), &last, (None, None)));
    }
    let chosen = job.selection.apply(&run.source.catalog)?;
    let met = with_stream(
        job,
        stop,
        async { follows(&first, request) },
        async |stream: &Stream| run.meet(stream, chosen.clone()).await,
        async |met| Ok(met),
    );
    let Met { lsn, pause, commit, source, .. } = met.await?;
    let (at, since) = (SystemTime::now(), Instant::now());
    let paired = run.pair(&commit, lsn).await?;
    let mut found = run.read(&source, &paired, lsn).await?;
    run.name(&source, &paired, &mut found).await?;
    let moment = source.moment();
    source.release().await;
    let held = since.elapsed();
    let point = Point::Barrier { lsn, pause, at, held, earlier: Vec::new() };
    Ok(run.outcome(paired, found, &commit, (Some(point), Some(moment))))
}

/// The lake's first commit, if it is of this source.
async fn first_commit(lake: &Lake, request: &Request, source: &Side) -> Result<Commit> {
    let attempt = || format!("verify the lake {}", lake.root());
    if lake.last().await?.is_none() {
        return Err(Error::new(Kind::Usage, format!("{}: it has no snapshot yet", attempt()))
            .hint("let tidemark sync run until it follows"));
    }
    let first = lake.commit(0).await?;
    let (server, of) = (&source.catalog.server, &first.source);
    if first.job != request.job.name {
        return Err(Error::new(
            Kind::Usage,
            format!("{}: it belongs to job {:?}", attempt(), first.job),
        ));
    }
    if of.system_identifier != server.system_identifier.to_string()
        || of.database != server.database
    {
        let found = format!("database {:?} of cluster {}", of.database, of.system_identifier);
        return Err(Error::new(Kind::Usage, format!("{}: it was filled from {found}", attempt()))
            .hint("name the source that the job was made with"));
    }
    Ok(first)
}

/// A verification makes no copy: the job has to follow already.
fn follows(first: &Commit, request: &Request) -> Result<()> {
    if first.continues {
        return Ok(());
    }
    let attempt = format!(
        "verify both sides at one LSN: the lake of job {:?} is a snapshot that nothing follows",
        request.job.name
    );
    Err(Error::new(Kind::Usage, attempt)
        .hint("a lake is verified with the stream that fills it: make it with tidemark sync, without --snapshot-only"))
}

struct LakeRun<'a> {
    request: &'a Request,
    tools: Tools,
    source: Side,
    lake: Lake,
    began: Instant,
}

impl LakeRun<'_> {
    async fn pair(&self, commit: &Commit, lsn: Lsn) -> Result<Paired> {
        let tables = table::tables(&self.lake, commit.commit, lsn).await?;
        let members = self.lake.members(commit).await?.unwrap_or_default();
        pair::pair(self.request, &self.source, tables, &members).await
    }

    /// Brings the lake to a position at which the source's snapshot is.
    async fn meet(&self, stream: &Stream, tables: Vec<Relation>) -> Result<Met> {
        let reach = async |lsn: Lsn, mut held: Held| {
            held.up_to(lsn).await?;
            let last = self.lake.last().await?;
            Ok((lsn, last, held.open()))
        };
        let (snapshot, (lsn, last, pause)) =
            Box::pin(stand(&self.source, tables, stream, reach)).await?;
        if snapshot.lsn() != lsn {
            return Err(taken_again());
        }
        match last {
            // Beyond it, where the source had nothing for the lake in between: the stream stood.
            Some(commit) if commit.end_lsn >= lsn => {
                Ok(Met { lsn, pause, commit, source: self.source.shows(snapshot) })
            }
            _ => {
                let attempt = format!(
                    "bring both sides to one point: the last commit of the lake {} is before {lsn}",
                    self.lake.root()
                );
                Err(Error::new(Kind::Unavailable, attempt).hint("run the same command again"))
            }
        }
    }

    /// Reads both sides of all pairs.
    async fn read(&self, view: &View, paired: &Paired, lsn: Lsn) -> Result<Vec<Found>> {
        let pairs = &paired.pairs;
        let is_there =
            |pair: &LakePair| view.tables().iter().any(|table| table.oid == pair.relation.oid);
        let there: Vec<bool> = pairs.iter().map(is_there).collect();
        let sizes = view.tables().iter().map(|relation| relation.heap_bytes + relation.toast_bytes);
        let lake = pairs.iter().map(|pair| pair.table.bytes());
        self.tools.progress.begin_reading(sizes.sum::<u64>() + lake.sum::<u64>());
        let wanted = (0..).zip(pairs).map(|(number, pair)| (number, pair.relation.oid, None));
        let chunk = |pair: usize, number, range| pairs[pair].chunk(number, range);
        let pieces = plan_chunks(self.request, view, wanted, chunk);
        let summing = Summing::new(pairs, &self.tools);
        // Threads that read files are not dropped with the future that waits for them.
        let ended = self.tools.stop.child_token();
        let _ends_them = ended.clone().drop_guard();
        let of_lake = self.merge_all(pairs, &there, lsn, &ended);
        let ((), mut of_lake) =
            tokio::try_join!(scan(&self.tools, view, pieces, &summing), of_lake)?;
        let of_source = summing.sums.into_inner().expect("no holder panics");
        let both = of_source.into_iter().zip(there).enumerate();
        Ok(both
            .map(|(number, ((source, lossy), is_there))| Found {
                source,
                lossy,
                named: None,
                target: match is_there {
                    true => of_lake.remove(&number).unwrap_or_else(|| Err(String::new())),
                    false => Err("it was dropped or renamed on the source meanwhile".to_owned()),
                },
            })
            .collect())
    }

    /// The sums of the lake's tables, as many at a time as there are readers.
    async fn merge_all(
        &self,
        pairs: &[LakePair],
        there: &[bool],
        lsn: Lsn,
        stop: &CancellationToken,
    ) -> Result<HashMap<usize, Result<Merged, String>>> {
        let mut numbers: Vec<usize> = (0..pairs.len()).filter(|pair| there[*pair]).collect();
        numbers.sort_by_key(|pair| std::cmp::Reverse(pairs[*pair].table.bytes()));
        let at_once = self.tools.readers.max(1);
        // Once for keys and once for what is read; the other half is the source's.
        let room = self.request.job.memory / 4 / at_once as u64;
        let merges = numbers.into_iter().map(|number| async move {
            Ok((number, self.merge(&pairs[number], lsn, room, stop).await?))
        });
        futures::stream::iter(merges).buffer_unordered(at_once).try_collect().await
    }

    /// The sum of one table of the lake, or why there is none.
    async fn merge(
        &self,
        pair: &LakePair,
        lsn: Lsn,
        room: u64,
        stop: &CancellationToken,
    ) -> Result<Result<Merged, String>> {
        if let Some(trouble) = pair.trouble(lsn) {
            return Ok(Err(trouble));
        }
        match self.merging(pair, (Vec::new(), room), stop, |merge| merge.sum()).await {
            Ok(merged) => Ok(Ok(merged)),
            Err(trouble) => trouble.of_table().map(Err),
        }
    }

    /// Works with the rows of one table of the lake, on a thread that may block; `shown`: the columns whose text is wanted.
    async fn merging<T: Send + 'static>(
        &self,
        pair: &LakePair,
        (shown, room): (Vec<usize>, u64),
        stop: &CancellationToken,
        work: impl FnOnce(&Merge<'_>) -> Result<T, Trouble> + Send + 'static,
    ) -> Result<T, Trouble> {
        let current = Arc::new(Mutex::new(String::new()));
        let tools = Tools { stop: stop.clone(), ..self.tools.clone() };
        let (lake, runtime) = (self.lake.clone(), Handle::current());
        let (table, form, seen) = (pair.table.clone(), pair.form.clone(), Arc::clone(&current));
        let merging = tokio::task::spawn_blocking(move || {
            let merge = Merge {
                lake: &lake,
                tools: &tools,
                table: &table,
                form: &form,
                key: &tools.key,
                shown: &shown,
                room,
                runtime: &runtime,
                current: &seen,
            };
            work(&merge)
        });
        merging.await.unwrap_or_else(|_| Err(merge::died(&current)))
    }

    /// Names the rows of the pairs that differ, while the source's snapshot shows what was read.
    async fn name(&self, view: &View, paired: &Paired, found: &mut [Found]) -> Result<()> {
        if !self.request.level.reads_rows() {
            return Ok(());
        }
        for (number, (pair, found)) in paired.pairs.iter().zip(found).enumerate() {
            let Ok(target) = &found.target else { continue };
            if found.source == target.sum {
                continue;
            }
            let expected = Excess::between(found.source, target.sum);
            found.named = Some(match naming::name(self, view, (number, pair), expected).await {
                Ok(named) => Ok(named),
                Err(trouble) => Err(trouble.of_table()?),
            });
        }
        Ok(())
    }

    fn outcome(
        self,
        paired: Paired,
        found: Vec<Found>,
        commit: &Commit,
        (point, moment): (Option<Point>, Option<(Lsn, String)>),
    ) -> Outcome {
        let level = self.request.level;
        let lsn = moment.as_ref().map(|(lsn, _)| *lsn);
        let mut found = found.into_iter();
        let tables = paired.pairs.iter().map(|pair| match found.next() {
            Some(found) => found.outcome(pair, (level, lsn)),
            None => unread(pair),
        });
        let mut tables: Vec<TableOutcome> = tables.collect();
        tables.sort_by(|one, other| one.name.cmp(&other.name));
        let target = SideReport {
            version: format!("lake format {}, commit {}", commit.format_version, commit.commit),
            system_identifier: None,
            database: None,
            lsn: Some(commit.end_lsn),
            read_snapshot: None,
        };
        Outcome {
            level,
            point,
            source: side_report(&self.source, moment),
            target,
            tables,
            alone: paired.alone,
            skipped: paired.skipped,
            findings: paired.findings,
            key_id: self.tools.key.id(),
            duration: self.began.elapsed(),
        }
    }
}

/// What was found of a pair.
struct Found {
    source: RowSum,
    /// Rows of the source with a value that the lake has no form for.
    lossy: u64,
    target: Result<Merged, String>,
    /// The rows that differ, or why they are not all named; none where they were not looked for.
    named: Option<Result<Named, String>>,
}

impl Found {
    fn outcome(self, pair: &LakePair, (level, lsn): (Level, Option<Lsn>)) -> TableOutcome {
        let mut outcome = TableOutcome { readings: 1, lsn, source: self.source, ..unread(pair) };
        let Merged { sum: target, notes } = match self.target {
            Ok(merged) => merged,
            Err(because) => {
                (outcome.because, outcome.readings) = (Some(because), 0);
                return outcome;
            }
        };
        let source = self.source;
        (outcome.target, outcome.leaves) = (target, vec![(source, target)]);
        outcome.lossy = level.reads_rows().then_some(self.lossy);
        let notes = (!notes.is_empty()).then(|| notes.join("; "));
        let is_same = source.count == target.count && source.value == target.value;
        (outcome.verdict, outcome.because) = match () {
            () if pair.is_other => {
                (Verdict::Different, Some("its columns are not the same".to_owned()))
            }
            () if !is_same => (Verdict::Different, notes),
            () if notes.is_some() => (Verdict::Incomplete, notes),
            () if level == Level::Count => (Verdict::Incomplete, None),
            () if source == target && self.lossy == 0 => (Verdict::Identical, None),
            () => (Verdict::Equivalent, None),
        };
        if !is_same {
            outcome.different = vec![0];
        }
        (outcome.named, outcome.unnamed) = match self.named {
            Some(Ok(named)) => (Some(named), None),
            Some(Err(because)) => {
                let notes = outcome.because.as_ref();
                let notes = notes.map_or(String::new(), |notes| format!("; {notes}"));
                (None, Some(format!("{because}{notes}")))
            }
            None => ((level.reads_rows() && source == target).then(Named::default), None),
        };
        outcome
    }
}

/// A pair of which no row was read.
fn unread(pair: &LakePair) -> TableOutcome {
    let verdict = if pair.is_other { Verdict::Different } else { Verdict::Incomplete };
    TableOutcome {
        name: pair.relation.name.clone(),
        verdict,
        because: None,
        source: RowSum::default(),
        target: RowSum::default(),
        leaves: Vec::new(),
        different: Vec::new(),
        unsettled: Vec::new(),
        readings: 0,
        oldest_leaf: None,
        last_proven: None,
        lsn: None,
        key_columns: {
            let name = |at: &usize| pair.form.columns[*at].name.clone();
            pair.named_by.iter().map(name).collect()
        },
        named: None,
        unnamed: None,
        lossy: None,
    }
}

/// Sums the source's rows.
struct Summing<'a> {
    pairs: &'a [LakePair],
    tools: &'a Tools,
    /// With the rows that have values which the lake has no form for.
    sums: Mutex<Vec<(RowSum, u64)>>,
}

impl<'a> Summing<'a> {
    fn new(pairs: &'a [LakePair], tools: &'a Tools) -> Self {
        Self { pairs, tools, sums: Mutex::new(vec![<(RowSum, u64)>::default(); pairs.len()]) }
    }
}

impl Take for Summing<'_> {
    type Chunk = RowHasher;

    fn begin(&self, _: Which, pair: usize) -> Result<RowHasher> {
        self.pairs[pair].hasher(&self.tools.key)
    }

    fn end(&self, _: Which, pair: usize, hasher: RowHasher) -> Result<()> {
        let mut sums = self.sums.lock().expect("no holder panics");
        let (sum, lossy) = &mut sums[pair];
        *sum += hasher.sum();
        *lossy += hasher.replaced_rows();
        Ok(())
    }
}
