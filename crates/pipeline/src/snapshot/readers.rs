//! Readers that have their locks before the first row is read.
//!
//! **Invariant:** an ALTER of the application that comes while the copy runs waits for us, and we never wait for it: every
//! reader locks what it may read right after the snapshot's holder did. One that comes in between, before all have their
//! locks, ends this snapshot, is let through, and the run begins again; nothing has been moved yet.
//!
//! The server's lock queue lets nobody overtake a waiting ACCESS EXCLUSIVE but who has a lock on the table already. A lock of
//! the holder does not help the readers: each is a session of its own.
//!
//! PostgreSQL manual, section 13.3 (explicit locking); `max_locks_per_transaction` bounds how many there may be.

use std::time::Duration;

use tidemark_model::Relation;
use tidemark_source::{Reader, Snapshot};
use tidemark_wire::ConnectSpec;

use crate::Result;

/// What readers are opened with, then and later.
#[derive(Debug, Clone)]
pub(super) struct ReaderOptions {
    pub(super) spec: ConnectSpec,
    pub(super) snapshot_id: String,
    /// How long one of their locks is waited for.
    pub(super) lock_timeout: Duration,
}

impl ReaderOptions {
    /// One reader without locks of its own, in place of a lost one. Behind a waiting ALTER it is not let through, which
    /// ends the snapshot.
    pub(super) async fn open(&self) -> Result<Reader> {
        let mut reader = Reader::open(&self.spec, &self.snapshot_id).await?;
        reader.wait_at_most(self.lock_timeout).await?;
        Ok(reader)
    }

    /// So many readers, all with locks on the snapshot's tables.
    pub(super) async fn open_all(
        &self,
        number: usize,
        snapshot: &Snapshot,
        max_locks: u64,
    ) -> Result<Vec<Reader>> {
        let mut tables: Vec<&Relation> = snapshot.tables().iter().collect();
        tables.sort_by_key(|table| std::cmp::Reverse(table.heap_bytes + table.toast_bytes));
        tables.truncate(room(tables.len(), number, max_locks));
        let opened = (0..number).map(|_| async {
            let mut reader = self.open().await?;
            reader.lock(&tables).await?;
            Ok(reader)
        });
        futures::future::try_join_all(opened).await
    }
}

/// How many tables each of the readers may lock. The server keeps twice as many lock holders as locks; the snapshot's holder
/// and `pg_dump` need one for each table, and half of all is left to the application. What is left out, the smallest
/// tables, is locked when it is read.
fn room(tables: usize, readers: usize, max_locks: u64) -> usize {
    let tables = tables as u64;
    let each = max_locks.saturating_sub(tables.saturating_mul(2)) / readers.max(1) as u64;
    usize::try_from(each.min(tables)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::room;

    #[test]
    fn readers_lock_everything_where_there_is_room_and_never_fill_the_lock_table() {
        assert_eq!(room(100, 4, 6400), 100);
        assert_eq!(room(3000, 4, 6400), 100);
        assert_eq!(room(5000, 4, 6400), 0);
        assert_eq!(room(0, 0, 0), 0);
    }
}
