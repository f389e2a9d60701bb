//! Looks at the source and both copies once more, after everything was followed: what is in them, not what was sent there.
//!
//! **Invariant:** nobody writes while it looks, so that all three are at the same position. A digest is made of rows that were
//! read from the database, on both sides in the same form and under the same key. Rows of a lake are counted in the footers
//! of the files that its commits list, with what its change files add and take away.
//!
//! This is a check by our own code (the reader and the hasher are the same on both sides). The test suite compares by
//! another way: psql and SHA-256.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::RowAccessor as _;
use tidemark_digest::{DigestColumn, DigestKey, Forms, LeafBounds, RowHasher};
use tidemark_ledger::LedgerReader;
use tidemark_model::{
    Budget, ChunkRange, ChunkSpec, Column, Cpu, Generated, Relation, RelationName, SelectColumn,
    Wire,
};
use tidemark_pipeline::{Report, TableReport};
use tidemark_sink::parquet::{Commit, CommitTable};
use tidemark_sink::postgres::copy_form;
use tidemark_source::{Catalog, Reader, read_catalog};
use tidemark_wire::{Client, ConnectSpec};

use super::server::query_failed;
use crate::exit::{ExitCode, Failure};

/// Bytes of rows that are hashed at a time.
const BATCH_BYTES: usize = 1024 * 1024;
/// Bytes of rows in memory.
const MEMORY: u64 = 64 * 1024 * 1024;
/// Where a lake's commits are, below its root.
pub(super) const COMMITS: &str = "_tidemark/commits";
/// The columns in front of the rows' own in a change file of a table with a key.
const CHANGE_COLUMNS: usize = 7;

/// One table of a copy, as it was found there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The table.
    pub(super) relation: RelationName,
    /// Rows in the source.
    pub(super) source_rows: u64,
    /// Rows in the copy.
    pub(super) target_rows: u64,
    /// The digest of the source's rows.
    pub(super) source_digest: u128,
    /// The digest of the copy's rows; a lake's are not read back in this version.
    pub(super) target_digest: Option<u128>,
}

impl Found {
    /// Whether everything that was looked at is equal.
    pub(super) fn is_equal(&self) -> bool {
        let digest = self.target_digest.unwrap_or(self.source_digest);
        self.source_rows == self.target_rows && self.source_digest == digest
    }
}

/// Reads and hashes every table of the source and of its PostgreSQL copy.
pub(super) async fn compare(
    (source, target): (&ConnectSpec, &ConnectSpec),
    state_dir: &Path,
    report: &Report,
) -> Result<Vec<Found>, Failure> {
    let ledger = LedgerReader::open(state_dir)
        .and_then(|ledger| ledger.run())
        .map_err(|error| Failure::internal("read the ledger").because(&error))?;
    let run = ledger.ok_or_else(|| Failure::internal("find the run in the ledger"))?;
    let key = DigestKey::from_hex(&run.digest_key)
        .map_err(|error| Failure::internal("read the digest key").because(&error))?;
    let mut sides = [
        Digester::open(source, &key, run.server_version).await?,
        Digester::open(target, &key, run.server_version).await?,
    ];
    let mut found = Vec::with_capacity(report.tables.len());
    for table in &report.tables {
        let [source, target] = &mut sides;
        let ours = source.table(table).await?;
        let theirs = target.table(table).await?;
        found.push(Found {
            relation: table.summary.relation.clone(),
            source_rows: ours.count,
            target_rows: theirs.count,
            source_digest: ours.raw,
            target_digest: Some(theirs.raw),
        });
    }
    for side in sides {
        side.client.close().await;
    }
    Ok(found)
}

/// Reads and hashes tables of one side under one snapshot.
struct Digester {
    /// Holds the snapshot.
    client: Client,
    reader: Reader,
    catalog: Catalog,
    key: DigestKey,
    source_version: u32,
    cpu: Cpu,
    budget: Budget,
}

impl Digester {
    async fn open(
        side: &ConnectSpec,
        key: &DigestKey,
        source_version: u32,
    ) -> Result<Self, Failure> {
        let client = side.connect().await.map_err(|error| query_failed(&error))?;
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        client.batch_execute(begin).await.map_err(|error| query_failed(&error))?;
        let export = "SELECT pg_catalog.pg_export_snapshot()";
        let row = client.query_one(export, &[]).await.map_err(|error| query_failed(&error))?;
        let snapshot: String = row.get(0);
        let catalog = read_catalog(&client).await.map_err(|error| query_failed(&error))?;
        let reader = Reader::open(side, &snapshot).await.map_err(|error| query_failed(&error))?;
        let cpu = Cpu::new(1).map_err(|error| {
            Failure::new(ExitCode::Unavailable, "start a thread").because(&error)
        })?;
        let budget = Budget::new(MEMORY);
        Ok(Self { client, reader, catalog, key: key.clone(), source_version, cpu, budget })
    }

    async fn table(&mut self, table: &TableReport) -> Result<Sum, Failure> {
        let relation = self.catalog.relation(&table.summary.relation).cloned();
        let relation = relation.ok_or_else(|| {
            let attempt =
                format!("read {} back: one side does not have it", table.summary.relation);
            Failure::new(ExitCode::Different, attempt)
        })?;
        let columns: Vec<Column> = relation
            .columns
            .iter()
            .filter(|column| column.generated == Generated::No)
            .cloned()
            .collect();
        let hasher = self.digest(&relation, &columns).await?;
        let (sum, _) = hasher.finish();
        Ok(Sum { count: sum.count, raw: sum.raw })
    }

    async fn digest(
        &mut self,
        relation: &Relation,
        columns: &[Column],
    ) -> Result<RowHasher, Failure> {
        let bad = |error: tidemark_digest::Error| {
            Failure::internal(format!("hash the rows of {}", relation.name)).because(&error)
        };
        let form = copy_form(columns, self.source_version, self.catalog.server.version_num);
        let described: Vec<DigestColumn<'_>> =
            columns.iter().map(|column| DigestColumn { column, wire: Wire::Own }).collect();
        let leaves = LeafBounds::single();
        let mut hasher =
            RowHasher::compile(&described, form, Forms::Raw, &self.key, leaves).map_err(bad)?;
        let select = |column: &Column| SelectColumn { name: column.name.clone(), wire: Wire::Own };
        let chunk = ChunkSpec {
            job: "demo".to_owned(),
            run: String::new(),
            snapshot_id: String::new(),
            relation_oid: relation.oid,
            relation: relation.name.clone(),
            chunk: 0,
            range: ChunkRange::Whole,
            filter: None,
            columns: columns.iter().map(select).collect(),
            form,
            estimated_bytes: 0,
        };
        let mut copy = self.reader.copy(&chunk).await.map_err(|error| query_failed(&error))?;
        while let Some((tuples, reservation)) =
            copy.next(BATCH_BYTES, &self.budget).await.map_err(|error| query_failed(&error))?
        {
            let hashed = self.cpu.run(move || hasher.add(&tuples).map(|()| hasher)).await;
            hasher = hashed.map_err(bad)?;
            drop(reservation);
        }
        Ok(hasher)
    }
}

/// Of a table's rows.
struct Sum {
    count: u64,
    raw: u128,
}

/// What is in a lake.
#[derive(Debug, Clone, Default)]
pub(super) struct Lake {
    /// Every table.
    pub(super) tables: Vec<Found>,
    /// Files that the commits list.
    pub(super) files: u64,
    /// Their bytes on disk.
    pub(super) bytes: u64,
    /// The sum of the balances in `live.account`, read from its files.
    pub(super) balance: i64,
    /// How many commits there are.
    pub(super) commits: usize,
}

/// Opens every file that the lake's commits list; `source` is what the same tables hold there.
pub(super) fn read_lake(root: &Path, report: &Report, source: &[Found]) -> Result<Lake, Failure> {
    let commits = read_commits(&root.join(COMMITS))?;
    let mut lake = Lake { commits: commits.len(), ..Lake::default() };
    let mut accounts = HashMap::new();
    for table in &report.tables {
        let name = &table.summary.relation;
        let mut rows = 0;
        for commit in &commits {
            let mut listed = commit.tables.iter();
            let is_it =
                |listed: &&CommitTable| listed.schema == name.schema && listed.name == name.name;
            let Some(listed) = listed.find(is_it) else { continue };
            rows += read_files(root, listed, &mut lake, &mut accounts)?;
        }
        let there = source.iter().find(|found| found.relation == *name);
        lake.tables.push(Found {
            relation: name.clone(),
            source_rows: there.map_or(0, |found| found.source_rows),
            target_rows: u64::try_from(rows).unwrap_or_default(),
            source_digest: there.map_or(0, |found| found.source_digest),
            target_digest: None,
        });
    }
    lake.balance = accounts.values().sum();
    Ok(lake)
}

/// All commits, in order.
fn read_commits(directory: &Path) -> Result<Vec<Commit>, Failure> {
    let failed = |error: std::io::Error| lake_failed(directory).because(&error);
    let entries = std::fs::read_dir(directory).map_err(failed)?;
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>().map_err(failed)?;
    paths.sort();
    let read = |path: &PathBuf| {
        let text = std::fs::read(path).map_err(|error| lake_failed(path).because(&error))?;
        serde_json::from_slice(&text).map_err(|error| lake_failed(path).because(&error))
    };
    paths.iter().map(read).collect()
}

/// By how many rows these files change a table.
fn read_files(
    root: &Path,
    table: &CommitTable,
    lake: &mut Lake,
    accounts: &mut HashMap<i32, i64>,
) -> Result<i64, Failure> {
    let mut rows = 0;
    for file in &table.files {
        let path = root.join(&file.path);
        let opened = File::open(&path).map_err(|error| lake_failed(&path).because(&error))?;
        let metadata = opened.metadata().map_err(|error| lake_failed(&path).because(&error))?;
        lake.files += 1;
        lake.bytes += metadata.len();
        let broken = |error| lake_failed(&path).because(&error as &dyn std::error::Error);
        let reader = SerializedFileReader::new(opened).map_err(broken)?;
        rows += reader.metadata().file_metadata().num_rows();
        if (table.schema.as_str(), table.name.as_str()) == ("live", "account") {
            balances(&reader, table.operations.is_some(), accounts).map_err(broken)?;
        }
    }
    // Of the rows in change files only the inserts are more, and each delete is one less.
    Ok(table.operations.as_ref().map_or(rows, |of| of.i as i64 - of.d as i64))
}

/// The accounts of these rows, `id` and `balance`; only their balances ever change.
fn balances(
    reader: &SerializedFileReader<File>,
    is_changes: bool,
    accounts: &mut HashMap<i32, i64>,
) -> parquet::errors::Result<()> {
    let first = if is_changes { CHANGE_COLUMNS } else { 0 };
    for row in reader.get_row_iter(None)? {
        let row = row?;
        accounts.insert(row.get_int(first)?, row.get_long(first + 1)?);
    }
    Ok(())
}

fn lake_failed(path: &Path) -> Failure {
    Failure::new(ExitCode::Different, format!("read {} of the lake", path.display()))
}
