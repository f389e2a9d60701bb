//! A slot that somebody else has made for us (`source.slot`).
//!
//! **Invariant:** it is looked at, never made, moved or dropped here. The snapshot meets it without gap or overlap: a
//! temporary slot exports the snapshot at a consistent point, which shows exactly what committed before that point whatever
//! slot the stream is read from later; the given slot is older, hence it gives every transaction that ends after the point.
//! The temporary slot waits, as any new one, for the transactions that run, so that none that is left was begun before the
//! publication was made (`hazards.md` A2).
//!
//! PostgreSQL manual, section 55.4 (`CREATE_REPLICATION_SLOT`); the initial copy of a subscription works in the same way.

use tidemark_model::sql::Ident;
use tidemark_model::{Finding, Lsn, Severity};
use tidemark_wire::Client;

use crate::stream::{SlotState, inspect_slot};
use crate::{Disposition, Error, Result, sql};

/// How a DBA makes one.
const MAKE: &str = "SELECT pg_create_logical_replication_slot('NAME', 'pgoutput') in the source's database makes one";

/// What keeps us from reading the slot, and what mends it.
struct Problem {
    what: String,
    fix: String,
}

fn problem(state: Option<&SlotState>, database: &str) -> Option<Problem> {
    let problem = |what: String, fix: &str| Some(Problem { what, fix: fix.to_owned() });
    let Some(state) = state else { return problem("there is no such slot".to_owned(), MAKE) };
    match (&state.plugin, &state.database) {
        (None, _) | (_, None) => return problem("it is a physical slot".to_owned(), MAKE),
        (Some(plugin), _) if plugin != "pgoutput" => {
            return problem(format!("its plugin is {}, not pgoutput", Ident(plugin)), MAKE);
        }
        (_, Some(other)) if other != database => {
            return problem(format!("it belongs to database {}", Ident(other)), MAKE);
        }
        _ => {}
    }
    if state.is_two_phase {
        return problem(
            "it gives out prepared transactions by themselves (two_phase)".to_owned(),
            MAKE,
        );
    }
    if state.is_temporary {
        return problem("it is temporary and ends with the session that made it".to_owned(), MAKE);
    }
    if let Some(reason) = state.invalid_because() {
        return problem(
            format!("it was invalidated ({reason})"),
            "let its owner drop it and make it again",
        );
    }
    None
}

async fn database(client: &Client) -> Result<String> {
    let row = sql::one(client, "ask for the database", "SELECT current_database()::text").await?;
    Ok(row.get(0))
}

/// What stands in the way of reading the slot of this name; for a job's first run.
///
/// # Errors
/// The connection failed.
pub async fn check_given_slot(client: &Client, name: &str) -> Result<Option<Finding>> {
    let object = format!("slot {}", Ident(name));
    let state = inspect_slot(client, name).await?;
    if let Some(found) = problem(state.as_ref(), &database(client).await?) {
        let finding = Finding::new(Severity::Blocking, "given-slot", object, found.what);
        return Ok(Some(finding.with_fix(found.fix.replace("NAME", name))));
    }
    let reader = state.and_then(|state| state.active_pid);
    Ok(reader.map(|pid| {
        let message = format!("process {pid} reads from it; each change is given to one reader");
        Finding::new(Severity::Warning, "given-slot", object, message)
            .with_fix("a slot of its own for this job, unless that process is this job's")
    }))
}

/// Refuses a slot that cannot be read from.
pub(super) async fn usable_or_refuse(side: &Client, name: &str) -> Result<()> {
    let attempt = "use the slot that source.slot names";
    let state = inspect_slot(side, name).await?;
    if let Some(found) = problem(state.as_ref(), &database(side).await?) {
        return Err(Error::new(Disposition::Usage, format!("{attempt}: {}", found.what))
            .on(Ident(name))
            .hint(found.fix.replace("NAME", name)));
    }
    match state.and_then(|state| state.active_pid) {
        None => Ok(()),
        Some(pid) => {
            Err(Error::new(Disposition::Blocked, format!("{attempt}: process {pid} reads from it"))
                .on(Ident(name))
                .hint("stop that reader, or give this job a slot of its own"))
        }
    }
}

/// The slot must give everything from the consistent point on: who else reads it would have taken it along.
pub(super) async fn still_behind(side: &Client, name: &str, point: Lsn) -> Result<()> {
    let confirmed = inspect_slot(side, name).await?.and_then(|state| state.confirmed_flush);
    if confirmed.is_some_and(|confirmed| confirmed <= point) {
        return Ok(());
    }
    let stands = confirmed.map_or("has no position".to_owned(), |lsn| format!("stands at {lsn}"));
    Err(Error::new(
        Disposition::Usage,
        format!("use the slot that source.slot names: it {stands}, the snapshot at {point}"),
    )
    .on(Ident(name))
    .hint("somebody else reads from it or moves it: give this job a slot of its own"))
}
