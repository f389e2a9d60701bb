//! The snapshot without a stream: `sync --snapshot-only`.
//!
//! **Invariant:** everything that is read is read under one exported snapshot whose holder lives until the last chunk is
//! in; when the holder is lost the run begins again as a whole and never mixes two snapshots (`hazards.md` A5). Nothing
//! is left behind on the source: no slot, no publication, no table, only sessions that end with us.

mod archive;
mod chunk;
mod engine;
mod finish;
mod half;
mod joining;
mod ranges;
mod readers;
mod report;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tidemark_digest::{CANONICAL_VERSION, DigestKey, Forms, LeafBounds, LeafCut};
use tidemark_ledger::{Ledger, NewRelation, RunRecord, now_ms};
use tidemark_model::{
    Budget, ChunkRange, ChunkSpec, Cpu, Finding, Oid, SchemaObjects, SequencePosition, Severity,
    TablePlan,
};
use tidemark_sink::{Sink, SnapshotStart, SnapshotSummary};
use tidemark_source::{
    Catalog, Reader, SlotOptions, Snapshot, SnapshotOptions, row_filters, schema,
};
use tidemark_wire::Client;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::check::{Looked, let_through, look_at};
use crate::control::{self, Shared};
use crate::job::{Job, Target};
use crate::plan::{above, excluded_relations, refresh};
use crate::progress::{Phase, Progress};
use crate::reconcile::{Moment, Reconcile, ReconciledTable};
use crate::target::sink;
use crate::{Error, Kind, Result};

use archive::Archive;
pub use chunk::{ChunkRunner, run_chunk};
pub use engine::blocking;
use engine::{Engine, TableWork};
pub(crate) use half::{
    Half, Halves, Touched, half_copied, note_anew, planned, say_anew, touched_key,
};
pub(crate) use joining::{Completes, Joining};
use ranges::{leaf_cuts, plan_chunks};
use readers::ReaderOptions;
use report::report_of;
pub use report::{Report, TableReport};

/// How often a run begins again after its snapshot was lost.
const RUNS: u32 = 3;

/// Copies the chosen tables once and ends.
///
/// # Errors
/// See [`Kind`]; after any of them the same call starts the snapshot over.
///
/// # Cancel safety
/// Cancel by `stop`: sessions end, the target keeps an unfinished run that the next one replaces.
pub async fn snapshot_only(
    job: &Job,
    progress: &Arc<Progress>,
    stop: &CancellationToken,
) -> Result<Report> {
    let state_dir = job.state_dir.clone();
    let name = job.name.clone();
    // A DBA sees whose sessions these are.
    let source =
        job.source.clone().with_application_name(&tidemark_source::names::slot_name(&name));
    let job = &Job { source, ..job.clone() };
    let ledger = Arc::new(blocking(move || Ledger::open(&state_dir, &name)).await??);
    let shared = Shared::new(job, progress, &ledger);
    let _control = control::listen(&job.state_dir, shared).await;
    let mut run_number = 1;
    loop {
        let tools = Tools::new(job, progress)?;
        let run = Run { job, progress, stop, ledger: &ledger, continuation: None, reconcile: None };
        let ended = Box::pin(run.once(&tools)).await;
        let error = match ended {
            Ok(report) => return Ok(report),
            Err(error) => error,
        };
        note_error(&ledger, &error).await;
        if !error.lost_snapshot || run_number == RUNS || stop.is_cancelled() {
            return Err(error);
        }
        tracing::warn!(%error, "the snapshot was lost; the copy starts again with a new one");
        run_number += 1;
    }
}

/// Keeps what ended a run for `status`. A run that ended before the ledger knew of it has nothing to keep it with.
pub(crate) async fn note_error(ledger: &Arc<Ledger>, error: &Error) {
    let (ledger, text) = (Arc::clone(ledger), error.to_string());
    let noted = blocking(move || ledger.set_error(Some(&text))).await;
    if let Ok(Err(cause)) = noted {
        tracing::debug!(%cause, "the run's error is not in the ledger");
    }
}

/// What a job works with: threads, memory and the target.
pub(crate) struct Tools {
    pub(crate) cpu: Cpu,
    pub(crate) budget: Budget,
    pub(crate) sink: Arc<dyn Sink>,
}

impl Tools {
    pub(crate) fn new(job: &Job, progress: &Progress) -> Result<Self> {
        let cpu = Cpu::new(std::thread::available_parallelism().map_or(2, usize::from)).map_err(
            |cause| Error::new(Kind::Unavailable, "start the CPU threads").because(cause),
        )?;
        let budget = Budget::new(job.memory / 2);
        progress.watch_memory(&budget);
        let sink = sink(job, &cpu, &budget);
        Ok(Self { cpu, budget, sink })
    }
}

/// The stream that continues from a snapshot, as far as the snapshot needs to know it.
pub(crate) struct Continuation {
    /// How the two meet.
    pub(crate) point: Point,
    /// Told once the target is prepared: from here on the stream can be received.
    pub(crate) begun: Mutex<Option<oneshot::Sender<SnapshotStart>>>,
}

/// How a snapshot and its stream meet.
pub(crate) enum Point {
    /// The snapshot is taken with this new slot, whose stream begins there.
    Slot(SlotOptions),
    /// Tables join a stream that goes on.
    Join(Joining),
}

impl Continuation {
    fn slot(&self) -> Option<&SlotOptions> {
        match &self.point {
            Point::Slot(slot) => Some(slot),
            Point::Join(_) => None,
        }
    }

    fn joining(&self) -> Option<&Joining> {
        match &self.point {
            Point::Slot(_) => None,
            Point::Join(joining) => Some(joining),
        }
    }

    fn take_begun(&self) -> Option<oneshot::Sender<SnapshotStart>> {
        self.begun.lock().expect("no holder panics").take()
    }
}

/// What the journal calls the findings of a look at both sides.
pub const CHECKED: &str = "checked";

/// What the journal calls the moment in which all rows are there.
pub const COPIED: &str = "copied";

/// One run from catalog to durable.
pub(crate) struct Run<'a> {
    pub(crate) job: &'a Job,
    pub(crate) progress: &'a Arc<Progress>,
    pub(crate) stop: &'a CancellationToken,
    pub(crate) ledger: &'a Arc<Ledger>,
    pub(crate) continuation: Option<&'a Continuation>,
    /// Brings what the target holds already to the snapshot.
    pub(crate) reconcile: Option<&'a dyn Reconcile>,
}

impl Run<'_> {
    /// So that whoever asks later can be told what was found and what became of it.
    async fn note(&self, findings: &[Finding]) -> Result<()> {
        let ledger = Arc::clone(self.ledger);
        let findings = serde_json::to_value(findings).expect("findings are plain data");
        Ok(blocking(move || ledger.write_journal(CHECKED, &findings)).await??)
    }

    pub(crate) async fn once(&self, tools: &Tools) -> Result<Report> {
        let started = Instant::now();
        let looked = self.look(tools).await?;
        let mut report = Box::pin(self.run_from(looked, tools)).await?;
        report.duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(report)
    }

    /// What is there on both sides, if nothing of it blocks. Changes nothing.
    pub(crate) async fn look(&self, tools: &Tools) -> Result<Looked> {
        self.progress.enter(Phase::Check, "checking source and target");
        let only = self.joining().map(|joining| &joining.tables);
        let looked = self.or_stop(look_at(self.job, tools.sink.as_ref(), only)).await?;
        self.note(&looked.findings).await?;
        refuse_blocking(&looked)?;
        Ok(looked)
    }

    /// From what was looked at to durable; the report's time is for who has looked.
    pub(crate) async fn run_from(&self, looked: Looked, tools: &Tools) -> Result<Report> {
        let job = self.job;
        let sink = tools.sink.as_ref();
        self.progress.enter(Phase::Prepare, "taking the snapshot");
        let snapshot = Box::pin(self.or_stop(self.take(&looked))).await?;
        let options = ReaderOptions {
            spec: job.source.clone(),
            snapshot_id: snapshot.id().to_owned(),
            lock_timeout: job.lock_timeout,
        };
        let max_locks = looked.catalog.server.max_locks;
        // Where nothing is copied nobody reads.
        let readers = if job.stream.beginning.copies_nothing() { 1 } else { job.readers.max(1) };
        let opened = options.open_all(readers, &snapshot, max_locks);
        let readers = self.or_stop(opened).await?;
        if self.joining().is_none() {
            self.or_stop(nothing_came(job, &looked)).await?;
        }
        let prepared = self.or_stop(self.prepare(looked, &snapshot, sink)).await?;
        let runner = ChunkRunner {
            sink: Arc::clone(&tools.sink),
            budget: tools.budget.clone(),
            cpu: tools.cpu.clone(),
        };
        self.copy(prepared, &snapshot, (options, readers), runner).await
    }

    fn joining(&self) -> Option<&Joining> {
        self.continuation.and_then(Continuation::joining)
    }

    /// Runs `work` until it is done or the user stops the job.
    async fn or_stop<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Error::interrupted()),
            done = work => done,
        }
    }

    async fn take(&self, looked: &Looked) -> Result<Snapshot> {
        let tables = looked.plans.iter().map(|plan| plan.relation.clone()).collect();
        let name = tidemark_source::names::slot_name(&self.job.name);
        let mut options = SnapshotOptions::new(tables, name);
        options.filters = row_filters(&looked.plans);
        options.lock_timeout = self.job.lock_timeout;
        options.slot = self.continuation.and_then(Continuation::slot).cloned();
        Snapshot::take(&self.job.source, &options).await.map_err(|error| {
            let again = error.disposition() == tidemark_source::Disposition::Retry;
            let mut error = Error::from(error);
            // A table changed since the catalog was read, or a connection went away: nothing has been moved yet.
            error.lost_snapshot |= again;
            error
        })
    }

    async fn prepare(
        &self,
        looked: Looked,
        snapshot: &Snapshot,
        sink: &dyn Sink,
    ) -> Result<Prepared> {
        let Looked { catalog, mut plans, client, .. } = looked;
        plans.retain(|plan| !snapshot.gone().contains(&plan.relation.name));
        refresh(&mut plans, snapshot.tables());
        let objects = self.schema_objects(&client, &catalog, &plans, snapshot).await?;
        let all = self.all_chosen(&plans);
        let (excluded, above) = (excluded_relations(&catalog, &all), above(&catalog, &all));
        let leaves = leaf_cuts(&client, &plans).await;
        let leaves = let_through(self.job, leaves, tidemark_source::Error::sqlstate).await?;
        let oids: Vec<Oid> = plans.iter().map(|plan| plan.relation.oid).collect();
        let shapes = tidemark_source::shapes(&client, &oids).await;
        let shapes = let_through(self.job, shapes, tidemark_source::Error::sqlstate).await?;
        let chunks = match self.job.stream.beginning.copies_nothing() {
            true => plans.iter().map(|plan| (plan.relation.oid, Vec::new())).collect(),
            false => {
                let chunks = plan_chunks(self.job, &client, &catalog, &plans).await;
                let_through(self.job, chunks, tidemark_source::Error::sqlstate).await?
            }
        };
        let joins = match self.joining() {
            Some(joining) => {
                let halves = self.fitting(&client, &plans).await?;
                // Tried once: a process that comes after this one begins them anew.
                let tried = joining.halves.tables.iter().map(Half::oid).collect();
                half::note_anew(self.ledger, &joining.run, tried).await?;
                let source = (&self.job.source, &client);
                Some(joining.join(source, snapshot, &catalog, &plans, halves).await?)
            }
            None => None,
        };
        let run = run_name();
        self.note_chunks(&client, (&run, &plans), &chunks).await?;
        self.progress.enter(Phase::Prepare, "preparing the target");
        let archive = self.dump_schema(&catalog, snapshot).await?;
        let start = SnapshotStart {
            job: self.job.name.clone(),
            run,
            snapshot_id: snapshot.id().to_owned(),
            lsn: joins.as_ref().map_or(snapshot.lsn(), |join| join.point.lsn),
            system_identifier: catalog.server.system_identifier,
            database: catalog.server.database.clone(),
            source_version: catalog.server.version_num,
            tables: Arc::new(plans),
            schema: Arc::new(objects),
            schema_archive: archive.as_ref().map(|archive| archive.path.clone()),
            schema_digest: archive::definitions(archive.as_ref(), &self.job.tables),
            excluded: Arc::new(excluded),
            above: Arc::new(above),
            continues: self.continuation.is_some(),
            adopts: self.job.stream.beginning.copies_nothing(),
            joins,
        };
        sink.prepare(&start).await?;
        if let Some(begun) = self.continuation.and_then(Continuation::take_begun) {
            // Who waits for it may have given up: then the run ends too.
            drop(begun.send(start.clone()));
        }
        Ok(Prepared { start, leaves: Leaves { cuts: leaves, shapes }, chunks, _archive: archive })
    }

    /// The tables of the job: of a first snapshot that died also those that are whole.
    fn all_chosen(&self, plans: &[TablePlan]) -> Vec<TablePlan> {
        let whole = match self.joining() {
            Some(Joining { completes: Some(left), .. }) => left.whole.as_slice(),
            _ => &[],
        };
        whole.iter().chain(plans).cloned().collect()
    }

    async fn schema_objects(
        &self,
        client: &Client,
        catalog: &Catalog,
        plans: &[TablePlan],
        snapshot: &Snapshot,
    ) -> Result<SchemaObjects> {
        if matches!(self.job.target, Target::Lake(_)) {
            return Ok(SchemaObjects::default());
        }
        let read = schema::read_schema_objects(client)
            .await
            .map_err(tidemark_wire::Error::sql("read indexes and keys of the source"));
        let mut objects = let_through(self.job, read, tidemark_wire::Error::sqlstate).await?;
        let sequence = |sequence: &tidemark_source::Sequence| SequencePosition {
            name: sequence.name.clone(),
            last_value: sequence.last_value,
            is_called: sequence.is_called,
            owner: sequence.owned_by.as_ref().map(|(table, _)| table.clone()),
        };
        // One that we may not read has a finding already, and no position that could be set.
        let readable = snapshot.sequences().iter().filter(|sequence| sequence.can_select);
        objects.sequences = readable.map(sequence).collect();
        let whole = match self.joining() {
            Some(Joining { completes: Some(left), .. }) => left.whole.as_slice(),
            Some(joining) => {
                joining::restrict(&mut objects, joining, catalog, plans);
                return Ok(objects);
            }
            None => &[],
        };
        let plans = || whole.iter().chain(plans);
        let mut chosen: HashSet<_> = plans().map(|plan| plan.relation.name.clone()).collect();
        chosen.extend(plans().flat_map(|plan| catalog.ancestors(&plan.relation)).cloned());
        schema::restrict(&mut objects, &chosen);
        Ok(objects)
    }

    async fn copy(
        &self,
        prepared: Prepared,
        snapshot: &Snapshot,
        readers: (ReaderOptions, Vec<Reader>),
        runner: ChunkRunner,
    ) -> Result<Report> {
        let Prepared { start, leaves, chunks, .. } = prepared;
        let rests = self.go_on(&start, runner.sink.as_ref(), snapshot).await?;
        let chunks = start.tables.iter().map(|plan| {
            let oid = plan.relation.oid;
            (oid, half::specs(&start, plan, &chunks[&oid], rests.get(&oid)))
        });
        let work = (leaves, chunks.collect(), rests.into_keys().collect());
        let engine = self.engine(&start, work, readers, runner).await?;
        self.progress.enter(Phase::Snapshot, "copying");
        let copied = tokio::select! {
            biased;
            lost = snapshot.watch() => Err(Error::from(lost)),
            copied = self.fill(&engine, &start, snapshot) => copied,
        };
        let reconciled = match copied {
            Ok(reconciled) => reconciled,
            Err(error) => {
                engine.stop.cancel();
                return Err(if self.stop.is_cancelled() { Error::interrupted() } else { error });
            }
        };
        let client = self.job.source.connect().await?;
        self.or_stop(names_still_mean_the_same(&client, &start)).await?;
        self.progress.enter(Phase::Snapshot, "finishing: foreign keys, sequences, views");
        let mut report = report_of(&engine, &start, self.job.readers);
        report.gone = snapshot.gone().to_vec();
        report.reconciled = reconciled;
        let summary = SnapshotSummary {
            lsn: start.lsn,
            tables: report.tables.iter().map(|table| table.summary.clone()).collect(),
        };
        self.finish(engine.runner.sink.as_ref(), &summary, &start.run).await?;
        let ledger = Arc::clone(self.ledger);
        let follows = self.continuation.is_some();
        let joins = self.joining().is_some_and(|joining| joining.completes.is_none());
        blocking(move || {
            if joins {
                return Ok(());
            }
            ledger.finish_run()?;
            ledger.write_journal(COPIED, &serde_json::Value::Null)?;
            if follows { ledger.set_phase("follow") } else { Ok(()) }
        })
        .await??;
        if !follows {
            self.progress.enter(Phase::Complete, "done");
        }
        Ok(report)
    }

    /// Gets the rows onto the target: all of them, or those that it does not have yet.
    async fn fill(
        &self,
        engine: &Arc<Engine>,
        start: &SnapshotStart,
        snapshot: &Snapshot,
    ) -> Result<Vec<ReconciledTable>> {
        engine.run(self.job.readers).await?;
        if self.joining().is_some() || !self.job.stream.beginning.copies_nothing() {
            return Ok(Vec::new());
        }
        let mut reconciled = Vec::new();
        if let Some(reconcile) = self.reconcile {
            self.progress.enter(Phase::Snapshot, "comparing the target's rows with the source's");
            let moment = Moment { snapshot, run: &start.run };
            reconciled = self.or_stop(reconcile.reconcile(self.job, moment)).await?;
        }
        let rows: HashMap<_, _> = reconciled.iter().map(|of| (&of.relation, of.rows)).collect();
        for plan in start.tables.iter() {
            let table = self.progress.table(plan.relation.oid);
            let rows = rows.get(&plan.relation.name).copied().unwrap_or_default();
            table.iter().for_each(|table| table.is_there(rows));
        }
        Ok(reconciled)
    }

    async fn engine(
        &self,
        start: &SnapshotStart,
        (leaves, mut chunks, halves): Work,
        (options, readers): (ReaderOptions, Vec<Reader>),
        runner: ChunkRunner,
    ) -> Result<Arc<Engine>> {
        let mut order: Vec<&TablePlan> = start.tables.iter().collect();
        order.sort_by_key(|plan| {
            std::cmp::Reverse(plan.relation.heap_bytes + plan.relation.toast_bytes)
        });
        if let Some(Joining { completes: Some(left), .. }) = self.joining() {
            self.progress.keep(left.whole.iter().map(|plan| {
                (plan, left.rows.get(&plan.relation.oid).copied().unwrap_or_default())
            }));
        }
        self.progress.begin(order.iter().map(|plan| (*plan, chunks[&plan.relation.oid].len())));
        let relations = self.relations(&order, &leaves, &chunks, &halves);
        let key = self.begin_ledger(start, relations).await?;
        let queue: VecDeque<ChunkSpec> = order
            .iter()
            .flat_map(|plan| chunks.remove(&plan.relation.oid).unwrap_or_default())
            .collect();
        let tables = start.tables.iter().map(|plan| {
            let oid = plan.relation.oid;
            let cut = leaves.cuts.get(&oid);
            let leaves = cut.map_or_else(LeafBounds::single, |cut| cut.among(&plan.columns));
            (oid, TableWork { plan: plan.clone(), leaves })
        });
        Ok(Arc::new(Engine {
            runner,
            readers: options,
            idle: Mutex::new(readers),
            ledger: Arc::clone(self.ledger),
            progress: Arc::clone(self.progress),
            tables: tables.collect(),
            key,
            forms: self.forms(),
            queue: Mutex::new(queue),
            done: Mutex::new(HashMap::new()),
            stop: self.stop.child_token(),
        }))
    }

    /// A lake's files hold values, not PostgreSQL's bytes: only the value form can be read back from them.
    fn forms(&self) -> Forms {
        match self.job.target {
            Target::Lake(_) => Forms::RawAndValue,
            Target::Postgres(_) => Forms::Raw,
        }
    }

    /// What the ledger is told of the tables before the first chunk.
    fn relations(
        &self,
        order: &[&TablePlan],
        leaves: &Leaves,
        chunks: &HashMap<u32, Vec<ChunkSpec>>,
        halves: &HashSet<Oid>,
    ) -> Vec<NewRelation> {
        let forms = self.forms();
        // Nothing was summed of what is there already.
        let adopts = self.job.stream.beginning.copies_nothing();
        let relation = |plan: &&TablePlan| NewRelation {
            oid: plan.relation.oid,
            name: plan.relation.name.clone(),
            chunks_total: chunks[&plan.relation.oid].len() as u32,
            leaf_bounds: serde_json::to_string(&leaves.cuts.get(&plan.relation.oid))
                .expect("bounds are plain data"),
            shape: match leaves.shapes.get(&plan.relation.oid) {
                Some(shape) => tidemark_digest::shape_of(shape, &plan.columns),
                None => String::new(),
            },
            estimated_rows: plan.relation.row_estimate,
            estimated_bytes: plan.relation.heap_bytes + plan.relation.toast_bytes,
            // Sums over a part of the rows compare with nothing.
            raw_scheme: match adopts || halves.contains(&plan.relation.oid) {
                true => String::new(),
                false => raw_scheme(plan, forms),
            },
        };
        order.iter().map(relation).collect()
    }

    /// Begins the run in the ledger and gives the job's digest key, which stays the same from run to run.
    async fn begin_ledger(
        &self,
        start: &SnapshotStart,
        relations: Vec<NewRelation>,
    ) -> Result<DigestKey> {
        let ledger = Arc::clone(self.ledger);
        let start = start.clone();
        let job = self.job.name.clone();
        let joins = start.joins.as_ref().map(|join| join.run.clone());
        blocking(move || {
            let earlier = ledger.run()?.and_then(|run| DigestKey::from_hex(&run.digest_key).ok());
            let key = earlier.unwrap_or_else(DigestKey::random);
            if joins.is_some() && ledger.run()?.is_some() {
                ledger.add_relations(&relations)?;
                return Ok(key);
            }
            ledger.begin_run(&RunRecord {
                job,
                phase: if joins.is_some() { "follow" } else { "snapshot" }.to_owned(),
                run: joins.unwrap_or(start.run),
                system_identifier: start.system_identifier,
                database: start.database.clone(),
                server_version: start.source_version,
                snapshot_lsn: start.lsn,
                digest_key: key.to_hex(),
                canonical_version: CANONICAL_VERSION,
                started_at_ms: now_ms(),
                finished_at_ms: None,
                last_error: None,
            })?;
            ledger.add_relations(&relations)?;
            Ok(key)
        })
        .await?
        .map_err(|error: tidemark_ledger::Error| error.into())
    }
}

/// What the raw sums of a table are taken over, for the ledger: only sums of one scheme compare.
fn raw_scheme(plan: &TablePlan, forms: Forms) -> String {
    let key = DigestKey::new([0; 32]);
    let scheme =
        engine::hasher(plan, forms, &key, LeafBounds::single()).map(|hasher| hasher.raw_scheme());
    let name = scheme.ok().and_then(|scheme| serde_json::to_value(scheme).ok());
    name.and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Begins again if a table came between the look at the catalog and the snapshot: the schema's dump would show it, and none
/// of its rows would be copied.
async fn nothing_came(job: &Job, looked: &Looked) -> Result<()> {
    let planned: HashSet<u32> = looked.plans.iter().map(|plan| plan.relation.oid).collect();
    let now = tidemark_source::read_catalog(&looked.client).await;
    let now = let_through(job, now, tidemark_source::Error::sqlstate).await?;
    let chosen = job.selection.apply(&now)?;
    let Some(new) = chosen.iter().find(|relation| !planned.contains(&relation.oid)) else {
        return Ok(());
    };
    let message = format!("begin: table {} came while the snapshot was taken", new.name);
    let mut error = Error::new(Kind::Unavailable, message).hint("run the same command again");
    error.lost_snapshot = true;
    Err(error)
}

/// Names are not locked by a table's lock: a schema that was renamed meanwhile may have lent its name to another one, whose
/// tables were then read.
async fn names_still_mean_the_same(client: &Client, start: &SnapshotStart) -> Result<()> {
    let names = start.tables.iter().map(|plan| &plan.relation.name);
    let (schemas, relations): (Vec<&str>, Vec<&str>) =
        names.map(|name| (name.schema.as_str(), name.name.as_str())).unzip();
    let oids: Vec<u32> = start.tables.iter().map(|plan| plan.relation.oid).collect();
    let row = client
        .query_one(
            "SELECT count(*) FROM unnest($1::oid[], $2::text[], $3::text[]) AS w(oid, nsp, rel) \
             JOIN pg_class c ON c.oid = w.oid AND c.relname = w.rel \
             JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = w.nsp",
            &[&oids, &schemas, &relations],
        )
        .await
        .map_err(tidemark_wire::Error::sql("look whether the tables still have their names"))?;
    if row.get::<_, i64>(0) as usize == oids.len() {
        return Ok(());
    }
    let mut error = Error::new(Kind::Unavailable, "copy the tables: some were renamed meanwhile")
        .hint("run the same command again");
    error.lost_snapshot = true;
    // Nothing of it counts, whatever the target calls whole.
    error.begin_anew = true;
    Err(error)
}

/// Leaves and chunks of the tables, and the tables that are copied in part only.
type Work = (Leaves, HashMap<u32, Vec<ChunkSpec>>, HashSet<Oid>);

/// How the tables are cut into leaves, and of which shape they are.
struct Leaves {
    cuts: HashMap<u32, LeafCut>,
    shapes: HashMap<u32, String>,
}

/// What `prepare` hands to `copy`.
struct Prepared {
    start: SnapshotStart,
    leaves: Leaves,
    chunks: HashMap<u32, Vec<ChunkRange>>,
    _archive: Option<Archive>,
}

pub(crate) fn refuse_blocking(looked: &Looked) -> Result<()> {
    let blocking: Vec<_> = looked
        .findings
        .iter()
        .filter(|finding| finding.severity == Severity::Blocking)
        .cloned()
        .collect();
    for finding in looked.findings.iter().filter(|finding| finding.severity == Severity::Warning) {
        tracing::warn!(object = %finding.object, "{}", finding.message);
    }
    if blocking.is_empty() {
        return Ok(());
    }
    let mut error =
        Error::new(Kind::Preflight, format!("begin: {} finding(s) block the job", blocking.len()))
            .hint("mend what is listed; tidemark check shows all findings");
    error.findings = blocking;
    Err(error)
}

/// Names a run: the time, and the process so that two runs in one millisecond differ.
fn run_name() -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    format!("{:012x}{:06x}", now.as_millis(), std::process::id() & 0xFF_FFFF)
}
