//! A stream that dies anywhere is taken up again without a loss and without a double.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, UploadPart,
};
use tidemark_model::{RelationName, TablePlan, Transaction};
use tidemark_sink::parquet::{ParquetOptions, Root};
use tidemark_sink::{Disposition, OpenStream, Result, Sink, StreamWriter};
use tokio::sync::Notify;

use super::lake::{LocalLake, sink_at};
use super::support::{
    SNAPSHOT, batch, changes, commits, debris, insert, lsn, open, relation, row, send, snapshot,
    stream_start, transaction,
};
use crate::conformance::{Target, plan};

/// What happens at the operation that is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is not done, and an error comes back.
    Fails,
    /// It is done, and an error comes back: the answer was lost.
    AnswerLost,
    /// The process dies before it.
    KilledBefore,
    /// The process dies behind it.
    KilledAfter,
}

/// An object store with one fault at the n-th operation that changes something.
#[derive(Debug)]
pub(super) struct Faulty {
    pub(super) inner: Arc<InMemory>,
    pub(super) fault: Fault,
    pub(super) left: AtomicUsize,
    pub(super) killed: Arc<Notify>,
}

fn lost() -> object_store::Error {
    object_store::Error::Generic { store: "faulty", source: "on purpose".into() }
}

impl Faulty {
    /// Runs one operation, or what the fault makes of it.
    async fn run<T>(
        &self,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        if self.left.fetch_sub(1, Ordering::SeqCst) != 1 {
            return work.await;
        }
        match self.fault {
            Fault::Fails => return Err(lost()),
            Fault::AnswerLost => {
                work.await?;
                return Err(lost());
            }
            Fault::KilledBefore => {}
            Fault::KilledAfter => drop(work.await),
        }
        self.killed.notify_one();
        std::future::pending().await
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.run(self.inner.put_opts(location, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        let inner = self.run(self.inner.put_multipart_opts(location, options)).await?;
        let faulty = Self {
            inner: Arc::clone(&self.inner),
            fault: self.fault,
            left: AtomicUsize::new(0),
            killed: Arc::clone(&self.killed),
        };
        // The upload's completion is one operation more.
        let is_next = self.left.fetch_sub(1, Ordering::SeqCst) == 1;
        faulty.left.store(usize::from(is_next), Ordering::SeqCst);
        Ok(Box::new(FaultyUpload { inner, faulty }))
    }

    async fn get_opts(
        &self,
        location: &Path,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(
        &self,
        location: &Path,
        ranges: &[Range<u64>],
    ) -> object_store::Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        // Removing is the last thing that a run does to what it finds; a fault there is one at the next document.
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    faulty: Faulty,
}

#[async_trait::async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> object_store::Result<PutResult> {
        self.faulty.run(self.inner.complete()).await
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        self.inner.abort().await
    }
}

fn plans() -> [TablePlan; 2] {
    [
        plan(101, &RelationName::new("public", "orders")),
        plan(102, &RelationName::new("public", "Items")),
    ]
}

const TRANSACTIONS: u64 = 7;

/// The transaction that ends there: three rows, over both tables.
fn work(end: u64) -> Transaction {
    let plans = plans();
    let tables = [relation(&plans[0]), relation(&plans[1])];
    let id = i64::try_from(end).unwrap() * 10;
    let rows = (0..3).map(|n| insert(&tables[n as usize % 2], row(id + n, "x")));
    transaction(end, rows.collect())
}

/// Sends what is missing, as a pipeline does, with a flush after every second transaction; one goes in two parts.
async fn follow(opened: OpenStream) -> Result<()> {
    let mut writer: Box<dyn StreamWriter> = opened.writer;
    let done = opened.position.as_u64() - SNAPSHOT;
    for end in done + 1..=TRANSACTIONS {
        if end == 3 {
            let mut first = work(end);
            let rest = first.changes.split_off(1);
            writer.accept(batch(vec![first], true)).await?;
            send(&mut writer, vec![transaction(end, rest)]).await?;
        } else {
            send(&mut writer, vec![work(end)]).await?;
        }
        if end % 2 == 0 {
            assert_eq!(writer.flush().await?.lsn(), lsn(end));
        }
    }
    writer.close().await.map(drop)
}

/// Everything is there once, and nothing else.
fn check(files: &BTreeMap<String, Bytes>, what: &str) {
    let plans = plans();
    let mut rows: Vec<_> = plans
        .iter()
        .flat_map(|plan| changes(files, plan))
        .map(|row| (row.end, row.seq, row.id))
        .collect();
    rows.sort_unstable();
    let expected: Vec<_> = (1..=TRANSACTIONS)
        .flat_map(|end| {
            (0..3).map(move |seq| (end, seq, Some(i64::try_from(end).unwrap() * 10 + seq)))
        })
        .collect();
    assert_eq!(rows, expected, "{what}");
    assert_eq!(commits(files).last().unwrap().end_lsn, lsn(TRANSACTIONS), "{what}");
    assert_eq!(debris(files), [""; 0], "{what}");
}

fn prefix() -> Path {
    Path::parse("lake").unwrap()
}

pub(super) fn sink_on(store: Arc<dyn ObjectStore>) -> Arc<dyn Sink> {
    sink_at(Root::objects(store, prefix(), "memory"), ParquetOptions::default())
}

pub(super) async fn files_of(store: &InMemory) -> BTreeMap<String, Bytes> {
    let mut files = BTreeMap::new();
    let found: Vec<_> = store.list(Some(&prefix())).try_collect().await.unwrap();
    for object in found {
        let name = object.location.as_ref().strip_prefix("lake/").unwrap().to_owned();
        files.insert(name, store.get(&object.location).await.unwrap().bytes().await.unwrap());
    }
    files
}

/// Follows with a fault at the n-th operation, then without; says whether the fault came.
async fn dies_once(fault: Fault, operation: usize, same_run: bool) -> bool {
    let what = format!("{fault:?} at operation {operation}, same run: {same_run}");
    let inner = Arc::new(InMemory::new());
    let plans = plans();
    snapshot(&*sink_on(Arc::clone(&inner) as _), "r1", &plans).await;
    let killed = Arc::new(Notify::new());
    let faulty = Arc::new(Faulty {
        inner: Arc::clone(&inner),
        fault,
        left: AtomicUsize::new(operation),
        killed: Arc::clone(&killed),
    });
    let sink = sink_on(Arc::clone(&faulty) as _);
    let first = async { follow(sink.open_stream(&stream_start("r2", &plans)).await?).await };
    let outcome = tokio::select! {
        outcome = first => Some(outcome),
        () = killed.notified() => None,
    };
    let is_hit = !matches!(outcome, Some(Ok(()))) || faulty.left.load(Ordering::SeqCst) > operation;
    let run = if same_run { "r2" } else { "r3" };
    let opened = sink_on(Arc::clone(&inner) as _).open_stream(&stream_start(run, &plans)).await;
    follow(opened.unwrap_or_else(|error| panic!("{what}: {error:?}"))).await.unwrap();
    check(&files_of(&inner).await, &what);
    is_hit
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_dies_at_any_operation_is_taken_up_exactly() {
    for fault in [Fault::Fails, Fault::AnswerLost, Fault::KilledBefore, Fault::KilledAfter] {
        for same_run in [true, false] {
            let mut hits = 0;
            for operation in 1..80 {
                if !dies_once(fault, operation, same_run).await {
                    break;
                }
                hits += 1;
            }
            assert!((15..79).contains(&hits), "{hits} operations were hit");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_was_taken_over_commits_no_more_and_takes_its_files_back() {
    // By another run, and by the same one that has opened the stream again.
    for run in ["r3", "r2"] {
        let store = Arc::new(InMemory::new());
        let plans = plans();
        snapshot(&*sink_on(Arc::clone(&store) as _), "r1", &plans).await;
        let sink = sink_on(Arc::clone(&store) as _);
        let mut old = sink.open_stream(&stream_start("r2", &plans)).await.unwrap();
        send(&mut old.writer, vec![work(1)]).await.unwrap();
        old.writer.flush().await.unwrap();
        send(&mut old.writer, vec![work(2)]).await.unwrap();

        let next = sink_on(Arc::clone(&store) as _);
        let new = next.open_stream(&stream_start(run, &plans)).await.unwrap();
        assert_eq!(new.position, lsn(1));
        let error = old.writer.flush().await.unwrap_err();
        assert_eq!(error.disposition, Disposition::Held);
        follow(new).await.unwrap();
        check(&files_of(&store).await, "taken over");
    }
}

/// A commit whose answer the dead writer never saw lands while the next one takes the lake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_lands_late_counts_if_it_is_the_first_and_not_if_it_is_the_second() {
    for is_first in [true, false] {
        let store = Arc::new(InMemory::new());
        let plans = plans();
        snapshot(&*sink_on(Arc::clone(&store) as _), "r1", &plans).await;
        let sink = sink_on(Arc::clone(&store) as _);
        let mut old = sink.open_stream(&stream_start("r2", &plans)).await.unwrap();
        send(&mut old.writer, vec![work(1), work(2)]).await.unwrap();
        old.writer.flush().await.unwrap();
        let number = commits(&files_of(&store).await).len() - 1;
        let path = Path::parse(format!("lake/_tidemark/commits/{number:020}.json")).unwrap();
        let document = store.get(&path).await.unwrap().bytes().await.unwrap();
        store.delete(&path).await.unwrap();

        let late = Arc::new(Late { inner: Arc::clone(&store), path: path.clone(), document });
        let next = if is_first { sink_on(late) } else { sink_on(Arc::clone(&store) as _) };
        let opened = next.open_stream(&stream_start("r3", &plans)).await.unwrap();
        assert_eq!(opened.position, if is_first { lsn(2) } else { lsn(0) });
        follow(opened).await.unwrap();
        check(&files_of(&store).await, "late");
    }
}

/// Puts a document just before somebody else does.
#[derive(Debug)]
struct Late {
    inner: Arc<InMemory>,
    path: Path,
    document: Bytes,
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Late")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Late {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        if *location == self.path {
            let mode = object_store::PutMode::Create;
            drop(self.inner.put_opts(location, self.document.clone().into(), mode.into()).await);
        }
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(
        &self,
        location: &Path,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_in_every_state_of_a_killed_process_are_cleared_on_a_disk() {
    let lake = LocalLake::new();
    let plans = plans();
    snapshot(&*lake.sink(), "r1", &plans).await;
    let mut opened = open(&lake, "r2", &plans).await.unwrap();
    send(&mut opened.writer, vec![work(1)]).await.unwrap();
    opened.writer.flush().await.unwrap();
    send(&mut opened.writer, vec![work(2), work(3)]).await.unwrap();
    opened.writer.flush().await.unwrap();
    drop(opened);
    // As if the process had died behind the last rename, in the middle of one more file and of the commit.
    let commits = lake.path().join("_tidemark/commits");
    fs::remove_file(commits.join("00000000000000000003.json")).unwrap();
    fs::write(commits.join(".00000000000000000003.json.tmp-Ab12"), "{").unwrap();
    let directory = lake.path().join("public/orders/changes");
    fs::write(directory.join(".r2-00000000000000000003-00001.parquet.tmp-Ab12"), "PAR1").unwrap();
    // What is not of that commit, or not ours, stays.
    let notes = directory.join("r2-00000000000000000003-notes.txt");
    fs::write(&notes, "mine").unwrap();
    assert!(debris(&lake.files()).len() >= 4);

    let opened = open(&lake, "r3", &plans).await.unwrap();
    assert_eq!(opened.position, lsn(1));
    follow(opened).await.unwrap();
    assert_eq!(fs::read_to_string(&notes).unwrap(), "mine");
    fs::remove_file(notes).unwrap();
    check(&lake.files(), "killed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_the_same_disk_is_refused_and_a_truncation_too() {
    let mut lake = LocalLake::new();
    let plans = plans();
    snapshot(&*lake.sink(), "r1", &plans).await;
    let opened = open(&lake, "r2", &plans).await.unwrap();
    lake.options.not_empty = tidemark_sink::NotEmpty::Truncate;
    for run in ["r2", "r3"] {
        let error = open(&lake, run, &plans).await.err().unwrap();
        assert_eq!(error.disposition, Disposition::Held);
        let emptied = lake.sink().prepare(&crate::conformance::start(run, &plans)).await;
        assert_eq!(emptied.unwrap_err().disposition, Disposition::Held);
    }
    follow(opened).await.unwrap();
    check(&lake.files(), "alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncating_removes_snapshot_changes_and_what_was_never_listed() {
    let mut lake = LocalLake::new();
    let plans = plans();
    snapshot(&*lake.sink(), "r1", &plans).await;
    follow(open(&lake, "r2", &plans).await.unwrap()).await.unwrap();
    let directory = lake.path().join("public/orders/changes");
    fs::write(directory.join("r2-00000000000000000099-00000.parquet"), "PAR1").unwrap();
    lake.options.not_empty = tidemark_sink::NotEmpty::Truncate;
    lake.sink().prepare(&crate::conformance::start("r4", &plans)).await.unwrap();
    let left: Vec<_> = lake.files().into_keys().collect();
    assert_eq!(left, ["_tidemark/job.json", "_tidemark/lock"]);
}
