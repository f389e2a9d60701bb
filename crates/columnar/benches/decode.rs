//! How fast COPY BINARY rows become Arrow columns, by type family and for TPC-H's `lineitem`.
//!
//! The rows are made here from a fixed seed, in the form that PostgreSQL's send functions write.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidemark_columnar::Program;
use tidemark_model::{
    Column, DataType, Generated, Identity, TupleForm, Tuples, TypeKind, Unrepresentable,
};

const ROWS: usize = 8192;
/// The typmod of numeric(15,2).
const NUMERIC_15_2: i32 = ((15 << 16) | 2) + 4;

/// A small generator: the same rows on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn column(name: &str, data_type: DataType, typmod: i32) -> Column {
    Column {
        attnum: 1,
        name: name.to_owned(),
        type_name: data_type.name.clone(),
        data_type,
        typmod,
        is_nullable: true,
        generated: Generated::No,
        identity: Identity::No,
        has_default: false,
        key_position: None,
        collation: None,
    }
}

fn builtin(type_name: &str, typmod: i32) -> Column {
    column(type_name, DataType::builtin(0, type_name), typmod)
}

/// Rows being written.
#[derive(Default)]
struct Rows {
    data: Vec<u8>,
    ends: Vec<u32>,
}

impl Rows {
    fn begin(&mut self, columns: i16) {
        self.data.extend(columns.to_be_bytes());
    }

    fn field(&mut self, bytes: &[u8]) {
        self.data.extend((bytes.len() as i32).to_be_bytes());
        self.data.extend(bytes);
    }

    fn null(&mut self) {
        self.data.extend((-1i32).to_be_bytes());
    }

    fn end(&mut self) {
        self.ends.push(self.data.len() as u32);
    }

    fn tuples(self) -> Tuples {
        Tuples { form: TupleForm::PgBinary, data: self.data.into(), ends: self.ends }
    }
}

/// A numeric of two decimal places.
fn numeric(cents: u64) -> Vec<u8> {
    let mut digits = vec![(cents % 100 * 100) as u16];
    let mut whole = cents / 100;
    while whole > 0 {
        digits.push((whole % 10_000) as u16);
        whole /= 10_000;
    }
    let weight = digits.len() as i16 - 2;
    digits.reverse();
    while digits.last() == Some(&0) {
        digits.pop();
    }
    let words = [digits.len() as u16, weight as u16, 0, 2];
    words.iter().chain(&digits).flat_map(|word| word.to_be_bytes()).collect()
}

fn words(random: &mut Random, len: usize) -> Vec<u8> {
    const WORDS: &[u8] = b"carefully final deposits sleep furiously across the ironic requests. ";
    let from = random.below(WORDS.len() as u64) as usize;
    WORDS.iter().cycle().skip(from).take(len).copied().collect()
}

fn lineitem() -> (Vec<Column>, Tuples) {
    let mut columns = Vec::new();
    for (type_name, typmod, count) in [
        ("int4", -1, 4),
        ("numeric", NUMERIC_15_2, 4),
        ("bpchar", 5, 2),
        ("date", -1, 3),
        ("bpchar", 29, 1),
        ("bpchar", 14, 1),
        ("varchar", 48, 1),
    ] {
        for _ in 0..count {
            let mut column = builtin(type_name, typmod);
            column.name = format!("c{}", columns.len());
            columns.push(column);
        }
    }
    let instructions = ["DELIVER IN PERSON", "COLLECT COD", "NONE", "TAKE BACK RETURN"];
    let modes = ["REG AIR", "AIR", "RAIL", "SHIP", "TRUCK", "MAIL", "FOB"];
    let mut random = Random(42);
    let mut rows = Rows::default();
    for _ in 0..ROWS {
        rows.begin(16);
        for limit in [6_000_000, 200_000, 10_000, 7] {
            rows.field(&(random.below(limit) as i32).to_be_bytes());
        }
        rows.field(&numeric((random.below(50) + 1) * 100));
        rows.field(&numeric(random.below(10_000_000) + 90_000));
        rows.field(&numeric(random.below(11)));
        rows.field(&numeric(random.below(9)));
        rows.field(&[b"ANR"[random.below(3) as usize]]);
        rows.field(&[b"FO"[random.below(2) as usize]]);
        for _ in 0..3 {
            rows.field(&(random.below(2500) as i32 - 2900).to_be_bytes());
        }
        rows.field(format!("{:25}", instructions[random.below(4) as usize]).as_bytes());
        rows.field(format!("{:10}", modes[random.below(7) as usize]).as_bytes());
        let len = 10 + random.below(34) as usize;
        rows.field(&words(&mut random, len));
        rows.end();
    }
    (columns, rows.tuples())
}

/// Four columns of one type.
fn family(
    column: &Column,
    nulls: f64,
    value: impl Fn(&mut Random) -> Vec<u8>,
) -> (Vec<Column>, Tuples) {
    let mut random = Random(7);
    let mut rows = Rows::default();
    for _ in 0..ROWS {
        rows.begin(4);
        for _ in 0..4 {
            if (random.below(1000) as f64) < nulls * 1000.0 {
                rows.null();
            } else {
                rows.field(&value(&mut random));
            }
        }
        rows.end();
    }
    (vec![column.clone(); 4], rows.tuples())
}

fn int4_array(random: &mut Random) -> Vec<u8> {
    let count = random.below(8) as i32;
    let header = if count == 0 { vec![0, 0, 23] } else { vec![1, 0, 23, count, 1] };
    let elements = (0..count).flat_map(|element| [4, element]);
    header.into_iter().chain(elements).flat_map(i32::to_be_bytes).collect()
}

fn run(c: &mut Criterion, id: &str, (columns, tuples): (Vec<Column>, Tuples)) {
    let program = Program::compile(&columns, Unrepresentable::Error).expect("few columns");
    let mut decoder = program.decoder();
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::ElementsAndBytes {
        elements: tuples.row_count() as u64,
        bytes: tuples.data.len() as u64,
    });
    group.bench_function(id, |b| {
        b.iter(|| {
            decoder.append(black_box(&tuples)).expect("well-formed rows");
            black_box(decoder.finish().expect("well-formed rows"))
        });
    });
    group.finish();
}

/// Every benchmark: its id, the columns and the rows.
fn cases() -> Vec<(String, (Vec<Column>, Tuples))> {
    let mut cases = vec![("lineitem".to_owned(), lineitem())];
    let array = DataType {
        kind: TypeKind::Array(Box::new(DataType::builtin(23, "int4"))),
        ..DataType::builtin(1007, "_int4")
    };
    let text = |r: &mut Random| {
        let len = r.below(60) as usize;
        words(r, len)
    };
    let uuid =
        |r: &mut Random| [r.below(u64::MAX), r.below(u64::MAX)].map(u64::to_be_bytes).concat();
    let four = |r: &mut Random| (r.below(20_000) as i32).to_be_bytes().to_vec();
    let eight = |r: &mut Random| (r.below(1 << 50) as i64).to_be_bytes().to_vec();
    let decimal = |r: &mut Random| numeric(r.below(1 << 40));
    for nulls in [0.0, 0.1] {
        let mut add = |name: &str, rows| {
            cases.push((format!("{name}/rows={ROWS}/nulls={nulls:.1}"), rows));
        };
        add("int", family(&builtin("int4", -1), nulls, four));
        add("date", family(&builtin("date", -1), nulls, four));
        add("timestamp", family(&builtin("timestamp", -1), nulls, eight));
        add("numeric", family(&builtin("numeric", NUMERIC_15_2), nulls, decimal));
        add("numeric_text", family(&builtin("numeric", -1), nulls, decimal));
        add("text", family(&builtin("text", -1), nulls, text));
        add("uuid", family(&builtin("uuid", -1), nulls, uuid));
        add("array", family(&column("array", array.clone(), -1), nulls, int4_array));
    }
    cases
}

fn decode(c: &mut Criterion) {
    for (id, rows) in cases() {
        run(c, &id, rows);
    }
}

criterion_group!(benches, decode);
criterion_main!(benches);
