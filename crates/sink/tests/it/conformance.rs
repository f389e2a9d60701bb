//! What every sink must do, as functions over any [`Sink`] and a [`Reader`] that looks at the target by itself.
//!
//! Rows are `(id int8, body text)`, made by hand in COPY's binary form. Each function takes a fresh target.

use std::sync::Arc;

use tidemark_model::{
    Budget, ChunkId, ChunkRange, ChunkResult, ChunkSpec, Column, DataType, Generated, Identity,
    Key, Lsn, Persistence, Relation, RelationKind, RelationName, ReplicaIdentity, RowSum,
    SelectColumn, TablePlan, TupleForm, Tuples, Unrepresentable, Wire,
};
use tidemark_sink::{
    BeginChunk, ChunkWriter, Committed, Disposition, Error, Sink, SnapshotStart, SnapshotSummary,
    TableSummary,
};

/// Looks at a target as an outsider does.
#[async_trait::async_trait]
pub(crate) trait Reader: Send + Sync {
    /// The ids of the rows that a reader sees in a table, sorted; `None` if it is not there.
    async fn visible_ids(&self, relation: &RelationName) -> Option<Vec<i64>>;

    /// How many pieces of unfinished work (open files, markers, staging tables) are lying about.
    async fn debris(&self) -> usize;
}

/// A target under test: makes sinks that write to the same place, as restarted processes would.
pub(crate) trait Target: Send + Sync {
    /// A new sink, as a new process has it.
    fn sink(&self) -> Arc<dyn Sink>;

    /// Something that reads the place.
    fn reader(&self) -> &dyn Reader;
}

/// The job of all these tests.
pub(crate) const JOB: &str = "shop";

/// A column of a built-in type.
pub(crate) fn column(
    attnum: i16,
    name: &str,
    oid: u32,
    type_name: &str,
    is_nullable: bool,
) -> Column {
    Column {
        attnum,
        name: name.to_owned(),
        data_type: DataType::builtin(oid, type_name),
        typmod: -1,
        type_name: type_name.to_owned(),
        is_nullable,
        generated: Generated::No,
        identity: Identity::No,
        has_default: false,
        key_position: None,
        collation: None,
    }
}

/// A plan for a table `(id int8 primary key, body text)`.
pub(crate) fn plan(oid: u32, name: &RelationName) -> TablePlan {
    let mut id = column(1, "id", 20, "int8", false);
    id.key_position = Some(1);
    plan_of(oid, name, vec![id, column(2, "body", 25, "text", true)])
}

/// A plan for a table with these columns.
pub(crate) fn plan_of(oid: u32, name: &RelationName, columns: Vec<Column>) -> TablePlan {
    let select = columns
        .iter()
        .map(|column| SelectColumn { name: column.name.clone(), wire: Wire::Own })
        .collect();
    let key = Key {
        index: "k".to_owned(),
        columns: vec![columns[0].name.clone()],
        is_primary: true,
        is_deferrable: false,
    };
    let relation = Relation {
        oid,
        name: name.clone(),
        kind: RelationKind::Table,
        persistence: Persistence::Permanent,
        columns: columns.clone(),
        keys: vec![key],
        indexes: Vec::new(),
        replica_identity: ReplicaIdentity::Default,
        partition_root: None,
        inherits: Vec::new(),
        row_security_applies: false,
        can_select: true,
        row_estimate: 0,
        heap_bytes: 8192,
        toast_bytes: 0,
        extension: None,
    };
    TablePlan {
        relation,
        columns,
        select,
        form: TupleForm::PgBinary,
        filter: None,
        unrepresentable: Unrepresentable::Error,
    }
}

/// The start of a run over these tables.
pub(crate) fn start(run: &str, plans: &[TablePlan]) -> SnapshotStart {
    SnapshotStart {
        job: JOB.to_owned(),
        run: run.to_owned(),
        snapshot_id: "00000003-1".to_owned(),
        lsn: Lsn::new(0x16_B374_D848),
        system_identifier: 7_350_000_000_000_000_001,
        database: "shop".to_owned(),
        source_version: 150_004,
        tables: Arc::new(plans.to_vec()),
        schema: Arc::default(),
        schema_archive: None,
        excluded: Arc::default(),
        above: Arc::default(),
        continues: false,
        adopts: false,
        joins: None,
        schema_digest: None,
    }
}

/// A chunk of a planned table.
pub(crate) fn spec(run: &str, plan: &TablePlan, chunk: ChunkId) -> ChunkSpec {
    ChunkSpec {
        job: JOB.to_owned(),
        run: run.to_owned(),
        snapshot_id: "00000003-1".to_owned(),
        relation_oid: plan.relation.oid,
        relation: plan.relation.name.clone(),
        chunk,
        range: ChunkRange::Whole,
        filter: None,
        columns: plan.select.clone(),
        form: plan.form,
        estimated_bytes: 8192,
    }
}

/// Rows of any fields in COPY's binary form; `None` is NULL.
pub(crate) fn tuples_of(rows: &[Vec<Option<Vec<u8>>>]) -> Tuples {
    let (mut data, mut ends) = (Vec::new(), Vec::new());
    for row in rows {
        data.extend(i16::try_from(row.len()).unwrap().to_be_bytes());
        for field in row {
            match field {
                Some(bytes) => {
                    data.extend(i32::try_from(bytes.len()).unwrap().to_be_bytes());
                    data.extend(bytes);
                }
                None => data.extend((-1_i32).to_be_bytes()),
            }
        }
        ends.push(u32::try_from(data.len()).unwrap());
    }
    Tuples { form: TupleForm::PgBinary, data: data.into(), ends }
}

/// Rows with these ids; every seventh body is NULL.
pub(crate) fn tuples(ids: impl Iterator<Item = i64>) -> Tuples {
    let body = |id: i64| (id % 7 != 0).then(|| format!("row {id}").into_bytes());
    let rows: Vec<_> = ids.map(|id| vec![Some(id.to_be_bytes().to_vec()), body(id)]).collect();
    tuples_of(&rows)
}

/// What the source says of a chunk.
pub(crate) fn result(spec: &ChunkSpec, rows: u64) -> ChunkResult {
    ChunkResult {
        relation_oid: spec.relation_oid,
        chunk: spec.chunk,
        rows_out: rows,
        rows_in: rows,
        bytes: rows * 20,
        sum: RowSum { count: rows, raw: 7, value: 7 },
        leaves: Vec::new(),
        replaced: Vec::new(),
        duration_ms: 1,
    }
}

/// What a run says at its end.
pub(crate) fn summary(tables: &[(&TablePlan, u64)]) -> SnapshotSummary {
    let tables = tables.iter().map(|(plan, rows)| TableSummary {
        relation: plan.relation.name.clone(),
        rows_out: *rows,
        rows_in: *rows,
        bytes: rows * 20,
        sum: RowSum { count: *rows, raw: 7, value: 7 },
        replaced: Vec::new(),
    });
    SnapshotSummary { lsn: Lsn::new(0x16_B374_D848), tables: tables.collect() }
}

/// Begins a chunk that must not be there yet.
pub(crate) async fn begin(sink: &dyn Sink, spec: &ChunkSpec) -> Box<dyn ChunkWriter> {
    match sink.begin_chunk(spec).await.unwrap() {
        BeginChunk::Write(writer) => writer,
        BeginChunk::AlreadyCommitted(_) => panic!("chunk {} is already there", spec.chunk),
    }
}

/// Gives a writer some rows.
pub(crate) async fn accept(writer: &mut Box<dyn ChunkWriter>, tuples: Tuples) -> Result<(), Error> {
    let reservation = Budget::new(1 << 30).reserve(tuples.data.len() as u64).await;
    writer.accept(tuples, reservation).await
}

/// Writes and commits one chunk with these ids.
pub(crate) async fn write(
    sink: &dyn Sink,
    spec: &ChunkSpec,
    ids: std::ops::Range<i64>,
) -> Result<Committed, Error> {
    let mut writer = begin(sink, spec).await;
    let rows = (ids.end - ids.start).unsigned_abs();
    accept(&mut writer, tuples(ids)).await?;
    writer.commit(&result(spec, rows)).await
}

fn two_plans() -> [TablePlan; 2] {
    [
        plan(101, &RelationName::new("public", "orders")),
        plan(102, &RelationName::new("public", "Items")),
    ]
}

/// A whole run ends with what was sent, in every table, and with nothing else.
pub(crate) async fn a_run_makes_exactly_what_was_sent_visible(target: &dyn Target) {
    let plans = two_plans();
    let sink = target.sink();
    sink.prepare(&start("r1", &plans)).await.unwrap();
    for (chunk, ids) in [(0, 0..1000), (1, 1000..1500), (2, 1500..1500)] {
        let spec = spec("r1", &plans[0], chunk);
        let committed = write(&*sink, &spec, ids.clone()).await.unwrap();
        assert_eq!(committed.rows, (ids.end - ids.start).unsigned_abs());
    }
    for plan in &plans {
        sink.table_loaded(&plan.relation.name).await.unwrap();
    }
    sink.finish(&summary(&[(&plans[0], 1500), (&plans[1], 0)])).await.unwrap();
    let orders = target.reader().visible_ids(&plans[0].relation.name).await;
    assert_eq!(orders, Some((0..1500).collect()));
    let items = target.reader().visible_ids(&plans[1].relation.name).await;
    assert_eq!(items, Some(Vec::new()), "a table without rows is there, too");
    assert_eq!(target.reader().debris().await, 0);
}

/// Rows that were accepted and then aborted, or dropped, are nowhere, and the chunk can be written again.
pub(crate) async fn what_is_aborted_or_dropped_leaves_nothing(target: &dyn Target) {
    let plans = two_plans();
    let sink = target.sink();
    sink.prepare(&start("r1", &plans)).await.unwrap();
    let spec = spec("r1", &plans[0], 0);
    let mut writer = begin(&*sink, &spec).await;
    accept(&mut writer, tuples(0..20_000)).await.unwrap();
    writer.abort().await;
    let mut writer = begin(&*sink, &spec).await;
    accept(&mut writer, tuples(0..20_000)).await.unwrap();
    drop(writer);
    write(&*sink, &spec, 5..10).await.unwrap();
    for plan in &plans {
        sink.table_loaded(&plan.relation.name).await.unwrap();
    }
    sink.finish(&summary(&[(&plans[0], 5), (&plans[1], 0)])).await.unwrap();
    let visible = target.reader().visible_ids(&plans[0].relation.name).await;
    assert_eq!(visible, Some((5..10).collect()));
    assert_eq!(target.reader().debris().await, 0);
}

/// A committed chunk is known to be there, with its count, and is not written twice.
pub(crate) async fn a_committed_chunk_is_not_taken_again(target: &dyn Target) {
    let plans = two_plans();
    let sink = target.sink();
    sink.prepare(&start("r1", &plans)).await.unwrap();
    let spec = spec("r1", &plans[0], 3);
    let committed = write(&*sink, &spec, 0..10).await.unwrap();
    match sink.begin_chunk(&spec).await.unwrap() {
        BeginChunk::AlreadyCommitted(again) => assert_eq!(again, committed),
        BeginChunk::Write(_) => panic!("the chunk would be written twice"),
    }
}

/// A chunk whose count is not what the source said is refused and leaves nothing.
pub(crate) async fn a_wrong_count_is_refused(target: &dyn Target) {
    let plans = two_plans();
    let sink = target.sink();
    sink.prepare(&start("r1", &plans)).await.unwrap();
    let first = spec("r1", &plans[0], 0);
    let mut writer = begin(&*sink, &first).await;
    accept(&mut writer, tuples(0..10)).await.unwrap();
    let error = writer.commit(&result(&first, 11)).await.unwrap_err();
    assert_eq!(error.relation.as_ref(), Some(&plans[0].relation.name));
    write(&*sink, &spec("r1", &plans[0], 1), 100..103).await.unwrap();
    for plan in &plans {
        sink.table_loaded(&plan.relation.name).await.unwrap();
    }
    sink.finish(&summary(&[(&plans[0], 3), (&plans[1], 0)])).await.unwrap();
    let visible = target.reader().visible_ids(&plans[0].relation.name).await;
    assert_eq!(visible, Some(vec![100, 101, 102]));
}

/// Chunks of two tables that are written in turns do not mix.
pub(crate) async fn interleaved_tables_do_not_mix(target: &dyn Target) {
    let plans = two_plans();
    let sink = target.sink();
    sink.prepare(&start("r1", &plans)).await.unwrap();
    let specs = [spec("r1", &plans[0], 0), spec("r1", &plans[1], 0)];
    let mut writers = [begin(&*sink, &specs[0]).await, begin(&*sink, &specs[1]).await];
    for round in 0..5 {
        for (index, writer) in writers.iter_mut().enumerate() {
            let from = round * 100 + i64::try_from(index).unwrap() * 1_000_000;
            accept(writer, tuples(from..from + 100)).await.unwrap();
        }
    }
    for (writer, spec) in writers.into_iter().zip(&specs) {
        assert_eq!(writer.commit(&result(spec, 500)).await.unwrap().rows, 500);
    }
    for plan in &plans {
        sink.table_loaded(&plan.relation.name).await.unwrap();
    }
    sink.finish(&summary(&[(&plans[0], 500), (&plans[1], 500)])).await.unwrap();
    let visible = target.reader().visible_ids(&plans[0].relation.name).await;
    assert_eq!(visible, Some((0..500).collect()));
    let visible = target.reader().visible_ids(&plans[1].relation.name).await;
    assert_eq!(visible, Some((1_000_000..1_000_500).collect()));
}

/// Many chunks of one table at once all arrive, once.
pub(crate) async fn parallel_chunks_all_arrive_once(target: &dyn Target) {
    let plans = two_plans();
    let sink = target.sink();
    sink.prepare(&start("r1", &plans)).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for chunk in 0..24_u32 {
        let (sink, plan) = (Arc::clone(&sink), plans[0].clone());
        tasks.spawn(async move {
            let from = i64::from(chunk) * 1000;
            write(&*sink, &spec("r1", &plan, chunk), from..from + 1000).await.unwrap();
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    for plan in &plans {
        sink.table_loaded(&plan.relation.name).await.unwrap();
    }
    sink.finish(&summary(&[(&plans[0], 24_000), (&plans[1], 0)])).await.unwrap();
    let visible = target.reader().visible_ids(&plans[0].relation.name).await;
    assert_eq!(visible, Some((0..24_000).collect()));
}

/// A run that died in the middle is cleared away by the next run of the job, which ends as if nothing had been.
pub(crate) async fn the_next_run_clears_what_a_killed_run_left(target: &dyn Target) {
    let plans = two_plans();
    let killed = target.sink();
    killed.prepare(&start("r1", &plans)).await.unwrap();
    write(&*killed, &spec("r1", &plans[0], 0), 0..100).await.unwrap();
    killed.table_loaded(&plans[0].relation.name).await.unwrap();
    write(&*killed, &spec("r1", &plans[1], 0), 0..100).await.unwrap();
    let mut open = begin(&*killed, &spec("r1", &plans[1], 1)).await;
    accept(&mut open, tuples(100..200)).await.unwrap();
    // The process is gone: nothing is dropped properly.
    std::mem::forget((open, killed));

    let sink = target.sink();
    sink.prepare(&start("r2", &plans)).await.unwrap();
    write(&*sink, &spec("r2", &plans[0], 0), 0..50).await.unwrap();
    for plan in &plans {
        sink.table_loaded(&plan.relation.name).await.unwrap();
    }
    sink.finish(&summary(&[(&plans[0], 50), (&plans[1], 0)])).await.unwrap();
    let visible = target.reader().visible_ids(&plans[0].relation.name).await;
    assert_eq!(visible, Some((0..50).collect()));
    assert_eq!(target.reader().visible_ids(&plans[1].relation.name).await, Some(Vec::new()));
    assert_eq!(target.reader().debris().await, 0, "what the killed run left is still there");
}

/// A target that holds a finished run is refused, and stays as it was.
pub(crate) async fn a_target_that_is_not_empty_is_refused(target: &dyn Target) {
    let plans = two_plans();
    finish_run(target, "r1", &plans, 0..10).await;
    let sink = target.sink();
    let error = sink.prepare(&start("r2", &plans)).await.unwrap_err();
    assert!(matches!(error.disposition, Disposition::Usage | Disposition::Refused), "{error:?}");
    assert!(error.hint.is_some(), "the way out is named");
    let visible = target.reader().visible_ids(&plans[0].relation.name).await;
    assert_eq!(visible, Some((0..10).collect()));
}

/// A finished run cannot be finished again.
pub(crate) async fn finishing_twice_is_refused(target: &dyn Target) {
    let plans = two_plans();
    let sink = finish_run(target, "r1", &plans, 0..10).await;
    let again = sink.finish(&summary(&[(&plans[0], 10), (&plans[1], 0)])).await;
    assert!(again.is_err());
}

/// A whole run with these ids in the first table.
pub(crate) async fn finish_run(
    target: &dyn Target,
    run: &str,
    plans: &[TablePlan; 2],
    ids: std::ops::Range<i64>,
) -> Arc<dyn Sink> {
    let sink = target.sink();
    let rows = (ids.end - ids.start).unsigned_abs();
    sink.prepare(&start(run, plans)).await.unwrap();
    write(&*sink, &spec(run, &plans[0], 0), ids).await.unwrap();
    for plan in plans {
        sink.table_loaded(&plan.relation.name).await.unwrap();
    }
    sink.finish(&summary(&[(&plans[0], rows), (&plans[1], 0)])).await.unwrap();
    sink
}
