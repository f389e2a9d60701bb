//! The server, the database and the session's role.
//!
//! **Invariant:** nothing here needs more rights than CONNECT; what a plain role may not read is left at 0 and becomes a
//! finding in `check`.

use tidemark_model::Oid;
use tidemark_wire::Client;

use crate::{Disposition, Error, Result, sql};

/// What is known of a server and of the role we are on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `server_version_num`.
    pub version_num: u32,
    /// `server_version`, for people.
    pub version: String,
    /// The cluster's identifier; 0 if the role may not read it.
    pub system_identifier: u64,
    /// The timeline; 0 if the role may not read it.
    pub timeline: u32,
    /// The database's name.
    pub database: String,
    /// Its OID.
    pub database_oid: Oid,
    /// The database's encoding.
    pub encoding: String,
    /// The database's collation: `datcollate` of libc, otherwise `<provider>:<locale>`.
    pub collation: String,
    /// Whether the server is a standby.
    pub in_recovery: bool,
    /// `wal_level`.
    pub wal_level: String,
    /// Whether the role is a superuser.
    pub is_superuser: bool,
    /// The role.
    pub user: String,
    /// Whether the role may create slots and stream (REPLICATION, superuser, or a member of the role that gives the right).
    pub can_replicate: bool,
    /// Whether a role of the server's gives that right to its members: `rds_replication` of Amazon RDS and Aurora, where
    /// nobody can say `ALTER ROLE .. REPLICATION`.
    pub replicates_by_role: bool,
    /// Whether the role may create a publication in the database (CREATE).
    pub can_create: bool,
    /// Capacity of the shared lock table.
    pub max_locks: u64,
    /// `max_connections` less the reserved ones and less the sessions that are there now.
    pub free_connections: i64,
    /// `max_replication_slots` less the slots that are there.
    pub free_slots: i64,
    /// `max_wal_senders` less the senders that are there.
    pub free_senders: i64,
    /// `transaction_read_only` of the session.
    pub is_read_only: bool,
}

impl Server {
    /// Whether text of the database's default collation sorts by bytes.
    pub fn default_collation_is_c(&self) -> bool {
        matches!(self.collation.as_str(), "C" | "POSIX")
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        self.version_num / 10_000
    }
}

/// Reads what is known of the server.
///
/// # Errors
/// The connection failed or the server is older than 13.
pub async fn read_server(client: &Client) -> Result<Server> {
    let version_num = read_version(client).await?;
    let row = sql::one(client, "read the server's settings", &server_sql(version_num)).await?;
    let is_superuser: bool = row.get(7);
    let rolreplication: bool = row.get(9);
    let in_recovery: bool = row.get(5);
    let (system_identifier, timeline) = read_identity(client, in_recovery).await?;
    Ok(Server {
        version_num,
        version: row.get(0),
        system_identifier,
        timeline,
        database: row.get(1),
        database_oid: row.get(2),
        encoding: row.get(3),
        collation: row.get(4),
        in_recovery,
        wal_level: row.get(6),
        is_superuser,
        user: row.get(8),
        can_replicate: is_superuser || rolreplication || row.get(17),
        replicates_by_role: row.get(16),
        can_create: row.get(10),
        max_locks: sql::unsigned(row.get(11)),
        free_connections: row.get(12),
        free_slots: row.get(13),
        free_senders: row.get(14),
        is_read_only: row.get(15),
    })
}

async fn read_version(client: &Client) -> Result<u32> {
    let text = "SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int8";
    let row = sql::one(client, "read the server's version", text).await?;
    let version = u32::try_from(sql::unsigned(row.get(0))).unwrap_or(0);
    if version >= 130_000 {
        return Ok(version);
    }
    Err(Error::new(Disposition::Usage, "work with a server older than PostgreSQL 13")
        .hint(format!("the server says version {version}; 13 to 18 are supported")))
}

/// One row; the capacity of the lock table is `max_locks_per_transaction` for every backend and prepared transaction.
fn server_sql(version_num: u32) -> String {
    let collation = match version_num {
        ..150_000 => "d.datcollate::text",
        150_000..170_000 => {
            "CASE d.datlocprovider WHEN 'c' THEN d.datcollate::text \
             ELSE d.datlocprovider::text || ':' || coalesce(d.daticulocale::text, '') END"
        }
        _ => {
            "CASE d.datlocprovider WHEN 'c' THEN d.datcollate::text \
             ELSE d.datlocprovider::text || ':' || coalesce(d.datlocale::text, '') END"
        }
    };
    format!(
        "SELECT current_setting('server_version'), d.datname::text, d.oid, \
           pg_encoding_to_char(d.encoding)::text, {collation}, pg_is_in_recovery(), \
           current_setting('wal_level'), r.rolsuper, current_user::text, r.rolreplication, \
           has_database_privilege(d.oid, 'CREATE'), \
           current_setting('max_locks_per_transaction')::int8 * (current_setting('max_connections')::int8 \
             + current_setting('max_prepared_transactions')::int8 + current_setting('autovacuum_max_workers')::int8 \
             + current_setting('max_worker_processes')::int8 + current_setting('max_wal_senders')::int8 + 1), \
           current_setting('max_connections')::int8 - current_setting('superuser_reserved_connections')::int8 \
             - (SELECT sum(numbackends)::int8 FROM pg_catalog.pg_stat_database), \
           current_setting('max_replication_slots')::int8 \
             - (SELECT count(*) FROM pg_catalog.pg_replication_slots), \
           current_setting('max_wal_senders')::int8 - (SELECT count(*) FROM pg_catalog.pg_stat_replication), \
           current_setting('transaction_read_only')::bool, \
           EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'rds_replication'), \
           EXISTS (SELECT FROM pg_catalog.pg_roles g WHERE g.rolname = 'rds_replication' AND pg_has_role(g.oid, 'USAGE')) \
         FROM pg_catalog.pg_database d, pg_catalog.pg_roles r \
         WHERE d.datname = current_database() AND r.rolname = current_user"
    )
}

/// System identifier and timeline, each 0 where the role may not read it. Two statements, because a function's EXECUTE
/// right is checked when the statement starts, whether the function is reached or not.
async fn read_identity(client: &Client, in_recovery: bool) -> Result<(u64, u32)> {
    let text = "SELECT has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE'), \
                has_function_privilege('pg_catalog.pg_control_checkpoint()', 'EXECUTE')";
    let row = sql::one(client, "read what the role may execute", text).await?;
    let (may_system, may_checkpoint): (bool, bool) = (row.get(0), row.get(1));
    let mut system_identifier = 0;
    if may_system {
        let text = "SELECT system_identifier FROM pg_catalog.pg_control_system()";
        let value: i64 = sql::one(client, "read the system identifier", text).await?.get(0);
        system_identifier = u64::from_ne_bytes(value.to_ne_bytes());
    }
    let text = if !in_recovery {
        // The checkpoint's timeline is the old one for a while after a promotion; the WAL file's name is not.
        "SELECT ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int4::int8"
    } else if may_checkpoint {
        "SELECT timeline_id::int8 FROM pg_catalog.pg_control_checkpoint()"
    } else {
        "SELECT 0::int8"
    };
    let row = sql::one(client, "read the timeline", text).await?;
    Ok((system_identifier, u32::try_from(sql::unsigned(row.get(0))).unwrap_or(0)))
}
