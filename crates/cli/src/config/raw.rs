//! The file as it is written: every key optional, every value as its text.
//!
//! **Invariant:** keys are exactly those of [`keys`](super::keys) (a test compares them); unknown ones are refused. Choices,
//! sizes and durations stay text here, because `${VAR}` in them is expanded later.

use schemars::JsonSchema;
use serde::Deserialize;

/// The whole file.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// `[job]`
    pub job: RawJob,
    /// `[source]`
    pub source: RawSource,
    /// `[target]`
    pub target: RawTarget,
    /// `[select]`
    pub select: RawSelect,
    /// `[[table]]`
    pub table: Vec<RawTable>,
    /// `[[wave]]`
    pub wave: Vec<RawWave>,
    /// `[snapshot]`
    pub snapshot: RawSnapshot,
    /// `[stream]`
    pub stream: RawStream,
    /// `[parquet]`
    pub parquet: RawParquet,
    /// `[limits]`
    pub limits: RawLimits,
    /// `[verify]`
    pub verify: RawVerify,
    /// `[cutover]`
    pub cutover: RawCutover,
    /// `[delta]`
    pub delta: RawDelta,
    /// `[serve]`
    pub serve: RawServe,
}

/// `[cutover]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawCutover {
    /// `max_lag`
    pub max_lag: Option<String>,
    /// `max_write_block`
    pub max_write_block: Option<String>,
    /// `sequence_margin`
    pub sequence_margin: Option<u32>,
    /// `fence`
    pub fence: Option<String>,
    /// `fence_hook`
    pub fence_hook: Option<Vec<String>>,
    /// `fence_url`
    pub fence_url: Option<String>,
    /// `open_hook`
    pub open_hook: Option<Vec<String>>,
    /// `open_url`
    pub open_url: Option<String>,
    /// `hook_timeout`
    pub hook_timeout: Option<String>,
    /// `switch_hook`
    pub switch_hook: Option<Vec<String>>,
    /// `switch_url`
    pub switch_url: Option<String>,
}

/// `[verify]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawVerify {
    /// `level`
    pub level: Option<String>,
    /// `jobs`
    pub jobs: Option<u32>,
    /// `rate`
    pub rate: Option<String>,
    /// `allow`
    pub allow: Option<Vec<String>>,
    /// `redact`
    pub redact: Option<String>,
}

/// `[delta]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawDelta {
    /// `new`
    pub new: Option<String>,
    /// `modified`
    pub modified: Option<String>,
    /// `deleted`
    pub deleted: Option<String>,
    /// `failed`
    pub failed: Option<String>,
    /// `unfiltered`
    pub unfiltered: Option<String>,
}

/// `[serve]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawServe {
    /// `listen`
    pub listen: Option<String>,
}

/// `[job]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawJob {
    /// `name`
    pub name: Option<String>,
    /// `state_dir`
    pub state_dir: Option<String>,
}

/// `[source]`; its `Debug` must not be printed, so it has none that shows anything.
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawSource {
    /// `url`
    pub url: Option<String>,
    /// `publication`
    pub publication: Option<String>,
    /// `slot`
    pub slot: Option<String>,
    /// `failover`
    pub failover: Option<bool>,
}

impl std::fmt::Debug for RawSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RawSource(***)")
    }
}

/// `[target]`; its `Debug` shows nothing of the URL.
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawTarget {
    /// `url`
    pub url: Option<String>,
    /// `schema`
    pub schema: Option<String>,
    /// `triggers`
    pub triggers: Option<String>,
}

impl std::fmt::Debug for RawTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RawTarget(***)")
    }
}

/// `[select]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawSelect {
    /// `include`
    pub include: Option<Vec<String>>,
    /// `exclude`
    pub exclude: Option<Vec<String>>,
}

/// One `[[table]]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawTable {
    /// `name`
    pub name: Option<String>,
    /// `where`
    #[serde(rename = "where")]
    pub filter: Option<String>,
    /// `columns`
    pub columns: Option<Vec<String>>,
    /// `unrepresentable`
    pub unrepresentable: Option<String>,
}

/// One `[[wave]]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawWave {
    /// `name`
    pub name: Option<String>,
    /// `tables`
    pub tables: Option<Vec<String>>,
}

/// `[snapshot]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawSnapshot {
    /// `readers`
    pub readers: Option<u32>,
    /// `chunk_bytes`
    pub chunk_bytes: Option<String>,
    /// `lock_timeout`
    pub lock_timeout: Option<String>,
}

/// `[stream]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawStream {
    /// `batch_delay`
    pub batch_delay: Option<String>,
    /// `batch_bytes`
    pub batch_bytes: Option<String>,
    /// `lanes`
    pub lanes: Option<u32>,
    /// `ddl`
    pub ddl: Option<String>,
    /// `catch_up`
    pub catch_up: Option<bool>,
    /// `heartbeat`
    pub heartbeat: Option<String>,
}

/// `[parquet]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawParquet {
    /// `compression`
    pub compression: Option<String>,
    /// `file_bytes`
    pub file_bytes: Option<String>,
    /// `commit_interval`
    pub commit_interval: Option<String>,
}

/// `[limits]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawLimits {
    /// `memory`
    pub memory: Option<String>,
    /// `source_wal`
    pub source_wal: Option<String>,
    /// `spool`
    pub spool: Option<String>,
    /// `on_full`
    pub on_full: Option<String>,
}
