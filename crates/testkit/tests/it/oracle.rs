//! The oracle must be silent on equal databases and loud on every planted difference.

use std::collections::BTreeSet;

use tidemark_testkit::{Cluster, oracle, shared, workload};

/// The zoo twice in one cluster; the second copy is changed by `sql`.
fn kinds_after(sql: &str) -> BTreeSet<String> {
    let (one, two) = (shared().unwrap(), shared().unwrap());
    workload::load_zoo(one.cluster(), one.name()).unwrap();
    workload::load_zoo(two.cluster(), two.name()).unwrap();
    two.psql(sql).unwrap();
    let found = oracle::compare((one.cluster(), one.name()), (two.cluster(), two.name())).unwrap();
    let reverse =
        oracle::compare((two.cluster(), two.name()), (one.cluster(), one.name())).unwrap();
    assert_eq!(found.len(), reverse.len(), "the two directions disagree: {found:?} {reverse:?}");
    found
        .into_iter()
        .map(|difference| format!("{} {}", difference.kind, difference.object))
        .collect()
}

#[track_caller]
fn assert_finds(sql: &str, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(|s| (*s).to_owned()).collect();
    assert_eq!(kinds_after(sql), expected, "after {sql}");
}

#[test]
fn equal_databases_have_no_difference() {
    assert_finds("SELECT 1", &[]);
}

#[test]
fn the_movers_own_schema_is_not_compared() {
    assert_finds("CREATE SCHEMA tidemark; CREATE TABLE tidemark.progress (i int)", &[]);
}

#[test]
fn physical_order_does_not_matter() {
    assert_finds("UPDATE zoo.visit SET day = day WHERE gate = 1; VACUUM FULL zoo.animal", &[]);
}

#[test]
fn a_changed_bit_is_found() {
    assert_finds(
        "UPDATE zoo.animal SET photo = set_bit(photo, 3, 1 - get_bit(photo, 3)) WHERE id = 20 AND photo IS NOT NULL",
        &["rows zoo.animal"],
    );
}

#[test]
fn a_missing_row_and_a_doubled_keyless_row_are_found() {
    assert_finds("DELETE FROM zoo.ticket_us WHERE id = 2", &["rows zoo.ticket_us"]);
    assert_finds("INSERT INTO zoo.visit SELECT * FROM zoo.visit LIMIT 1", &["rows zoo.visit"]);
    assert_finds("INSERT INTO zoo.nothing_at_all DEFAULT VALUES", &["rows zoo.nothing_at_all"]);
}

#[test]
fn values_swapped_between_two_rows_are_found() {
    assert_finds(
        "UPDATE zoo.legacy SET amount = CASE id WHEN 20 THEN 11 ELSE 10 END WHERE id IN (20, 21)",
        &["rows zoo.legacy"],
    );
}

#[test]
fn null_is_not_the_empty_string_nor_the_word() {
    assert_finds(r"UPDATE zoo.visit SET note = '' WHERE note IS NULL", &["rows zoo.visit"]);
    assert_finds(r"UPDATE zoo.visit SET note = '\N' WHERE note IS NULL", &["rows zoo.visit"]);
}

#[test]
fn a_trailing_zero_of_a_numeric_is_found() {
    assert_finds("UPDATE zoo.animal SET weight = weight * 1.0 WHERE id = 50", &["rows zoo.animal"]);
}

#[test]
fn sequence_state_is_found() {
    assert_finds("SELECT setval('zoo.free_number', 1)", &["sequence zoo.free_number"]);
    assert_finds("SELECT setval('zoo.untouched', 1, true)", &["sequence zoo.untouched"]);
}

#[test]
fn missing_definitions_are_found() {
    assert_finds("DROP INDEX zoo.animal_stay", &["index zoo.animal_stay"]);
    assert_finds(
        "ALTER TABLE zoo.legacy DROP CONSTRAINT legacy_amount",
        &["constraint zoo.legacy.legacy_amount"],
    );
    assert_finds(
        "DROP MATERIALIZED VIEW zoo.unfilled",
        &["view zoo.unfilled", "table zoo.unfilled", "column zoo.unfilled.one"],
    );
    assert_finds("COMMENT ON TABLE zoo.keeper IS NULL", &["comment table zoo.keeper"]);
    assert_finds("DROP RULE watched_twice ON zoo.watched", &["rule zoo.watched.watched_twice"]);
    assert_finds(
        "ALTER TABLE zoo.watched ENABLE TRIGGER ALL",
        &["trigger zoo.watched.touch_disabled"],
    );
    assert_finds("ALTER TABLE zoo.audit ALTER id DROP DEFAULT", &["column zoo.audit.id"]);
    assert_finds("DROP FUNCTION zoo.total(numeric[])", &["function zoo.total(numeric[])"]);
}

#[test]
fn a_foreign_key_that_became_valid_is_found() {
    let change = "DELETE FROM zoo.legacy; ALTER TABLE zoo.legacy VALIDATE CONSTRAINT legacy_keeper";
    assert_finds(change, &["constraint zoo.legacy.legacy_keeper", "rows zoo.legacy"]);
}

#[test]
fn hostile_names_and_all_types_are_read() {
    let cluster = Cluster::start_default().unwrap();
    for database in ["one", "two"] {
        cluster.create_database(database).unwrap();
        workload::load_hostile_names(&cluster, database).unwrap();
        workload::load_type_matrix(&cluster, database).unwrap();
        workload::load_row_security(&cluster, database).unwrap();
    }
    oracle::assert_same((&cluster, "one"), (&cluster, "two"));
    cluster.psql("two", r#"UPDATE hostile."../../x" SET which = 0 WHERE id = 2"#).unwrap();
    cluster.psql("two", "UPDATE matrix.floats SET f8 = '-0' WHERE note = 'zero'").unwrap();
    let found = oracle::compare((&cluster, "one"), (&cluster, "two")).unwrap();
    let objects: Vec<&str> = found.iter().map(|d| d.object.as_str()).collect();
    assert_eq!(objects, [r#"hostile."../../x""#, "matrix.floats"]);
}

#[test]
fn one_table_hash_is_the_same_in_both_places() {
    let (one, two) = (shared().unwrap(), shared().unwrap());
    for database in [&one, &two] {
        database.psql("CREATE TABLE t (b int, a text); INSERT INTO t SELECT i, i FROM generate_series(1, 9) i").unwrap();
    }
    let hash = oracle::table_hash(one.cluster(), one.name(), "public.t").unwrap();
    assert_eq!(hash.rows, 9);
    assert_eq!(hash, oracle::table_hash(two.cluster(), two.name(), "public.t").unwrap());
    assert!(oracle::table_hash(one.cluster(), one.name(), "public.u").is_err());
}

#[test]
fn a_copy_of_the_zoo_by_pg_dump_is_the_same() {
    let (one, two) = (shared().unwrap(), shared().unwrap());
    workload::load_zoo(one.cluster(), one.name()).unwrap();
    let tool = |name: &str| {
        let directory = one.cluster().version().client_dir().expect("pg_dump is installed");
        let mut command = one.cluster().client_command("env");
        command.arg(directory.join(name));
        command
    };
    let archive = one.cluster().scratch_dir().join("zoo.dump");
    let dumped =
        tool("pg_dump").args(["-Fc", "-f"]).arg(&archive).arg(one.name()).status().unwrap();
    assert!(dumped.success());
    let restored = tool("pg_restore").args(["-d", two.name()]).arg(&archive).status().unwrap();
    assert!(restored.success());
    oracle::assert_same((one.cluster(), one.name()), (two.cluster(), two.name()));
}
