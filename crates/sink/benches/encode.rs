//! Record batches to Parquet row groups, on TPC-H `lineitem` by family of columns and as a whole.
//!
//! `lineitem/chosen` is what the sink does; `lineitem/dictionary` (the library's default) and `lineitem/plain` are there to
//! compare with. Bytes per second are of the Arrow side; the size in the file is printed once for each.

use std::hint::black_box;
use std::sync::Arc;

use arrow_array::{
    ArrayRef, Date32Array, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringArray,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidemark_sink::parquet::{ColumnChoice, Compression, Layout, ROW_GROUP_ROWS, SAMPLE_ROWS};
use tpchgen::generators::{LineItem, LineItemGenerator};

const ZSTD: Compression = Compression::Zstd { level: 1 };

/// Columns that are encoded alike.
const FAMILIES: [(&str, &[&str]); 5] = [
    ("integers", &["l_orderkey", "l_partkey", "l_suppkey", "l_linenumber"]),
    ("decimals", &["l_quantity", "l_extendedprice", "l_discount", "l_tax"]),
    ("dates", &["l_shipdate", "l_commitdate", "l_receiptdate"]),
    ("codes", &["l_returnflag", "l_linestatus", "l_shipinstruct", "l_shipmode"]),
    ("text", &["l_comment"]),
];

fn lineitem(rows: usize) -> RecordBatch {
    let items: Vec<LineItem<'_>> = LineItemGenerator::new(0.1, 1, 1).iter().take(rows).collect();
    let long = |of: fn(&LineItem<'_>) -> i64| {
        Arc::new(items.iter().map(of).collect::<Int64Array>()) as ArrayRef
    };
    let int = |of: fn(&LineItem<'_>) -> i32| {
        Arc::new(items.iter().map(of).collect::<Int32Array>()) as ArrayRef
    };
    let date = |of: fn(&LineItem<'_>) -> i32| {
        Arc::new(Date32Array::from_iter_values(items.iter().map(of))) as ArrayRef
    };
    let decimal = |of: fn(&LineItem<'_>) -> i64| {
        let values = items.iter().map(|item| i128::from(of(item))).collect::<Decimal128Array>();
        Arc::new(values.with_precision_and_scale(15, 2).expect("15 digits fit")) as ArrayRef
    };
    let text = |of: fn(&LineItem<'_>) -> String| {
        Arc::new(items.iter().map(|item| Some(of(item))).collect::<StringArray>()) as ArrayRef
    };
    let columns = [
        ("l_orderkey", long(|i| i.l_orderkey)),
        ("l_partkey", int(|i| i.l_partkey as i32)),
        ("l_suppkey", int(|i| i.l_suppkey as i32)),
        ("l_linenumber", int(|i| i.l_linenumber)),
        ("l_quantity", decimal(|i| i.l_quantity * 100)),
        ("l_extendedprice", decimal(|i| i.l_extendedprice.into_inner())),
        ("l_discount", decimal(|i| i.l_discount.into_inner())),
        ("l_tax", decimal(|i| i.l_tax.into_inner())),
        ("l_returnflag", text(|i| i.l_returnflag.to_string())),
        ("l_linestatus", text(|i| i.l_linestatus.to_string())),
        ("l_shipdate", date(|i| i.l_shipdate.to_unix_epoch())),
        ("l_commitdate", date(|i| i.l_commitdate.to_unix_epoch())),
        ("l_receiptdate", date(|i| i.l_receiptdate.to_unix_epoch())),
        ("l_shipinstruct", text(|i| i.l_shipinstruct.to_string())),
        ("l_shipmode", text(|i| i.l_shipmode.to_string())),
        ("l_comment", text(|i| i.l_comment.to_string())),
    ];
    RecordBatch::try_from_iter(columns).expect("columns of one length")
}

fn encode(layout: &Layout, rows: &RecordBatch) -> u64 {
    let mut encoder = layout.row_group().expect("a schema that Parquet has");
    let mut start = 0;
    while start < rows.num_rows() {
        let count = SAMPLE_ROWS.min(rows.num_rows() - start);
        encoder.write(&rows.slice(start, count)).expect("rows of this schema");
        start += count;
    }
    encoder.finish().expect("compression works").bytes
}

fn bench_one(criterion: &mut Criterion, name: &str, layout: &Layout, rows: &RecordBatch) {
    let size = encode(layout, rows) as f64 / rows.num_rows() as f64;
    eprint_size(name, size, layout);
    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::ElementsAndBytes {
        elements: rows.num_rows() as u64,
        bytes: rows.get_array_memory_size() as u64,
    });
    group.sample_size(10);
    group.bench_function(name, |bencher| bencher.iter(|| black_box(encode(layout, rows))));
    group.finish();
}

#[expect(clippy::print_stderr, reason = "a bench reports to people")]
fn eprint_size(name: &str, bytes_per_row: f64, layout: &Layout) {
    let choices: String = layout
        .choices()
        .iter()
        .map(|choice| match (choice.has_dictionary, choice.is_compressed) {
            (true, true) => 'D',
            (true, false) => 'd',
            (false, true) => 'P',
            (false, false) => 'p',
        })
        .collect();
    eprintln!("{name}: {bytes_per_row:.2} bytes per row in the file; {choices}");
}

fn benches(criterion: &mut Criterion) {
    let rows = lineitem(ROW_GROUP_ROWS);
    let sampled =
        |rows: &RecordBatch| Layout::sampled(&rows.schema(), ZSTD, rows).expect("a layout");
    bench_one(criterion, "lineitem/chosen", &sampled(&rows), &rows);
    for (name, has_dictionary) in [("lineitem/dictionary", true), ("lineitem/plain", false)] {
        let choice = ColumnChoice { has_dictionary, is_compressed: true };
        let layout = Layout::uniform(&rows.schema(), ZSTD, choice).expect("a layout");
        bench_one(criterion, name, &layout, &rows);
    }
    for (family, names) in FAMILIES {
        let indices: Vec<_> = names
            .iter()
            .map(|name| rows.schema().index_of(name).expect("a column of lineitem"))
            .collect();
        let columns = rows.project(&indices).expect("columns of lineitem");
        bench_one(criterion, family, &sampled(&columns), &columns);
    }
    criterion.bench_function("encode/choose", |bencher| bencher.iter(|| black_box(sampled(&rows))));
}

criterion_group!(encode_benches, benches);
criterion_main!(encode_benches);
