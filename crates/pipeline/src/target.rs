//! Makes the sink that a job asks for.

use std::sync::Arc;

use tidemark_model::{Budget, Cpu};
use tidemark_sink::Sink;
use tidemark_sink::parquet::{ParquetOptions, ParquetSink};
use tidemark_sink::postgres::{self, PostgresOptions, PostgresSink, WaveOf};
use tidemark_source::dump;

use crate::Result;
use crate::job::{Job, LakeTarget, PostgresTarget, Target};

pub(crate) fn sink(job: &Job, cpu: &Cpu, budget: &Budget) -> Arc<dyn Sink> {
    match &job.target {
        Target::Postgres(target) => Arc::new(PostgresSink::new(postgres_options(job, target))),
        Target::Lake(target) => Arc::new(ParquetSink::new(
            target.root.clone(),
            lake_options(job, target, budget),
            cpu.clone(),
        )),
    }
}

pub(crate) fn postgres_options(job: &Job, target: &PostgresTarget) -> PostgresOptions {
    PostgresOptions {
        spec: target.spec.clone(),
        job: job.name.clone(),
        schema: target.schema,
        not_empty: target.not_empty,
        triggers: target.triggers,
        follows: job.follows,
        lanes: job.stream.lanes,
        lanes_from: postgres::LANES_FROM,
        build_jobs: job.readers,
        restore_tool: |source| dump::client_tool("pg_restore", source),
        tool_version: job.tool_version.clone(),
        wave: job
            .wave
            .as_ref()
            .map(|wave| WaveOf { job: wave.job.clone(), others: wave.others.clone() }),
    }
}

fn lake_options(job: &Job, target: &LakeTarget, budget: &Budget) -> ParquetOptions {
    ParquetOptions {
        compression: target.compression,
        file_bytes: target.file_bytes,
        writers: job.readers,
        not_empty: target.not_empty,
        memory: budget.total(),
    }
}

/// `server_version_num` of the target, if it is a PostgreSQL.
pub(crate) async fn target_version(job: &Job) -> Result<Option<u32>> {
    match &job.target {
        Target::Postgres(target) => Ok(Some(target.spec.connect().await?.server_version_num())),
        Target::Lake(_) => Ok(None),
    }
}
