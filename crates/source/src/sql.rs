//! Statements, with errors that say what was attempted.
//!
//! **Invariant:** this is the only file of the crate that turns an error of `wire` into ours. Identifiers and literals in
//! the texts went through `model::sql`.

use tidemark_model::Oid;
use tidemark_wire::tokio_postgres::Row;
use tidemark_wire::{Client, ConnectSpec, Mode, RawConnection};

use crate::{Disposition, Error, Result};

/// All rows of a query without parameters.
pub(crate) async fn rows(client: &Client, attempt: &str, text: &str) -> Result<Vec<Row>> {
    let answer = client.query(text, &[]).await;
    answer.map_err(|cause| Error::wire(attempt, tidemark_wire::Error::sql("query")(cause)))
}

/// The one row of a query that always has one.
pub(crate) async fn one(client: &Client, attempt: &str, text: &str) -> Result<Row> {
    let mut found = rows(client, attempt, text).await?;
    found.pop().ok_or_else(|| {
        Error::new(Disposition::Internal, format!("{attempt}: the server gave no row"))
    })
}

/// Statements without an answer.
pub(crate) async fn execute(client: &Client, attempt: &str, text: &str) -> Result<()> {
    let answer = client.batch_execute(text).await;
    answer.map_err(|cause| Error::wire(attempt, tidemark_wire::Error::sql("statement")(cause)))
}

/// A new SQL connection.
pub(crate) async fn connect(spec: &ConnectSpec) -> Result<Client> {
    spec.connect().await.map_err(|cause| Error::wire("connect to the source", cause))
}

/// A new connection with our own framing.
pub(crate) async fn connect_raw(spec: &ConnectSpec, mode: Mode) -> Result<RawConnection> {
    spec.connect_raw(mode).await.map_err(|cause| Error::wire("connect to the source", cause))
}

/// A statement on such a connection; the rows as text.
pub(crate) async fn raw(
    connection: &mut RawConnection,
    attempt: &str,
    text: &str,
) -> Result<Vec<Vec<Option<String>>>> {
    let answer = connection.simple_query(text).await;
    answer.map_err(|cause| Error::wire(attempt, cause))
}

/// A signed count as the unsigned number it is; negative ones do not occur and become 0.
pub(crate) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// OIDs as an SQL array.
pub(crate) fn oid_array(oids: &[Oid]) -> String {
    let list: Vec<String> = oids.iter().map(Oid::to_string).collect();
    format!("'{{{}}}'::pg_catalog.oid[]", list.join(","))
}
