//! Every value of every type arrives as it was, whichever way its table travels and whatever the settings of both sides.

use tidemark_testkit::{Version, workload};

use crate::support::Fixture;

/// Settings that change how values are printed and read (`hazards.md` D50, S3).
fn hostile_settings(database: &str) -> String {
    let settings = [
        ("DateStyle", "German, DMY"),
        ("IntervalStyle", "iso_8601"),
        ("TimeZone", "America/St_Johns"),
        ("extra_float_digits", "-15"),
        ("bytea_output", "escape"),
        ("xmloption", "document"),
        ("lc_monetary", "C"),
        ("search_path", "trap, public"),
        ("standard_conforming_strings", "off"),
        ("backslash_quote", "on"),
        ("array_nulls", "off"),
        ("default_transaction_isolation", "serializable"),
        ("statement_timeout", "60s"),
    ];
    let line = |(name, value): (&str, &str)| {
        let value = if name == "search_path" { value.to_owned() } else { format!("'{value}'") };
        format!("ALTER DATABASE {database} SET {name} = {value};\n")
    };
    settings.into_iter().map(line).collect()
}

/// A role and a database that would change every value that is printed or read by their settings.
fn make_hostile(fixture: &Fixture) {
    fixture.source.psql("postgres", &hostile_settings(&fixture.from)).unwrap();
    fixture.target.psql("postgres", &hostile_settings(&fixture.to)).unwrap();
    let other = format!(
        "ALTER DATABASE {} SET DateStyle = 'SQL, MDY'; ALTER DATABASE {0} SET IntervalStyle = 'sql_standard';
         ALTER DATABASE {0} SET TimeZone = 'Asia/Kathmandu';",
        fixture.to
    );
    fixture.target.psql("postgres", &other).unwrap();
}

/// Adds a column to every table of a schema that can only travel as text: an array names its element by an OID.
fn force_text(fixture: &Fixture, schema: &str) {
    fixture.sql(&format!(
        "CREATE TYPE public.forcing AS ENUM ('a,b', '\\', '\"', 'NULL', '');
         DO $do$ DECLARE t record; BEGIN
           FOR t IN SELECT c.oid::regclass AS name FROM pg_class c
             WHERE c.relkind = 'r' AND c.relnamespace = '{schema}'::regnamespace AND c.relnatts < 1000 LOOP
             EXECUTE format('ALTER TABLE %s ADD COLUMN forcing public.forcing[] DEFAULT %L', t.name, '{{\"a,b\",NULL,\"NULL\",\"\\\\\",\"\"}}');
           END LOOP; END $do$"
    ));
}

fn load_matrix(fixture: &Fixture) {
    workload::load_type_matrix(fixture.source, &fixture.from).unwrap();
    if fixture.source.version() < Version::V15 {
        // Old servers print a "char" above 127 as a byte that is no text: as text it is refused, and the judge reads it otherwise.
        fixture.sql("UPDATE matrix.texts SET one = 'x' WHERE note = 'high byte'");
    }
}

#[test]
fn the_type_matrix_arrives_under_hostile_settings_of_both_databases() {
    let fixture = Fixture::new();
    load_matrix(&fixture);
    make_hostile(&fixture);
    fixture.copy();
    fixture.assert_same();
}

#[test]
fn the_type_matrix_arrives_as_text_under_hostile_settings_of_both_databases() {
    let fixture = Fixture::new();
    load_matrix(&fixture);
    force_text(&fixture, "matrix");
    make_hostile(&fixture);
    fixture.copy();
    fixture.assert_same();
}

/// What the type matrix lacks: many of these rows are in two tables, one of which travels as text.
const MORE_VALUES: &str = r#"
SET xmloption = content;
CREATE TYPE label AS ENUM ('a''b', '"', ',', '{', E'\\', '', '\.', 'l\n2', 'NULL', 'l23456789012345678901234567890123456789012345678901234567890123');
CREATE TYPE inner_pair AS (a label, b text);
CREATE TYPE outer_pair AS (p inner_pair, ps inner_pair[], r int4range);
CREATE DOMAIN label_array AS label[];
CREATE DOMAIN outer_domain AS outer_pair;
CREATE DOMAIN small_number AS numeric(10, 2) CHECK (VALUE < 1000000);
CREATE TYPE text_range AS RANGE (subtype = text, collation = "C");
CREATE TABLE body (
    id integer PRIMARY KEY, t text, v varchar(30), c char(8), b bytea, e label, n small_number, m money,
    x xml, j json, jb jsonb, i interval, tz timestamptz, f8 double precision, f4 real, tr text_range, ts timestamp, ob bit(9), nm name, ch "char"
);
INSERT INTO body (id, t, v, c) VALUES
    (1, '\.', '\.', '\.'), (2, E'\\.\n', E'a\n\\.\nb', E'\\.\n'), (3, E'\r\n', E'\r', E'\n'), (4, E'a\tb\\tc', E'\\', E'\\\\'),
    (5, '', '', ''), (6, NULL, NULL, NULL), (7, 'NULL', 'null', '\N'), (8, '\N', '\\N', E'\\N\n'), (9, '  both  ', ' both ', ' both '),
    (10, E' \t\x0b\x0c', E'\x08', E'\x1a'), (11, '"",''', '"', ''''), (12, E'\u00e9 \u0065\u0301', U&'\+01F98A', 'ß'),
    (13, '$1 $$ %s', E'\\x41', '\b'), (14, E'\x7f\u0080\u009f\u2028\ufeff', 'x', 'x');
INSERT INTO body (id, b) SELECT 100 + i, decode(lpad(to_hex(i), 2, '0'), 'hex') || '\x5c2e0a0d00'::bytea FROM generate_series(0, 255) i;
INSERT INTO body (id, t) SELECT 400 + i, chr(i) || '\' || chr(i) || E'\n' FROM generate_series(1, 255) i;
INSERT INTO body (id, b) SELECT 700, decode(string_agg(lpad(to_hex(i), 2, '0'), '' ORDER BY i), 'hex') FROM generate_series(0, 255) i;
INSERT INTO body (id, b) VALUES (701, ''), (702, NULL), (703, '\x5c2e'), (704, E'\\\\.\n');
INSERT INTO body (id, e) SELECT 710 + row_number() OVER (), x FROM unnest(enum_range(NULL::label)) x;
INSERT INTO body (id, n, m) VALUES (730, 1.00, '92233720368547758.07'), (731, -0.01, '-92233720368547758.08'), (732, 999999.99, '1.00');
INSERT INTO body (id, x) VALUES (740, '<?xml version="1.0" encoding="ISO-8859-1"?><a>é</a>'), (741, ''), (742, 'text only'), (743, '<!DOCTYPE a><a/>'), (744, '<a/><b/>');
INSERT INTO body (id, j, jb) VALUES (750, '{"a":"\u0000", "b":1e999}', '{"a":1.0,"b":1.00}'), (751, E' {"a" : 1,"a":2}\n', '"\\.\n"'), (752, '"\ud83e\udd8a"', 'null');
INSERT INTO body (id, i) VALUES (760, '1 mon'), (761, '30 days'), (762, '-1 day +24:00'), (763, '24:00'), (764, '-00:00:00.000001'), (765, '1 year -1 mon 3 days -04:05:06.7');
INSERT INTO body (id, tz) SELECT 770 + i, timestamptz '2024-10-27 00:15Z' + i * interval '15 min' FROM generate_series(0, 9) i;
INSERT INTO body (id, tz) VALUES (780, '1883-11-18 12:00:00 America/New_York'), (781, '0099-01-01 BC'), (782, '1900-01-01 00:00:00+00:19:32');
INSERT INTO body (id, f8, f4) VALUES (790, 'inf'::float8 - 'inf', 'NaN'), (791, 1e-9, 1.1), (792, 2e-9, '-0'), (793, 0.1 + 0.2::float8, 3.4e38), (794, 2.2250738585072011e-308, 1e-45);
INSERT INTO body (id, tr) VALUES (800, '["",)'), (801, '(a,"b,c"]'), (802, 'empty'), (803, E'["\\"","\\\\")'), (804, '(,)');
INSERT INTO body (id, ts, ob, nm, ch) VALUES (810, '2024-01-01 00:00:00.000001', B'101010101', 'n' , E'\n'), (811, 'infinity', B'000000000', '', ''), (812, '0001-01-01 BC', B'111111111', '\.', '\');
CREATE TABLE body_as_text AS SELECT * FROM body;
ALTER TABLE body_as_text ADD PRIMARY KEY (id);
ALTER TABLE body_as_text ADD COLUMN forcing label[] DEFAULT '{"\\.","l\\n2",NULL,"NULL",""}';
ALTER TABLE body_as_text ADD COLUMN nested outer_domain DEFAULT ROW(ROW('"', E'\\.\n'), ARRAY[ROW('{', NULL)::inner_pair, NULL, ROW(NULL, '')::inner_pair], '[1,5]');
ALTER TABLE body_as_text ADD COLUMN labels label_array DEFAULT '[3:4]={"\\","a''b"}';
-- A line that is nothing but the end mark, in the only column of a table that travels as text.
CREATE TABLE only_marks (m label[]);
CREATE TABLE only_text (t text);
INSERT INTO only_text VALUES ('\.'), (''), (NULL), (E'\n'), ('\N'), (E'\r'), (E'\\.\r\n');
CREATE TABLE only_composite (p inner_pair);
INSERT INTO only_composite VALUES (ROW('\.', '\.')), (ROW(NULL, NULL)), (NULL), (ROW('', E'\r\n'));
INSERT INTO only_marks VALUES ('{}'), (NULL), ('{NULL}'), ('{""}'), ('{"\\."}'), ('{{"\\.",","},{NULL,"{"}}');
-- A sparse null bitmap, arrays whose header says that there are NULLs when there are none.
CREATE TABLE bitmaps (id serial PRIMARY KEY, a integer[], t text[]);
INSERT INTO bitmaps (a, t) VALUES (array_remove(ARRAY[1, NULL, 2], NULL), array_remove(ARRAY['x', NULL], NULL)), ('{1,2}', '{x}');
CREATE TABLE duplicates (a integer, b text);
INSERT INTO duplicates VALUES (1, 'A'), (1, 'A'), (1, 'A'), (2, 'B'), (2, 'B'), (NULL, NULL), (NULL, NULL), (1, 'b'), (2, 'a'), (0, 'a|b'), (0, 'a,b');
"#;

#[test]
fn treacherous_values_arrive_as_binary_and_as_text() {
    let fixture = Fixture::new();
    fixture.sql(MORE_VALUES);
    make_hostile(&fixture);
    fixture.copy();
    fixture.assert_same();
    let rows = fixture.target_sql("SELECT count(*) FROM public.body_as_text");
    assert_eq!(rows, fixture.sql("SELECT count(*) FROM public.body"));
}

/// Objects that stand before those of pg_catalog for whoever does not pin its search_path (S3).
const TRAPS: &str = "
CREATE SCHEMA trap;
CREATE FUNCTION trap.fire(text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE FUNCTION trap.count(anyelement) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE FUNCTION trap.format_type(oid, integer) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE FUNCTION trap.quote_ident(name) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE FUNCTION trap.pg_export_snapshot() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE FUNCTION trap.tid_trap(tid, tid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE OPERATOR trap.>= (LEFTARG = tid, RIGHTARG = tid, FUNCTION = trap.tid_trap);
CREATE OPERATOR trap.< (LEFTARG = tid, RIGHTARG = tid, FUNCTION = trap.tid_trap);
CREATE FUNCTION trap.name_trap(name, name) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE OPERATOR trap.= (LEFTARG = name, RIGHTARG = name, FUNCTION = trap.name_trap);
CREATE VIEW trap.pg_class AS SELECT 1 AS oid;
CREATE VIEW trap.pg_namespace AS SELECT 1 AS oid;
CREATE TABLE trap.rows AS SELECT i AS id, repeat('x', 900) AS t FROM generate_series(1, 5000) i;
";

#[test]
fn objects_that_hide_those_of_pg_catalog_are_never_called() {
    let fixture = Fixture::new();
    fixture.sql(TRAPS);
    let path = |database: &str| {
        format!(
            "ALTER DATABASE {database} SET search_path = trap, pg_catalog; ALTER ROLE postgres IN DATABASE {database} SET search_path = trap, pg_catalog"
        )
    };
    fixture.source.psql("postgres", &path(&fixture.from)).unwrap();
    fixture.target.psql("postgres", &path(&fixture.to)).unwrap();
    let report = fixture.copy();
    assert!(
        fixture.source.version() < Version::V14
            || report.tables.iter().any(|table| table.chunks > 3),
        "the traps of tid are not stepped on"
    );
    fixture.assert_same_data();
    fixture.source.psql("postgres", "ALTER ROLE postgres RESET ALL").unwrap();
}

#[test]
fn hostile_names_arrive() {
    let fixture = Fixture::new();
    workload::load_hostile_names(fixture.source, &fixture.from).unwrap();
    fixture.sql("DROP TABLE IF EXISTS hostile.tidemark");
    fixture.copy();
    fixture.assert_same();
}
