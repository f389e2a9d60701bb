//! Looks at both copies once more, after they are done: what is in them, not what was sent to them.
//!
//! **Invariant:** the digest of a PostgreSQL copy is made of rows that were read back from the target, in the form and under
//! the key that the source's digest has. Rows of a lake are counted in the footers of the files that its commit lists.
//!
//! This is a check by our own code (the reader and the hasher are the same on both sides). The test suite compares by
//! another way: psql and SHA-256.

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
use tidemark_wire::ConnectSpec;

use super::server::query_failed;
use crate::exit::{ExitCode, Failure};

/// Bytes of rows that are hashed at a time.
const BATCH_BYTES: usize = 1024 * 1024;
/// Bytes of rows in memory.
const MEMORY: u64 = 64 * 1024 * 1024;
/// The commit of a lake's snapshot, below its root.
pub(super) const COMMIT: &str = "_tidemark/commits/00000000000000000000.json";

/// One table of a copy, as it was found there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The table.
    pub(super) relation: RelationName,
    /// Rows at the source's snapshot.
    pub(super) source_rows: u64,
    /// Rows in the copy.
    pub(super) target_rows: u64,
    /// The digest at the source's snapshot.
    pub(super) source_digest: u128,
    /// The digest of what was read back; a lake's is not read back in this version.
    pub(super) target_digest: Option<u128>,
}

impl Found {
    /// Whether everything that was looked at is equal.
    pub(super) fn is_equal(&self) -> bool {
        let digest = self.target_digest.unwrap_or(self.source_digest);
        self.source_rows == self.target_rows && self.source_digest == digest
    }
}

/// Reads every table of a PostgreSQL copy back.
pub(super) async fn read_back(
    target: &ConnectSpec,
    state_dir: &Path,
    report: &Report,
) -> Result<Vec<Found>, Failure> {
    let ledger = LedgerReader::open(state_dir)
        .and_then(|ledger| ledger.run())
        .map_err(|error| Failure::internal("read the ledger").because(&error))?;
    let run = ledger.ok_or_else(|| Failure::internal("find the run in the ledger"))?;
    let key = DigestKey::from_hex(&run.digest_key)
        .map_err(|error| Failure::internal("read the digest key").because(&error))?;
    let client = target.connect().await.map_err(|error| query_failed(&error))?;
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    client.batch_execute(begin).await.map_err(|error| query_failed(&error))?;
    let export = "SELECT pg_catalog.pg_export_snapshot()";
    let row = client.query_one(export, &[]).await.map_err(|error| query_failed(&error))?;
    let snapshot: String = row.get(0);
    let catalog = read_catalog(&client).await.map_err(|error| query_failed(&error))?;
    let reader = Reader::open(target, &snapshot).await.map_err(|error| query_failed(&error))?;
    let cpu = Cpu::new(1)
        .map_err(|error| Failure::new(ExitCode::Unavailable, "start a thread").because(&error))?;
    let budget = Budget::new(MEMORY);
    let mut digester =
        Digester { reader, catalog, key, source_version: run.server_version, cpu, budget };
    let mut found = Vec::with_capacity(report.tables.len());
    for table in &report.tables {
        found.push(digester.table(table).await?);
    }
    client.close().await;
    Ok(found)
}

/// Reads and hashes tables of the target under one snapshot.
struct Digester {
    reader: Reader,
    catalog: Catalog,
    key: DigestKey,
    source_version: u32,
    cpu: Cpu,
    budget: Budget,
}

impl Digester {
    async fn table(&mut self, table: &TableReport) -> Result<Found, Failure> {
        let relation = self.catalog.relation(&table.summary.relation).cloned();
        let relation = relation.ok_or_else(|| {
            let attempt =
                format!("read {} back: the copy does not have it", table.summary.relation);
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
        Ok(Found {
            relation: relation.name,
            source_rows: table.summary.rows_out,
            target_rows: sum.count,
            source_digest: table.summary.sum.raw,
            target_digest: Some(sum.raw),
        })
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

/// What is in a lake.
#[derive(Debug, Clone)]
pub(super) struct Lake {
    /// Every table.
    pub(super) tables: Vec<Found>,
    /// Files that the commit lists.
    pub(super) files: u64,
    /// Their bytes on disk.
    pub(super) bytes: u64,
    /// The sum of the balances in `live.account`, read from its files.
    pub(super) balance: i64,
    /// The commit's file.
    pub(super) commit: PathBuf,
}

/// Opens every file that the lake's commit lists.
pub(super) fn read_lake(root: &Path, report: &Report) -> Result<Lake, Failure> {
    let path = root.join(COMMIT);
    let text = std::fs::read(&path).map_err(|error| lake_failed(&path).because(&error))?;
    let commit: Commit =
        serde_json::from_slice(&text).map_err(|error| lake_failed(&path).because(&error))?;
    let mut lake =
        Lake { tables: Vec::new(), files: 0, bytes: 0, balance: 0, commit: path.clone() };
    for table in &report.tables {
        let name = &table.summary.relation;
        let listed = commit
            .tables
            .iter()
            .find(|listed| listed.schema == name.schema && listed.name == name.name)
            .ok_or_else(|| lake_failed(&path).cause(format!("{name} is not in it")))?;
        let rows = count_rows(root, listed, &mut lake)?;
        lake.tables.push(Found {
            relation: name.clone(),
            source_rows: table.summary.rows_out,
            target_rows: rows,
            source_digest: table.summary.sum.raw,
            target_digest: None,
        });
    }
    Ok(lake)
}

fn count_rows(root: &Path, table: &CommitTable, lake: &mut Lake) -> Result<u64, Failure> {
    let mut rows = 0;
    for file in &table.files {
        let path = root.join(&file.path);
        let opened = File::open(&path).map_err(|error| lake_failed(&path).because(&error))?;
        let metadata = opened.metadata().map_err(|error| lake_failed(&path).because(&error))?;
        lake.files += 1;
        lake.bytes += metadata.len();
        let broken = |error| lake_failed(&path).because(&error as &dyn std::error::Error);
        let reader = SerializedFileReader::new(opened).map_err(broken)?;
        let count = reader.metadata().file_metadata().num_rows();
        rows += u64::try_from(count).unwrap_or_default();
        if (table.schema.as_str(), table.name.as_str()) == ("live", "account") {
            lake.balance += balances(&reader).map_err(broken)?;
        }
    }
    Ok(rows)
}

/// The second column of `live.account`.
fn balances(reader: &SerializedFileReader<File>) -> parquet::errors::Result<i64> {
    let mut sum = 0;
    for row in reader.get_row_iter(None)? {
        sum += row?.get_long(1)?;
    }
    Ok(sum)
}

fn lake_failed(path: &Path) -> Failure {
    Failure::new(ExitCode::Different, format!("read {} of the lake", path.display()))
}
