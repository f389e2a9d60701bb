//! The way of a snapshot that a stream continues from.
//!
//! **Invariant:** publication before slot (the stream decodes with the publication of that time, `hazards.md` A2); the
//! snapshot is the one that the slot exported, on a connection that stays open until it is imported (A1). A slot and a
//! publication that were made here are dropped again when anything fails.
//!
//! PostgreSQL manual, section 55.4 (`CREATE_REPLICATION_SLOT`). It waits for every transaction that runs at that moment;
//! `lock_timeout` bounds that, `statement_timeout` does not (B19).

use tidemark_model::sql::{Ident, Literal};
use tidemark_model::{Lsn, Relation, RelationName};
use tidemark_wire::{Client, ConnectSpec, Mode, RawConnection};

use super::{
    ATTEMPTS_MAX, SlotOptions, Snapshot, SnapshotOptions, begin, drop_publication, export, import,
    let_through, locks, oids_without, parse_lsn, planned_as_is, publication, shape,
};
use crate::catalog::read_sequences;
use crate::{Disposition, Error, Result, sql};

/// What became of one attempt.
enum Attempt {
    Taken(Box<Snapshot>),
    /// This table was rewritten, altered, dropped or renamed in the window.
    Changed(String),
}

pub(super) async fn take(
    spec: &ConnectSpec,
    options: &SnapshotOptions,
    slot: Option<&SlotOptions>,
) -> Result<Snapshot> {
    let side = sql::connect(spec).await?;
    refuse_standby(&side).await?;
    check_version(side.server_version_num(), slot)?;
    if let Some(given) = slot.filter(|slot| slot.is_given) {
        super::given::usable_or_refuse(&side, &given.slot).await?;
    }
    super::locks::bound_waits(&side, options).await?;
    let mut changed = String::new();
    for number in 1..=ATTEMPTS_MAX {
        let mut made = Made::default();
        match attempt(spec, options, slot, &side, (number, &mut made)).await {
            Ok(Attempt::Taken(snapshot)) => return Ok(*snapshot),
            Ok(Attempt::Changed(name)) => {
                tracing::warn!(table = %name, attempt = number, "a table changed while the slot was made, starting again");
                changed = name;
                undo(spec, slot, &made).await?;
            }
            Err(error) => {
                return Err(match undo(spec, slot, &made).await {
                    Ok(()) => error,
                    Err(left) => error.hint(format!(
                        "what this run made on the source could not be dropped ({left}): run tidemark cleanup"
                    )),
                });
            }
        }
    }
    Err(Error::new(
        Disposition::SourceCannotContinue,
        format!("take a snapshot: the table was rewritten or altered {ATTEMPTS_MAX} times between slot and lock"),
    )
    .on(changed)
    .hint("stop what truncates, clusters or alters it for a moment, then run again"))
}

fn check_version(version: u32, slot: Option<&SlotOptions>) -> Result<()> {
    if version < 140_000 {
        return Err(Error::new(Disposition::Refused, "stream from PostgreSQL 13")
            .hint("its pgoutput has no messages, no binary form and no streaming: use --snapshot-only, or 14 and later"));
    }
    match slot {
        Some(slot) if slot.failover && version < 170_000 => {
            Err(Error::new(Disposition::Usage, "make a failover slot")
                .on(Ident(&slot.slot))
                .hint("failover slots exist from PostgreSQL 17 on: source.failover = false"))
        }
        _ => Ok(()),
    }
}

/// A publication is a write, and a slot on a standby waits without an end for a record that only a busy primary writes; the
/// wait cannot be cancelled (`hazards.md` A17).
async fn refuse_standby(side: &Client) -> Result<()> {
    let text = "SELECT pg_catalog.pg_is_in_recovery()";
    if !sql::one(side, "ask for recovery", text).await?.get::<_, bool>(0) {
        return Ok(());
    }
    Err(Error::new(Disposition::Refused, "make a slot: the source is a standby").hint(
        "give the primary's address as source.url; sync --snapshot-only works from a standby",
    ))
}

/// What an attempt has made on the source so far.
#[derive(Default)]
struct Made {
    publication: bool,
    slot: bool,
}

async fn attempt(
    spec: &ConnectSpec,
    options: &SnapshotOptions,
    slot: Option<&SlotOptions>,
    side: &Client,
    (number, made): (u32, &mut Made),
) -> Result<Attempt> {
    let (tables, mut gone) = split_present(side, &options.tables).await?;
    let own = slot.filter(|slot| !slot.is_given);
    if let Some(slot) = slot {
        made.publication = publish(side, options, slot, &tables.iter().collect::<Vec<_>>()).await?;
    }
    if let Some(own) = own {
        refuse_existing(side, &own.slot).await?;
    }
    let mut walsender =
        sql::connect_raw(spec, Mode::Replication).await.map_err(explain_replication)?;
    let holder = sql::connect(spec).await?;
    if let Some(point) = &options.point {
        (point.before)(number).await;
    }
    // From here on a lost answer may mean a slot that was made all the same. A temporary one ends with its session.
    made.slot = own.is_some();
    let created = create_slot(&mut walsender, side, options, own).await;
    if let Err(error) = &created
        && error.has_state(&["42710"])
    {
        made.slot = false;
    }
    let (lsn, exported) = created?;
    if let Some(point) = &options.point {
        point.found.send_replace(Some(lsn));
    }
    if let Some(given) = slot.filter(|slot| slot.is_given) {
        super::given::still_behind(side, &given.slot, lsn).await?;
    }
    if let Some(hook) = &options.after_export {
        hook(number).await;
    }
    begin(&holder).await?;
    import(&holder, &exported).await?;
    let lost = locks::take(&holder, side, options, &tables).await?;
    if let Some(name) = lost.first() {
        return Ok(Attempt::Changed(name.to_string()));
    }
    let (id, read_snapshot) = export(&holder).await?;
    drop(walsender);
    let difference = shape::first_difference(&holder, side, &oids_without(&tables, &[])).await;
    if let Some(name) = let_through(side, options, difference).await? {
        return Ok(Attempt::Changed(name));
    }
    let gone_before = gone.len();
    let tables = planned_as_is(side, options, &mut gone).await;
    let tables = let_through(side, options, tables).await?;
    if let Some(name) = gone.get(gone_before) {
        return Ok(Attempt::Changed(name.to_string()));
    }
    let sequences = let_through(side, options, read_sequences(side).await).await?;
    Ok(Attempt::Taken(Box::new(Snapshot {
        holder,
        id,
        read_snapshot,
        lsn,
        tables,
        gone,
        sequences,
    })))
}

/// Makes the publication, as patient as the holder with who has a table locked: a VACUUM is enough. Gives whether it was
/// made.
async fn publish(
    side: &Client,
    options: &SnapshotOptions,
    slot: &SlotOptions,
    tables: &[&Relation],
) -> Result<bool> {
    let mut pause = locks::BACKOFF_MIN;
    let mut attempt = 1;
    loop {
        let made = publication::ensure(side, &slot.publication, tables, &options.filters).await;
        let error = match made {
            Err(error) if error.has_state(&["55P03"]) => error,
            made => return made,
        };
        if attempt >= options.lock_attempts {
            return Err(locks::name_blocker(side, tables, error).await);
        }
        tracing::info!(attempt, "a table to publish is locked by others, trying again");
        tokio::time::sleep(pause).await;
        (attempt, pause) = (attempt + 1, (pause * 2).min(locks::BACKOFF_MAX));
    }
}

/// The tables that are there under their names, and the names of the others.
async fn split_present(
    side: &Client,
    tables: &[Relation],
) -> Result<(Vec<Relation>, Vec<RelationName>)> {
    let present = locks::present(side, &tables.iter().collect::<Vec<_>>()).await?;
    let (there, gone): (Vec<_>, Vec<_>) =
        tables.iter().cloned().partition(|table| present.contains(&table.oid));
    Ok((there, gone.into_iter().map(|table| table.name).collect()))
}

async fn create_slot(
    walsender: &mut RawConnection,
    side: &Client,
    options: &SnapshotOptions,
    own: Option<&SlotOptions>,
) -> Result<(Lsn, String)> {
    // Nobody queues behind this wait, so that all attempts are spent in one.
    let patience = options.lock_timeout.saturating_mul(options.lock_attempts.max(1));
    let timeout = patience.as_millis().clamp(1, 2_000_000_000);
    sql::raw(walsender, "set lock_timeout", &format!("SET lock_timeout = {timeout}")).await?;
    // Two underscores: no job's slot is called so.
    let temporary = format!("tidemark__snapshot_{}", side.backend_pid());
    let (name, kind) = match own {
        None => (Ident(&temporary), "TEMPORARY LOGICAL"),
        Some(own) => (Ident(&own.slot), "LOGICAL"),
    };
    let statement = match side.server_version_num() {
        ..150_000 => format!("CREATE_REPLICATION_SLOT {name} {kind} \"pgoutput\" EXPORT_SNAPSHOT"),
        _ if own.is_some_and(|own| own.failover) => {
            format!(
                "CREATE_REPLICATION_SLOT {name} LOGICAL \"pgoutput\" (SNAPSHOT 'export', FAILOVER true)"
            )
        }
        _ => format!("CREATE_REPLICATION_SLOT {name} {kind} \"pgoutput\" (SNAPSHOT 'export')"),
    };
    let rows = match sql::raw(walsender, "create the replication slot", &statement).await {
        Ok(rows) => rows,
        Err(error) => return Err(explain_slot(error.on(name), side).await),
    };
    let row = rows.into_iter().next().unwrap_or_default();
    let lsn = parse_lsn(row.get(1).and_then(Option::as_deref))?;
    let snapshot = row.into_iter().nth(2).flatten().ok_or_else(|| {
        Error::new(Disposition::Internal, "create the replication slot: it exported no snapshot")
            .on(name)
    })?;
    Ok((lsn, snapshot))
}

fn explain_replication(error: Error) -> Error {
    if error.has_state(&["08P01", "0A000", "28000"]) {
        return error.disposed(Disposition::Refused).hint(
            "a replication connection was refused: the address may be a connection pooler's (use the server's own), \
             or pg_hba.conf or the role's REPLICATION right is missing",
        );
    }
    error
}

/// Refuses a slot name that is taken: whose slot it is cannot be told, so nothing of it may be dropped.
///
/// # Errors
/// There is a slot of this name, or the connection failed.
pub async fn refuse_existing(side: &Client, name: &str) -> Result<()> {
    let text = format!(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = {})",
        Literal(name)
    );
    if !sql::one(side, "look for the slot", &text).await?.get::<_, bool>(0) {
        return Ok(());
    }
    Err(Error::new(Disposition::Usage, "create the replication slot")
        .on(Ident(name))
        .hint(SLOT_IS_THERE))
}

const SLOT_IS_THERE: &str = "a slot of this name is there already. If another job of this name runs, give this one its own --job; if it was left behind, tidemark cleanup drops it";

async fn explain_slot(error: Error, side: &Client) -> Error {
    match error.sqlstate() {
        Some("55P03") => {
            let who = oldest_transactions(side).await.unwrap_or_default();
            error.hint(format!(
                "a slot waits for every transaction that runs: {who}; end it or wait for it, then run again"
            ))
        }
        Some("42710") => error.disposed(Disposition::Usage).hint(SLOT_IS_THERE),
        Some("53400") => {
            error.hint("no free slot: raise max_replication_slots or drop one that nobody uses")
        }
        Some("55000") => error.hint("set wal_level = logical on the source and restart it"),
        Some("42501") => error.hint("grant it: ALTER ROLE .. REPLICATION"),
        _ => error,
    }
}

/// Who a new slot waits for, the oldest first.
pub(super) async fn oldest_transactions(side: &Client) -> Result<String> {
    let text = "SELECT string_agg(what, ', ') FROM (SELECT what FROM (\
                  SELECT 'process ' || pid || coalesce(' (' || nullif(application_name, '') || ')', ''), xact_start \
                    FROM pg_catalog.pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() \
                  UNION ALL SELECT 'prepared transaction ' || quote_literal(gid), prepared \
                    FROM pg_catalog.pg_prepared_xacts) x(what, since) ORDER BY since LIMIT 3) y";
    let row = sql::one(side, "look for running transactions", text).await?;
    Ok(row.get::<_, Option<String>>(0).unwrap_or_else(|| "one that has ended meanwhile".to_owned()))
}

/// Drops what an attempt made, over a new connection: the old ones may be what failed.
async fn undo(spec: &ConnectSpec, slot: Option<&SlotOptions>, made: &Made) -> Result<()> {
    let Some(slot) = slot.filter(|_| made.slot || made.publication) else { return Ok(()) };
    let client = sql::connect(spec).await?;
    if made.slot {
        drop_slot(&client, &slot.slot).await?;
    }
    if made.publication {
        drop_publication(&client, &slot.publication).await?;
    }
    Ok(())
}

/// Drops the slot of exactly this name in this database, if it is there; gives whether it was.
///
/// # Errors
/// Somebody reads from it ([`Disposition::Blocked`], names the process), or rights are missing.
pub async fn drop_slot(client: &Client, name: &str) -> Result<bool> {
    let text = format!(
        "SELECT active_pid, slot_type = 'logical' AND database = current_database() \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = {}",
        Literal(name)
    );
    let rows = sql::rows(client, "look for the slot", &text).await?;
    let Some(row) = rows.first() else { return Ok(false) };
    if !row.get::<_, Option<bool>>(1).unwrap_or(false) {
        return Err(Error::new(
            Disposition::Usage,
            "drop the slot: it is not a logical slot of this database",
        )
        .on(Ident(name)));
    }
    let pid: Option<i32> = row.get(0);
    let text = format!("SELECT pg_drop_replication_slot({})", Literal(name));
    let dropped =
        sql::rows(client, "drop the slot", &text).await.map_err(|error| error.on(Ident(name)));
    match (dropped, pid) {
        (Ok(_), _) => Ok(true),
        (Err(error), _) if error.has_state(&["42704"]) => Ok(false),
        (Err(error), Some(pid)) if error.has_state(&["55006"]) => {
            Err(error.hint(format!("process {pid} reads from it: stop that run first")))
        }
        (Err(error), _) => Err(error),
    }
}
