//! What a source without a slot has that the target has not, found by reading the source once.
//!
//! **Invariant:** a table's rows on the target and the file that tells of them change together: the file of a generation is
//! whole before the target's transaction names that generation, and a file of another generation is never compared with. So
//! whatever dies when, the next run knows what the target has, or says that it does not. The hashes of rows are kept, their
//! values never.
//!
//! ```text
//! plan ── gather: every row once, by several readers ── code of the key, hash, place, sorted (runs)
//!           └ classify: merged with the file of the last run, or with the target's rows
//!               └ write: rows that go; rows that come, read again by their places ── one transaction with the generation
//! ```
//!
//! PostgreSQL manual: 9.27.5 (exported snapshots), 5.5.1 (`ctid`); why it is so: the ADR on a delta.

mod classify;
mod gather;
mod plan;
mod reconcile;
mod report;
mod runs;
mod write;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use tidemark_digest::DigestKey;
use tidemark_ledger::{KnownRow, Ledger, NewRows, RowFiles};
use tidemark_model::RelationName;
use tidemark_model::names::application_name;
use tidemark_pipeline::{Error, Job, Kind, PostgresTarget, Result, Target, Triggers, blocking};
use tidemark_report::Level;
use tidemark_sink::postgres::DeltaTarget;
use tidemark_verify::{
    Bounds, Lines, Pair, Paired, Piece, Progress, Side, Spill, Tools, View, Which, pair, scan,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use classify::{Base, Classify, Counts, Found, Gone, Passes, Put, Row};
use gather::{Gather, Gathered, ReadBy};
use plan::{Planning, Table, left_out};
use runs::{Sorted, Sorter};
use write::{Findings, GONE_AT_ONCE, Goes, Work, Writing};

pub use classify::{Action, Actions, Class};
pub use reconcile::Reconciler;
pub use report::{ClassDelta, ComparedWith, DeltaReport, TableDelta};

/// What messages say before "the source".
const DOING: &str = "delta of";

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Request {
    /// Both sides, the selection, filters, the memory.
    pub job: Job,
    /// What becomes of each class.
    pub actions: Actions,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Compare with the target's rows.
    pub scan_target: bool,
    /// For whoever watches.
    pub progress: Arc<Progress>,
}

/// Finds what is new, modified, deleted, failed before or newly un-filtered, and moves what is to be moved.
///
/// # Errors
/// A side cannot be reached or read, or another instance has the job. Tables that were moved before stay moved. What the target
/// refuses of a table is no error but told of in the report.
///
/// # Cancel safety
/// Safe: the transaction of the table that was being moved is undone.
pub async fn delta(request: &Request, stop: &CancellationToken) -> Result<DeltaReport> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(Error::new(Kind::Interrupted, "interrupted: not every table was moved")
            .hint("run the same command again: tables that were moved stay so")),
        done = Box::pin(run(request)) => done,
    }
}

/// Forgets what was moved of these tables: the next run takes every row for new. Gives those that were known.
///
/// # Errors
/// Another instance has the job, or the target cannot be reached.
pub async fn forget(job: &Job, tables: &[RelationName]) -> Result<Vec<RelationName>> {
    let Target::Postgres(target) = &job.target else { return Ok(Vec::new()) };
    let (_ledger, files) = hold(job).await?;
    let mut has_files = Vec::new();
    for table in tables {
        if files.has_any(table)? {
            has_files.push(table.clone());
        }
    }
    let mut known = match DeltaTarget::open(&target.spec, &job.name, (Triggers::AsIs, false)).await
    {
        Ok(there) => there.forget(tables).await?,
        // A job that runs has no files of a delta.
        Err(_) if has_files.is_empty() => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    for table in has_files {
        files.keep_only(&table, None)?;
        if !known.contains(&table) {
            known.push(table);
        }
    }
    Ok(known)
}

/// Takes the state directory.
async fn hold(job: &Job) -> Result<(Ledger, RowFiles)> {
    let (state_dir, name) = (job.state_dir.clone(), job.name.clone());
    let held = blocking(move || {
        let ledger = Ledger::open(&state_dir, &name)?;
        Ok::<_, tidemark_ledger::Error>((ledger, RowFiles::open(&state_dir)?))
    });
    Ok(held.await??)
}

async fn run(request: &Request) -> Result<DeltaReport> {
    let began = Instant::now();
    let job = &request.job;
    let Target::Postgres(to) = &job.target else {
        return Err(Error::new(Kind::Usage, "delta into a lake: its files are never written anew")
            .hint("tidemark sync follows a source into a lake; without a slot, sync --snapshot-only --target-not-empty truncate --yes copies it again"));
    };
    let (_ledger, files) = hold(job).await?;
    let key = files.key(|| DigestKey::random().to_hex())?;
    let key = DigestKey::from_hex(&key).map_err(|cause| {
        Error::new(Kind::Unavailable, "read the key of the hashes in the state directory")
            .because(cause)
            .hint(
                "remove the directory delta in the state directory, and compare with --scan-target",
            )
    })?;
    let writes = (to.triggers, !request.dry_run);
    let target = DeltaTarget::open(&to.spec, &job.name, writes).await?;
    let sides = open(job, to).await?;
    let mut delta = Delta::new(request, &sides, (target, files, key))?;
    let planned = delta.plan(to.triggers).await?;
    let mut lsn = None;
    if !planned.is_empty() {
        let relations = planned.iter().map(|(pair, _)| pair.source.relation.clone()).collect();
        let view = sides.source.view(relations).await?;
        delta.tables(&view, planned).await?;
        lsn = Some(view.moment().0.to_string());
        view.release().await;
    }
    delta.told.sort_by(|one, other| (&one.schema, &one.table).cmp(&(&other.schema, &other.table)));
    Ok(DeltaReport {
        job: job.name.clone(),
        dry_run: request.dry_run,
        lsn,
        tables: delta.told,
        duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// Both sides with their catalogs.
struct Sides {
    source: Side,
    target: Side,
}

async fn open(job: &Job, to: &PostgresTarget) -> Result<Sides> {
    // Not the job's own: sessions of that name are ended by whoever takes the job over.
    let application = format!("{}:delta", application_name(&job.name));
    let how = (application.as_str(), job.lock_timeout);
    let (source, target) = tokio::try_join!(
        Side::open_to(DOING, Which::Source, &job.source, how),
        Side::open_to(DOING, Which::Target, &to.spec, how),
    )?;
    Ok(Sides { source, target })
}

/// A run.
struct Delta<'a> {
    request: &'a Request,
    sides: &'a Sides,
    reads: tidemark_verify::Request,
    tools: Tools,
    target: DeltaTarget,
    files: RowFiles,
    spill: Arc<Spill>,
    /// Whether anything is written.
    writes: bool,
    /// Whether a file tells the next run what the target has.
    remembers: bool,
    told: Vec<TableDelta>,
}

impl<'a> Delta<'a> {
    fn new(
        request: &'a Request,
        sides: &'a Sides,
        (target, files, key): (DeltaTarget, RowFiles, DigestKey),
    ) -> Result<Self> {
        let job = &request.job;
        // Nothing is named, so nothing is written.
        let reads = tidemark_verify::Request {
            progress: Arc::clone(&request.progress),
            ..tidemark_verify::Request::new(job.clone(), Level::Digest, Lines::nowhere())
        };
        let mut tools = Tools::new(&reads, &CancellationToken::new())?;
        tools.key = key;
        let spill = Spill::new(job.state_dir.clone());
        let (writes, told) = (!request.dry_run, Vec::new());
        Ok(Self {
            request,
            sides,
            reads,
            tools,
            target,
            files,
            spill,
            writes,
            remembers: writes,
            told,
        })
    }

    /// What is compared; tables that are left out are told of already.
    async fn plan(&mut self, triggers: Triggers) -> Result<Vec<(Pair, Table)>> {
        let (source, target) = (&self.sides.source, &self.sides.target);
        let catalogs = (&source.catalog, &target.catalog);
        let paired = pair(&self.reads, false, catalogs, &mut Bounds::new())?;
        for (name, because) in left_out(&paired, source) {
            self.skip(&name, because);
        }
        let mut generations = self.target.generations().await?;
        let missing = missing_columns(&paired, source);
        let planning = Planning {
            source,
            target: &self.target,
            target_version: target.catalog.server.version_num,
            files: &self.files,
            key: &self.tools.key,
            triggers,
            scan_target: self.request.scan_target,
            unfilters: self.request.actions.unfiltered == Action::Apply,
        };
        let (mut planned, mut skipped) = (Vec::new(), Vec::new());
        for pair in &paired.pairs {
            let (missing, generation) = (missing.get(pair.name()), generations.remove(pair.name()));
            match planning.table(pair, missing.map(String::as_str), generation).await? {
                Ok(table) => planned.push(table),
                Err(because) => skipped.push((pair.name().clone(), because)),
            }
        }
        for (name, because) in skipped {
            self.skip(&name, because);
        }
        Ok(planned)
    }

    fn skip(&mut self, name: &RelationName, because: String) {
        let mut told = TableDelta::new(name);
        told.skipped_reason = Some(because);
        self.told.push(told);
    }

    /// Reads the source once and goes on table by table.
    async fn tables(&mut self, view: &View, planned: Vec<(Pair, Table)>) -> Result<()> {
        let (pairs, tables): (Vec<Pair>, Vec<Table>) = planned.into_iter().unzip();
        let gathered = self.gather(view, &pairs, &tables).await?;
        for ((pair, mut table), gathered) in pairs.iter().zip(tables).zip(gathered) {
            if !view.tables().iter().any(|relation| relation.oid == pair.source.relation.oid) {
                self.skip(pair.name(), "it was dropped on the source meanwhile".to_owned());
                continue;
            }
            let (mut told, began) = (TableDelta::new(pair.name()), Instant::now());
            Box::pin(self.table((pair, &mut table), (view, gathered), &mut told)).await?;
            told.duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.told.push(told);
        }
        Ok(())
    }

    /// Every row of the source that this filter or the last one lets through.
    async fn gather(&self, view: &View, pairs: &[Pair], tables: &[Table]) -> Result<Vec<Gathered>> {
        let mut gather = Gather::new(pairs, &self.tools.key, &self.spill, self.of_chunk());
        for passes in [Passes::Both, Passes::Now, Passes::Before] {
            gather.passes = passes;
            let filter = |number: usize| {
                let Table { filter, before, .. } = &tables[number];
                filter_of(filter.as_deref(), before.as_ref().map(Option::as_deref), passes)
            };
            let wanted = (0..pairs.len()).filter(|number| filter(*number).is_some());
            let wanted: Vec<usize> = wanted.collect();
            let mut pieces = self.pieces((Which::Source, view), pairs, &wanted);
            for (number, spec) in &mut pieces {
                spec.filter = filter(*number).flatten();
            }
            scan(&self.tools, view, pieces, &gather).await?;
        }
        Ok(gather.finish())
    }

    /// Bytes that each chunk keeps in memory while it is read.
    fn of_chunk(&self) -> u64 {
        self.request.job.memory / 8 / self.request.job.readers.max(1) as u64
    }

    fn pieces(
        &self,
        (which, view): (Which, &View),
        pairs: &[Pair],
        wanted: &[usize],
    ) -> Vec<Piece> {
        let wanted = wanted.iter().map(|number| (*number, None));
        let mut pieces = tidemark_verify::plan(&self.reads, view, pairs, wanted);
        for (number, spec) in &mut pieces {
            if ReadBy::of(&pairs[*number]).wants_places(which) {
                spec.columns.push(ReadBy::Place.column());
            }
        }
        pieces
    }

    /// Every row of the target's table.
    async fn gather_target(&self, view: &View, pair: &Pair) -> Result<Sorted<Row>> {
        let pairs = std::slice::from_ref(pair);
        let gather = Gather::new(pairs, &self.tools.key, &self.spill, self.of_chunk());
        scan(&self.tools, view, self.pieces((Which::Target, view), pairs, &[0]), &gather).await?;
        let gathered = gather.finish().pop();
        let nothing = || Error::new(Kind::Internal, "read the target's table: nothing came");
        let Gathered { rows, .. } = gathered.ok_or_else(nothing)?;
        blocking(move || rows.sorted()).await?
    }

    async fn table(
        &mut self,
        (pair, table): (&Pair, &mut Table),
        (view, gathered): (&View, Gathered),
        told: &mut TableDelta,
    ) -> Result<()> {
        told.compared_with = Some(table.with);
        let row_bytes = gathered.bytes / gathered.count.max(1);
        let generation = self.remembers.then(|| format!("{:032x}", rand::random::<u128>()));
        let mut there = match table.with {
            ComparedWith::Target => Some(self.target_view(pair).await?),
            _ => None,
        };
        let base = match (&there, table.known.take()) {
            (Some(there), _) => Known::Target(self.gather_target(there, pair).await?),
            (None, Some(known)) => Known::File(Box::new(known)),
            (None, None) => Known::Nothing,
        };
        let file = match &generation {
            None => None,
            Some(generation) => {
                Some(self.files.begin(pair.name(), generation, &table.head.text())?)
            }
        };
        let (classify, goes, looked_up) =
            self.classify((pair, table.with), (gathered, base), file).await?;
        there = there.or(looked_up);
        let actions = self.request.actions;
        let (budget, spill) = (&self.tools.budget, &self.spill);
        let work = Work { pair, table, source: view, budget, spill };
        let target = &mut self.target;
        let done = async {
            let mut writing = Writing::new(target);
            // Those that are found to be gone go while the others are looked at.
            let (found, taken) = tokio::join!(classify, work.take(&mut writing, goes));
            let (taken, (counts, found)) = (taken?, found?);
            told.found(&counts, &actions, row_bytes);
            let ToldOf { file, writes, refused, puts, is_any, .. } = found;
            if !writes {
                return Ok(None);
            }
            let is_other_filter =
                table.before.as_ref().is_some_and(|_| actions.unfiltered == Action::Apply);
            if table.with == ComparedWith::Ledger && !is_other_filter && !is_any {
                return Ok(Some(table.generation.as_deref()));
            }
            let findings = Findings { puts, taken, file, refused };
            work.write(writing, findings, (generation.as_deref(), told)).await?;
            Ok(Some(generation.as_deref()))
        };
        match Box::pin(done).await {
            Ok(None) => {}
            Ok(Some(generation)) => self.files.keep_only(pair.name(), generation)?,
            Err(error) => self.refused((pair, table), error, told).await?,
        }
        self.end_reading(there).await
    }

    /// Compares; gives what tells of all rows once it is known, where those come from meanwhile that go, and the view that they
    /// were looked up in, if they were.
    async fn classify(
        &self,
        (pair, with): (&Pair, ComparedWith),
        (gathered, base): (Gathered, Known),
        file: Option<NewRows>,
    ) -> Result<(Classified, Goes, Option<View>)> {
        let share = self.request.job.memory / 16;
        let (send, gone) = mpsc::channel(1);
        let (refused, puts) = (Vec::new(), Sorter::new(&self.spill, share));
        let (gone, goes) = (Some(send), Goes::Found(gone));
        let writes = self.writes;
        let found = ToldOf { file, writes, refused, puts, gone, going: Vec::new(), is_any: false };
        let actions = self.request.actions;
        let classify =
            async move { blocking(move || classified(actions, gathered, base, found)).await? };
        if with == ComparedWith::Target || pair.has_verbatim_key() {
            return Ok((Box::pin(classify), goes, None));
        }
        let (found, gone) = tokio::join!(classify, goes.all(Sorter::new(&self.spill, share)));
        let (there, goes) = self.find(pair, gone?.sorted()?).await?;
        Ok((Box::pin(std::future::ready(found)), goes, there))
    }

    async fn target_view(&self, pair: &Pair) -> Result<View> {
        self.sides.target.view(vec![pair.target.relation.clone()]).await
    }

    async fn end_reading(&self, there: Option<View>) -> Result<()> {
        if let Some(there) = there {
            there.release().await;
        }
        Ok(())
    }

    /// Finds on the target the places of rows that go, whose keys are known by their hashes only; the view is to be held
    /// until they are gone, so that no other row can come to be in their places.
    async fn find(&self, pair: &Pair, mut gone: Sorted<Gone>) -> Result<(Option<View>, Goes)> {
        let mut found = Sorter::new(&self.spill, self.request.job.memory / 16);
        let Some(mut wanted) = gone.next()? else {
            return Ok((None, Goes::Sorted(found.sorted()?)));
        };
        let in_key =
            |name: &String| pair.key.iter().any(|at| pair.source.columns[*at].name == *name);
        let known_by = match pair.key.is_empty() {
            true => pair.clone(),
            false => pair.narrowed(|column, _| in_key(&column.name))?,
        };
        let view = self.target_view(pair).await?;
        let mut rows = self.gather_target(&view, &known_by).await?;
        let mut row = rows.next()?;
        while let Some(there) = row {
            match there.code.cmp(&wanted.code) {
                std::cmp::Ordering::Less => row = rows.next()?,
                order => {
                    if order == std::cmp::Ordering::Equal {
                        found.push(Gone { place: Some(there.place), ..wanted })?;
                        row = rows.next()?;
                    }
                    // One that the target does not have is gone already.
                    let Some(next) = gone.next()? else { break };
                    wanted = next;
                }
            }
        }
        Ok((Some(view), Goes::Sorted(found.sorted()?)))
    }

    /// What the target refuses of a table as a whole is told of; any other error ends the run.
    async fn refused(
        &self,
        (pair, table): (&Pair, &Table),
        error: Error,
        told: &mut TableDelta,
    ) -> Result<()> {
        if error.kind != Kind::TargetRefused {
            return Err(error);
        }
        tracing::error!(table = %pair.name(), %error, "the target refuses the table; the others go on");
        self.target.roll_back().await?;
        self.files.keep_only(pair.name(), table.generation.as_deref())?;
        told.classes.iter_mut().for_each(|class| class.moved = 0);
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        told.failed = Some(match cause {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        });
        Ok(())
    }
}

/// The first chosen column of a table that the target does not have.
fn missing_columns(paired: &Paired, source: &Side) -> HashMap<RelationName, String> {
    let findings = paired.findings.iter().filter(|finding| finding.kind == "column-missing");
    let is_moved = |table: &RelationName, column: &String| {
        let relation = source.catalog.relation(table);
        let mut columns = relation.into_iter().flat_map(|relation| &relation.columns);
        columns
            .any(|known| known.name == *column && known.generated == tidemark_model::Generated::No)
    };
    let missing = findings.filter_map(|finding| {
        let table = finding.table.clone()?;
        is_moved(&table, &finding.object).then(|| (table, finding.object.clone()))
    });
    missing.collect()
}

/// The condition of the rows that pass so; nothing where there are none of them. `before`: the last run had another filter.
fn filter_of(
    now: Option<&str>,
    before: Option<Option<&str>>,
    passes: Passes,
) -> Option<Option<String>> {
    let Some(before) = before else {
        return (passes == Passes::Both).then(|| now.map(str::to_owned));
    };
    // The line feed ends a comment that an expression may end with.
    let passing =
        |filter: Option<&str>| filter.map_or("true".to_owned(), |text| format!("({text}\n)"));
    let (now, before) = (passing(now), passing(before));
    Some(Some(match passes {
        Passes::Both => format!("({now} AND {before})"),
        Passes::Now => format!("({now} AND ({before}) IS NOT TRUE)"),
        Passes::Before => format!("({before} AND ({now}) IS NOT TRUE)"),
    }))
}

/// What is known of the target's rows.
enum Known {
    Nothing,
    File(Box<tidemark_ledger::KnownRows>),
    Target(Sorted<Row>),
}

impl Known {
    fn next(&mut self) -> Result<Option<Base>> {
        match self {
            Self::Nothing => Ok(None),
            Self::File(rows) => Ok(rows.read_next()?.map(|known| Base { known, place: None })),
            Self::Target(rows) => Ok(rows.next()?.map(|Row { code, hash, place, .. }| Base {
                known: KnownRow { code, hash, is_there: true, is_refused: false },
                place: Some(place),
            })),
        }
    }
}

/// What a table's rows have become, once that is known.
type Classified = Pin<Box<dyn Future<Output = Result<(Counts, ToldOf)>> + Send>>;

/// What was found, on its way into the file and to the target.
struct ToldOf {
    file: Option<NewRows>,
    /// What is not moved need not be kept.
    writes: bool,
    refused: Vec<KnownRow>,
    puts: Sorter<Put>,
    /// Until all are.
    gone: Option<mpsc::Sender<Vec<Gone>>>,
    /// Rows that go and are not handed over yet.
    going: Vec<Gone>,
    /// Whether anything is to be written.
    is_any: bool,
}

impl Found for ToldOf {
    fn keep(&mut self, code: u128, hash: u128) -> Result<()> {
        match &mut self.file {
            Some(file) => Ok(file.push(code, hash)?),
            None => Ok(()),
        }
    }

    fn still_refused(&mut self, row: KnownRow) -> Result<()> {
        self.refused.push(row);
        Ok(())
    }

    fn put(&mut self, row: Put) -> Result<()> {
        self.is_any = true;
        if self.writes { self.puts.push(row) } else { Ok(()) }
    }

    fn take(&mut self, row: Gone) -> Result<()> {
        self.is_any = true;
        if self.writes {
            self.going.push(row);
        }
        if self.going.len() < GONE_AT_ONCE { Ok(()) } else { self.hand_over() }
    }
}

impl ToldOf {
    fn hand_over(&mut self) -> Result<()> {
        let gone = std::mem::take(&mut self.going);
        let Some(send) = self.gone.as_ref().filter(|_| !gone.is_empty()) else { return Ok(()) };
        // Whoever takes them has failed, and says why.
        let unheard = |_| Error::new(Kind::Internal, "hand over the rows that go");
        send.blocking_send(gone).map_err(unheard)
    }
}

fn classified(
    actions: Actions,
    gathered: Gathered,
    mut base: Known,
    mut found: ToldOf,
) -> Result<(Counts, ToldOf)> {
    let classify = Classify { actions, found: &mut found, counts: Counts::default() };
    let counts = gathered.rows.sorted()?.ahead(|rows| classify.run(rows, || base.next()))?;
    found.hand_over()?;
    found.gone = None;
    Ok((counts, found))
}
