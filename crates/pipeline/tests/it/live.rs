//! What changes while a run begins: a table is altered while the run waits for a lock on it.

use std::time::Duration;

use crate::support::{Fixture, run};

#[test]
fn a_column_that_comes_while_a_run_waits_for_the_table_is_copied() {
    let mut fixture = Fixture::new();
    fixture.job.lock_timeout = Duration::from_secs(30);
    fixture.sql("CREATE TABLE busy (id integer PRIMARY KEY, t text); INSERT INTO busy SELECT i, 't' || i FROM generate_series(1, 100) i");
    let job = fixture.job.clone();
    let report = std::thread::scope(|scope| {
        // The statement waits inside the transaction until the run waits for the lock, then changes the table.
        let change = "BEGIN; LOCK TABLE busy IN ACCESS EXCLUSIVE MODE;
             DO $do$ BEGIN FOR i IN 1..3000 LOOP
               EXIT WHEN EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'busy'::regclass AND mode = 'AccessShareLock');
               PERFORM pg_stat_clear_snapshot(), pg_sleep(0.01); END LOOP; END $do$;
             ALTER TABLE busy ADD COLUMN late integer DEFAULT 7; COMMIT";
        let (source, from) = (fixture.source, fixture.from.clone());
        let changer = scope.spawn(move || source.psql(&from, change).unwrap());
        let locked = "SELECT EXISTS (SELECT FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation = 'busy'::regclass AND granted)";
        fixture.source.wait_for(&fixture.from, locked, "t").unwrap();
        let runner = scope.spawn(move || run(&job));
        changer.join().unwrap();
        runner.join().unwrap().unwrap()
    });
    assert_eq!(report.tables[0].summary.rows_in, 100);
    fixture.assert_same();
    assert_eq!(fixture.target_sql("SELECT sum(late) FROM busy"), "700");
}
