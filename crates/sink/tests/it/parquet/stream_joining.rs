//! Tables join a lake that follows, are given up and left out; and what is there whenever a process dies in between.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use object_store::memory::InMemory;
use tidemark_model::{JoinPoint, RelationName, TablePlan};
use tidemark_sink::parquet::{Commit, FileEntry, MemberState};
use tidemark_sink::{
    Disposition, Join, NotEmpty, OpenStream, Result, Sink, SnapshotStart, StoredTable, StreamWriter,
};
use tokio::sync::Notify;

use super::lake::LocalLake;
use super::stream_crash::{Fault, Faulty, files_of, sink_on};
use super::support::{
    commits, debris, insert, lsn, open, relation, row, send, snapshot, stream_start, transaction,
};
use crate::conformance::{self, JOB, Target, plan, spec, start, summary};

/// Two tables of the first snapshot, and one that joins.
fn plans() -> [TablePlan; 3] {
    ["orders", "Items", "late"]
        .map(|name| RelationName::new("public", name))
        .map(|name| plan(100 + u32::try_from(name.name.len()).unwrap(), &name))
}

fn join_point() -> JoinPoint {
    JoinPoint { snapshot: "1001:1004:1002".parse().unwrap(), lsn: lsn(4), timeline: None }
}

/// A copy of the last of the tables, which joins the others where the lake stands at `position`.
fn joining(copy: &str, position: u64) -> SnapshotStart {
    let [orders, items, late] = plans();
    let join = Join {
        run: "r2".to_owned(),
        point: join_point(),
        position: lsn(position),
        followed: [orders, items].map(|plan| (plan.relation.name, plan.relation.oid)).to_vec(),
        above: Vec::new(),
        completes: None,
        halves: Vec::new(),
    };
    SnapshotStart { continues: true, joins: Some(join), ..start(copy, &[late]) }
}

/// Copies this many rows and lets the table join.
async fn join(sink: &dyn Sink, copy: &str, position: u64, rows: i64) -> Result<()> {
    let late = &plans()[2];
    sink.prepare(&joining(copy, position)).await?;
    for (chunk, ids) in [(0, 0..rows / 2), (1, rows / 2..rows)] {
        conformance::write(sink, &spec(copy, late, chunk), ids).await?;
    }
    sink.table_loaded(&late.relation.name).await?;
    sink.finish(&summary(&[(late, rows.unsigned_abs())])).await
}

/// What the commits list of a table since it began anew: the files of its rows, and those of its changes.
fn listed(files: &BTreeMap<String, Bytes>, plan: &TablePlan) -> (Vec<FileEntry>, Vec<FileEntry>) {
    let name = &plan.relation.name;
    let (mut base, mut changes) = (Vec::new(), Vec::new());
    for Commit { kind, tables, .. } in commits(files) {
        let of_table = |table: &&tidemark_sink::parquet::CommitTable| {
            table.schema == name.schema && table.name == name.name
        };
        let Some(table) = tables.iter().find(of_table) else { continue };
        match kind.as_str() {
            "changes" => changes.extend(table.files.clone()),
            _ => (base, changes) = (table.files.clone(), Vec::new()),
        }
    }
    (base, changes)
}

/// How many rows a table begins with, and how many changes follow. Every file is there.
fn counts(files: &BTreeMap<String, Bytes>, plan: &TablePlan) -> (u64, u64) {
    let (base, changes) = listed(files, plan);
    for file in base.iter().chain(&changes) {
        assert_eq!(files[&file.path].len() as u64, file.bytes, "{}", file.path);
    }
    let rows = |files: &[FileEntry]| files.iter().map(|file| file.rows).sum();
    (rows(&base), rows(&changes))
}

/// Files below the tables that no table's present list has.
fn unlisted(files: &BTreeMap<String, Bytes>) -> Vec<String> {
    let present: HashSet<String> = (plans().iter())
        .map(|plan| listed(files, plan))
        .flat_map(|(base, changes)| base.into_iter().chain(changes))
        .map(|file| file.path)
        .collect();
    let is_data = |path: &&String| !path.starts_with("_tidemark/") && !present.contains(*path);
    files.keys().filter(is_data).cloned().collect()
}

fn states(commit: &Commit) -> Vec<(&str, MemberState)> {
    let members = commit.members.iter().flatten();
    members.map(|member| (member.name.as_str(), member.state)).collect()
}

async fn whole(sink: &dyn Sink) -> Vec<StoredTable> {
    sink.stored().await.unwrap().unwrap().tables.unwrap()
}

/// A row in each of the first tables, at this end.
async fn follow(
    writer: &mut Box<dyn StreamWriter>,
    plans: &[TablePlan],
    ends: impl Iterator<Item = u64>,
) -> Result<()> {
    for end in ends {
        let rows = plans.iter().map(|plan| insert(&relation(plan), row(end as i64, "x")));
        send(writer, vec![transaction(end, rows.collect())]).await?;
        writer.flush().await?;
    }
    Ok(())
}

/// A lake of two tables that stands at 2.
async fn followed(sink: &dyn Sink, opens: &dyn Sink) {
    let plans = plans();
    snapshot(sink, "r2", &plans[..2]).await;
    let mut opened = opens.open_stream(&stream_start("r2", &plans[..2])).await.unwrap();
    follow(&mut opened.writer, &plans[..2], 1..=2).await.unwrap();
    opened.writer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_joins_with_one_commit_that_has_its_rows_and_where_and_moves_no_position() {
    let lake = LocalLake::new();
    let plans = plans();
    followed(&*lake.sink(), &*lake.sink()).await;
    let sink = lake.sink();
    sink.prepare(&joining("j1", 2)).await.unwrap();
    let before = commits(&lake.files());
    conformance::write(&*sink, &spec("j1", &plans[2], 0), 0..30).await.unwrap();
    sink.table_loaded(&plans[2].relation.name).await.unwrap();
    assert_eq!(commits(&lake.files()), before, "nothing of the copy shows before its end");
    assert_eq!(whole(&*lake.sink()).await.len(), 2);
    let held = lake.sink().refuse_if_held().await.unwrap_err();
    assert_eq!(held.disposition, Disposition::Held);
    sink.finish(&summary(&[(&plans[2], 30)])).await.unwrap();

    let after = commits(&lake.files());
    assert_eq!(after.len(), before.len() + 1);
    let commit = after.last().unwrap();
    assert_eq!((commit.kind.as_str(), commit.end_lsn, commit.run.as_str()), ("join", lsn(2), "r2"));
    let [table] = &commit.tables[..] else { panic!("{:?}", commit.tables) };
    assert_eq!((table.name.as_str(), table.rows), ("late", 30));
    assert!(table.digest.is_some() && table.operations.is_none());
    assert_eq!(table.join, Some(join_point()));
    let stored = lake.sink().stored().await.unwrap().unwrap();
    let joined = StoredTable {
        name: plans[2].relation.name.clone(),
        oid: plans[2].relation.oid,
        join: Some(join_point()),
    };
    assert_eq!((stored.end_lsn, stored.run.as_str()), (lsn(2), "r2"));
    assert_eq!(stored.tables.unwrap()[2], joined);

    // The lake is free for the stream.
    let OpenStream { mut writer, position, columns, .. } = open(&lake, "r2", &plans).await.unwrap();
    assert_eq!((position, columns.len()), (lsn(2), 3));
    follow(&mut writer, &plans, 3..=4).await.unwrap();
    writer.close().await.unwrap();
    let files = lake.files();
    assert_eq!(plans.each_ref().map(|plan| counts(&files, plan)), [(0, 4), (0, 4), (30, 2)]);
    assert_eq!(debris(&files), [""; 0]);
    assert_eq!(whole(&*lake.sink()).await.len(), 3, "later commits name the one that knows");
}

/// What one try of a join came to with a fault in it; `None` if the process died.
async fn try_once(store: &Arc<Faulty>, copy: &str) -> Option<Result<()>> {
    let sink = sink_on(Arc::clone(store) as _);
    let work = async {
        join(&*sink, copy, 2, 40).await?;
        let plans = plans();
        let mut opened = sink.open_stream(&stream_start("r2", &plans)).await?;
        follow(&mut opened.writer, &plans, 3..=3).await
    };
    tokio::select! {
        outcome = work => Some(outcome),
        () = store.killed.notified() => None,
    }
}

/// Lets a table join with a fault at the n-th operation, then without; says whether the fault came.
async fn dies_once(fault: Fault, operation: usize) -> bool {
    let what = format!("{fault:?} at operation {operation}");
    let inner = Arc::new(InMemory::new());
    let memory = || sink_on(Arc::clone(&inner) as _);
    followed(&*memory(), &*memory()).await;
    let faulty = Arc::new(Faulty {
        inner: Arc::clone(&inner),
        fault,
        left: AtomicUsize::new(operation),
        killed: Arc::new(Notify::new()),
    });
    let outcome = try_once(&faulty, "j1").await;
    let is_hit = !matches!(outcome, Some(Ok(()))) || faulty.left.load(Ordering::SeqCst) > operation;

    // What a new process finds and does.
    let plans = plans();
    let stored = memory().stored().await.unwrap().unwrap();
    let has_joined = stored.tables.unwrap().len() == 3;
    assert!(has_joined || stored.end_lsn == lsn(2), "{what}: the position moved");
    if !has_joined {
        let files = files_of(&inner).await;
        assert_eq!(counts(&files, &plans[2]), (0, 0), "{what}: a part of the table shows");
        join(&*memory(), "j2", 2, 50).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    }
    let opened = memory().open_stream(&stream_start("r2", &plans)).await;
    let mut opened = opened.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let done = opened.position.as_u64() - lsn(0).as_u64();
    follow(&mut opened.writer, &plans, done + 1..=5).await.unwrap();
    opened.writer.close().await.unwrap();
    let files = files_of(&inner).await;
    let rows = if has_joined { 40 } else { 50 };
    let found = plans.each_ref().map(|plan| counts(&files, plan));
    assert_eq!(found, [(0, 5), (0, 5), (rows, 3)], "{what}");
    assert_eq!(debris(&files), [""; 0], "{what}");
    is_hit
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_dies_at_any_operation_is_there_as_a_whole_or_not_at_all() {
    for fault in [Fault::Fails, Fault::AnswerLost, Fault::KilledBefore, Fault::KilledAfter] {
        let mut hits = 0;
        for operation in 1..60 {
            if !dies_once(fault, operation).await {
                break;
            }
            hits += 1;
        }
        assert!((8..59).contains(&hits), "{hits} operations were hit");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_a_killed_copy_left_on_a_disk_are_removed_and_no_others() {
    let lake = LocalLake::new();
    let plans = plans();
    followed(&*lake.sink(), &*lake.sink()).await;
    for copy in ["j1", "j2"] {
        let sink = lake.sink();
        sink.prepare(&joining(copy, 2)).await.unwrap();
        let late = &plans[2].relation.name;
        conformance::write(&*sink, &spec(copy, &plans[2], 0), 0..30).await.unwrap();
        sink.table_loaded(late).await.unwrap();
        let directory = lake.path().join("public/late/snapshot");
        fs::write(directory.join(format!(".{copy}-00001.parquet.tmp-Ab12")), "PAR1").unwrap();
    }
    let directory = lake.path().join("public/late/snapshot");
    fs::write(directory.join("j3-00000.parquet"), "mine").unwrap();
    assert_eq!(
        unlisted(&lake.files()).len(),
        3,
        "two of the second copy, and one that is not ours"
    );
    let opened = open(&lake, "r2", &plans[..2]).await.unwrap();
    drop(opened);
    assert_eq!(unlisted(&lake.files()), ["public/late/snapshot/j3-00000.parquet"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_was_taken_over_commits_no_more_and_takes_its_files_back() {
    let store = Arc::new(InMemory::new());
    let memory = || sink_on(Arc::clone(&store) as _);
    let plans = plans();
    followed(&*memory(), &*memory()).await;
    let slow = memory();
    slow.prepare(&joining("j1", 2)).await.unwrap();
    let mut other = memory().open_stream(&stream_start("r2", &plans[..2])).await.unwrap();
    conformance::write(&*slow, &spec("j1", &plans[2], 0), 0..30).await.unwrap();
    slow.table_loaded(&plans[2].relation.name).await.unwrap();
    let error = slow.finish(&summary(&[(&plans[2], 30)])).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Held);
    follow(&mut other.writer, &plans[..2], 3..=3).await.unwrap();
    assert_eq!(whole(&*memory()).await.len(), 2);
    assert_eq!(unlisted(&files_of(&store).await), [""; 0]);

    // The other way round, and a position that somebody has moved since it was read.
    let error = memory().prepare(&joining("j2", 2)).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Unavailable, "{error}");
    assert!(error.to_string().contains("meanwhile"), "{error}");
    join(&*memory(), "j3", 3, 10).await.unwrap();
    let error = follow(&mut other.writer, &plans[..2], 4..=4).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Held);
    assert_eq!(counts(&files_of(&store).await, &plans[2]), (10, 0));
    assert_eq!(debris(&files_of(&store).await), [""; 0]);
}

/// A lake in which the third table has joined and has changes, as of 4.
async fn joined(lake: &LocalLake) {
    let plans = plans();
    followed(&*lake.sink(), &*lake.sink()).await;
    join(&*lake.sink(), "j1", 2, 20).await.unwrap();
    let mut opened = open(lake, "r2", &plans).await.unwrap();
    follow(&mut opened.writer, &plans, 3..=4).await.unwrap();
    opened.writer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_given_up_has_no_files_from_one_commit_on_and_joins_again() {
    let lake = LocalLake::new();
    let plans = plans();
    joined(&lake).await;
    let late = plans[2].relation.name.clone();
    let notes = lake.path().join("public/late/changes/notes.txt");
    fs::write(&notes, "mine").unwrap();
    let nothing = RelationName::new("public", "nothing");
    let before = lake.files();
    let named = lake.sink().forget(JOB, &[nothing.clone(), late.clone()]).await.unwrap();
    assert_eq!(named, std::slice::from_ref(&late));
    let files = lake.files();
    let after = commits(&files);
    let commit = after.last().unwrap();
    assert_eq!((commit.kind.as_str(), commit.end_lsn), ("reset", lsn(4)));
    assert_eq!(after.len(), commits(&before).len() + 1, "in one commit");
    let joined = MemberState::Joined;
    let expected = [("orders", joined), ("Items", joined), ("late", MemberState::Reset)];
    assert_eq!(states(commit), expected);
    let gone: Vec<_> = before.keys().filter(|path| !files.contains_key(*path)).collect();
    assert_eq!(gone.len(), 3, "one of rows and two of changes: {gone:?}");
    assert!(gone.iter().all(|path| path.starts_with("public/late/")), "{gone:?}");
    assert_eq!(fs::read_to_string(&notes).unwrap(), "mine");
    fs::remove_file(&notes).unwrap();
    // Given up twice is given up; what the lake never had is named by nobody.
    assert_eq!(lake.sink().forget(JOB, std::slice::from_ref(&late)).await.unwrap(), [late]);
    assert_eq!(lake.sink().forget(JOB, &[nothing]).await.unwrap(), []);
    assert_eq!(commits(&lake.files()).len(), after.len());
    let refused = lake.sink().forget("other", &[plans[0].relation.name.clone()]).await;
    assert_eq!(refused.unwrap_err().disposition, Disposition::Usage);
    let refused = open(&lake, "r2", &plans).await.err().unwrap();
    assert_eq!(refused.disposition, Disposition::Unavailable, "it is not whole: {refused}");

    join(&*lake.sink(), "j2", 4, 50).await.unwrap();
    let mut opened = open(&lake, "r2", &plans).await.unwrap();
    follow(&mut opened.writer, &plans, 5..=5).await.unwrap();
    opened.writer.close().await.unwrap();
    let files = lake.files();
    let found = plans.each_ref().map(|plan| counts(&files, plan));
    assert_eq!(found, [(0, 5), (0, 5), (50, 1)], "nothing of before is merged");
    assert_eq!(unlisted(&files), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_a_table_whose_giving_up_was_killed_are_removed_by_the_next_process() {
    for joins in [true, false] {
        let lake = LocalLake::new();
        let plans = plans();
        joined(&lake).await;
        let before = lake.files();
        let late = plans[2].relation.name.clone();
        lake.sink().forget(JOB, &[late]).await.unwrap();
        // As if the process had died between the commit and the first removal.
        for (path, bytes) in before.iter().filter(|(path, _)| path.starts_with("public/late/")) {
            fs::write(lake.path().join(path), bytes).unwrap();
        }
        assert_eq!(unlisted(&lake.files()).len(), 3);
        if joins {
            join(&*lake.sink(), "j2", 4, 50).await.unwrap();
            assert_eq!(counts(&lake.files(), &plans[2]), (50, 0));
        } else {
            drop(open(&lake, "r2", &plans[..2]).await.unwrap());
        }
        assert_eq!(unlisted(&lake.files()), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_the_stream_went_on_without_stays_as_it_was_until_it_is_given_up() {
    let lake = LocalLake::new();
    let plans = plans();
    joined(&lake).await;
    let mut opened = open(&lake, "r2", &plans[..2]).await.unwrap();
    follow(&mut opened.writer, &plans[..2], 5..=5).await.unwrap();
    opened.writer.close().await.unwrap();
    assert_eq!(whole(&*lake.sink()).await.len(), 2);
    let error = lake.sink().prepare(&joining("j2", 5)).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Usage);
    assert!(error.hint.unwrap().contains("tidemark reset public.late --yes"));
    assert_eq!(counts(&lake.files(), &plans[2]), (20, 2));
    lake.sink().forget(JOB, &[plans[2].relation.name.clone()]).await.unwrap();
    join(&*lake.sink(), "j3", 5, 10).await.unwrap();
    assert_eq!(counts(&lake.files(), &plans[2]), (10, 0));
    assert_eq!(unlisted(&lake.files()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emptying_a_lake_takes_what_joined_and_what_was_left_of_copies_along() {
    let mut lake = LocalLake::new();
    joined(&lake).await;
    lake.sink().forget(JOB, &[plans()[0].relation.name.clone()]).await.unwrap();
    let sink = lake.sink();
    let again = SnapshotStart { tables: Arc::new(vec![plans()[0].clone()]), ..joining("j2", 4) };
    sink.prepare(&again).await.unwrap();
    conformance::write(&*sink, &spec("j2", &plans()[0], 0), 0..30).await.unwrap();
    sink.table_loaded(&plans()[0].relation.name).await.unwrap();
    drop(sink);
    lake.options.not_empty = NotEmpty::Truncate;
    lake.sink().prepare(&start("r4", &plans())).await.unwrap();
    let left: Vec<_> = lake.files().into_keys().collect();
    assert_eq!(left, ["_tidemark/job.json", "_tidemark/lock"]);
}

/// As it was written before tables could join.
fn age(lake: &LocalLake) {
    for path in lake.files().into_keys().filter(|path| path.ends_with(".json")) {
        let path = lake.path().join(path);
        let mut document: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let fields = document.as_object_mut().unwrap();
        fields.insert("format_version".to_owned(), 1.into());
        fields.remove("members");
        fields.remove("roster");
        fs::write(&path, serde_json::to_vec(&document).unwrap()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lake_that_does_not_tell_its_tables_is_gone_on_with_and_tells_them_then() {
    let plans = plans();
    for joins in [true, false] {
        let lake = LocalLake::new();
        followed(&*lake.sink(), &*lake.sink()).await;
        age(&lake);
        assert_eq!(lake.sink().stored().await.unwrap().unwrap().tables, None);
        let error = lake.sink().forget(JOB, &[plans[0].relation.name.clone()]).await.unwrap_err();
        assert_eq!(error.disposition, Disposition::Usage);
        let count = if joins {
            join(&*lake.sink(), "j1", 2, 20).await.unwrap();
            3
        } else {
            drop(open(&lake, "r2", &plans[..2]).await.unwrap());
            2
        };
        assert_eq!(whole(&*lake.sink()).await.len(), count);
        drop(open(&lake, "r2", &plans[..count]).await.unwrap());
        lake.sink().forget(JOB, &[plans[0].relation.name.clone()]).await.unwrap();
        assert_eq!(unlisted(&lake.files()), [""; 0]);
    }
}
