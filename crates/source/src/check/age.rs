//! How far a cluster is from the wraparound of transaction ids; either side.
//!
//! **Invariant:** the whole cluster is looked at: the server refuses to write in every database because of one.
//!
//! PostgreSQL manual, section 25.1.5 ("Preventing Transaction ID Wraparound Failures").

use tidemark_model::sql::Ident;
use tidemark_model::{Finding, Severity};
use tidemark_wire::Client;

use crate::{AddressOf, Result, sql};

/// The server itself warns from here on, and refuses to write 37 million later.
const SERVER_WARNS: i64 = (1 << 31) - 40_000_000;
/// VACUUM leaves everything else out from here on (`vacuum_failsafe_age`).
const FAILSAFE: i64 = 1_600_000_000;

/// Looks for databases whose oldest transaction id, or multixact, VACUUM should have frozen long ago.
///
/// # Errors
/// The connection failed.
pub async fn check_age(client: &Client, side: AddressOf) -> Result<Vec<Finding>> {
    let of = |what: &str, age: &str, column: &str, setting: &str| {
        format!(
            "(SELECT '{what}', datname::text, {age}({column})::int8, current_setting('{setting}')::int8 \
             FROM pg_catalog.pg_database ORDER BY 3 DESC LIMIT 1)"
        )
    };
    let text = format!(
        "{} UNION ALL {}",
        of("transaction id", "age", "datfrozenxid", "autovacuum_freeze_max_age"),
        of("multixact", "mxid_age", "datminmxid", "autovacuum_multixact_freeze_max_age")
    );
    let rows = sql::rows(client, "look for the oldest transaction id", &text).await?;
    let finding = |row: &tidemark_wire::tokio_postgres::Row| {
        let database: String = row.get(1);
        finding(side, row.get(0), &database, (row.get(2), row.get(3)))
    };
    Ok(rows.iter().filter_map(finding).collect())
}

/// An age of up to `limit`, where autovacuum begins in any case, is an ordinary one.
fn finding(
    side: AddressOf,
    what: &str,
    database: &str,
    (age, limit): (i64, i64),
) -> Option<Finding> {
    let severity = if age >= SERVER_WARNS {
        Severity::Blocking
    } else if age >= limit.saturating_mul(2).min(FAILSAFE) {
        Severity::Warning
    } else {
        return None;
    };
    let why = match severity {
        Severity::Blocking => "the server is about to refuse to write",
        _ => "something keeps VACUUM from its work, and a slot and a long snapshot would, too",
    };
    let database = Ident(database);
    let message = format!("the oldest {what} of database {database} is {age} old: {why}");
    let fix = format!(
        "end what holds it (long and prepared transactions, slots that nobody reads from), then VACUUM (FREEZE) in database {database}"
    );
    Some(Finding::new(severity, "xid-age", side.server(), message).with_fix(fix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_matters_when_autovacuum_should_have_ended_it_long_ago() {
        let severity = |age, limit| {
            finding(AddressOf::Source, "transaction id", "shop", (age, limit)).map(|f| f.severity)
        };
        assert_eq!(severity(210_000_000, 200_000_000), None);
        assert_eq!(severity(400_000_000, 200_000_000), Some(Severity::Warning));
        assert_eq!(severity(1_500_000_000, 1_800_000_000), None);
        assert_eq!(severity(1_600_000_000, 1_800_000_000), Some(Severity::Warning));
        assert_eq!(severity((1 << 31) - 40_000_000, 1_800_000_000), Some(Severity::Blocking));
    }
}
