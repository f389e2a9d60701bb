//! Other readers: pyarrow, DuckDB and Polars read every value that we wrote.

use std::process::Command;

use tidemark_model::{Column, DataType, RelationName, TypeKind};
use tidemark_sink::parquet::Compression;

use super::lake::LocalLake;
use crate::conformance::{
    Target, accept, begin, column, plan_of, result, spec, start, summary, tuples_of,
};

/// Reads the listed files of the only table with three libraries and compares them with what was sent.
const SCRIPT: &str = r#"
import json, sys, datetime, decimal, uuid
import pyarrow as pa, pyarrow.parquet as pq, duckdb, polars
root = sys.argv[1]
commit = json.load(open(root + "/_tidemark/commits/00000000000000000000.json"))
table = commit["tables"][0]
files = [root + "/" + f["path"] for f in table["files"]]
data = pa.concat_tables([pq.ParquetFile(f).read() for f in files]).sort_by("id")
assert data.num_rows == table["rows"] == 20000, data.num_rows
names = [c["name"] for c in table["columns"]]
assert data.column_names == names, (data.column_names, names)
def as_uuid(v):
    return v if isinstance(v, uuid.UUID) else uuid.UUID(bytes=v)
expected = {
    "id": lambda i: i,
    "price": lambda i: None if i % 11 == 0 else decimal.Decimal(i).scaleb(-2),
    "token": lambda i: uuid.UUID(int=i * 2**64 + i),
    "doc": lambda i: {"n": i},
    "tags": lambda i: [i, None, i + 1],
    "place": lambda i: {"x": i, "label": "p%d" % (i % 5)},
    "day": lambda i: datetime.date(2000, 1, 1) + datetime.timedelta(days=i % 365),
    "code": lambda i: ["red", "green", "blue"][i % 3],
    "noise": lambda i: (i * 2654435761) % 2**31,
    "raw": lambda i: i.to_bytes(8, "big"),
    "ok": lambda i: i % 2 == 0,
    "ratio": lambda i: i / 8,
}
def fix(name, value):
    if name == "token" and value is not None: return as_uuid(value)
    if name == "doc": return json.loads(value)
    return value
def compare(library, rows):
    for i, row in enumerate(rows):
        for name in names:
            got, want = fix(name, row[name]), expected[name](i)
            assert got == want, (library, name, i)
compare("pyarrow", data.to_pylist())
duck = duckdb.sql("SELECT * FROM read_parquet(%r) ORDER BY id" % files)
compare("duckdb", (dict(zip(names, row)) for row in duck.fetchall()))
compare("polars", polars.read_parquet(files).sort("id").iter_rows(named=True))
print("ok")
"#;

fn of_type(mut column: Column, data_type: DataType, typmod: i32) -> Column {
    column.data_type = data_type;
    column.typmod = typmod;
    column
}

fn columns() -> Vec<Column> {
    let int8 = || DataType::builtin(20, "int8");
    let array =
        DataType { kind: TypeKind::Array(Box::new(int8())), ..DataType::builtin(1016, "_int8") };
    let place = DataType {
        schema: "public".to_owned(),
        kind: TypeKind::Composite(vec![
            ("x".to_owned(), int8(), -1),
            ("label".to_owned(), DataType::builtin(25, "text"), -1),
        ]),
        ..DataType::builtin(90_001, "place")
    };
    vec![
        column(1, "id", 20, "int8", false),
        of_type(
            column(2, "price", 1700, "numeric(12,2)", true),
            DataType::builtin(1700, "numeric"),
            (12 << 16 | 2) + 4,
        ),
        column(3, "token", 2950, "uuid", false),
        column(4, "doc", 3802, "jsonb", true),
        of_type(column(5, "tags", 1016, "bigint[]", true), array, -1),
        of_type(column(6, "place", 90_001, "place", true), place, -1),
        column(7, "day", 1082, "date", true),
        column(8, "code", 25, "text", false),
        column(9, "noise", 20, "int8", false),
        column(10, "raw", 17, "bytea", false),
        column(11, "ok", 16, "bool", false),
        column(12, "ratio", 701, "float8", false),
    ]
}

/// numeric(12,2) of `cents` as numeric_send writes it.
fn numeric(cents: i64) -> Vec<u8> {
    let (whole, fraction) = (cents / 100, cents % 100 * 100);
    let mut digits = vec![whole / 10_000, whole % 10_000, fraction];
    let mut weight = 1_i16;
    while digits.first() == Some(&0) {
        digits.remove(0);
        weight -= 1;
    }
    while digits.last() == Some(&0) {
        digits.pop();
    }
    if digits.is_empty() {
        weight = 0;
    }
    let mut bytes = i16::try_from(digits.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(weight.to_be_bytes());
    bytes.extend(0_i16.to_be_bytes());
    bytes.extend(2_i16.to_be_bytes());
    bytes.extend(digits.into_iter().flat_map(|digit| i16::try_from(digit).unwrap().to_be_bytes()));
    bytes
}

fn sized(bytes: &mut Vec<u8>, value: Option<&[u8]>) {
    match value {
        Some(value) => {
            bytes.extend(i32::try_from(value.len()).unwrap().to_be_bytes());
            bytes.extend(value);
        }
        None => bytes.extend((-1_i32).to_be_bytes()),
    }
}

fn array(id: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [1_i32, 1, 20, 3, 1] {
        bytes.extend(word.to_be_bytes());
    }
    sized(&mut bytes, Some(&id.to_be_bytes()));
    sized(&mut bytes, None);
    sized(&mut bytes, Some(&(id + 1).to_be_bytes()));
    bytes
}

fn composite(id: i64) -> Vec<u8> {
    let mut bytes = 2_i32.to_be_bytes().to_vec();
    bytes.extend(20_i32.to_be_bytes());
    sized(&mut bytes, Some(&id.to_be_bytes()));
    bytes.extend(25_i32.to_be_bytes());
    sized(&mut bytes, Some(format!("p{}", id % 5).as_bytes()));
    bytes
}

fn row(id: i64) -> Vec<Option<Vec<u8>>> {
    let json = format!("\u{1}{{\"n\": {id}}}").into_bytes();
    let token = (id.unsigned_abs() as u128) << 64 | id.unsigned_abs() as u128;
    vec![
        Some(id.to_be_bytes().to_vec()),
        (id % 11 != 0).then(|| numeric(id)),
        Some(token.to_be_bytes().to_vec()),
        Some(json),
        Some(array(id)),
        Some(composite(id)),
        Some(i32::try_from(id % 365).unwrap().to_be_bytes().to_vec()),
        Some(["red", "green", "blue"][usize::try_from(id % 3).unwrap()].into()),
        Some(((id * 2_654_435_761) % (1 << 31)).to_be_bytes().to_vec()),
        Some(id.to_be_bytes().to_vec()),
        Some(vec![u8::from(id % 2 == 0)]),
        Some((id as f64 / 8.0).to_be_bytes().to_vec()),
    ]
}

async fn written(compression: Compression) -> LocalLake {
    let mut lake = LocalLake::new();
    lake.options.compression = compression;
    let plan = plan_of(1, &RelationName::new("public", "mixed"), columns());
    let sink = lake.sink();
    sink.prepare(&start("r1", std::slice::from_ref(&plan))).await.unwrap();
    for (chunk, from) in [(0, 0), (1, 10_000)] {
        let spec = spec("r1", &plan, chunk);
        let mut writer = begin(&*sink, &spec).await;
        for batch in 0..10 {
            let from = from + batch * 1000;
            let rows: Vec<_> = (from..from + 1000).map(row).collect();
            accept(&mut writer, tuples_of(&rows)).await.unwrap();
        }
        writer.commit(&result(&spec, 10_000)).await.unwrap();
    }
    sink.table_loaded(&plan.relation.name).await.unwrap();
    sink.finish(&summary(&[(&plan, 20_000)])).await.unwrap();
    lake
}

#[tokio::test(flavor = "multi_thread")]
async fn pyarrow_duckdb_and_polars_read_what_was_written() {
    let compressions =
        [Compression::Zstd { level: 1 }, Compression::Lz4, Compression::Snappy, Compression::None];
    for compression in compressions {
        let lake = written(compression).await;
        let Some(python) = std::env::var_os("TIDEMARK_PYTHON") else {
            eprintln!("TIDEMARK_PYTHON is not set: not tested with other readers");
            return;
        };
        let output = Command::new(python).args(["-c", SCRIPT]).arg(lake.path()).output().unwrap();
        assert!(
            output.status.success(),
            "{compression:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
