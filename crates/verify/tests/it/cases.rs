//! The hard cases of two PostgreSQL tables, each a pair of tables with one or two rows.
//!
//! The numbers are those of the list of hard cases that the design was made from, which `docs/hazards.md` goes through one by
//! one. The same cases with a lake as the target are in `lake_cases`, cases that are no values in `hard_tables`.

use std::fmt::Write as _;

use tidemark_report::Verdict::{self, Different as D, Equivalent as E, Identical as I};
use tidemark_testkit::{Cluster, Version, shared};
use tidemark_verify::verify_quiesced as verify;
use tokio_util::sync::CancellationToken;

use crate::support::{request, table};

/// A cluster and a database.
type Side<'a> = (&'a Cluster, &'a str);

/// Number, what the source's query and the target's query give, verdict. `type: value, value` makes one column.
pub(crate) const CASES: &[(&str, &str, &str, Verdict)] = &[
    ("1", "SELECT 'NaN'::float8", "SELECT 'Infinity'::float8 - 'Infinity'::float8", I),
    (
        "1 payload",
        "SELECT 'NaN'::float8 AS a, 'NaN'::float4 AS b",
        "SELECT 'Infinity'::float8 - 'Infinity'::float8 AS a, 'Infinity'::float4 - 'Infinity'::float4 AS b",
        I,
    ),
    ("2 signed", "SELECT '-0'::float8", "SELECT '0'::float8", E),
    (
        "3",
        "SELECT unnest('{Infinity,-Infinity,5e-324,1.7976931348623157e308}'::float8[])",
        "SELECT unnest('{1.7976931348623157e308,5e-324,-Infinity,Infinity}'::float8[])",
        I,
    ),
    ("4", "SELECT 1e-9::float8", "SELECT 2e-9::float8", D),
    ("5", "SELECT 0.30000000000000004::float8", "SELECT 0.3::float8", D),
    ("6 text", "SELECT 1.1::float4", "SELECT 1.1::float8", D),
    ("6 widened", "SELECT 1.1::float4", "SELECT 1.1::float4::float8", E),
    ("7", "SELECT 1.0::numeric", "SELECT 1.00::numeric", E),
    ("7 other", "SELECT 1.0::numeric", "SELECT 1.01::numeric", D),
    (
        "8",
        "SELECT unnest('{NaN,Infinity,-Infinity}'::numeric[])",
        "SELECT unnest('{-Infinity,NaN,Infinity}'::numeric[])",
        I,
    ),
    ("8 zero", "SELECT 'NaN'::numeric", "SELECT 0::numeric", D),
    ("8 infinite", "SELECT 'NaN'::numeric", "SELECT 'Infinity'::numeric", D),
    ("8 fixed", "SELECT 'NaN'::numeric(10,2)", "SELECT 'NaN'::numeric(10,2)", I),
    (
        "9",
        "SELECT 1e40::numeric AS a, '1e-16383'::numeric AS b, 12345::numeric(3,-2) AS c, 0.00012::numeric(2,5) AS d",
        "SELECT 1e40::numeric AS a, '1e-16383'::numeric AS b, 12345::numeric(3,-2) AS c, 0.00012::numeric(2,5) AS d",
        I,
    ),
    ("10", "SELECT 9007199254740993::bigint", "SELECT 9007199254740993::bigint", I),
    ("10 near", "SELECT 9007199254740993::bigint", "SELECT 9007199254740992::bigint", D),
    ("10 jsonb", "SELECT '9007199254740993'::jsonb", "SELECT '9007199254740992'::jsonb", D),
    ("11", "SELECT 1.00::numeric::money", "SELECT 1.00::numeric::money", I),
    ("12", "SELECT ''::text", "SELECT NULL::text", D),
    ("13", "SELECT '<null>'::text", "SELECT NULL::text", D),
    ("13 word", "SELECT 'DEFAULT_REPLACEMENT_STRING'::text", "SELECT NULL::text", D),
    ("14", "SELECT 'a|b'::text, 'c'::text AS d", "SELECT 'a'::text, 'b|c'::text AS d", D),
    ("14 joined", "SELECT 'ab'::text, 'c'::text AS d", "SELECT 'a'::text, 'bc'::text AS d", D),
    ("15", "SELECT 'a'::text", "SELECT 'a '::text", D),
    ("15 line", "SELECT 'a'::text", "SELECT E'a\\n'::text", D),
    ("15 both", "SELECT 'a '::text", "SELECT E'a\\n'::text", D),
    ("16", "SELECT 'a'::char(5)", "SELECT 'a'::char(5)", I),
    ("17", "SELECT 'Foo'::citext", "SELECT 'foo'::citext", D),
    ("18", "SELECT U&'\\00E9'::text", "SELECT U&'e\\0301'::text", D),
    ("21", "SELECT '\\x'::bytea", "SELECT NULL::bytea", D),
    (
        "21 large",
        "SELECT decode(repeat('00ff', 500000), 'hex')",
        "SELECT decode(repeat('00ff', 500000), 'hex')",
        I,
    ),
    (
        "22",
        "SELECT unnest('{infinity,-infinity,4713-01-01 BC,5874897-12-31}'::date[])",
        "SELECT unnest('{5874897-12-31,4713-01-01 BC,-infinity,infinity}'::date[])",
        I,
    ),
    (
        "23",
        "SELECT unnest('{infinity,-infinity}'::timestamptz[])",
        "SELECT unnest('{-infinity,infinity}'::timestamptz[])",
        I,
    ),
    (
        "24",
        "SELECT '294276-12-31 23:59:59.999999'::timestamp",
        "SELECT '294276-12-31 23:59:59.999999'::timestamp",
        I,
    ),
    (
        "25",
        "SELECT unnest('{2262-04-12,0001-01-01 BC}'::timestamp[])",
        "SELECT unnest('{0001-01-01 BC,2262-04-12}'::timestamp[])",
        I,
    ),
    (
        "26",
        "SELECT '2024-10-27 02:30+02'::timestamptz",
        "SELECT '2024-10-27 00:30+00'::timestamptz",
        I,
    ),
    (
        "26 hour",
        "SELECT '2024-10-27 02:30+02'::timestamptz",
        "SELECT '2024-10-27 02:30+01'::timestamptz",
        D,
    ),
    (
        "27",
        "SELECT '2024-01-01 00:00:00.123456'::timestamp",
        "SELECT '2024-01-01 00:00:00.123'::timestamp",
        D,
    ),
    (
        "27 second",
        "SELECT '2024-01-01 00:00:00.123'::timestamp",
        "SELECT '2024-01-01 00:00:00'::timestamp",
        D,
    ),
    ("28", "SELECT '24:00:00'::time", "SELECT '24:00:00'::time", I),
    ("28 other", "SELECT '24:00:00'::time", "SELECT '00:00:00'::time", D),
    ("29", "SELECT '10:00+02'::timetz", "SELECT '09:00+01'::timetz", D),
    ("30", "SELECT '1 mon'::interval", "SELECT '30 days'::interval", E),
    ("30 day", "SELECT '1 day'::interval", "SELECT '24:00'::interval", E),
    (
        "31",
        "SELECT '-1 mon +2 days -00:00:00.000001'::interval",
        "SELECT '-1 mon +2 days -00:00:00.000001'::interval",
        I,
    ),
    ("32 format", "SELECT '{\"a\":1,\"b\":2}'::json", "SELECT '{ \"b\": 2, \"a\": 1 }'::json", E),
    ("32 doubled", "SELECT '{\"a\":1,\"a\":2}'::json", "SELECT '{\"a\":2}'::json", D),
    ("33", "SELECT '1.0'::jsonb", "SELECT '1.00'::jsonb", E),
    ("33 order", "SELECT '{\"b\":1,\"aa\":2}'::jsonb", "SELECT '{\"aa\":2,\"b\":1}'::jsonb", I),
    ("34", "SELECT '{}'::jsonb", "SELECT '[]'::jsonb", D),
    ("34 null", "SELECT 'null'::jsonb", "SELECT NULL::jsonb", D),
    ("35", "SELECT '{}'::text[]", "SELECT NULL::text[]", D),
    ("35 element", "SELECT '{NULL}'::text[]", "SELECT '{\"\"}'::text[]", D),
    ("35 nothing", "SELECT '{}'::text[]", "SELECT '{NULL}'::text[]", D),
    ("36", "SELECT '[0:1]={1,2}'::int[]", "SELECT '{1,2}'::int[]", D),
    ("36 same", "SELECT '[0:1]={1,2}'::int[]", "SELECT '[0:1]={1,2}'::int[]", I),
    ("37", "SELECT '{{1,2},{3,4}}'::int[]", "SELECT '{1,2,3,4}'::int[]", D),
    ("37 same", "SELECT '{{1,2},{3,4}}'::int[]", "SELECT '{{1,2},{3,4}}'::int[]", I),
    ("38", "SELECT array_replace('{1,NULL}'::int[], NULL, 2)", "SELECT '{1,2}'::int[]", I),
    ("40", "SELECT '{1.0}'::numeric[]", "SELECT '{1.00}'::numeric[]", E),
    ("42", "SELECT '[1,5]'::int4range", "SELECT '[1,6)'::int4range", I),
    ("42 scale", "SELECT '[1.0,2]'::numrange", "SELECT '[1.00,2]'::numrange", E),
    ("43", "SELECT 'empty'::int4range", "SELECT NULL::int4range", D),
    ("43 open", "SELECT '(,2024-01-01)'::tsrange", "SELECT '[-infinity,2024-01-01)'::tsrange", D),
    ("44", "SELECT '{[1,3),[3,5)}'::int4multirange", "SELECT '{[1,5)}'::int4multirange", I),
    (
        "46",
        "SELECT 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'::uuid",
        "SELECT 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid",
        I,
    ),
    ("47", "SELECT '10.1.2.3/24'::inet", "SELECT '10.1.2.0/24'::inet", D),
    ("47 cidr", "SELECT '10.1.2.3/32'::inet", "SELECT '10.1.2.3/32'::cidr", I),
    ("48 bit", "SELECT B'101'::bit(3)", "SELECT B'1010'::bit(4)", D),
    ("48 null", "SELECT B''::varbit", "SELECT NULL::varbit", D),
    (
        "49",
        "SELECT 'a:1A b:2'::tsvector, 'a & b'::tsquery AS q",
        "SELECT 'b:2 a:1A'::tsvector, 'a & b'::tsquery AS q",
        I,
    ),
    ("50", "SELECT 'a=>NULL'::hstore", "SELECT 'a=>\"\"'::hstore", D),
    ("50 none", "SELECT 'a=>NULL'::hstore", "SELECT ''::hstore", D),
    ("50 same", "SELECT 'b=>1, a=>NULL'::hstore", "SELECT 'a=>NULL, b=>1'::hstore", I),
    (
        "51",
        "SELECT '<?xml version=\"1.0\"?><a/>'::xml",
        "SELECT '<?xml version=\"1.0\"?><a/>'::xml",
        I,
    ),
    ("54", "SELECT '(0,0)'::point", "SELECT '(1e-7,0)'::point", D),
    (
        "54 shapes",
        "SELECT '(1,1),(0,0)'::box, '<(0,0),1>'::circle AS c",
        "SELECT '(1,1),(0,0)'::box, '<(0,0),1.0000001>'::circle AS c",
        D,
    ),
    (
        "54 lsn",
        "SELECT '16/B374D848'::pg_lsn, '7'::xid8 AS x",
        "SELECT '16/B374D848'::pg_lsn, '7'::xid8 AS x",
        I,
    ),
    ("16 trimmed", "SELECT 'a'::char(5)", "SELECT 'a'::varchar(5)", E),
    ("39", "SELECT '{a,b}'::mood[]", "SELECT '{a,b}'::mood[]", I),
    ("39 composite", "SELECT ARRAY[ROW(1, 'a')::pt]", "SELECT ARRAY[ROW(1, 'a')::pt]", I),
    ("41", "SELECT ROW(NULL, NULL)::pt", "SELECT NULL::pt", D),
    ("45", "SELECT unnest('{a,b}'::mood[])", "SELECT unnest('{b,a}'::mood[])", I),
    ("45 other", "SELECT 'a'::mood", "SELECT 'b'::mood", D),
    ("46 domain", "SELECT 1.5::price", "SELECT 1.50::price", I),
    ("48", "SELECT '08:00:2b:01:02:03'::macaddr", "SELECT '08:00:2b:ff:fe:01:02:03'::macaddr8", E),
    ("52 number", "SELECT 1259::oid", "SELECT 1260::oid", D),
    ("52", "SELECT 'pg_class'::regclass", "SELECT 'pg_class'::regclass", I),
    ("52 own", "SELECT 'other.place'::regclass", "SELECT 'other.place'::regclass", I),
    ("57", "SELECT 1 AS a, repeat('x', 1000000) AS b", "SELECT 1 AS a, NULL::text AS b", D),
    ("58", "SELECT unnest('{A,A}'::text[])", "SELECT unnest('{B,B}'::text[])", D),
    ("58 counts", "SELECT unnest('{A,A,B}'::text[])", "SELECT unnest('{A,B,B}'::text[])", D),
    ("58 copies", "SELECT unnest('{A,A,A,A}'::text[])", "SELECT unnest('{A,A}'::text[])", D),
    ("58 same", "SELECT unnest('{A,B,A}'::text[])", "SELECT unnest('{B,A,A}'::text[])", I),
    ("59", "SELECT unnest('{1,2,3}'::int[])", "SELECT unnest('{1,1,3}'::int[])", D),
    (
        "59 swapped",
        "SELECT * FROM (VALUES (1, 'x'), (2, 'y')) v(a, b)",
        "SELECT * FROM (VALUES (1, 'y'), (2, 'x')) v(a, b)",
        D,
    ),
    ("60 empty", "SELECT 1 AS a WHERE false", "SELECT 1 AS a WHERE false", I),
    ("60 one", "SELECT 1 AS a", "SELECT 1 AS a WHERE false", D),
    ("63 order", "SELECT 1 AS a, 2 AS b", "SELECT 2 AS b, 1 AS a", I),
    ("63 width", "SELECT 7::int4 AS a", "SELECT 7::int8 AS a", I),
    (
        "63 narrow",
        "SELECT 7::int4 AS a, 1.50::numeric AS n",
        "SELECT 7::int8 AS a, 1.5::numeric AS n",
        E,
    ),
];

/// A single column has the same name on both sides.
const ONE_COLUMN: &str = "DO $$ DECLARE c record; BEGIN \
    FOR c IN SELECT attrelid::regclass AS t, min(attname) AS a FROM pg_attribute JOIN pg_class ON oid = attrelid \
        WHERE relnamespace = 'public'::regnamespace AND attnum > 0 GROUP BY 1 HAVING count(*) = 1 LOOP \
      EXECUTE format('ALTER TABLE %s RENAME %I TO the_column', c.t, c.a); \
    END LOOP; END $$";

pub(crate) const TYPES: &str = "CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE TYPE mood AS ENUM ('a', 'b'); CREATE TYPE pt AS (x int, y text); \
    CREATE DOMAIN price AS numeric(10, 2); CREATE SCHEMA other; CREATE TABLE other.place (a int); ";
/// The same by name, made otherwise.
const TYPES_BEFORE: &str = "CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('b'); ALTER TYPE mood ADD VALUE 'a' BEFORE 'b'; \
    CREATE DOMAIN price AS numeric(10, 2); CREATE TYPE pt AS (x int, y text); CREATE SCHEMA other; CREATE TABLE other.place (a int); ";
/// Whatever the sessions of one side have for defaults (5, 11, 21, 26, 31, 52): ours do not.
const OTHER_SETTINGS: &str = "DO $$ DECLARE s text; BEGIN FOREACH s IN ARRAY ARRAY['extra_float_digits = 0', 'bytea_output = escape', \
    'TimeZone = ''America/St_Johns''', 'DateStyle = ''German''', 'IntervalStyle = iso_8601', 'search_path = other', 'xmloption = document', \
    'default_transaction_isolation = serializable'] \
    LOOP EXECUTE format('ALTER DATABASE %I SET ', current_database()) || s; END LOOP; END $$";
const OTHER_OIDS: &str = "CREATE TABLE gone (a int, b text); DROP TABLE gone; ";

pub(crate) fn name_of(case: &str) -> String {
    format!("c{}", case.replace(' ', "_"))
}

/// Puts the cases into two databases and names those whose verdict is another one.
async fn wrong_verdicts(source: Side<'_>, target: Side<'_>) -> Vec<String> {
    let (mut ours, mut theirs) = (TYPES.to_owned(), OTHER_OIDS.to_owned() + TYPES_BEFORE);
    for (case, one, other, _) in CASES {
        writeln!(ours, "CREATE TABLE {} AS {one};", name_of(case)).unwrap();
        writeln!(theirs, "CREATE TABLE {} AS {other};", name_of(case)).unwrap();
    }
    for ((cluster, database), tables) in [(source, ours), (target, theirs)] {
        cluster.psql(database, &tables).unwrap();
        cluster.psql(database, ONE_COLUMN).unwrap();
    }
    target.0.psql(target.1, OTHER_SETTINGS).unwrap();
    let request = request(&source.0.url(source.1), &target.0.url(target.1));
    let outcome = verify(&request, &CancellationToken::new()).await.unwrap();
    let wrong = CASES.iter().filter_map(|(case, _, _, expected)| {
        let found = table(&outcome, &name_of(case)).verdict;
        (found != *expected).then(|| format!("{case}: {found:?} instead of {expected:?}"))
    });
    wrong.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hard_cases_have_their_verdicts() {
    let (source, target) = (shared().unwrap(), shared().unwrap());
    let sides = [&source, &target].map(|side| (side.cluster(), side.name()));
    let wrong = wrong_verdicts(sides[0], sides[1]).await;
    assert!(wrong.is_empty(), "on {:?}:\n{}", Version::from_env(), wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hard_cases_have_them_from_15_to_18_too() {
    let old = Cluster::builder().version(Version::V15).start().unwrap();
    let new = Cluster::builder().version(Version::V18).start().unwrap();
    let wrong = wrong_verdicts((&old, "postgres"), (&new, "postgres")).await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
