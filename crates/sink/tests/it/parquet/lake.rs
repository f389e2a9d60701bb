//! Lakes under test and a reader of lakes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::aws::AmazonS3Builder;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt as _};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tempfile::TempDir;
use tidemark_model::{Cpu, RelationName};
use tidemark_sink::Sink;
use tidemark_sink::parquet::{Commit, ParquetOptions, ParquetSink, Root};

use crate::conformance::{Reader, Target};

pub(super) const COMMIT: &str = "_tidemark/commits/00000000000000000000.json";

/// A sink with two CPU threads.
pub(super) fn sink_at(root: Root, options: ParquetOptions) -> Arc<dyn Sink> {
    Arc::new(ParquetSink::new(root, options, Cpu::new(2).unwrap()))
}

/// A lake in a temporary directory.
pub(super) struct LocalLake {
    directory: TempDir,
    pub(super) options: ParquetOptions,
}

impl LocalLake {
    pub(super) fn new() -> Self {
        Self { directory: TempDir::new().unwrap(), options: ParquetOptions::default() }
    }

    pub(super) fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("lake")
    }

    pub(super) fn files(&self) -> BTreeMap<String, Bytes> {
        let mut files = BTreeMap::new();
        collect(&self.path(), "", &mut files);
        files
    }

    pub(super) fn commit(&self) -> Option<Commit> {
        commit_in(&self.files())
    }
}

/// All files below a directory by relative path.
pub(super) fn collect(directory: &Path, prefix: &str, files: &mut BTreeMap<String, Bytes>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), &format!("{name}/"), files);
        } else {
            files.insert(name, std::fs::read(entry.path()).unwrap().into());
        }
    }
}

fn commit_in(files: &BTreeMap<String, Bytes>) -> Option<Commit> {
    files.get(COMMIT).map(|bytes| serde_json::from_slice(bytes).unwrap())
}

/// The ids in the files that the commit lists for a table.
pub(super) fn ids_in(files: &BTreeMap<String, Bytes>, relation: &RelationName) -> Option<Vec<i64>> {
    let commit = commit_in(files)?;
    let table = commit
        .tables
        .iter()
        .find(|table| table.schema == relation.schema && table.name == relation.name)?;
    let mut ids = Vec::new();
    for file in &table.files {
        let bytes = files[&file.path].clone();
        assert_eq!(bytes.len() as u64, file.bytes, "the commit has the size of {}", file.path);
        let before = ids.len();
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
        assert_eq!(reader.metadata().num_row_groups() as u64, file.row_groups);
        for batch in reader.build().unwrap() {
            let batch = batch.unwrap();
            let id = batch.column(0).as_primitive::<Int64Type>();
            let body = batch.column(1).as_string::<i32>();
            for (id, body) in id.iter().zip(body) {
                let id = id.unwrap();
                assert_eq!(body.map(str::to_owned), (id % 7 != 0).then(|| format!("row {id}")));
                ids.push(id);
            }
        }
        assert_eq!((ids.len() - before) as u64, file.rows);
    }
    assert_eq!(ids.len() as u64, table.rows);
    ids.sort_unstable();
    Some(ids)
}

fn debris_in(files: &BTreeMap<String, Bytes>) -> usize {
    let listed: BTreeSet<_> = commit_in(files)
        .into_iter()
        .flat_map(|commit| commit.tables)
        .flat_map(|table| table.files)
        .map(|file| file.path)
        .collect();
    let is_known = |name: &String| {
        listed.contains(name) || [COMMIT, "_tidemark/job.json"].contains(&name.as_str())
    };
    files.keys().filter(|name| !is_known(name)).count()
}

impl Target for LocalLake {
    fn sink(&self) -> Arc<dyn Sink> {
        sink_at(Root::local(self.path()), self.options.clone())
    }

    fn reader(&self) -> &dyn Reader {
        self
    }
}

#[async_trait::async_trait]
impl Reader for LocalLake {
    async fn visible_ids(&self, relation: &RelationName) -> Option<Vec<i64>> {
        ids_in(&self.files(), relation)
    }

    async fn debris(&self) -> usize {
        debris_in(&self.files())
    }
}

/// A lake in an object store.
pub(super) struct ObjectLake {
    store: Arc<dyn ObjectStore>,
    _server: Option<Server>,
}

impl ObjectLake {
    pub(super) fn in_memory() -> Self {
        Self { store: Arc::new(InMemory::new()), _server: None }
    }

    /// On a server of its own; `None` where none is installed.
    pub(super) async fn on_s3() -> Option<Self> {
        let Some(program) = std::env::var_os("TIDEMARK_S3_SERVER") else {
            eprintln!("TIDEMARK_S3_SERVER is not set: not tested on S3");
            return None;
        };
        let server =
            tokio::task::spawn_blocking(move || Server::start(Path::new(&program))).await.unwrap();
        let store = AmazonS3Builder::new()
            .with_endpoint(format!("http://127.0.0.1:{}", server.port))
            .with_allow_http(true)
            .with_bucket_name("lake")
            .with_region("us-east-1")
            .with_access_key_id("test")
            .with_secret_access_key("test")
            .build()
            .unwrap();
        Some(Self { store: Arc::new(store), _server: Some(server) })
    }

    pub(super) async fn files(&self) -> BTreeMap<String, Bytes> {
        let mut files = BTreeMap::new();
        let found: Vec<_> = self.store.list(Some(&prefix())).try_collect().await.unwrap();
        for object in found {
            let name = object.location.as_ref().strip_prefix("team/lake/").unwrap().to_owned();
            let bytes = self.store.get(&object.location).await.unwrap().bytes().await.unwrap();
            files.insert(name, bytes);
        }
        files
    }
}

fn prefix() -> ObjectPath {
    ObjectPath::parse("team/lake").unwrap()
}

impl Target for ObjectLake {
    fn sink(&self) -> Arc<dyn Sink> {
        let root = Root::objects(Arc::clone(&self.store), prefix(), "s3://lake/team/lake");
        sink_at(root, ParquetOptions::default())
    }

    fn reader(&self) -> &dyn Reader {
        self
    }
}

#[async_trait::async_trait]
impl Reader for ObjectLake {
    async fn visible_ids(&self, relation: &RelationName) -> Option<Vec<i64>> {
        ids_in(&self.files().await, relation)
    }

    async fn debris(&self) -> usize {
        debris_in(&self.files().await)
    }
}

/// An S3 server process with one bucket, `lake`.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(program: &Path) -> Self {
        let mut child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", program.display()));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let port = lines
            .by_ref()
            .map(|line| line.unwrap())
            .find_map(|line| line.split("http://127.0.0.1:").nth(1)?.trim().parse().ok())
            .expect("the server says on which port it listens");
        // It goes on writing; nobody else reads.
        std::thread::spawn(move || lines.count());
        let server = Self { child, port };
        server.create_bucket();
        server
    }

    fn create_bucket(&self) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let request = "PUT /lake HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "create a bucket: {answer}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
