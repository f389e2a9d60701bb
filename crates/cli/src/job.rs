//! From the configuration to the pipeline's job, and from the pipeline's answers to what people see.
//!
//! **Invariant:** every choice of the configuration has exactly one counterpart below; nothing is decided here. A
//! connection string leaves its [`Secret`](tidemark_model::Secret) only to become a `ConnectSpec`.

use tidemark_pipeline as pipeline;
use tidemark_sink::parquet::Root;
use tidemark_wire::{ConnectSpec, Disposition};

use crate::args::NotEmpty;
use crate::config::{self, Compression, Config, SchemaMode, TargetUrl, Triggers};
use crate::exit::{ExitCode, Failure};
use crate::output::{Summary, SummaryRow};
use crate::progress::{ActiveTable, View};

/// Zstandard's level: what higher ones save in bytes they cost several times over in CPU.
pub(crate) const ZSTD_LEVEL: i32 = 1;

/// The job that a configuration describes; it must have been loaded with [`config::Needs::Both`].
///
/// # Errors
/// A connection string is wrong, or the lake's store cannot be opened.
pub fn job(config: &Config, not_empty: NotEmpty, follows: bool) -> Result<pipeline::Job, Failure> {
    let (Some(source), Some(target)) = (&config.source, &config.target) else {
        return Err(Failure::internal("make a job of a configuration without source or target"));
    };
    if config.part.is_some() && (source.publication.is_some() || source.slot.is_some()) {
        let attempt =
            "part the job into waves: source.publication and source.slot name one for all of them";
        return Err(Failure::usage(attempt)
            .hint("leave them out: each wave has a slot and a publication of its own"));
    }
    let texts = |globs: &[config::TableGlob]| -> Vec<String> {
        globs.iter().map(ToString::to_string).collect()
    };
    Ok(pipeline::Job {
        name: config.job.name.clone(),
        state_dir: config.job.state_dir.clone(),
        source: connect_spec(source.url.reveal(), "source")?,
        target: target_of(config, target, not_empty)?,
        selection: tidemark_source::Selection {
            include: texts(&config.select.include),
            exclude: texts(&config.select.exclude),
            among: config.part.as_ref().map_or_else(Vec::new, |part| texts(&part.tables)),
            apart: config.part.as_ref().map_or_else(Vec::new, |part| texts(&part.apart)),
        },
        tables: config.tables.iter().map(table_options).collect(),
        readers: usize::try_from(config.snapshot.readers).unwrap_or(1),
        chunk_bytes: config.snapshot.chunk_bytes,
        lock_timeout: config.snapshot.lock_timeout,
        memory: config.limits.memory,
        follows,
        stream: pipeline::StreamJob {
            beginning: match not_empty {
                NotEmpty::Reconcile => pipeline::Beginning::Reconciled,
                _ => pipeline::Beginning::Copied,
            },
            ..stream_of(config, source)
        },
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        wave: config.part.as_ref().map(|part| pipeline::Wave {
            name: part.name.clone(),
            job: part.job.clone(),
            others: part.others.clone(),
        }),
    })
}

fn stream_of(config: &Config, source: &config::Source) -> pipeline::StreamJob {
    pipeline::StreamJob {
        publication: source.publication.clone(),
        slot: source.slot.clone(),
        failover: source.failover,
        batch_delay: config.stream.batch_delay,
        batch_bytes: config.stream.batch_bytes,
        lanes: usize::try_from(config.stream.lanes).unwrap_or(1),
        ddl: match config.stream.ddl {
            config::Ddl::Additive => pipeline::DdlPolicy::Additive,
            config::Ddl::StopTable => pipeline::DdlPolicy::StopTable,
            config::Ddl::Stop => pipeline::DdlPolicy::Stop,
        },
        commit_interval: config.parquet.commit_interval,
        catch_up: config.stream.catch_up,
        heartbeat: config.stream.heartbeat,
        source_wal: config.limits.source_wal,
        spool: config.limits.spool,
        on_full: match config.limits.on_full {
            config::OnFull::Wait => pipeline::OnFull::Wait,
            config::OnFull::DropSlot => pipeline::OnFull::DropSlot,
        },
        beginning: pipeline::Beginning::default(),
    }
}

fn table_options(table: &config::Table) -> pipeline::TableOptions {
    pipeline::TableOptions {
        name: table.name.clone(),
        filter: table.filter.clone(),
        columns: table.columns.clone(),
        unrepresentable: table.unrepresentable,
    }
}

fn target_of(
    config: &Config,
    target: &config::Target,
    not_empty: NotEmpty,
) -> Result<pipeline::Target, Failure> {
    let not_empty = match not_empty {
        // What is there is compared, which the stream asks for.
        NotEmpty::Refuse | NotEmpty::Reconcile => pipeline::NotEmpty::Refuse,
        NotEmpty::Append => pipeline::NotEmpty::Append,
        NotEmpty::Truncate => pipeline::NotEmpty::Truncate,
    };
    let root = match &target.url {
        TargetUrl::Postgres(url) => {
            return Ok(pipeline::Target::Postgres(pipeline::PostgresTarget {
                spec: connect_spec(url.reveal(), "target")?,
                schema: match target.schema {
                    SchemaMode::Create => pipeline::SchemaMode::Create,
                    SchemaMode::Exists => pipeline::SchemaMode::Exists,
                },
                triggers: match target.triggers {
                    Triggers::Replica => pipeline::Triggers::Replica,
                    Triggers::AsIs => pipeline::Triggers::AsIs,
                },
                not_empty,
            }));
        }
        TargetUrl::Directory(path) => Root::local(path),
        TargetUrl::S3 { .. } => Root::from_url(&target.url.redacted())
            .map_err(|error| Failure::from(pipeline::Error::from(error)))?,
    };
    Ok(pipeline::Target::Lake(pipeline::LakeTarget {
        root,
        compression: match config.parquet.compression {
            Compression::Zstd => pipeline::Compression::Zstd { level: ZSTD_LEVEL },
            Compression::Lz4 => pipeline::Compression::Lz4,
            Compression::Snappy => pipeline::Compression::Snappy,
            Compression::None => pipeline::Compression::None,
        },
        file_bytes: config.parquet.file_bytes,
        not_empty,
    }))
}

fn connect_spec(text: &str, side: &str) -> Result<ConnectSpec, Failure> {
    ConnectSpec::parse(text).map_err(|error| {
        let code = match error.disposition() {
            Disposition::Usage => ExitCode::Usage,
            Disposition::Retry | Disposition::Unreachable | Disposition::Server => {
                ExitCode::Unavailable
            }
        };
        let failure = Failure::new(code, format!("{side}: {error}"));
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })
}

impl From<pipeline::Kind> for ExitCode {
    fn from(kind: pipeline::Kind) -> Self {
        match kind {
            pipeline::Kind::Usage => Self::Usage,
            pipeline::Kind::Preflight => Self::Blocked,
            pipeline::Kind::SourceCannotContinue => Self::SourceLost,
            pipeline::Kind::TargetRefused => Self::Refused,
            pipeline::Kind::Unavailable => Self::Unavailable,
            pipeline::Kind::Held => Self::Held,
            pipeline::Kind::Internal => Self::Internal,
            pipeline::Kind::Interrupted => Self::Interrupted,
        }
    }
}

/// The findings of a blocked run are not in it: print them with [`output::findings`](crate::output::findings).
impl From<pipeline::Error> for Failure {
    fn from(error: pipeline::Error) -> Self {
        let failure = Self::of(error.kind.into(), &error);
        match error.hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl From<pipeline::ProgressView> for View {
    fn from(view: pipeline::ProgressView) -> Self {
        let active = view.active.into_iter().map(|table| ActiveTable {
            name: match table.stage.as_str() {
                "copy" => table.name,
                stage => format!("{} ({stage})", table.name),
            },
            rows_done: table.rows_done,
            rows_estimate: table.rows_estimate,
            bytes_done: table.bytes_done,
            bytes_total: table.bytes_total,
        });
        Self {
            phase: view.activity,
            tables_done: view.tables_done,
            tables_total: view.tables_total,
            rows_done: view.rows_done,
            bytes_done: view.bytes_done,
            bytes_total: view.bytes_total,
            active: active.collect(),
            elapsed: view.elapsed,
            retries: 0,
        }
    }
}

impl From<pipeline::Report> for Summary {
    fn from(report: pipeline::Report) -> Self {
        let row = |table: pipeline::TableReport| SummaryRow {
            rows_out: table.summary.rows_out,
            rows_in: table.summary.rows_in,
            bytes: table.summary.bytes,
            duration_ms: table.duration_ms,
            digest: format!("{:032x}", table.summary.sum.raw),
            replaced: table.summary.replaced.iter().map(|(_, count)| count).sum(),
            relation: table.summary.relation,
        };
        Self {
            job: report.job,
            lsn: report.lsn.to_string(),
            duration_ms: report.duration_ms,
            tables: report.tables.into_iter().map(row).collect(),
        }
    }
}
