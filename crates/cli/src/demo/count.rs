//! The independent count: what the application has noted, against what plain SQL finds on both servers.
//!
//! **Invariant:** nothing of Tidemark is asked. Nobody writes while it counts.

use std::collections::BTreeMap;

use serde::Serialize;
use tidemark_wire::ConnectSpec;

use super::application::Book;
use super::data::OPEN;
use super::server::query_failed;
use super::services::{Service, Side};
use crate::exit::Failure;
use crate::output;

/// Writer and number, which the application makes up.
type Key = (i32, i64);
/// A row: its key, and what it got from its sequence.
type Receipt = (Key, i64);

/// What was counted of one service.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Count {
    pub(super) service: &'static str,
    /// Transactions that a server has said are committed.
    pub(super) committed: u64,
    /// Attempts that were refused, and made again.
    pub(super) refused: u64,
    /// Values of sequences that the application got more than once.
    pub(super) given_twice: u64,
    pub(super) sides: Vec<Counted>,
}

/// What was found of it on one side.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Counted {
    pub(super) side: &'static str,
    /// Receipts.
    pub(super) rows: u64,
    /// Committed, and not there as it was noted.
    pub(super) missing: u64,
    /// There more than once.
    pub(super) repeated: u64,
    /// There, and never committed as far as the application knows.
    pub(super) unknown: u64,
    /// Values of the sequence that more than one row has.
    pub(super) ids_twice: u64,
    /// What goes with the receipts and is not there, or is there twice.
    pub(super) not_whole: u64,
}

impl Counted {
    fn wrong(&self) -> u64 {
        self.missing + self.repeated + self.unknown + self.ids_twice + self.not_whole
    }
}

impl Count {
    pub(super) fn is_right(&self) -> bool {
        self.given_twice == 0 && self.sides.iter().all(|side| side.wrong() == 0)
    }

    /// For people.
    pub(super) fn lines(&self, service: &Service) -> Vec<String> {
        let mut lines = vec![format!(
            "{}: {} transactions committed, {} attempts refused and made again, {} values of a sequence given twice",
            self.service,
            output::count(self.committed),
            output::count(self.refused),
            output::count(self.given_twice),
        )];
        lines.extend(self.sides.iter().map(|side| {
            format!(
                "  on the {}: {} rows, {} lost, {} twice, {} that nobody wrote, {} values twice; {}: {}",
                side.side,
                output::count(side.rows),
                output::count(side.missing),
                output::count(side.repeated),
                output::count(side.unknown),
                output::count(side.ids_twice),
                service.whole.0,
                if side.not_whole == 0 { "yes" } else { "NO" },
            )
        }));
        lines
    }
}

/// Counts what a service has written.
pub(super) async fn count(
    service: &Service,
    book: &Book,
    sides: [(Side, &ConnectSpec); 2],
) -> Result<Count, Failure> {
    let mut counted = Vec::new();
    for (side, spec) in sides {
        counted.push(on_side(service, book, side, spec).await?);
    }
    Ok(Count {
        service: service.name,
        committed: book.committed.len() as u64,
        refused: book.refused,
        given_twice: book.given_twice,
        sides: counted,
    })
}

async fn on_side(
    service: &Service,
    book: &Book,
    side: Side,
    spec: &ConnectSpec,
) -> Result<Counted, Failure> {
    let failed = |error: tidemark_wire::tokio_postgres::Error| query_failed(&error);
    let client = spec.connect().await.map_err(|error| query_failed(&error))?;
    client.batch_execute(OPEN).await.map_err(failed)?;
    let list = format!("SELECT writer, number, id FROM {}", service.receipts);
    let rows = client.query(&list, &[]).await.map_err(failed)?;
    let rows: Vec<Receipt> =
        rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
    let twice = format!("SELECT count(*) - count(DISTINCT id) FROM {}", service.receipts);
    let twice: i64 = client.query_one(&twice, &[]).await.map_err(failed)?.get(0);
    let not_whole: i64 = client.query_one(service.whole.1, &[]).await.map_err(failed)?.get(0);
    client.close().await;
    Ok(Counted {
        side: side.word(),
        ids_twice: twice.unsigned_abs(),
        not_whole: not_whole.unsigned_abs(),
        ..compared(&book.committed, &rows)
    })
}

/// Holds the rows of a table against what was noted.
fn compared(committed: &BTreeMap<Key, i64>, rows: &[Receipt]) -> Counted {
    let mut found: BTreeMap<Key, Vec<i64>> = BTreeMap::new();
    for (key, id) in rows {
        found.entry(*key).or_default().push(*id);
    }
    let is_missing =
        |(key, id): &(&Key, &i64)| !found.get(*key).is_some_and(|ids| ids.contains(id));
    Counted {
        rows: rows.len() as u64,
        missing: committed.iter().filter(is_missing).count() as u64,
        repeated: found.values().filter(|ids| ids.len() > 1).count() as u64,
        unknown: found.keys().filter(|key| !committed.contains_key(*key)).count() as u64,
        ..Counted::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_is_lost_repeated_made_up_or_changed_is_counted() {
        let committed = BTreeMap::from([((0, 1), 10), ((0, 2), 11), ((1, 1), 12)]);
        let all = [((0, 1), 10), ((0, 2), 11), ((1, 1), 12)];
        assert_eq!(compared(&committed, &all).wrong(), 0);
        let of = |rows: &[Receipt]| {
            let Counted { missing, repeated, unknown, .. } = compared(&committed, rows);
            (missing, repeated, unknown)
        };
        assert_eq!(of(&all[1..]), (1, 0, 0));
        assert_eq!(of(&[all[0], all[1], all[2], all[2]]), (0, 1, 0));
        assert_eq!(of(&[all[0], all[1], all[2], ((1, 2), 13)]), (0, 0, 1));
        assert_eq!(of(&[all[0], all[1], ((1, 1), 99)]), (1, 0, 0));
    }

    #[test]
    fn whatever_is_wrong_on_either_side_is_not_right() {
        let right = Count {
            service: "orders",
            committed: 1,
            refused: 5,
            given_twice: 0,
            sides: vec![Counted { rows: 1, ..Counted::default() }; 2],
        };
        assert!(right.is_right());
        assert!(!Count { given_twice: 1, ..right.clone() }.is_right());
        let wrong = [
            Counted { missing: 1, ..Counted::default() },
            Counted { ids_twice: 1, ..Counted::default() },
            Counted { not_whole: 1, ..Counted::default() },
        ];
        for side in wrong {
            let sides = vec![Counted::default(), side];
            assert!(!Count { sides, ..right.clone() }.is_right());
        }
    }
}
