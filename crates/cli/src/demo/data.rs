//! Fills the source.
//!
//! **Invariant:** the statements are the files of `testdata/demo`, the same that the tests and benches load.

use tidemark_wire::ConnectSpec;

use super::server::query_failed;
use crate::exit::Failure;

const TPCH: &str = include_str!("../../../../testdata/demo/tpch.sql");
const ZOO: &str = include_str!("../../../../testdata/demo/zoo.sql");
const LIVE: &str = include_str!("../../../../testdata/demo/live.sql");
const RECEIPTS: &str = include_str!("../../../../testdata/demo/receipts.sql");

/// What `tidemark check` asks for before a table without a key can be followed.
const IDENTITIES: &str = "DO $$ DECLARE name text; BEGIN FOR name IN \
    SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c \
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p') AND c.relreplident = 'd' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate) \
    LOOP EXECUTE 'ALTER TABLE ' || name || ' REPLICA IDENTITY FULL'; END LOOP; END $$";

/// Where the scale factor goes.
const SCALE: &str = "{{scale}}";

/// Our connections have an empty search path; an application's has not.
pub(super) const OPEN: &str = "SET search_path = public";

/// Tables that hold rows, each partition by itself, and the bytes of the database with its indexes.
const MADE: &str = "SELECT count(*), pg_catalog.pg_database_size(pg_catalog.current_database()) \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";

/// What was made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loaded {
    pub(super) tables: u64,
    pub(super) bytes: u64,
}

/// Makes all tables.
pub(super) async fn load(spec: &ConnectSpec, scale: f64) -> Result<Loaded, Failure> {
    let client = spec.connect().await.map_err(|error| query_failed(&error))?;
    client.batch_execute(OPEN).await.map_err(|error| query_failed(&error))?;
    for text in [TPCH, ZOO, LIVE, RECEIPTS] {
        let text = text.replace(SCALE, &scale.to_string());
        client.batch_execute(&text).await.map_err(|error| query_failed(&error))?;
    }
    client.batch_execute(IDENTITIES).await.map_err(|error| query_failed(&error))?;
    let row = client.query_one(MADE, &[]).await.map_err(|error| query_failed(&error))?;
    client.close().await;
    let (tables, bytes): (i64, i64) = (row.get(0), row.get(1));
    Ok(Loaded { tables: tables.unsigned_abs(), bytes: bytes.unsigned_abs() })
}
