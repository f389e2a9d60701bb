//! What hashing costs per row: TPC-H lineitem in the raw and in the value form, and one column family at a time.
//!
//! Then the same with a locator, of enough rows to touch most of its cells: `locate/none` is the hasher alone.
//!
//! Run: `cargo bench -p tidemark-digest --bench hash_rows`. Time per row = time per iteration / 8192 (locate: / 131072).

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tidemark_digest::{
    DigestColumn, DigestKey, Forms, KeyPlan, LeafBounds, LocatedForm, Locator, RowHasher,
};
use tidemark_model::{Column, DataType, Generated, Identity, TupleForm, Tuples, Wire};

const ROWS: u32 = 8192;

fn column(name: &str, type_name: &str) -> Column {
    Column {
        attnum: 1,
        name: name.to_owned(),
        data_type: DataType::builtin(0, type_name),
        typmod: -1,
        type_name: type_name.to_owned(),
        is_nullable: false,
        generated: Generated::No,
        identity: Identity::No,
        has_default: false,
        key_position: None,
        collation: None,
    }
}

/// The binary field of one value, made of a running number.
fn field(type_name: &str, number: u32) -> Vec<u8> {
    match type_name {
        "int4" | "date" => (8000 + number % 2500).to_be_bytes().to_vec(),
        "int8" | "timestamp" => u64::from(number).to_be_bytes().to_vec(),
        "float8" => f64::from(number).to_be_bytes().to_vec(),
        "uuid" => u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes().to_vec(),
        "char1" => b"N".to_vec(),
        "char25" => b"DELIVER IN PERSON        ".to_vec(),
        "char10" => b"TRUCK     ".to_vec(),
        "numeric" => {
            // 21168.23 has the digits 2, 1168, 2300.
            let words = [3, 1, 0, 2, (number % 9) as u16 + 1, (number % 9999) as u16, 2300];
            words.iter().flat_map(|word: &u16| word.to_be_bytes()).collect()
        }
        "jsonb" => format!("\x01{{\"id\": {number}, \"tags\": [\"a\", \"b\"], \"price\": 1.50}}")
            .into_bytes(),
        _ => {
            let text = b"egular courts above the slyly final requests ";
            text[..10 + (number as usize * 7) % 34].to_vec()
        }
    }
}

fn tuples(types: &[&str]) -> Tuples {
    many_tuples(types, ROWS)
}

fn many_tuples(types: &[&str], rows: u32) -> Tuples {
    let (mut data, mut ends) = (Vec::new(), Vec::new());
    for row in 0..rows {
        data.extend_from_slice(&(types.len() as u16).to_be_bytes());
        for type_name in types {
            let field = field(type_name, row);
            data.extend_from_slice(&(field.len() as u32).to_be_bytes());
            data.extend_from_slice(&field);
        }
        ends.push(data.len() as u32);
    }
    Tuples { form: TupleForm::PgBinary, data: Bytes::from(data), ends }
}

fn hash(columns: &[(&str, &str)], forms: Forms, tuples: &Tuples) -> u128 {
    let columns: Vec<Column> = columns
        .iter()
        .map(|(name, of)| column(name, if of.starts_with("char") { "bpchar" } else { of }))
        .collect();
    let columns: Vec<DigestColumn<'_>> =
        columns.iter().map(|column| DigestColumn { column, wire: Wire::Own }).collect();
    let bounds: Vec<String> = (0..100).map(|leaf| (8000 + leaf * 25).to_string()).collect();
    let leaves = LeafBounds::from_text_bounds(columns[0].column, 0, &bounds);
    let key = DigestKey::new([7; 32]);
    let mut hasher =
        RowHasher::compile(&columns, TupleForm::PgBinary, forms, &key, leaves).expect("compiles");
    hasher.add(tuples).expect("is well formed");
    hasher.sum().value
}

const LINEITEM: [(&str, &str); 16] = [
    ("l_orderkey", "int4"),
    ("l_partkey", "int4"),
    ("l_suppkey", "int4"),
    ("l_linenumber", "int4"),
    ("l_quantity", "numeric"),
    ("l_extendedprice", "numeric"),
    ("l_discount", "numeric"),
    ("l_tax", "numeric"),
    ("l_returnflag", "char1"),
    ("l_linestatus", "char1"),
    ("l_shipdate", "date"),
    ("l_commitdate", "date"),
    ("l_receiptdate", "date"),
    ("l_shipinstruct", "char25"),
    ("l_shipmode", "char10"),
    ("l_comment", "varchar"),
];

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("hash_rows");
    let rows = tuples(&LINEITEM.map(|(_, of)| of));
    group.throughput(Throughput::Elements(u64::from(ROWS)));
    for (name, forms) in
        [("raw", Forms::Raw), ("raw-canonical", Forms::RawCanonical), ("value", Forms::RawAndValue)]
    {
        group.bench_with_input(BenchmarkId::new(name, "lineitem"), &rows, |b, rows| {
            b.iter(|| hash(&LINEITEM, forms, rows));
        });
    }
    for family in
        ["int4", "int8", "float8", "numeric", "date", "timestamp", "uuid", "varchar", "jsonb"]
    {
        let columns: Vec<String> = (0..8).map(|number| format!("c{number}")).collect();
        let columns: Vec<(&str, &str)> =
            columns.iter().map(|name| (name.as_str(), family)).collect();
        let rows = tuples(&[family; 8]);
        group.bench_with_input(BenchmarkId::new("value/8 columns", family), &rows, |b, rows| {
            b.iter(|| hash(&columns, Forms::RawAndValue, rows));
        });
    }
    group.finish();
}

fn columns_of(columns: &[(&str, &str)]) -> Vec<Column> {
    let type_name = |of: &str| if of.starts_with("char") { "bpchar" } else { of }.to_owned();
    columns.iter().map(|(name, of)| column(name, &type_name(of))).collect()
}

/// The hasher that a scan keeps from batch to batch.
fn scanner(columns: &[Column], forms: Forms, key: &[usize], locate: Option<u32>) -> RowHasher {
    let columns: Vec<DigestColumn<'_>> =
        columns.iter().map(|column| DigestColumn { column, wire: Wire::Own }).collect();
    let bounds: Vec<String> = (0..100).map(|leaf| (8000 + leaf * 25).to_string()).collect();
    let leaves = LeafBounds::from_text_bounds(columns[0].column, 0, &bounds);
    let digest_key = DigestKey::new([7; 32]);
    let hasher = RowHasher::compile(&columns, TupleForm::PgBinary, forms, &digest_key, leaves)
        .expect("compiles");
    let Some(max_differences) = locate else { return hasher };
    let plan = KeyPlan::of(&columns, key).expect("the key is of the columns");
    let locator = Locator::new(plan, max_differences, &digest_key);
    hasher.locate(locator, key, LocatedForm::Value).expect("fits")
}

/// A name, columns with their types, what is summed, and the numbers of the key columns.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Forms, &'a [usize]);

fn locate(c: &mut Criterion) {
    const MANY: u32 = 131_072;
    let mut group = c.benchmark_group("locate");
    group.throughput(Throughput::Elements(u64::from(MANY)));
    let six = ["a", "b", "c", "d", "e", "f"].map(|name| (name, "int4"));
    let uuid = [("id", "uuid"), ("name", "varchar")];
    let text = [("name", "varchar"), ("n", "int4")];
    let cases: [Case<'_>; 7] = [
        ("six int4, raw", &six, Forms::Raw, &[0]),
        ("lineitem, raw", &LINEITEM, Forms::Raw, &[0, 3]),
        ("lineitem, raw, no key", &LINEITEM, Forms::Raw, &[]),
        ("lineitem, value", &LINEITEM, Forms::RawAndValue, &[0, 3]),
        ("six int4, canonical", &six, Forms::RawCanonical, &[0]),
        ("uuid, raw", &uuid, Forms::Raw, &[0]),
        ("varchar key, raw", &text, Forms::Raw, &[0]),
    ];
    for (name, of, forms, key) in cases {
        let types: Vec<&str> = of.iter().map(|(_, of)| *of).collect();
        let rows = many_tuples(&types, MANY);
        let columns = columns_of(of);
        for (size, locate) in [("none", None), ("1000", Some(1000)), ("100000", Some(100_000))] {
            let mut hasher = scanner(&columns, forms, key, locate);
            group.bench_with_input(BenchmarkId::new(size, name), &rows, |b, rows| {
                b.iter(|| hasher.add(rows).expect("is well formed"));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bench, locate);
criterion_main!(benches);
