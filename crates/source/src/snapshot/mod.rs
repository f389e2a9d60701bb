//! One exported snapshot of the source, its locks, and the slot that continues from it.
//!
//! **Invariant:** the snapshot and the stream meet without gap or overlap (`design.md` 3, invariant 4), and no table is
//! rewritten between the snapshot and the lock on it. Whatever fails, nothing that this call made stays on the source.
//!
//! ```text
//! without a slot   BEGIN, LOCK all tables, (position), first query = the snapshot, export
//!                  LOCK takes no snapshot in REPEATABLE READ, so there is no moment between snapshot and lock
//! with a slot      publication of exactly these tables, slot with exported snapshot (= consistent point),
//!                  holder: BEGIN, import, LOCK all tables, export again, then compare what the snapshot shows of each
//!                  table (file, columns) with what is there now: a difference means that a rewrite or DDL came in the
//!                  window. The slot is dropped and all starts again, three times.
//! with a given     the same, but the snapshot is exported by a temporary slot (given.rs)
//! slot
//! ```
//!
//! PostgreSQL manual: `SET TRANSACTION`, section 9.28.5 (`pg_export_snapshot`), 55.4 (`CREATE_REPLICATION_SLOT`).

mod given;
mod joining;
mod locks;
mod publication;
mod shape;
mod slot;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tidemark_model::sql::Literal;
use tidemark_model::{Lsn, Oid, Relation, RelationName};
use tidemark_wire::{Client, ConnectSpec};
use tokio::sync::watch;

use crate::catalog::{Sequence, read_sequences, reread};
use crate::filter::RowFilters;
use crate::reader::snapshot_gone;
use crate::{Disposition, Error, Result, sql};

pub use given::check_given_slot;
pub use joining::publish_for_join;
pub use locks::waiting_for_us;
pub(crate) use locks::{PER_STATEMENT, behind_an_alter, milliseconds};
pub use publication::drop_publication;
pub(crate) use publication::{filter_way_out, has_identity, refused_filter};
pub use shape::shapes;
pub use slot::{drop_slot, refuse_existing};

/// How often the slot path starts again when a table was rewritten in the window.
const ATTEMPTS_MAX: u32 = 3;
/// How often `watch` looks whether the holder's connection is open.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// Every how many looks `watch` also asks the server, for connections that died without a word.
const WATCH_ASK_EVERY: u32 = 40;

/// What a snapshot is taken of, and how patiently.
#[derive(Clone)]
pub struct SnapshotOptions {
    /// How long one lock is waited for; our waiting blocks those who come after us (`hazards.md` A11).
    pub lock_timeout: Duration,
    /// How often a lock is tried.
    pub lock_attempts: u32,
    /// The chosen tables.
    pub tables: Vec<Relation>,
    /// The rows that a publication made for the slot has, of tables of which not all are wanted.
    pub filters: RowFilters,
    /// The slot to make, for a stream that continues from the snapshot.
    pub slot: Option<SlotOptions>,
    /// Without a slot that stays: the snapshot shows exactly what committed before its position.
    pub point: Option<AtPoint>,
    /// What a DBA sees in `pg_stat_activity`.
    pub application_name: String,
    /// Called between the export by the slot and the locks; for tests of that window.
    #[doc(hidden)]
    pub after_export: Option<Hook>,
}

/// A pause of a test; takes the number of the attempt, from 1.
#[doc(hidden)]
pub type Hook = Arc<dyn Fn(u32) -> BoxFuture<'static, ()> + Send + Sync>;

impl SnapshotOptions {
    /// Options with the defaults of `design.md` 8: 5 s for a lock, ten times.
    pub fn new(tables: Vec<Relation>, application_name: impl Into<String>) -> Self {
        Self {
            lock_timeout: Duration::from_secs(5),
            lock_attempts: 10,
            tables,
            filters: RowFilters::new(),
            slot: None,
            point: None,
            application_name: application_name.into(),
            after_export: None,
        }
    }
}

impl fmt::Debug for SnapshotOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotOptions")
            .field("lock_timeout", &self.lock_timeout)
            .field("lock_attempts", &self.lock_attempts)
            .field("tables", &self.tables.len())
            .field("slot", &self.slot)
            .field("application_name", &self.application_name)
            .finish_non_exhaustive()
    }
}

/// Who waits for the position of a snapshot that is taken at a consistent point.
#[derive(Clone)]
pub struct AtPoint {
    /// Called just before the point is looked for.
    pub before: Hook,
    /// Told the point as soon as it is known, before anything is locked.
    pub found: watch::Sender<Option<Lsn>>,
}

/// The slot to make, or the one that is there for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotOptions {
    /// Its name.
    pub slot: String,
    /// Somebody else has made it: it is neither made nor dropped here.
    pub is_given: bool,
    /// The publication's name.
    pub publication: String,
    /// Whether it is a failover slot (17 and later).
    pub failover: bool,
}

/// A snapshot that is held.
pub struct Snapshot {
    holder: Client,
    id: String,
    read_snapshot: String,
    lsn: Lsn,
    tables: Vec<Relation>,
    gone: Vec<RelationName>,
    sequences: Vec<Sequence>,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("id", &self.id)
            .field("lsn", &self.lsn)
            .field("tables", &self.tables.len())
            .finish_non_exhaustive()
    }
}

impl Snapshot {
    /// Takes a snapshot and holds it until it is released or dropped.
    ///
    /// # Errors
    /// Locks that others hold ([`Disposition::Blocked`], names table and process), missing rights, a table that is
    /// rewritten again and again ([`Disposition::SourceCannotContinue`]), a table whose columns are not those it was
    /// planned with ([`Disposition::Retry`], after reading the catalog again). After an error the slot and the publication
    /// that this call made are dropped; where that fails too, the hint says so.
    ///
    /// # Cancel safety
    /// None with a slot: dropping the future may leave the slot and the publication; call [`cleanup`](crate::cleanup) then.
    pub async fn take(spec: &ConnectSpec, options: &SnapshotOptions) -> Result<Self> {
        let spec = spec.clone().with_application_name(&options.application_name);
        match (&options.slot, &options.point) {
            (None, None) => take_without_slot(&spec, options).await,
            (slot, _) => slot::take(&spec, options, slot.as_ref()).await,
        }
    }

    /// The same snapshot, held once more by a session of its own; the locks stay the first one's.
    ///
    /// # Errors
    /// The connection failed, or the snapshot is gone.
    pub async fn held_again(&self, spec: &ConnectSpec) -> Result<Self> {
        let holder = sql::connect(spec).await?;
        begin(&holder).await?;
        import(&holder, &self.id).await?;
        let (id, read_snapshot) = export(&holder).await?;
        Ok(Self {
            holder,
            id,
            read_snapshot,
            lsn: self.lsn,
            tables: self.tables.clone(),
            gone: self.gone.clone(),
            sequences: self.sequences.clone(),
        })
    }

    /// The exported snapshot's identifier, for readers and for `pg_dump --snapshot`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// With a slot the consistent point; otherwise a position noted just before the snapshot was taken.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The tables as they are under the locks, with sizes measured after them.
    pub fn tables(&self) -> &[Relation] {
        &self.tables
    }

    /// Chosen tables that were dropped or renamed before they could be locked (`hazards.md` A12): an error for each of
    /// them, the others can be copied.
    pub fn gone(&self) -> &[RelationName] {
        &self.gone
    }

    /// The sequences; their values are not behind what the snapshot's rows hold.
    pub fn sequences(&self) -> &[Sequence] {
        &self.sequences
    }

    /// `pg_current_snapshot()` as text.
    pub fn read_snapshot(&self) -> &str {
        &self.read_snapshot
    }

    /// The backends that hold the snapshot and the locks.
    pub fn holder_pids(&self) -> Vec<i32> {
        vec![self.holder.backend_pid()]
    }

    /// Whether the holder still holds it.
    pub async fn is_alive(&self) -> bool {
        !self.holder.is_closed()
            && sql::execute(&self.holder, "ask the holder", "SELECT 1").await.is_ok()
    }

    /// Waits until the holder is lost and says so; never returns while it lives.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    pub async fn watch(&self) -> Error {
        let mut interval = tokio::time::interval(WATCH_INTERVAL);
        let mut looks = 0_u32;
        loop {
            interval.tick().await;
            looks = looks.wrapping_add(1);
            let is_lost = self.holder.is_closed()
                || (looks.is_multiple_of(WATCH_ASK_EVERY) && !self.is_alive().await);
            if is_lost {
                return Error::new(
                    Disposition::SnapshotLost,
                    "hold the snapshot: the holder's session ended",
                )
                .on(format_args!("backend {}", self.holder.backend_pid()))
                .hint("the copy starts again with a new snapshot; two are never mixed");
            }
        }
    }

    /// Ends the holder, its locks and its snapshot; readers that have imported it go on.
    pub async fn release(self) {
        // The session ends either way: an error here means that it has ended already.
        drop(sql::execute(&self.holder, "release the snapshot", "ROLLBACK").await);
    }
}

async fn take_without_slot(spec: &ConnectSpec, options: &SnapshotOptions) -> Result<Snapshot> {
    Locked::take(spec, options).await?.export().await?.finish().await
}

/// Everything is locked, and no snapshot was taken yet: LOCK takes none in REPEATABLE READ. So the moment that the snapshot
/// shows can be chosen, and is short.
pub struct Locked {
    options: SnapshotOptions,
    side: Client,
    holder: Client,
    gone: Vec<RelationName>,
}

impl Locked {
    /// Locks the tables.
    ///
    /// # Errors
    /// As [`Snapshot::take`].
    pub async fn take(spec: &ConnectSpec, options: &SnapshotOptions) -> Result<Self> {
        let spec = spec.clone().with_application_name(&options.application_name);
        let side = sql::connect(&spec).await?;
        // Sizes are read beside our own locks: behind an ALTER that waits for these the read would wait for ever.
        locks::bound_waits(&side, options).await?;
        let holder = sql::connect(&spec).await?;
        begin(&holder).await?;
        let gone = locks::take(&holder, &side, options, &options.tables).await?;
        Ok(Self { options: options.clone(), side, holder, gone })
    }

    /// The backend that holds the locks.
    pub fn holder_pid(&self) -> i32 {
        self.holder.backend_pid()
    }

    /// Takes the snapshot, now.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn export(self) -> Result<Exported> {
        let lsn = read_position(&self.side).await?;
        let (id, read_snapshot) = export(&self.holder).await?;
        Ok(Exported { locked: self, id, read_snapshot, lsn })
    }
}

/// A snapshot that was taken, whose tables were not measured yet.
pub struct Exported {
    locked: Locked,
    id: String,
    read_snapshot: String,
    lsn: Lsn,
}

impl Exported {
    /// Measures the tables.
    ///
    /// # Errors
    /// As [`Snapshot::take`].
    pub async fn finish(self) -> Result<Snapshot> {
        let Self { locked, id, read_snapshot, lsn } = self;
        let Locked { options, side, holder, mut gone } = locked;
        let oids = oids_without(&options.tables, &gone);
        let difference = shape::first_difference(&holder, &side, &oids).await;
        if let Some(name) = let_through(&side, &options, difference).await? {
            // Cannot happen: the locks were there before the snapshot.
            return Err(
                Error::new(Disposition::Internal, "compare a table with its snapshot").on(name)
            );
        }
        let tables = planned_as_is(&side, &options, &mut gone).await;
        let tables = let_through(&side, &options, tables).await?;
        let sequences = let_through(&side, &options, read_sequences(&side).await).await?;
        Ok(Snapshot { holder, id, read_snapshot, lsn, tables, gone, sequences })
    }
}

/// Somebody waits for the holder already, and what we ask beside it waits for them: only a new snapshot lets them through.
async fn let_through<T>(side: &Client, options: &SnapshotOptions, read: Result<T>) -> Result<T> {
    match read {
        Err(error) if error.has_state(&["55P03"]) => {
            let tables: Vec<&Relation> = options.tables.iter().collect();
            Err(locks::name_blocker(side, &tables, error).await.disposed(Disposition::Retry))
        }
        read => read,
    }
}

async fn begin(holder: &Client) -> Result<()> {
    let text = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    sql::execute(holder, "begin the holder's transaction", text).await
}

async fn import(holder: &Client, snapshot: &str) -> Result<()> {
    let text = format!("SET TRANSACTION SNAPSHOT {}", Literal(snapshot));
    sql::execute(holder, "import the slot's snapshot", &text).await.map_err(snapshot_gone)
}

async fn export(holder: &Client) -> Result<(String, String)> {
    let text = "SELECT pg_export_snapshot(), pg_current_snapshot()::text";
    let row = sql::one(holder, "export the snapshot", text).await?;
    Ok((row.get(0), row.get(1)))
}

/// The position that everything visible before it was committed at: the insert position, on a standby what is replayed.
async fn read_position(client: &Client) -> Result<Lsn> {
    let in_recovery: bool =
        sql::one(client, "ask for recovery", "SELECT pg_is_in_recovery()").await?.get(0);
    let text = if in_recovery {
        "SELECT pg_last_wal_replay_lsn()::text"
    } else {
        "SELECT pg_current_wal_insert_lsn()::text"
    };
    let row = sql::one(client, "read the position", text).await?;
    parse_lsn(row.get::<_, Option<String>>(0).as_deref())
}

fn parse_lsn(text: Option<&str>) -> Result<Lsn> {
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::new(Disposition::Internal, "read a position: the server gave none"))
}

fn oids_without(tables: &[Relation], gone: &[RelationName]) -> Vec<Oid> {
    tables.iter().filter(|table| !gone.contains(&table.name)).map(|table| table.oid).collect()
}

/// The tables as they are now, in the order of the options. One that is not there under its name is `gone`; one whose
/// columns are not those it was planned with is an error: its SELECT list would miss or name the wrong ones.
async fn planned_as_is(
    side: &Client,
    options: &SnapshotOptions,
    gone: &mut Vec<RelationName>,
) -> Result<Vec<Relation>> {
    let now = reread(side, &oids_without(&options.tables, gone)).await?;
    let mut now: std::collections::HashMap<Oid, Relation> =
        now.into_iter().map(|relation| (relation.oid, relation)).collect();
    let mut tables = Vec::with_capacity(options.tables.len());
    for planned in
        options.tables.iter().filter(|table| !gone.contains(&table.name)).collect::<Vec<_>>()
    {
        match now.remove(&planned.oid).filter(|relation| relation.name == planned.name) {
            Some(relation) if relation.columns == planned.columns => tables.push(relation),
            Some(_) => {
                return Err(Error::new(
                    Disposition::Retry,
                    "copy a table: its columns changed since it was planned",
                )
                .on(&planned.name)
                .hint("run the same command again: the catalog is read anew"));
            }
            None => gone.push(planned.name.clone()),
        }
    }
    Ok(tables)
}
