//! The schema on the target that a self-test works in.
//!
//! **Invariant:** only a schema with our name and our comment is ever dropped; one self-test of a job is in it at a time.
//! What a killed one left goes with the next one, or with [`cleanup_selftest`].

use tidemark_model::names::selftest_schema;
use tidemark_model::sql::{Ident, Literal};
use tidemark_pipeline::{Error, Job, Kind, Result, Target};
use tidemark_wire::{Client, ConnectSpec, tokio_postgres};

/// How a schema of ours is known.
const COMMENT: &str = "Copies of a sample, made by tidemark verify selftest; removed by the next one, or by tidemark cleanup";
/// Tables that are dropped in one transaction, so that the server's table of locks is not filled.
const DROPPED: usize = 50;

/// The schema, and the session that holds it.
pub(super) struct Scratch {
    pub(super) client: Client,
    pub(super) schema: String,
}

impl Scratch {
    /// Takes the schema for this run, empty.
    pub(super) async fn open(spec: &ConnectSpec, job: &str) -> Result<Self> {
        let scratch = Self::connect(spec, job).await?;
        scratch.refuse_without_rights().await?;
        if !scratch.take().await? {
            let message = format!(
                "verify selftest: another one works in schema {} of the target",
                scratch.schema
            );
            return Err(Error::new(Kind::Held, message).hint("wait until it has ended"));
        }
        scratch.drop_ours().await?;
        let schema = Ident(&scratch.schema).to_string();
        let sql =
            format!("CREATE SCHEMA {schema}; COMMENT ON SCHEMA {schema} IS {}", Literal(COMMENT));
        scratch.run("make its schema", &sql).await?;
        Ok(scratch)
    }

    async fn connect(spec: &ConnectSpec, job: &str) -> Result<Self> {
        let application = format!("{}:selftest", tidemark_model::names::application_name(job));
        let spec = spec.clone().with_application_name(&application);
        let client = spec.connect().await.map_err(|error| {
            let mut error = Error::from(error);
            error.message = format!("verify selftest: target: {}", error.message);
            error
        })?;
        let scratch = Self { client, schema: selftest_schema(job) };
        let settings = "SET client_min_messages = error; SET lock_timeout = '10s'; SET synchronous_commit = off";
        scratch.run("set its session up", settings).await?;
        Ok(scratch)
    }

    async fn refuse_without_rights(&self) -> Result<()> {
        let sql = "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'), \
            pg_catalog.pg_is_in_recovery() OR pg_catalog.current_setting('transaction_read_only')::bool, \
            pg_catalog.quote_ident(pg_catalog.current_database()), pg_catalog.quote_ident(current_user)";
        let row = self
            .client
            .query_one(sql, &[])
            .await
            .map_err(|cause| failed("look at its rights", &cause))?;
        let (may_create, is_read_only): (bool, bool) = (row.get(0), row.get(1));
        let (database, role): (String, String) = (row.get(2), row.get(3));
        let refused = |why: &str| {
            let message = format!(
                "verify selftest: make a schema in database {database} of the target: {why}"
            );
            Error::new(Kind::TargetRefused, message)
        };
        if is_read_only {
            return Err(refused("it takes no writes").hint(
                "name another database with --target: any PostgreSQL that has the source's types will do",
            ));
        }
        if !may_create {
            return Err(refused("our role may not")
                .hint(format!("GRANT CREATE ON DATABASE {database} TO {role}")));
        }
        Ok(())
    }

    /// Whether nobody else has it; given back with the session.
    async fn take(&self) -> Result<bool> {
        let sql = "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended($1, 0))";
        let row = self.client.query_one(sql, &[&self.schema]).await;
        Ok(row.map_err(|cause| failed("take its schema", &cause))?.get(0))
    }

    /// Drops what is there, if it is ours; whether something was.
    async fn drop_ours(&self) -> Result<bool> {
        let sql = "SELECT pg_catalog.obj_description(oid, 'pg_namespace') FROM pg_catalog.pg_namespace WHERE nspname = $1";
        let row = self.client.query_opt(sql, &[&self.schema]).await;
        let Some(row) = row.map_err(|cause| failed("look for its schema", &cause))? else {
            return Ok(false);
        };
        if row.get::<_, Option<String>>(0).as_deref() != Some(COMMENT) {
            let message = format!(
                "verify selftest: the target has a schema {} that is not ours",
                self.schema
            );
            return Err(Error::new(Kind::TargetRefused, message)
                .hint("rename it, or give the job another name (--job)"));
        }
        self.drop_all().await?;
        Ok(true)
    }

    async fn drop_all(&self) -> Result<()> {
        let sql = "SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
            WHERE n.nspname = $1 AND c.relkind = 'r'";
        let rows = self
            .client
            .query(sql, &[&self.schema])
            .await
            .map_err(|cause| failed("list its tables", &cause))?;
        let tables: Vec<String> = rows.iter().map(|row| self.name(row.get(0))).collect();
        self.drop_tables(&tables).await?;
        self.run("drop its schema", &format!("DROP SCHEMA {} CASCADE", Ident(&self.schema))).await
    }

    pub(super) async fn drop_tables(&self, tables: &[String]) -> Result<()> {
        for some in tables.chunks(DROPPED) {
            self.run("drop its tables", &format!("DROP TABLE {}", some.join(", "))).await?;
        }
        Ok(())
    }

    /// Leaves nothing behind.
    pub(super) async fn close(self) -> Result<()> {
        self.drop_all().await?;
        self.client.close().await;
        Ok(())
    }

    /// A table of the schema, ready for SQL.
    pub(super) fn name(&self, table: &str) -> String {
        format!("{}.{}", Ident(&self.schema), Ident(table))
    }

    pub(super) async fn run(&self, attempt: &str, sql: &str) -> Result<()> {
        self.client.batch_execute(sql).await.map_err(|cause| failed(attempt, &cause))
    }
}

/// Drops what a killed self-test of the job left on its target; a line if something was there.
///
/// # Errors
/// The target cannot be reached or refuses, or a self-test runs.
pub async fn cleanup_selftest(job: &Job) -> Result<Option<String>> {
    let Target::Postgres(target) = &job.target else { return Ok(None) };
    let scratch = Scratch::connect(&target.spec, &job.name).await?;
    if !scratch.take().await? {
        let message =
            format!("clean up schema {} of the target: a self-test works in it", scratch.schema);
        return Err(Error::new(Kind::Held, message).hint("wait until it has ended"));
    }
    let was_there = scratch.drop_ours().await?;
    Ok(was_there.then(|| format!("target: dropped the schema {}", scratch.schema)))
}

/// The server's words may quote a value, so only its code is told.
pub(super) fn failed(attempt: &str, cause: &tokio_postgres::Error) -> Error {
    let message = format!("verify selftest: {attempt} on the target");
    match cause.code() {
        Some(code) => Error::new(
            Kind::TargetRefused,
            format!("{message}: it refused (SQLSTATE {})", code.code()),
        )
        .hint("what was made is dropped by the next verify selftest, or by tidemark cleanup"),
        None => Error::new(Kind::Unavailable, format!("{message}: the connection was lost"))
            .hint("run the same command again; it drops what this one has left"),
    }
}
