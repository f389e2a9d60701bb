//! The content of `report.json`.
//!
//! **Invariant:** names of fields are a contract with scripts (design.md 8); `docs/reference/report.schema.json` is made from
//! these types. Verdict and proof are derived ([`VerifyReport::judge`]) and agree with the tables. No field is for a
//! value of a row but the differing keys of [`crate::TableReport`], which only a redactor makes. No number has a fraction.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidemark_model::{Lsn, ReadSnapshot};

use crate::{
    Allowance, Deviations, DiffFile, Level, Outcome, Proof, REPORT_VERSION, Redaction, Shortfall,
    TableReport, Verdict,
};

/// What a side is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SideKind {
    /// A PostgreSQL database.
    #[default]
    Postgresql,
    /// Parquet files with their manifests.
    Lake,
}

/// Source or target.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Side {
    /// What it is.
    pub kind: SideKind,
    /// The server's version, or the lake's format.
    pub version: String,
    /// The cluster's system identifier; a string because it has 64 bits.
    pub system_identifier: Option<String>,
    /// The cluster's timeline.
    pub timeline: Option<u32>,
    /// The database.
    pub database: Option<String>,
    /// Host and port, or the lake's root; without user and secrets.
    pub address: String,
    /// The database's encoding.
    pub encoding: Option<String>,
    /// The database's collation, with the version of the library that provides it.
    pub collation: Option<String>,
    /// The number of the lake's commit that was read.
    pub commit: Option<u64>,
}

/// Which tables were to be compared.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Scope {
    /// Patterns of the tables that were chosen.
    pub include: Vec<String>,
    /// Patterns of those that were left out.
    pub exclude: Vec<String>,
    /// Tables of the source that were not chosen.
    pub not_chosen: u64,
}

/// A snapshot that one side was read under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SideSnapshot {
    /// The name under which it was exported, or null where it was not.
    pub id: Option<String>,
    /// What it shows, as `pg_current_snapshot()` prints it, or null for a lake.
    #[schemars(with = "Option<String>")]
    pub shows: Option<ReadSnapshot>,
}

/// Keys of transactions that lay between the source's snapshot and the barrier, and were compared one by one. None where the
/// snapshot shows exactly what committed before the barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct KeysSetAside {
    /// Read again and found equal.
    pub equal: u64,
    /// Read again and found different; they are among the differences.
    pub different: u64,
    /// Not settled: these keys are not proven.
    pub unsettled: u64,
}

impl KeysSetAside {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.equal.saturating_add(self.different).saturating_add(self.unsettled)
    }
}

/// A point at which both sides were held against each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Barrier {
    /// The barrier: everything that the source committed before it is in the target's snapshot.
    #[schemars(with = "String")]
    pub lsn: Lsn,
    /// When it was set (RFC 3339, UTC).
    pub at: String,
    /// The snapshot that the source was read under.
    pub source_snapshot: SideSnapshot,
    /// The snapshot that the target was read under.
    pub target_snapshot: SideSnapshot,
    /// Keys in flight.
    pub keys_set_aside: KeysSetAside,
    /// How long the apply was paused.
    pub pause_ms: u64,
    /// How long the snapshots were held.
    pub snapshot_age_ms: u64,
    /// How many tables were read at it.
    pub tables: u64,
}

/// How one point was found on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Point {
    /// The stream passed a barrier, and both sides were read as of it. Several where snapshots were held for a bounded time.
    Barrier {
        /// In the order in which they were set.
        barriers: Vec<Barrier>,
    },
    /// Nothing wrote to either side. Equal digests of two snapshots are a proof by themselves; leaves that differed were read
    /// a second time.
    Quiesced {
        /// The source's position.
        #[schemars(with = "Option<String>")]
        source_lsn: Option<Lsn>,
        /// The target's own position; not comparable with the source's.
        #[schemars(with = "Option<String>")]
        target_lsn: Option<Lsn>,
        /// The snapshot that the source was read under.
        source_snapshot: SideSnapshot,
        /// The snapshot that the target was read under.
        target_snapshot: SideSnapshot,
        /// Leaves that were read a second time.
        leaves_read_twice: u64,
    },
    /// No such point was found; nothing is proven.
    None {
        /// Why.
        reason: String,
    },
}

/// How much a finding about definitions matters.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum SchemaSeverity {
    /// Good to know.
    Note,
    /// The rows are not concerned, but the target will behave in another way.
    Warning,
    /// The sides differ: it makes the run `different`.
    Different,
}

/// A difference between definitions; its texts are the catalog's, never values of rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SchemaFinding {
    /// The object, quoted as SQL would.
    pub object: String,
    /// A stable name for scripts, kebab-case: `column-missing`, `sequence-behind`.
    pub kind: String,
    /// How much it matters.
    pub severity: SchemaSeverity,
    /// What the source has, or null for nothing.
    pub source: Option<String>,
    /// What the target has, or null for nothing.
    pub target: Option<String>,
    /// The SQL that mends it, or null.
    pub fix: Option<String>,
}

/// Something that is no table of [`VerifyReport::tables`] and was not compared although it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Skipped {
    /// The object, quoted as SQL would, or what kind of objects.
    pub object: String,
    /// Why.
    pub reason: String,
}

/// A declared mapping of a column that values went through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Mapping {
    /// The table's schema.
    pub schema: String,
    /// The table.
    pub table: String,
    /// The column.
    pub column: String,
    /// The mapping in words: `numeric scale`, `infinity to NULL`.
    pub mapping: String,
    /// What it makes of values.
    pub class: Allowance,
    /// How many values it touched. 64-bit: may exceed 2^53.
    pub values: u64,
}

/// What was allowed, and what use was made of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Policy {
    /// Deviations that do not count against the run.
    pub allow: Vec<Allowance>,
    /// Declared mappings.
    pub mappings: Vec<Mapping>,
}

/// How digests were made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct DigestMethod {
    /// The row hash and how hashes are put together.
    pub algorithm: String,
    /// The identifier of the key; digests are comparable under the same key only.
    pub key_id: String,
    /// The version of the canonical form of a row.
    pub canonical_version: u32,
    /// How likely it is that two different leaves have the same digest.
    pub collision_bound: String,
}

/// What was read and how fast. All numbers are 64-bit and may exceed 2^53.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Reading {
    /// Bytes of rows read from the source.
    pub source_bytes: u64,
    /// Bytes of rows read from the target.
    pub target_bytes: u64,
    /// Bytes of both sides together in a second, over the whole run.
    pub bytes_per_second: u64,
    /// Time spent waiting on purpose (`--rate`).
    pub throttled_ms: u64,
    /// Parts that were read again after an error.
    pub retries: u64,
    /// Connections that read at the same time, each side.
    pub jobs: u32,
}

/// What a verify found. Counts are 64-bit numbers and may exceed 2^53, which some readers of JSON cannot hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyReport {
    /// The version of this form.
    pub report_version: u32,
    /// The version of tidemark.
    pub tool_version: String,
    /// The job.
    pub job: String,
    /// What is known of both sides as a whole: the worst of the tables, of what was skipped and of the definitions.
    pub verdict: Verdict,
    /// The weakest proof of a table, or null where none is proven.
    pub proof: Option<Proof>,
    /// The level that was asked for.
    pub level: Level,
    /// The position of the source at which all tables were compared; null where there is none, or each has its own.
    #[schemars(with = "Option<String>")]
    pub lsn: Option<Lsn>,
    /// With an incremental proof: the position at which the leaf was read whose reading is the oldest.
    #[schemars(with = "Option<String>")]
    pub oldest_leaf_lsn: Option<Lsn>,
    /// What an incremental proof assumes, in words, or null.
    pub assumption: Option<String>,
    /// When it began (RFC 3339, UTC).
    pub started_at: String,
    /// When it ended (RFC 3339, UTC).
    pub finished_at: String,
    /// How long it took.
    pub duration_ms: u64,
    /// The source.
    pub source: Side,
    /// The target.
    pub target: Side,
    /// Which tables were to be compared.
    pub scope: Scope,
    /// How one point was found on both sides.
    pub point: Point,
    /// The tables.
    pub tables: Vec<TableReport>,
    /// Findings about definitions.
    pub schema_findings: Vec<SchemaFinding>,
    /// What else was not compared.
    pub skipped: Vec<Skipped>,
    /// What was allowed.
    pub policy: Policy,
    /// How digests were made.
    pub digest: DigestMethod,
    /// What was read.
    pub reading: Reading,
    /// SHA-256 of the configuration without its secrets.
    pub config_hash: String,
    /// How much of the rows is hidden in this report and in `diff.ndjson`.
    pub redaction: Redaction,
    /// `diff.ndjson`, or null where none was written.
    pub diff: Option<DiffFile>,
    /// The command that does the same again; without secrets.
    pub command: String,
    /// SHA-256 over the report without this field: over its JSON with the names of each object sorted by their UTF-8 bytes,
    /// without any space between tokens, not ending in a newline, strings as UTF-8 with only `"`, `\` and control characters
    /// below U+0020 escaped (`\b \t \n \f \r`, the others `\u00xx` in lower case). The same as
    /// `python3 -c "import json,hashlib,sys; r=json.load(sys.stdin); r.pop('checksum'); print(hashlib.sha256(json.dumps(r,sort_keys=True,separators=(',',':'),ensure_ascii=False).encode()).hexdigest())" < report.json`.
    /// It shows damage and careless edits; it is no signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub checksum: Option<String>,
}

/// What an incremental proof assumes.
const ASSUMPTION: &str =
    "nothing but this job's stream has written to the target since those leaves were read";

impl VerifyReport {
    /// A report of nothing, to be filled; its verdict is `incomplete`.
    pub fn new(job: impl Into<String>, level: Level, source: Side, target: Side) -> Self {
        Self {
            report_version: REPORT_VERSION,
            tool_version: String::new(),
            job: job.into(),
            verdict: Verdict::Incomplete,
            proof: None,
            level,
            lsn: None,
            oldest_leaf_lsn: None,
            assumption: None,
            started_at: String::new(),
            finished_at: String::new(),
            duration_ms: 0,
            source,
            target,
            scope: Scope::default(),
            point: Point::None { reason: "the run has not come that far".to_owned() },
            tables: Vec::new(),
            schema_findings: Vec::new(),
            skipped: Vec::new(),
            policy: Policy::default(),
            digest: DigestMethod::default(),
            reading: Reading::default(),
            config_hash: String::new(),
            redaction: Redaction::default(),
            diff: None,
            command: String::new(),
            checksum: None,
        }
    }

    /// Derives what follows from the facts: the verdict of each table and of the run, the proof, what it assumes, and the
    /// position that all tables share. Call it when all facts are in.
    pub fn judge(&mut self) {
        for table in &mut self.tables {
            table.verdict = table.judge();
        }
        self.verdict = self.derived_verdict();
        self.proof = self.derived_proof();
        self.lsn = self.derived_lsn();
        let oldest = self.tables.iter().filter_map(|table| table.oldest_leaf_lsn).min();
        let incremental = self.proof == Some(Proof::Incremental);
        self.oldest_leaf_lsn = oldest.filter(|_| incremental);
        self.assumption = incremental.then(|| ASSUMPTION.to_owned());
    }

    /// How the run ends by what was found, what was asked for and what is allowed.
    pub fn outcome(&self) -> Outcome {
        let deviations = self.tables.iter().map(TableReport::deviations);
        let all = deviations.fold(Deviations::default(), |all, one| Deviations {
            equivalent: all.equivalent || one.equivalent,
            lossy: all.lossy || one.lossy,
        });
        Outcome::of(self.verdict, self.shortfall(), all, &self.policy.allow)
    }

    /// The worst that keeps the run from being called proven.
    pub fn shortfall(&self) -> Option<Shortfall> {
        let tables = self.tables.iter().filter_map(|table| table.shortfall(self.level)).max();
        if self.is_cut_short() { Some(Shortfall::NotProven) } else { tables }
    }

    /// Keys in flight at the barriers, all together.
    pub fn keys_set_aside(&self) -> KeysSetAside {
        let Point::Barrier { barriers } = &self.point else { return KeysSetAside::default() };
        barriers.iter().fold(KeysSetAside::default(), |all, barrier| KeysSetAside {
            equal: all.equal.saturating_add(barrier.keys_set_aside.equal),
            different: all.different.saturating_add(barrier.keys_set_aside.different),
            unsettled: all.unsettled.saturating_add(barrier.keys_set_aside.unsettled),
        })
    }

    pub(crate) fn derived_verdict(&self) -> Verdict {
        let tables = Verdict::of_all(self.tables.iter().map(TableReport::judge));
        let definitions = self.schema_findings.iter();
        let schema_differs =
            definitions.clone().any(|finding| finding.severity == SchemaSeverity::Different);
        let schema = if schema_differs || self.keys_set_aside().different > 0 {
            Verdict::Different
        } else if self.is_cut_short() {
            Verdict::Incomplete
        } else {
            Verdict::Identical
        };
        tables.max(schema)
    }

    pub(crate) fn derived_proof(&self) -> Option<Proof> {
        let proven = self.tables.iter().filter(|table| table.judge() != Verdict::Incomplete);
        Proof::of_all(proven.filter_map(|table| table.proof))
    }

    fn derived_lsn(&self) -> Option<Lsn> {
        let mut compared = self.tables.iter().filter(|table| table.level.is_some());
        let first = compared.next()?.lsn?;
        compared.all(|table| table.lsn == Some(first)).then_some(first)
    }

    /// Something beside the tables is missing: the point, an object, a key that is not settled, or any table at all.
    fn is_cut_short(&self) -> bool {
        let has_point = match &self.point {
            Point::Barrier { barriers } => !barriers.is_empty(),
            Point::Quiesced { .. } => true,
            Point::None { .. } => !self.level.reads_rows(),
        };
        !has_point
            || self.tables.is_empty()
            || !self.skipped.is_empty()
            || self.keys_set_aside().unsettled > 0
    }
}
