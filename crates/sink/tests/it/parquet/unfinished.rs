//! A first snapshot into a lake that died: what was whole stays, whenever the run or those that go on with it died.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use object_store::memory::InMemory;
use tidemark_model::{JoinPoint, RelationName, TablePlan};
use tidemark_sink::parquet::{Commit, FileEntry};
use tidemark_sink::{
    Disposition, Join, Result, Sink, SnapshotStart, Stored, StoredStage, TableSummary,
};
use tokio::sync::Notify;

use super::lake::LocalLake;
use super::stream_crash::{Fault, Faulty, files_of, sink_on};
use super::support::{SNAPSHOT, commits, lsn, stream_start};
use crate::conformance::{self, Target, column, plan, plan_of, spec, start, summary};

fn plans() -> [TablePlan; 3] {
    ["orders", "Items", "late"]
        .map(|name| RelationName::new("public", name))
        .map(|name| plan(100 + u32::try_from(name.name.len()).unwrap(), &name))
}

/// So many rows has a copy of a table: no two copies have as many.
fn rows(plan: &TablePlan, copy: &str) -> i64 {
    let copy: i64 = copy.trim_start_matches(char::is_alphabetic).parse().unwrap();
    i64::from(plan.relation.oid) - 100 + 10 * copy
}

fn first() -> SnapshotStart {
    SnapshotStart { continues: true, ..start("r1", &plans()) }
}

/// A copy that ends the snapshot: of all tables that are not whole.
fn rest(copy: &str, stored: &Stored) -> SnapshotStart {
    let whole = |plan: &TablePlan| {
        let mut tables = stored.tables.iter().flatten();
        tables.any(|table| table.name == plan.relation.name)
    };
    let (whole, others): (Vec<_>, Vec<_>) = plans().into_iter().partition(whole);
    let join = Join {
        run: stored.run.clone(),
        point: JoinPoint {
            snapshot: "1001:1004:1002".parse().unwrap(),
            lsn: lsn(7),
            timeline: Some(1),
        },
        position: stored.end_lsn,
        followed: whole
            .iter()
            .map(|plan| (plan.relation.name.clone(), plan.relation.oid))
            .collect(),
        above: Vec::new(),
        completes: Some(Arc::new(whole)),
        halves: Vec::new(),
    };
    SnapshotStart { continues: true, joins: Some(join), ..start(copy, &others) }
}

/// A table with its rows, told whole.
async fn copy(sink: &dyn Sink, plan: &TablePlan, copy: &str) -> Result<()> {
    let rows = rows(plan, copy);
    conformance::write(sink, &spec(copy, plan, 0), 0..rows).await?;
    sink.table_loaded(&plan.relation.name).await?;
    sink.table_whole(&table(plan, copy)).await
}

fn table(plan: &TablePlan, copy: &str) -> TableSummary {
    summary(&[(plan, rows(plan, copy).unsigned_abs())]).tables.remove(0)
}

/// A run from its beginning to its end.
async fn run(sink: &dyn Sink, start: &SnapshotStart) -> Result<()> {
    sink.prepare(start).await?;
    for plan in start.tables.iter() {
        copy(sink, plan, &start.run).await?;
    }
    let mut end = summary(&[]);
    end.tables = start.tables.iter().map(|plan| table(plan, &start.run)).collect();
    sink.finish(&end).await
}

async fn stored(sink: &dyn Sink) -> Option<Stored> {
    sink.stored().await.unwrap()
}

fn files<'a>(commit: &'a Commit, plan: &TablePlan) -> (i64, &'a [FileEntry]) {
    let name = &plan.relation.name;
    let table = commit.tables.iter().find(|table| table.name == name.name).unwrap();
    (i64::try_from(table.rows).unwrap(), &table.files)
}

/// The snapshot is there as a whole, each table of one copy, every file is listed, and where a table joined is said.
#[track_caller]
fn assert_whole(files_there: &BTreeMap<String, Bytes>, what: &str) {
    let commit = &commits(files_there)[0];
    assert_eq!((commit.kind.as_str(), commit.run.as_str()), ("snapshot", "r1"), "{what}");
    assert_eq!(commit.end_lsn, start("r1", &[]).lsn, "{what}");
    let mut listed = Vec::new();
    for plan in &plans() {
        let (found, files) = files(commit, plan);
        let members = commit.members.as_ref().unwrap();
        let member = members.iter().find(|member| member.name == plan.relation.name.name).unwrap();
        assert_eq!(found, rows(plan, &member.run), "{what}: rows of {}", plan.relation.name);
        assert_eq!(member.join.is_some(), member.run != "r1", "{what}: {member:?}");
        for file in files {
            assert_eq!(files_there[&file.path].len() as u64, file.bytes, "{what}");
            listed.push(file.path.clone());
        }
    }
    listed.sort();
    let there = files_there.keys().filter(|path| !path.starts_with("_tidemark/")).cloned();
    assert_eq!(listed, there.collect::<Vec<_>>(), "{what}: what is listed and what is there");
}

/// Opens the stream, after which only what counts is left.
async fn follows(sink: &dyn Sink) {
    let opened = sink.open_stream(&stream_start("r1", &plans())).await.unwrap();
    assert_eq!(opened.position, start("r1", &[]).lsn);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_were_whole_stay_and_the_others_are_copied_again() {
    let lake = LocalLake::new();
    let sink = lake.sink();
    let plans = plans();
    sink.prepare(&first()).await.unwrap();
    assert_eq!(stored(&*sink).await.unwrap().tables, Some(Vec::new()));
    copy(&*sink, &plans[0], "r1").await.unwrap();
    conformance::write(&*sink, &spec("r1", &plans[1], 0), 0..5).await.unwrap();
    sink.table_loaded(&plans[1].relation.name).await.unwrap();
    conformance::write(&*sink, &spec("r1", &plans[2], 0), 0..5).await.unwrap();
    drop(sink);
    let left = stored(&*lake.sink()).await.unwrap();
    assert_eq!((left.stage, left.run.as_str()), (StoredStage::Snapshot, "r1"));
    assert_eq!(left.end_lsn.as_u64(), SNAPSHOT);
    let whole: Vec<_> = left.tables.iter().flatten().map(|table| table.oid).collect();
    assert_eq!(whole, [plans[0].relation.oid]);
    let kept = fs::read(lake.path().join("public/orders/snapshot/r1-00000.parquet")).unwrap();

    let sink = lake.sink();
    sink.prepare(&rest("j2", &left)).await.unwrap();
    let held = lake.sink().refuse_if_held().await.unwrap_err();
    assert_eq!(held.disposition, Disposition::Held);
    assert_eq!(lake.files().keys().filter(|path| path.ends_with(".parquet")).count(), 1);
    for plan in &plans[1..] {
        copy(&*sink, plan, "j2").await.unwrap();
    }
    let mut end = summary(&[]);
    end.tables = plans[1..].iter().map(|plan| table(plan, "j2")).collect();
    assert!(lake.commit().is_none(), "nothing is visible before the end");
    sink.finish(&end).await.unwrap();
    assert_whole(&lake.files(), "at the end");
    follows(&*lake.sink()).await;
    assert_whole(&lake.files(), "followed");
    assert!(!lake.files().keys().any(|path| path.starts_with("_tidemark/whole")));
    let again = fs::read(lake.path().join("public/orders/snapshot/r1-00000.parquet")).unwrap();
    assert_eq!(kept, again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_nothing_continues_from_keeps_nothing() {
    let lake = LocalLake::new();
    let sink = lake.sink();
    sink.prepare(&start("r1", &plans())).await.unwrap();
    copy(&*sink, &plans()[0], "r1").await.unwrap();
    drop(sink);
    assert_eq!(stored(&*lake.sink()).await.unwrap().tables, None);
}

/// What one try came to with a fault in it; `None` if the process died.
async fn try_once(store: &Arc<Faulty>, start: &SnapshotStart) -> Option<Result<()>> {
    let sink = sink_on(Arc::clone(store) as _);
    tokio::select! {
        outcome = run(&*sink, start) => Some(outcome),
        () = store.killed.notified() => None,
    }
}

/// A run with a fault at the n-th operation; says whether the fault came.
async fn dies_at(
    inner: &Arc<InMemory>,
    start: &SnapshotStart,
    (fault, operation): (Fault, usize),
) -> bool {
    let faulty = Arc::new(Faulty {
        inner: Arc::clone(inner),
        fault,
        left: AtomicUsize::new(operation),
        killed: Arc::new(Notify::new()),
    });
    let outcome = try_once(&faulty, start).await;
    !matches!(outcome, Some(Ok(()))) || faulty.left.load(Ordering::SeqCst) > operation
}

/// Lets the first run die, then the one that goes on, then goes on without a fault.
async fn dies_twice(fault: Fault, one: usize, two: usize) -> (bool, bool, usize) {
    let what = format!("{fault:?} at operations {one} and {two}");
    let inner = Arc::new(InMemory::new());
    let memory = || sink_on(Arc::clone(&inner) as _);
    let mut hits = [dies_at(&inner, &first(), (fault, one)).await, false];
    let mut kept = 0;
    for copy in ["j2", "j3"] {
        let Some(left) = stored(&*memory()).await else {
            // Not even begun.
            run(&*memory(), &first()).await.unwrap();
            continue;
        };
        if left.stage == StoredStage::Follow {
            continue;
        }
        kept += left.tables.as_ref().map_or(0, Vec::len);
        let start = rest(copy, &left);
        if copy == "j2" {
            hits[1] = dies_at(&inner, &start, (fault, two)).await;
        } else {
            run(&*memory(), &start).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        }
    }
    assert_whole(&files_of(&inner).await, &what);
    follows(&*memory()).await;
    assert_whole(&files_of(&inner).await, &what);
    (hits[0], hits[1], kept)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_that_die_at_any_operation_of_the_first_snapshot_keep_what_is_whole_and_no_more() {
    for fault in [Fault::Fails, Fault::AnswerLost, Fault::KilledBefore, Fault::KilledAfter] {
        let (mut hits, mut kept) = (0, 0);
        'first: for one in 1..40 {
            // Over all of the first, every operation of the second comes.
            for two in (1 + one % 3..40).step_by(3) {
                let (is_hit, is_hit_again, tables) = dies_twice(fault, one, two).await;
                if !is_hit {
                    break 'first;
                }
                (hits, kept) = (hits + 1, kept + tables);
                if !is_hit_again {
                    break;
                }
            }
        }
        assert!(hits > 30 && kept > hits, "{hits} hits, {kept} tables were kept");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_refused_before_a_file_goes() {
    let changed = |plan: &TablePlan| {
        let mut columns = plan.columns.clone();
        columns.push(column(3, "more", 23, "int4", true));
        plan_of(plan.relation.oid, &plan.relation.name, columns)
    };
    let remade = |plan: &TablePlan| conformance::plan(999, &plan.relation.name);
    let lake = LocalLake::new();
    let sink = lake.sink();
    sink.prepare(&first()).await.unwrap();
    copy(&*sink, &plans()[0], "r1").await.unwrap();
    copy(&*sink, &plans()[1], "r1").await.unwrap();
    drop(sink);
    let left = stored(&*lake.sink()).await.unwrap();
    let before = lake.files();
    let refuses = async |change: &dyn Fn(&mut Join)| {
        let mut start = rest("j2", &left);
        change(start.joins.as_mut().unwrap());
        let error = lake.sink().prepare(&start).await.unwrap_err();
        assert_eq!(error.disposition, Disposition::Unfit, "{error}");
        error.to_string()
    };
    let whole = |join: &mut Join, change: &dyn Fn(&TablePlan) -> TablePlan| {
        let mut whole = join.completes.as_ref().unwrap().to_vec();
        whole[0] = change(&whole[0]);
        join.completes = Some(Arc::new(whole));
    };
    let other_run = refuses(&|join| "r0".clone_into(&mut join.run)).await;
    assert!(other_run.contains("another run's"), "{other_run}");
    refuses(&|join| join.position = lsn(1)).await;
    let columns = refuses(&|join| whole(join, &changed)).await;
    assert!(columns.contains("definitions on the source have changed"), "{columns}");
    refuses(&|join| whole(join, &remade)).await;
    let mut after = lake.files();
    after.remove("_tidemark/lock");
    assert_eq!(after, before);
    fs::remove_file(lake.path().join("public/orders/snapshot/r1-00000.parquet")).unwrap();
    let gone = refuses(&|_| {}).await;
    assert!(gone.contains("public/orders/snapshot/r1-00000.parquet is not there"), "{gone}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_was_taken_over_neither_ends_the_snapshot_nor_makes_a_table_whole() {
    let inner = Arc::new(InMemory::new());
    let memory = || sink_on(Arc::clone(&inner) as _);
    let plans = plans();
    let slow = memory();
    slow.prepare(&first()).await.unwrap();
    copy(&*slow, &plans[0], "r1").await.unwrap();
    let left = stored(&*memory()).await.unwrap();
    let next = memory();
    next.prepare(&rest("j2", &left)).await.unwrap();
    // The one that was thought dead goes on.
    for plan in &plans[1..] {
        copy(&*slow, plan, "r1").await.unwrap();
    }
    let mut end = summary(&[]);
    end.tables = plans.iter().map(|plan| table(plan, "r1")).collect();
    let error = slow.finish(&end).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Held, "{error}");
    assert_eq!(stored(&*memory()).await.unwrap().tables.unwrap().len(), 1);
    for plan in &plans[1..] {
        copy(&*next, plan, "j2").await.unwrap();
    }
    end.tables = plans[1..].iter().map(|plan| table(plan, "j2")).collect();
    next.finish(&end).await.unwrap();
    assert_whole(&files_of(&inner).await, "at the end");
}
