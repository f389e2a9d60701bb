//! What the server says of the slot, of itself and of those who hold its WAL; and the barrier.
//!
//! **Invariant:** nothing here changes a slot.
//!
//! PostgreSQL manual, section 54.19 (`pg_replication_slots`), 55.4 (`IDENTIFY_SYSTEM`, `TIMELINE_HISTORY`), 9.28.6
//! (`pg_logical_emit_message`).

use tidemark_model::Lsn;
use tidemark_model::sql::Literal;
use tidemark_wire::{Client, ConnectSpec, Mode, RawConnection};

use crate::{Disposition, Error, Result, sql};

pub(super) const NEW_SNAPSHOT: &str = "changes since then cannot be had any more; run tidemark cleanup, then sync takes a new snapshot";

/// One row of `pg_replication_slots`; what a version does not have is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    /// Its name.
    pub name: String,
    /// `pgoutput`; none for a physical slot.
    pub plugin: Option<String>,
    /// The database that it decodes; none for a physical slot.
    pub database: Option<String>,
    /// Who reads from it.
    pub active_pid: Option<i32>,
    /// What was acknowledged: it continues from here.
    pub confirmed_flush: Option<Lsn>,
    /// WAL from here on is kept for it.
    pub restart_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Why it cannot be used any more (17 and later).
    pub invalidation_reason: Option<String>,
    /// Whether it was invalidated by recovery on a standby (16 and later).
    pub is_conflicting: bool,
    /// Bytes of WAL that can be written before it is lost, where that is limited; may be negative.
    pub safe_wal_size: Option<i64>,
    /// Whether it ends with its session.
    pub is_temporary: bool,
    /// Whether it decodes prepared transactions at their PREPARE.
    pub is_two_phase: bool,
    /// Whether standbys have it too (17 and later).
    pub is_failover: bool,
}

impl SlotState {
    /// Why the server will not let anybody read from it, if it will not.
    pub fn invalid_because(&self) -> Option<String> {
        if let Some(reason) = &self.invalidation_reason {
            return Some(reason.clone());
        }
        if self.wal_status.as_deref() == Some("lost") {
            return Some("wal_removed".to_owned());
        }
        self.is_conflicting.then(|| "conflict with recovery".to_owned())
    }
}

/// Reads the slot of this name, of whatever kind and database.
///
/// # Errors
/// The connection failed.
pub async fn inspect_slot(client: &Client, name: &str) -> Result<Option<SlotState>> {
    // Columns that not every version has are asked for through JSON.
    let text = format!(
        "SELECT plugin::text, database::text, active_pid, confirmed_flush_lsn::text, restart_lsn::text, wal_status, \
           j->>'invalidation_reason', coalesce((j->>'conflicting')::bool, false), safe_wal_size, temporary, \
           coalesce((j->>'two_phase')::bool, false), coalesce((j->>'failover')::bool, false) \
         FROM pg_catalog.pg_replication_slots s, LATERAL (SELECT to_jsonb(s) AS j) x WHERE slot_name = {}",
        Literal(name)
    );
    let rows = sql::rows(client, "look for the slot", &text).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let lsn =
        |index: usize| row.get::<_, Option<String>>(index).map(|text| parse_lsn(&text)).transpose();
    Ok(Some(SlotState {
        name: name.to_owned(),
        plugin: row.get(0),
        database: row.get(1),
        active_pid: row.get(2),
        confirmed_flush: lsn(3)?,
        restart_lsn: lsn(4)?,
        wal_status: row.get(5),
        invalidation_reason: row.get(6),
        is_conflicting: row.get(7),
        safe_wal_size: row.get(8),
        is_temporary: row.get(9),
        is_two_phase: row.get(10),
        is_failover: row.get(11),
    }))
}

/// Which server this is, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Made by `initdb`, the same for all copies of a cluster.
    pub system_identifier: u64,
    /// The present timeline: each promotion and each recovery to a point begins a new one.
    pub timeline: u32,
    /// The timelines before this one, the oldest first, and where each was left.
    pub history: Vec<(u32, Lsn)>,
    /// The database.
    pub database: String,
    /// The end of its WAL.
    pub head: Lsn,
}

/// Asks a server who it is, over a replication connection of its own.
///
/// # Errors
/// The connection failed or is not a replication connection.
pub async fn identify(spec: &ConnectSpec) -> Result<Identity> {
    let mut raw = sql::connect_raw(spec, Mode::Replication)
        .await
        .map_err(super::connect::explain_connection)?;
    let identity = identify_over(&mut raw).await?;
    raw.close().await;
    Ok(identity)
}

/// The timeline that a server is on.
pub(super) async fn timeline_over(raw: &mut RawConnection) -> Result<u32> {
    let rows = sql::raw(raw, "identify the source", "IDENTIFY_SYSTEM").await?;
    let timeline = rows.first().and_then(|row| row.get(1)?.as_deref()?.parse().ok());
    timeline.ok_or_else(|| {
        Error::new(Disposition::Internal, "identify the source: an incomplete answer")
    })
}

async fn identify_over(raw: &mut RawConnection) -> Result<Identity> {
    let attempt = "identify the source";
    let incomplete =
        || Error::new(Disposition::Internal, "identify the source: an incomplete answer");
    let rows = sql::raw(raw, attempt, "IDENTIFY_SYSTEM").await?;
    let Some([Some(system), Some(timeline), _, Some(database)]) = rows.first().map(Vec::as_slice)
    else {
        return Err(incomplete());
    };
    let timeline: u32 = timeline.parse().map_err(|_| incomplete())?;
    let history = match timeline {
        0 | 1 => Vec::new(),
        _ => history(raw, timeline).await?,
    };
    let rows = sql::raw(raw, attempt, HEAD).await?;
    let head = rows.first().and_then(|row| row.first()?.as_deref()).ok_or_else(incomplete)?;
    Ok(Identity {
        system_identifier: system.parse().map_err(|_| incomplete())?,
        timeline,
        history,
        database: database.clone(),
        head: parse_lsn(head)?,
    })
}

/// The lines of the timeline's history file: timeline, where it was left, why.
async fn history(raw: &mut RawConnection, timeline: u32) -> Result<Vec<(u32, Lsn)>> {
    let attempt = "read the timeline's history";
    let rows = sql::raw(raw, attempt, &format!("TIMELINE_HISTORY {timeline}")).await?;
    let content = rows.into_iter().next().and_then(|row| row.into_iter().nth(1)).flatten();
    let content = content.unwrap_or_default();
    Ok(content
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
        })
        .collect())
}

const HEAD: &str = "SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
     ELSE pg_catalog.pg_current_wal_insert_lsn() END)::pg_catalog.text";

/// The end of the source's WAL, flushed or not; on a standby what is replayed.
///
/// # Errors
/// The connection failed.
pub async fn head(client: &Client) -> Result<Lsn> {
    let row = sql::one(client, "read the source's position", HEAD).await?;
    parse_lsn(&row.get::<_, Option<String>>(0).unwrap_or_default())
}

/// Whether the source has committed a transaction, by its 64-bit id; false also where the source does not know any more.
///
/// # Errors
/// The connection failed.
pub async fn has_committed(client: &Client, xid: u64) -> Result<bool> {
    let text =
        format!("SELECT pg_catalog.pg_xact_status({}::pg_catalog.xid8)", Literal(&xid.to_string()));
    let row = sql::one(client, "ask whether a transaction has committed", &text).await?;
    Ok(row.get::<_, Option<String>>(0).as_deref() == Some("committed"))
}

/// Moves a slot that nobody reads up to a position that is durable on the target, without decoding what lies between. The
/// stream would read all of it again, only to throw it away.
///
/// # Errors
/// The slot is in use, is beyond that position already, or the connection failed.
pub async fn advance_slot(client: &Client, slot: &str, durable: Lsn) -> Result<()> {
    let text = format!(
        "SELECT pg_catalog.pg_replication_slot_advance({}, {})",
        Literal(slot),
        Literal(&durable.to_string())
    );
    sql::rows(client, "move the slot to what is durable", &text).await.map(drop)
}

/// Writes a message into the stream and flushes it. When a reader of the stream meets it, it has everything that was
/// committed before this call. Gives the position of the message.
///
/// Below 17 the message is transactional, because only a commit is flushed at once; from 17 on it is not, and flushes
/// itself (`design.md` 5).
///
/// # Errors
/// The server is a standby, or the connection failed.
pub async fn emit_barrier(client: &Client, prefix: &str, content: &str) -> Result<Lsn> {
    let (prefix, content) = (Literal(prefix), Literal(content));
    let text = if client.server_version_num() >= 170_000 {
        format!("SELECT pg_catalog.pg_logical_emit_message(false, {prefix}, {content}, true)::text")
    } else {
        // The setting ends with the statement's own transaction; it is read at its commit.
        format!(
            "SELECT pg_catalog.pg_logical_emit_message(true, {prefix}, {content})::text, \
             pg_catalog.set_config('synchronous_commit', 'local', true)"
        )
    };
    let row = sql::one(client, "write a barrier into the stream", &text).await?;
    parse_lsn(&row.get::<_, Option<String>>(0).unwrap_or_default())
}

/// Who else keeps WAL or old rows on the source, in a few words, the worst first: other slots that are behind ours,
/// prepared transactions, transactions open for more than a minute. `None` when nobody does.
///
/// # Errors
/// The connection failed.
pub async fn retained_by_others(client: &Client, slot: &str) -> Result<Option<String>> {
    let name = Literal(slot);
    let text = format!(
        "WITH head AS (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END AS lsn), \
         held(what, age) AS (\
           SELECT 'slot ' || quote_ident(s.slot_name) || ' keeps ' || pg_size_pretty(pg_wal_lsn_diff(head.lsn, s.restart_lsn)), \
             pg_wal_lsn_diff(head.lsn, s.restart_lsn) / 16777216 \
           FROM pg_catalog.pg_replication_slots s, head WHERE s.slot_name <> {name} AND s.restart_lsn < \
             coalesce((SELECT restart_lsn FROM pg_catalog.pg_replication_slots WHERE slot_name = {name}), head.lsn) \
           UNION ALL \
           SELECT 'prepared transaction ' || quote_literal(gid) || ' since ' || to_char(prepared AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') || ' UTC', \
             extract(epoch FROM clock_timestamp() - prepared) FROM pg_catalog.pg_prepared_xacts \
           UNION ALL \
           SELECT 'transaction of process ' || pid || coalesce(' (' || nullif(application_name, '') || ')', '') || ' open for ' || \
             extract(epoch FROM clock_timestamp() - xact_start)::int8 || ' s', extract(epoch FROM clock_timestamp() - xact_start) \
           FROM pg_catalog.pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() \
             AND xact_start < clock_timestamp() - interval '1 minute') \
         SELECT string_agg(what, '; ' ORDER BY age DESC) FROM (SELECT * FROM held ORDER BY age DESC LIMIT 5) x"
    );
    Ok(sql::one(client, "look who keeps WAL", &text).await?.get(0))
}

pub(super) fn parse_lsn(text: &str) -> Result<Lsn> {
    text.parse()
        .map_err(|_| Error::new(Disposition::Internal, "read a position: the server gave none"))
}
