//! What changes while a run begins or runs: a table is altered or comes while the run waits for a lock, a schema is renamed
//! while its tables are read.

use std::time::Duration;

use tidemark_model::{RelationName, Unrepresentable};
use tidemark_pipeline::TableOptions;

use crate::support::{Fixture, run};

#[test]
fn a_column_that_comes_while_a_run_waits_for_the_table_is_copied() {
    let mut fixture = Fixture::new();
    fixture.job.lock_timeout = Duration::from_secs(30);
    // Without an index: for the definition of one the reading of the catalog would wait.
    fixture.sql("CREATE TABLE busy (id integer, t text); INSERT INTO busy SELECT i, 't' || i FROM generate_series(1, 100) i");
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

#[test]
fn a_table_that_comes_between_the_catalog_and_the_snapshot_is_copied() {
    let mut fixture = Fixture::new();
    fixture.job.lock_timeout = Duration::from_secs(30);
    // Without an index: for the definition of one the reading of the catalog would wait.
    fixture.sql("CREATE TABLE busy (id integer); INSERT INTO busy VALUES (1)");
    let job = fixture.job.clone();
    let report = std::thread::scope(|scope| {
        // The run has read the catalog when it waits for the table.
        let change = "BEGIN; LOCK TABLE busy IN ACCESS EXCLUSIVE MODE;
             DO $do$ BEGIN FOR i IN 1..3000 LOOP
               EXIT WHEN EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'busy'::regclass AND mode = 'AccessShareLock');
               PERFORM pg_stat_clear_snapshot(), pg_sleep(0.01); END LOOP; END $do$;
             CREATE TABLE newcomer (id integer PRIMARY KEY); INSERT INTO newcomer VALUES (7); COMMIT";
        let (source, from) = (fixture.source, fixture.from.clone());
        let changer = scope.spawn(move || source.psql(&from, change).unwrap());
        let locked = "SELECT EXISTS (SELECT FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation = 'busy'::regclass AND granted)";
        fixture.source.wait_for(&fixture.from, locked, "t").unwrap();
        let runner = scope.spawn(move || run(&job));
        changer.join().unwrap();
        runner.join().unwrap().unwrap()
    });
    assert_eq!(report.tables.len(), 2);
    fixture.assert_same();
}

#[test]
fn an_index_that_others_lock_while_the_copy_is_planned_begins_the_run_again() {
    let mut fixture = Fixture::new();
    fixture.job.lock_timeout = Duration::from_secs(2);
    fixture.job.selection =
        tidemark_source::Selection::new(Vec::new(), vec!["public.left_out".to_owned()]);
    // Without an index, so that the reading of the catalog does not wait.
    fixture.sql("CREATE TABLE busy (id integer); INSERT INTO busy VALUES (1); CREATE TABLE left_out (id integer PRIMARY KEY)");
    let job = fixture.job.clone();
    std::thread::scope(|scope| {
        let until = |what: &str| {
            format!(
                "DO $do$ BEGIN FOR i IN 1..9000 LOOP EXIT WHEN {what}; PERFORM pg_sleep(0.01); END LOOP; END $do$;"
            )
        };
        let waits = |table: &str| {
            format!(
                "EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = '{table}'::regclass AND mode = 'AccessShareLock')"
            )
        };
        let has = "EXISTS (SELECT FROM pg_locks WHERE granted AND relation = 'left_out'::regclass AND mode = 'AccessExclusiveLock')";
        // The run has read the catalog when it waits for this table, and goes on when the other one is locked.
        let first =
            format!("BEGIN; LOCK TABLE busy IN ACCESS EXCLUSIVE MODE; {} COMMIT", until(has));
        // Held until the run has given up waiting for it.
        let second = format!(
            "{} BEGIN; LOCK TABLE left_out IN ACCESS EXCLUSIVE MODE; {} {} COMMIT",
            until(&waits("busy")),
            until(&waits("left_out")),
            until(&format!("NOT {}", waits("left_out"))),
        );
        let (source, from) = (fixture.source, fixture.from.clone());
        let changers = [first, second].map(|sql| {
            let from = from.clone();
            scope.spawn(move || source.psql(&from, &sql).unwrap())
        });
        let locked = "SELECT EXISTS (SELECT FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation = 'busy'::regclass AND granted)";
        fixture.source.wait_for(&fixture.from, locked, "t").unwrap();
        let report = scope.spawn(move || run(&job)).join().unwrap().unwrap();
        assert_eq!(report.tables[0].summary.rows_in, 1);
        for changer in changers {
            changer.join().unwrap();
        }
    });
    assert_eq!(fixture.target_sql("SELECT count(*) FROM busy"), "1");
}

#[test]
fn a_catalog_that_others_keep_locked_is_read_again_and_again_and_they_are_named() {
    let mut fixture = Fixture::new();
    fixture.job.lock_timeout = Duration::from_millis(50);
    fixture.sql("CREATE TABLE held (id integer PRIMARY KEY)");
    std::thread::scope(|scope| {
        let (source, from) = (fixture.source, fixture.from.clone());
        let hold = "SET application_name = 'migration'; BEGIN; LOCK TABLE held IN ACCESS EXCLUSIVE MODE; \
            DO $do$ BEGIN FOR i IN 1..9000 LOOP EXIT WHEN EXISTS \
              (SELECT FROM pg_stat_activity WHERE application_name = 'enough' AND datname = current_database()); \
              PERFORM pg_stat_clear_snapshot(), pg_sleep(0.01); END LOOP; END $do$; COMMIT";
        let holder = scope.spawn(move || source.psql(&from, hold).unwrap());
        let locked = "SELECT EXISTS (SELECT FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation = 'held'::regclass AND granted)";
        fixture.source.wait_for(&fixture.from, locked, "t").unwrap();
        let error = run(&fixture.job).unwrap_err();
        assert_eq!(error.kind, tidemark_pipeline::Kind::Unavailable, "{error:?}");
        let hint = error.hint.unwrap();
        assert!(hint.contains("(migration)") && hint.contains("held"), "{hint}");
        fixture.sql("SET application_name = 'enough'; DO $do$ BEGIN FOR i IN 1..9000 LOOP \
            EXIT WHEN NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'migration' AND datname = current_database()); \
            PERFORM pg_stat_clear_snapshot(), pg_sleep(0.01); END LOOP; END $do$");
        holder.join().unwrap();
    });
    fixture.run().unwrap();
}

/// Copies a schema that is renamed by `rename` after the snapshot was taken and before its table is read.
#[track_caller]
fn renamed_while_it_is_copied(rename: &str) {
    let mut fixture = Fixture::new();
    fixture.job.readers = 1;
    fixture.job.lock_timeout = Duration::from_secs(30);
    fixture.sql(
        "CREATE TABLE first (id integer PRIMARY KEY, t text); \
         INSERT INTO first SELECT i, repeat('x', 100) FROM generate_series(1, 1000) i; \
         CREATE SCHEMA old; CREATE TABLE old.t (id integer PRIMARY KEY); INSERT INTO old.t VALUES (1), (2)",
    );
    // The largest table is read first, and its one reader stops here as long as the test holds that lock.
    fixture.job.tables = vec![TableOptions {
        name: RelationName::new("public", "first"),
        filter: Some("pg_catalog.pg_advisory_xact_lock_shared(99)::text IS NOT NULL".to_owned()),
        columns: None,
        unrepresentable: Unrepresentable::Error,
    }];
    let job = fixture.job.clone();
    std::thread::scope(|scope| {
        let change = format!(
            "SELECT pg_advisory_lock(99);
             DO $do$ BEGIN FOR i IN 1..3000 LOOP
               EXIT WHEN EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND objid = 99
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database()));
               PERFORM pg_stat_clear_snapshot(), pg_sleep(0.01); END LOOP; END $do$;
             {rename}; SELECT pg_advisory_unlock(99)"
        );
        let (source, from) = (fixture.source, fixture.from.clone());
        let changer = scope.spawn(move || source.psql(&from, &change).unwrap());
        let locked = "SELECT EXISTS (SELECT FROM pg_locks WHERE granted AND locktype = 'advisory' AND objid = 99
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))";
        fixture.source.wait_for(&fixture.from, locked, "t").unwrap();
        let runner = scope.spawn(move || run(&job));
        changer.join().unwrap();
        let ended = runner.join().unwrap();
        assert!(ended.is_ok(), "{}", crate::support::chain(&ended.unwrap_err()));
    });
    // A schema that the run before had made may stay there, empty: whether it is ours alone is not known.
    fixture.assert_same_data();
    let tables = "SELECT string_agg(c.oid::regclass::text, ' ' ORDER BY c.oid::regclass::text) FROM pg_class c \
        WHERE relkind = 'r' AND relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('old', 'new', 'public'))";
    assert_eq!(fixture.target_sql(tables), fixture.sql(tables));
}

#[test]
fn a_schema_that_is_renamed_while_it_is_copied_arrives_under_its_new_name() {
    renamed_while_it_is_copied("ALTER SCHEMA old RENAME TO new");
}

#[test]
fn a_schema_that_lends_its_name_to_another_while_it_is_copied_is_not_mistaken_for_it() {
    renamed_while_it_is_copied(
        "BEGIN; ALTER SCHEMA old RENAME TO new; CREATE SCHEMA old; \
         CREATE TABLE old.t (id integer PRIMARY KEY); INSERT INTO old.t VALUES (3); COMMIT",
    );
}
