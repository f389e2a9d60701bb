//! Many tables, many columns, large rows (`hazards.md` D65, D66, H107).

use tidemark_testkit::workload;

use crate::support::Fixture;

#[test]
fn five_hundred_empty_tables_arrive() {
    let fixture = Fixture::new();
    workload::load_many_tables(fixture.source, &fixture.from, 500).unwrap();
    let report = fixture.copy();
    assert_eq!(report.tables.len(), 500);
    let keys = "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE c.relnamespace = 'many'::regnamespace AND i.indisprimary";
    assert_eq!(fixture.target_sql(keys), "500");
}

#[test]
fn five_hundred_empty_tables_make_a_lake() {
    let fixture = Fixture::new().into_lake();
    workload::load_many_tables(fixture.source, &fixture.from, 500).unwrap();
    assert_eq!(fixture.copy().tables.len(), 500);
}

#[test]
fn rows_of_fifty_megabytes_arrive_through_a_small_budget() {
    let mut fixture = Fixture::new();
    fixture.job.memory = 32 << 20;
    workload::load_wide_rows(fixture.source, &fixture.from, 3, 50 << 20).unwrap();
    fixture.copy();
    fixture.assert_same_data();
}

#[test]
fn rows_of_fifty_megabytes_make_a_lake() {
    let mut fixture = Fixture::new().into_lake();
    fixture.job.memory = 32 << 20;
    workload::load_wide_rows(fixture.source, &fixture.from, 3, 50 << 20).unwrap();
    let report = fixture.copy();
    assert_eq!(report.tables[0].summary.rows_in, 3);
}

#[test]
fn tables_of_1600_columns_and_of_none_arrive_as_binary_and_as_text() {
    let fixture = Fixture::new();
    fixture.sql(
        "CREATE TYPE label AS ENUM ('a');
         DO $do$ BEGIN
           EXECUTE 'CREATE TABLE wide (' || (SELECT string_agg('c' || i || ' smallint', ', ') FROM generate_series(1, 1600) i) || ')';
           EXECUTE 'INSERT INTO wide SELECT ' || (SELECT string_agg(CASE WHEN i % 7 = 0 THEN 'NULL' ELSE 'g' END, ', ') FROM generate_series(1, 1600) i) || ' FROM generate_series(1, 50) g';
           EXECUTE 'CREATE TABLE wide_text (e label[], ' || (SELECT string_agg('c' || i || ' \"char\"', ', ') FROM generate_series(1, 1599) i) || ')';
           EXECUTE 'INSERT INTO wide_text SELECT ''{a}'', ' || (SELECT string_agg(CASE WHEN i % 7 = 0 THEN 'NULL' ELSE '''x''' END, ', ') FROM generate_series(1, 1599) i) || ' FROM generate_series(1, 50) g';
         END $do$;
         CREATE TABLE none (); INSERT INTO none SELECT FROM generate_series(1, 5);
         CREATE TABLE was_wide (a integer, b integer, \"123456789012345678901234567890123456789012345678901234567890123\" text);
         INSERT INTO was_wide VALUES (1, 2, 'x'); ALTER TABLE was_wide DROP COLUMN a, DROP COLUMN b;",
    );
    fixture.copy();
    fixture.assert_same();
}
