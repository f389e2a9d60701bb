//! Fills the source, and counts what is in a database.
//!
//! **Invariant:** the statements are the files of `testdata/demo`, the same that the tests and benches load.

use std::collections::BTreeMap;

use tidemark_model::RelationName;
use tidemark_wire::{Client, ConnectSpec};

use super::server::query_failed;
use crate::exit::Failure;

const TPCH: &str = include_str!("../../../../testdata/demo/tpch.sql");
const ZOO: &str = include_str!("../../../../testdata/demo/zoo.sql");
const LIVE: &str = include_str!("../../../../testdata/demo/live.sql");

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

/// Rows per table.
pub(super) type RowCounts = BTreeMap<RelationName, u64>;

/// What was made.
#[derive(Debug, Clone)]
pub(super) struct Loaded {
    /// Tables that hold rows, partitions each by itself.
    pub(super) counts: RowCounts,
    /// Bytes of the database with its indexes.
    pub(super) bytes: u64,
}

/// Makes all tables.
pub(super) async fn load(spec: &ConnectSpec, scale: f64) -> Result<Loaded, Failure> {
    let client = spec.connect().await.map_err(|error| query_failed(&error))?;
    client.batch_execute(OPEN).await.map_err(|error| query_failed(&error))?;
    for text in [TPCH, ZOO, LIVE] {
        let text = text.replace(SCALE, &scale.to_string());
        client.batch_execute(&text).await.map_err(|error| query_failed(&error))?;
    }
    client.batch_execute(IDENTITIES).await.map_err(|error| query_failed(&error))?;
    let counts = row_counts(&client).await?;
    let size = "SELECT pg_catalog.pg_database_size(pg_catalog.current_database())";
    let row = client.query_one(size, &[]).await.map_err(|error| query_failed(&error))?;
    let bytes: i64 = row.get(0);
    client.close().await;
    Ok(Loaded { counts, bytes: u64::try_from(bytes).unwrap_or_default() })
}

/// Counts the rows of every table at one moment.
pub(super) async fn row_counts(client: &Client) -> Result<RowCounts, Failure> {
    let list = "SELECT pg_catalog.string_agg(pg_catalog.format( \
                'SELECT %L, %L, count(*) FROM ONLY %I.%I', n.nspname, c.relname, n.nspname, c.relname), ' UNION ALL ') \
                FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'tidemark')";
    let row = client.query_one(list, &[]).await.map_err(|error| query_failed(&error))?;
    let statement: String = row.get(0);
    let rows = client.query(&statement, &[]).await.map_err(|error| query_failed(&error))?;
    let count = |row: &tidemark_wire::tokio_postgres::Row| {
        let count: i64 = row.get(2);
        let name = RelationName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        (name, u64::try_from(count).unwrap_or_default())
    };
    Ok(rows.iter().map(count).collect())
}

/// The sum that every state of the database has, whatever was transferred meanwhile.
pub(super) async fn balance(client: &Client) -> Result<i64, Failure> {
    let text = "SELECT pg_catalog.sum(balance)::bigint FROM live.account";
    let row = client.query_one(text, &[]).await.map_err(|error| query_failed(&error))?;
    Ok(row.get(0))
}
