//! Whether the stream can go on from what was saved.
//!
//! **Invariant:** the server is the one that was followed, it still has every change since the saved position, and the slot
//! gives all of them; else nothing is done, nothing is dropped, nothing is made (`hazards.md` B21, B25-B27, B31-B34). The
//! server itself checks none of this: asked for a position before `confirmed_flush_lsn` it starts at the latter.
//!
//! ```text
//! same system identifier -> same database -> saved position on the server's line of history and not ahead of it
//!   -> slot there, ours in kind, valid -> confirmed_flush_lsn <= saved
//! ```
//!
//! A promoted standby continues the history of its primary: it is accepted if the saved position lies before the point where
//! it left the old timeline, and only if it has the slot (a failover slot, 17 and later).
//!
//! PostgreSQL manual, section 26.3.6 (timelines), 47.2.3 (slot synchronisation).

use tidemark_model::Lsn;
use tidemark_model::sql::Ident;

use super::slot::{Identity, NEW_SNAPSHOT, SlotState};
use crate::{Disposition, Error, Result};

/// What a target knows of the source that it followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The source's system identifier.
    pub system_identifier: u64,
    /// Its timeline when it was followed last.
    pub timeline: Option<u32>,
    /// Its database.
    pub database: String,
    /// Everything up to here is durable on the target.
    pub end_lsn: Lsn,
    /// The slot's name.
    pub slot: String,
}

/// Compares what was saved with the server and its slot.
///
/// # Errors
/// [`Disposition::SourceCannotContinue`] with both positions and the way out; [`Disposition::Usage`] when the address leads
/// to another database.
pub fn check_continuation(
    saved: &Saved,
    identity: &Identity,
    slot: Option<&SlotState>,
) -> Result<()> {
    check_server(saved, identity)?;
    check_history(saved, identity)?;
    check_slot(saved, identity, slot)
}

fn refused(what: String) -> Error {
    Error::new(Disposition::SourceCannotContinue, format!("continue the stream: {what}"))
}

fn check_server(saved: &Saved, identity: &Identity) -> Result<()> {
    if saved.system_identifier != identity.system_identifier {
        return Err(refused(format!(
            "the source is another cluster (system identifier {}, saved {})",
            identity.system_identifier, saved.system_identifier
        ))
        .hint(
            "point source.url to the server that was followed; a cluster made by dump and restore, logical replication \
             or pg_upgrade is another one and needs a new snapshot: tidemark cleanup, then sync",
        ));
    }
    if saved.database != identity.database {
        return Err(Error::new(
            Disposition::Usage,
            format!(
                "continue the stream: the source is database {}, saved was {}",
                Ident(&identity.database),
                Ident(&saved.database)
            ),
        )
        .hint("point source.url to the database that was followed, or use another job name"));
    }
    Ok(())
}

fn check_history(saved: &Saved, identity: &Identity) -> Result<()> {
    let timeline = saved.timeline.unwrap_or(identity.timeline);
    if timeline > identity.timeline {
        return Err(refused(format!(
            "the source is on timeline {}, saved was {timeline}: an old primary, or restored from an older backup",
            identity.timeline
        ))
        .hint(
            "point source.url to the present primary; if this one is meant, its changes and the target's have parted: \
             tidemark cleanup, then sync takes a new snapshot",
        ));
    }
    if timeline < identity.timeline {
        let left = identity.history.iter().find(|(number, _)| *number == timeline);
        let Some(&(_, left_at)) = left else {
            return Err(refused(format!(
                "timeline {timeline} is not in the history of the source's timeline {}",
                identity.timeline
            ))
            .hint(NEW_SNAPSHOT));
        };
        if saved.end_lsn > left_at {
            return Err(refused(format!(
                "the target has changes up to {}, the source left timeline {timeline} at {left_at}: the target has \
                 changes that the source lost when it was promoted or restored",
                saved.end_lsn
            ))
            .hint(
                "take a new snapshot (tidemark cleanup, then sync); before the next failover name the standby in \
                 synchronized_standby_slots, so that nothing goes to us that it does not have",
            ));
        }
    }
    if saved.end_lsn > identity.head {
        return Err(refused(format!(
            "the target has changes up to {}, the source's WAL ends at {}: it was restored from a backup or lost its end",
            saved.end_lsn, identity.head
        ))
        .hint("the target is ahead of the source: take a new snapshot (tidemark cleanup, then sync)"));
    }
    Ok(())
}

fn check_slot(saved: &Saved, identity: &Identity, slot: Option<&SlotState>) -> Result<()> {
    let on = Ident(&saved.slot);
    let Some(slot) = slot else {
        let what = format!("the slot is missing, saved position {}", saved.end_lsn);
        let hint = if saved.timeline.is_some_and(|timeline| timeline < identity.timeline) {
            "the server was promoted and does not have the slot (only failover slots of 17 and later are on standbys): \
             run tidemark cleanup, then sync takes a new snapshot"
        } else {
            NEW_SNAPSHOT
        };
        return Err(refused(what).on(on).hint(hint));
    };
    let kind = match (&slot.plugin, &slot.database) {
        (None, _) | (_, None) => Some("it is a physical slot".to_owned()),
        (Some(plugin), _) if plugin != "pgoutput" => {
            Some(format!("its plugin is {}, not pgoutput", Ident(plugin)))
        }
        (_, Some(database)) if *database != identity.database => {
            Some(format!("it belongs to database {}", Ident(database)))
        }
        _ if slot.is_temporary => Some("it is temporary".to_owned()),
        _ => None,
    };
    if let Some(kind) = kind {
        return Err(refused(format!("the slot is not ours: {kind}"))
            .on(on)
            .hint("somebody else made a slot of this name and ours is gone: a new snapshot is needed, under another job name"));
    }
    if let Some(reason) = slot.invalid_because() {
        return Err(refused(format!(
            "the slot was invalidated ({reason}), saved position {}",
            saved.end_lsn
        ))
        .on(on)
        .hint(format!("{}; {NEW_SNAPSHOT}", remedy(&reason))));
    }
    match slot.confirmed_flush {
        Some(confirmed) if confirmed > saved.end_lsn => Err(refused(format!(
            "the slot continues from {confirmed}, saved position {}: it was advanced or made anew, and what lies between \
             is lost",
            saved.end_lsn
        ))
        .on(on)
        .hint(NEW_SNAPSHOT)),
        Some(_) => Ok(()),
        None => Err(refused("the slot has no position: it was never finished".to_owned())
            .on(on)
            .hint(NEW_SNAPSHOT)),
    }
}

/// What to change so that it does not happen again.
fn remedy(reason: &str) -> &'static str {
    match reason {
        "wal_removed" => {
            "raise max_slot_wal_keep_size on the source, or let tidemark run without long pauses"
        }
        "idle_timeout" => "raise idle_replication_slot_timeout on the source",
        "wal_level_insufficient" => "keep wal_level = logical on the source",
        "rows_removed" => "set hot_standby_feedback = on and a physical slot on the standby",
        _ => "see the server's log for the reason",
    }
}

#[cfg(test)]
mod tests;
