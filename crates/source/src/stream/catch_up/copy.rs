//! A session with a temporary copy of a slot.

use tidemark_model::Lsn;
use tidemark_model::sql::{Ident, Literal};
use tidemark_wire::{ConnectSpec, Mode, RawConnection};

use super::super::connect::{explain, quoted_names};
use super::super::slot::parse_lsn;
use super::{Asked, CatchUpOptions};
use crate::{Result, sql};

/// The end of what can be decoded.
const FLUSHED: &str = "SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
     ELSE pg_catalog.pg_current_wal_flush_lsn() END)::pg_catalog.text";

/// A transaction that does not fit into the decoding's memory is written to the source's disk and read back change by
/// change: three times the time. The room is taken only while a large transaction is decoded, and is measured by what the server
/// has for its own buffers.
const ROOM: &str = "SELECT pg_catalog.set_config('logical_decoding_work_mem', (GREATEST(\
     pg_catalog.pg_size_bytes(pg_catalog.current_setting('logical_decoding_work_mem')), \
     LEAST(1073741824, pg_catalog.pg_size_bytes(pg_catalog.current_setting('shared_buffers')) / 2)) / 1024)::text || 'kB', false)";

/// Beyond what the server is set to, a large round gives transactions as they are decoded, and needs no room for them.
const NO_ROOM: &str = "RESET logical_decoding_work_mem";

/// The session and its slot, which ends with it.
#[derive(Debug)]
pub(super) struct Copied {
    raw: RawConnection,
    slot: String,
}

impl Copied {
    /// Connects and copies the slot `from`; what is done is done for the slot `durable`.
    pub(super) async fn of(spec: &ConnectSpec, durable: &str, from: &str) -> Result<Self> {
        let mut raw = sql::connect_raw(spec, Mode::Sql).await?;
        // One of ours may end while the next begins: the process id keeps them apart.
        let stem: String = durable.chars().take(40).collect();
        let slot = format!("{stem}_catch_up_{}", raw.backend_pid());
        let copied = format!(
            "SELECT pg_catalog.pg_copy_logical_replication_slot({}, {}, true, 'pgoutput')",
            Literal(from),
            Literal(&slot)
        );
        sql::raw(&mut raw, "copy the slot", &copied).await.map_err(|error| {
            let error = explain(error.on(Ident(durable)));
            if error.has_state(&["53400"]) {
                return error.hint("catching up needs one more slot: raise max_replication_slots");
            }
            error
        })?;
        Ok(Self { raw, slot })
    }

    /// Another session with a copy as this one's is now.
    pub(super) async fn again(&self, spec: &ConnectSpec, durable: &str) -> Result<Self> {
        Self::of(spec, durable, &self.slot).await
    }

    pub(super) fn raw(&mut self) -> &mut RawConnection {
        &mut self.raw
    }

    pub(super) async fn close(self) {
        self.raw.close().await;
    }

    /// Takes memory for whole transactions.
    pub(super) async fn take_room(&mut self) -> Result<()> {
        sql::raw(&mut self.raw, "set the memory of the decoding", ROOM).await.map(drop)
    }

    pub(super) async fn leave_room(&mut self) -> Result<()> {
        sql::raw(&mut self.raw, "set the memory of the decoding", NO_ROOM).await.map(drop)
    }

    pub(super) async fn flushed(&mut self) -> Result<Lsn> {
        self.ask(FLUSHED).await
    }

    /// Everything that committed before it was given, or skipped.
    pub(super) async fn position(&mut self) -> Result<Lsn> {
        let text = format!(
            "SELECT confirmed_flush_lsn::text FROM pg_catalog.pg_replication_slots WHERE slot_name = {}",
            Literal(&self.slot)
        );
        self.ask(&text).await
    }

    /// Moves the copy there, and says where it is.
    pub(super) async fn skip_to(&mut self, to: Lsn) -> Result<Lsn> {
        let text = format!(
            "SELECT pg_catalog.pg_replication_slot_advance({}, {})",
            Literal(&self.slot),
            Literal(&to.to_string())
        );
        sql::raw(&mut self.raw, "move the copy of the slot to the start", &text).await?;
        self.position().await
    }

    async fn ask(&mut self, text: &str) -> Result<Lsn> {
        let rows = sql::raw(&mut self.raw, "read a position for catching up", text).await?;
        let found = rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten();
        parse_lsn(&found.unwrap_or_default())
    }

    /// Reads a round.
    pub(super) fn statement(&self, options: &CatchUpOptions, asked: Asked, goal: Lsn) -> String {
        let binary = if options.binary { ", 'binary', 'true'" } else { "" };
        let (end, count) = match asked {
            Asked::Messages(count, end) => {
                (end, count.clamp(1, i32::MAX.unsigned_abs()).to_string())
            }
            Asked::Large(end) => (end, "NULL".to_owned()),
            Asked::Rest | Asked::Behind => (goal, "NULL".to_owned()),
        };
        let form = match asked {
            Asked::Large(_) => "'proto_version', '2', 'streaming', 'on'",
            _ => "'proto_version', '1'",
        };
        format!(
            "COPY (SELECT lsn, xid, data FROM pg_catalog.pg_logical_slot_get_binary_changes({}, {}, {count}, \
               {form}, 'publication_names', {}, 'messages', 'true'{binary})) TO STDOUT (FORMAT binary)",
            Literal(&self.slot),
            Literal(&end.to_string()),
            Literal(&quoted_names(&options.publications))
        )
    }
}
