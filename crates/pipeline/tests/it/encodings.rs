//! Encodings: converted where the server can, refused by name where it cannot, never replaced (`hazards.md` D60).

use tidemark_testkit::oracle;

use crate::support::{Fixture, chain};

const LATIN1: &str = "TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'";
const SQL_ASCII: &str = "TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'";
/// All that LATIN1 has above ASCII, given as UTF-8 to a session that says so.
const LETTERS: &str = "SELECT string_agg(chr(i), '') FROM generate_series(161, 255) i";

fn load_letters(fixture: &Fixture) {
    fixture.sql(&format!(
        "CREATE TYPE label AS ENUM ('é', 'ß');
         CREATE TABLE letters (id integer PRIMARY KEY, t text, e label, es label[], \"ñame\" text DEFAULT 'ü');
         CREATE TABLE plain (id integer PRIMARY KEY, t text, j json);
         COMMENT ON TABLE letters IS 'über';
         INSERT INTO plain SELECT 1, ({LETTERS}), '{{\"é\":\"ü\"}}';
         INSERT INTO letters SELECT 1, ({LETTERS}), 'é', '{{ß}}';"
    ));
}

#[test]
fn latin1_becomes_utf8() {
    let fixture = Fixture::with_options(LATIN1, "TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'");
    load_letters(&fixture);
    fixture.copy();
    fixture.assert_same();
    assert_eq!(fixture.target_sql("SELECT length(t), octet_length(t) FROM plain"), "95|190");
}

#[test]
fn utf8_becomes_latin1_where_it_can_and_is_refused_where_it_cannot() {
    let fixture = Fixture::with_options("", LATIN1);
    load_letters(&fixture);
    fixture.copy();
    fixture.assert_same();
    let refused = Fixture::with_options("", LATIN1);
    refused.sql("CREATE TABLE beyond (id integer PRIMARY KEY, t text); INSERT INTO beyond VALUES (1, 'geheim €')");
    let error = refused.run().map(drop).unwrap_err();
    let text = chain(&error);
    assert!(text.contains("beyond"), "{text}");
    assert!(!text.contains("geheim"), "{text}");
}

#[test]
fn bytes_that_are_no_text_are_refused_by_table_and_without_their_value() {
    let fixture = Fixture::with_options(SQL_ASCII, "");
    fixture.sql(
        "CREATE TABLE fine (id integer PRIMARY KEY, t text); INSERT INTO fine VALUES (1, 'ascii');
         CREATE TABLE broken (id integer PRIMARY KEY, t text);
         INSERT INTO broken SELECT 1, 'geheim' || convert_from('\\xac'::bytea, 'SQL_ASCII')",
    );
    let error = fixture.run().map(drop).unwrap_err();
    let text = chain(&error);
    assert!(text.contains("broken"), "{text}");
    assert!(!text.contains("geheim") && !text.contains("0xac"), "{text}");
    let there = "SELECT to_regclass('broken') IS NULL OR NOT EXISTS (SELECT FROM pg_class WHERE relname = 'broken' AND relpages > 0)";
    assert_eq!(fixture.target_sql(there), "t");
}

#[test]
fn bytes_that_are_no_text_are_refused_for_a_lake() {
    let fixture = Fixture::with_options(SQL_ASCII, "").into_lake();
    fixture.sql("CREATE TABLE broken (id integer PRIMARY KEY, t text); INSERT INTO broken SELECT 1, 'geheim' || convert_from('\\xac'::bytea, 'SQL_ASCII')");
    let error = fixture.run().map(drop).unwrap_err();
    let text = chain(&error);
    assert!(text.contains("broken"), "{text}");
    assert!(!text.contains("geheim") && !text.contains("0xac"), "{text}");
}

#[test]
fn ascii_of_an_sql_ascii_database_arrives() {
    let fixture = Fixture::with_options(SQL_ASCII, "");
    fixture.sql("CREATE TABLE fine (id integer PRIMARY KEY, t text); INSERT INTO fine SELECT i, 'ascii ' || i FROM generate_series(1, 100) i");
    fixture.copy();
    let found =
        oracle::data_diff((fixture.source, &fixture.from), (fixture.target, &fixture.to)).unwrap();
    assert!(found.is_empty(), "{found:?}");
}
