//! Parquet: what pyarrow reads is what psql prints.

use std::process::Command;

use crate::support::{Fixture, python};

/// Renders every value as psql prints it and compares row by row; floats and JSON by value.
const SCRIPT: &str = r#"
import csv, datetime, decimal, json, struct, sys, uuid
import pyarrow as pa, pyarrow.parquet as pq
root, text_file, name = sys.argv[1:4]
csv.field_size_limit(1 << 30)
commit = json.load(open(root + "/_tidemark/commits/00000000000000000000.json"))
table = next(t for t in commit["tables"] if t["name"] == name)
data = pa.concat_tables([pq.ParquetFile(root + "/" + f["path"]).read() for f in table["files"]])
rows = sorted(data.to_pylist(), key=lambda row: row["id"])
expected = list(csv.DictReader(open(text_file, newline="", encoding="utf-8")))
assert len(rows) == len(expected) == table["rows"] > 0, (len(rows), len(expected))
types = {column["name"]: column["pg_type"] for column in table["columns"]}
def as_text(value):
    if value is None: return "<null>"
    if value is True: return "t"
    if value is False: return "f"
    if isinstance(value, (bytes, bytearray)): return "\\x" + bytes(value).hex()
    if isinstance(value, datetime.datetime):
        text = value.replace(tzinfo=None).isoformat(" ")
        text = text.rstrip("0") if "." in text else text
        return text + ("+00" if value.tzinfo else "")
    if isinstance(value, datetime.time):
        text = value.isoformat()
        return text.rstrip("0") if "." in text else text
    if isinstance(value, decimal.Decimal): return format(value, "f")
    if isinstance(value, list): return json.dumps([None if v is None else as_text(v) for v in value])
    return str(value)
for row, want in zip(rows, expected):
    for column, wanted in want.items():
        value, kind = row[column], types[column]
        if value is None or wanted == "<null>": same = value is None and wanted == "<null>"
        elif kind == "double precision": same = repr(float(wanted)) == repr(value)
        elif kind == "real": same = struct.pack("<f", float(wanted)) == struct.pack("<f", value)
        elif kind == "uuid": same = wanted == str(value if isinstance(value, uuid.UUID) else uuid.UUID(bytes=value))
        elif kind.endswith("[]"): same = json.dumps(json.loads(wanted)) == as_text(value)
        else: same = as_text(value) == wanted
        assert same, (row["id"], column, kind)
print(len(rows))
"#;

/// Compares one table of the lake with what psql prints of `query`, which gives arrays as JSON of texts.
#[track_caller]
fn assert_lake_holds(fixture: &Fixture, table: &str, query: &str) {
    let Some(python) = python() else {
        panic!("no Python with pyarrow: set TIDEMARK_PYTHON or run scripts/test");
    };
    let pinned = "SET datestyle = 'ISO, YMD'; SET timezone = 'UTC'; SET bytea_output = 'hex'; SET extra_float_digits = 3; SET client_encoding = 'UTF8'";
    let text = fixture.sql(&format!("{pinned}; COPY ({query} ORDER BY id) TO STDOUT (FORMAT csv, HEADER, NULL '<null>', FORCE_QUOTE *)"));
    let file = fixture.directory.path().join("expected.csv");
    std::fs::write(&file, text).unwrap();
    let output = Command::new(python)
        .args(["-c", SCRIPT])
        .args([fixture.lake_path().as_os_str(), file.as_os_str(), table.as_ref()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

const VALUES: &str = "
CREATE TYPE label AS ENUM ('a''b', '', 'x,y');
CREATE DOMAIN cents AS numeric(10, 2);
CREATE TABLE lake_values (id integer PRIMARY KEY, i2 smallint, i8 bigint, b boolean, f8 float8, f4 real, n numeric(20, 4), free numeric, c cents,
    t text, v varchar(20), ch char(6), raw bytea, u uuid, d date, ts timestamp, tz timestamptz, ti time, j json, jb jsonb, e label,
    ints integer[], texts text[], twice bigint GENERATED ALWAYS AS (i8 / 2) STORED);
INSERT INTO lake_values (id, i2, i8, b, f8, f4, n, free, c) VALUES
    (1, -32768, -9223372036854775808, true, 5e-324, 1.1, 9999999999999999.9999, 1.00, 99999999.99), (2, 32767, 9223372036854775807, false, '-0', '-0', -0.0001, 1.0, -0.01),
    (3, 0, 9007199254740993, NULL, 1.7976931348623157e308, 3.4e38, 0, 0.0000000000000000000000000000000000000000000000001, 0), (4, 1, 1, true, 0.30000000000000004, 1e-45, 1, repeat('9', 200)::numeric, 1.5),
    (5, 1, 1, true, 'NaN', 'Infinity', NULL, NULL, NULL);
INSERT INTO lake_values (id, t, v, ch, raw, u, e) VALUES (10, '', '', '', '', '00000000-0000-0000-0000-000000000000', ''), (11, '\\.', E'a\\n', 'a', '\\x00ff5c0a', 'ffffffff-ffff-ffff-ffff-ffffffffffff', 'a''b'),
    (12, E'tab\\tcr\\rlf\\n', ' both ', ' a b', '\\x5c2e', NULL, 'x,y'), (13, 'NULL', 'null', 'NULL', NULL, NULL, NULL), (14, 'é ü ß', 'é', 'é', NULL, NULL, NULL), (15, repeat('long ', 200000), 'x', 'x', NULL, NULL, NULL);
INSERT INTO lake_values (id, raw) SELECT 100 + i, decode(lpad(to_hex(i), 2, '0'), 'hex') FROM generate_series(0, 255) i;
INSERT INTO lake_values (id, d, ts, tz, ti) VALUES (400, '0001-01-01', '0001-01-01', '0001-01-01Z', '00:00'), (401, '9999-12-31', '9999-12-31 23:59:59.999999', '9999-12-31 23:59:59.999999Z', '23:59:59.999999'),
    (402, '1969-12-31', '1969-12-31 23:59:59.999999', '1969-12-31 23:59:59.5Z', '12:34:56.7'), (403, '2262-04-12', '2262-04-12 00:00:00.1', '2024-10-27 01:30+02', '00:00:00.000001'), (404, '1677-09-20', '1677-09-20', '2024-10-27 01:30+01', '01:00');
INSERT INTO lake_values (id, j, jb) VALUES (500, ' {\"a\" : 1.0,\"a\":2}', '{\"b\":1.00,\"aa\":2}'), (501, 'null', 'null'), (502, '\"\\u0000\"', '[]'), (503, '1e400', '{}');
INSERT INTO lake_values (id, ints, texts) VALUES (600, '{}', '{}'), (601, '{NULL}', '{NULL,\"\",\"NULL\"}'), (602, '{1,-2,NULL}', '{\"a,b\",\"\\\\\",\"\\\"\"}'), (603, NULL, NULL);
";

const QUERY: &str = "SELECT id, i2, i8, b, f8, f4, n, free, c, t, v, ch::text AS ch, raw, u, d, ts, tz, ti, j, jb, e, array_to_json(ints::text[]) AS ints, array_to_json(texts) AS texts, twice FROM lake_values";

#[test]
fn pyarrow_reads_what_psql_prints() {
    let fixture = Fixture::new().into_lake();
    fixture.sql(VALUES);
    fixture.copy();
    assert_lake_holds(&fixture, "lake_values", QUERY);
}

#[test]
fn pyarrow_reads_what_psql_prints_of_a_latin1_database_with_hostile_settings() {
    let fixture =
        Fixture::with_options("TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'", "").into_lake();
    fixture.sql(VALUES);
    let settings = format!(
        "ALTER DATABASE {0} SET DateStyle = 'German'; ALTER DATABASE {0} SET TimeZone = 'Asia/Kathmandu';
         ALTER DATABASE {0} SET bytea_output = 'escape'; ALTER DATABASE {0} SET extra_float_digits = -15; ALTER DATABASE {0} SET IntervalStyle = iso_8601",
        fixture.from
    );
    fixture.source.psql("postgres", &settings).unwrap();
    fixture.copy();
    assert_lake_holds(&fixture, "lake_values", QUERY);
}

#[test]
fn values_without_a_lake_form_are_refused_by_table_and_column() {
    for (kind, value) in [
        ("date", "infinity"),
        ("timestamptz", "-infinity"),
        ("time", "24:00"),
        ("numeric(8, 2)", "NaN"),
    ] {
        let fixture = Fixture::new().into_lake();
        fixture.sql(&format!("CREATE TABLE odd (id integer PRIMARY KEY, hard {kind}); INSERT INTO odd VALUES (1, '{value}')"));
        let error = fixture.run().map(drop).unwrap_err();
        let text = crate::support::chain(&error);
        assert!(text.contains("odd") && text.contains("hard"), "{kind}: {text}");
    }
}
