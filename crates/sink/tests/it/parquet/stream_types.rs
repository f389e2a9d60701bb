//! Every type comes through the stream as it comes through the snapshot, bit for bit.

use std::fmt::Write as _;

use arrow_array::{Array as _, RecordBatch};
use tidemark_columnar::Program;
use tidemark_model::{Column, TablePlan, Unrepresentable};
use tidemark_sink::parquet::binary_is_safe;
use tidemark_sink::{OpenStream, SnapshotStart, SnapshotSummary, StreamStart};
use tidemark_testkit::{Database, shared};

use super::lake::LocalLake;
use super::pgoutput::{Feed, plan_from};
use super::support::{change_batches, send, stream_start};
use crate::catalog::Catalog;
use crate::conformance::{Target as _, start, summary};
use crate::copy;
use crate::values::{AS_TEXT, OWN, SETUP};

/// Makes an empty lake that stands where the feed does, and opens it.
async fn opened(lake: &LocalLake, feed: &Feed<'_>, plans: &[TablePlan]) -> OpenStream {
    let sink = lake.sink();
    let begun = SnapshotStart { continues: true, lsn: feed.position(), ..start("r1", plans) };
    sink.prepare(&begun).await.unwrap();
    for plan in plans {
        sink.table_loaded(&plan.relation.name).await.unwrap();
    }
    let none: Vec<_> = plans.iter().map(|plan| (plan, 0)).collect();
    let finished = SnapshotSummary { lsn: feed.position(), ..summary(&none) };
    sink.finish(&finished).await.unwrap();
    let start: StreamStart = stream_start("r1", plans);
    sink.open_stream(&start).await.unwrap()
}

/// The rows as a snapshot's decoder makes them of a binary COPY.
fn by_copy(database: &Database, plan: &TablePlan) -> RecordBatch {
    let program = Program::compile(&plan.columns, plan.unrepresentable).unwrap();
    let mut decoder = program.decoder();
    decoder.append(&copy::table(database, &plan.relation.name.name, &program)).unwrap();
    decoder.finish().unwrap()
}

/// All types as columns `c0`, `c1`, .. of one table; a value has a row of its own, NULL in the other columns.
struct Matrix {
    create: String,
    insert: String,
}

impl Matrix {
    /// Of the types that are wanted, without the values that are the same in no form of the stream.
    fn new(is_wanted: impl Fn(&str) -> bool, left_out: &[&str]) -> Self {
        let types: Vec<_> =
            OWN.iter().chain(AS_TEXT).filter(|(type_sql, _)| is_wanted(type_sql)).collect();
        let columns: Vec<_> = (types.iter().enumerate())
            .map(|(index, (type_sql, _))| format!("c{index} {type_sql}"))
            .collect();
        let mut insert = String::new();
        for (index, (_, values)) in types.iter().enumerate() {
            let is_left_out = |value: &str| left_out.iter().any(|other| value.contains(other));
            for value in values.iter().filter(|value| !is_left_out(value)) {
                writeln!(insert, "INSERT INTO t (c{index}) VALUES ({value});").unwrap();
            }
        }
        Self { create: format!("CREATE TABLE t ({})", columns.join(", ")), insert }
    }
}

/// Sends all values through a stream and compares what comes out with what a snapshot reads.
async fn compare(matrix: Matrix, is_binary: bool, policy: Unrepresentable) {
    let database = shared().unwrap();
    database.psql(SETUP).unwrap();
    database.psql(&matrix.create).unwrap();
    let mut plan = plan_from(&database, &Catalog::read(&database), "t");
    plan.unrepresentable = policy;
    let plans = [plan];
    assert!(!is_binary || binary_is_safe(&plans));
    let mut feed = Feed::new(&database, is_binary);
    let lake = LocalLake::new();
    let mut opened = opened(&lake, &feed, &plans).await;
    database.psql(&matrix.insert).unwrap();
    send(&mut opened.writer, feed.drain()).await.unwrap();
    opened.writer.close().await.unwrap();
    let files = lake.files();
    let changes = change_batches(&files, &plans[0]);
    let rows = by_copy(&database, &plans[0]);
    assert_eq!(changes.iter().map(RecordBatch::num_rows).sum::<usize>(), rows.num_rows());
    for (column, theirs) in plans[0].columns.iter().zip(rows.columns()) {
        let mut at = 0;
        for batch in &changes {
            let mine = batch.column_by_name(&column.name).unwrap();
            let theirs = theirs.slice(at, mine.len());
            assert_eq!(mine.data_type(), theirs.data_type(), "{}", column.type_name);
            assert!(
                mine.as_ref() == theirs.as_ref(),
                "{}, binary: {is_binary}, {policy:?}: {mine:?} {theirs:?}",
                column.type_name
            );
            at += mine.len();
        }
    }
}

/// The types that have no binary form that a lake can take.
const TEXT_ONLY: &[&str] = &[
    "timetz", "money", "inet", "cidr", "macaddr", "macaddr8", "bit(3)", "varbit", "tsvector",
    "tsquery", "pg_lsn", "xid8", "tid", "regclass", "point", "box", "circle", "polygon", "hstore",
    "odd", "point[]", "inet[]", "nothing",
];

/// The declaration of an XML document is in no form of the stream; a NaN with a sign has no text.
const NO_DECLARATION: &str = "<?xml";
const SIGNED_NAN: &str = "'Infinity'::float8 -";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn binary_values_of_the_stream_are_those_of_the_snapshot() {
    let matrix = Matrix::new(|type_sql| !TEXT_ONLY.contains(&type_sql), &[NO_DECLARATION]);
    compare(matrix, true, Unrepresentable::Error).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_values_of_the_stream_are_those_of_the_snapshot() {
    let matrix = Matrix::new(|_| true, &[NO_DECLARATION, SIGNED_NAN]);
    compare(matrix, false, Unrepresentable::Error).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_that_are_text_by_policy_are_the_same_too() {
    let matrix = Matrix::new(|_| true, &[NO_DECLARATION, SIGNED_NAN]);
    compare(matrix, false, Unrepresentable::Text).await;
}

#[tokio::test]
async fn which_types_can_come_in_binary_form_is_said_before() {
    let database = shared().unwrap();
    database.psql(SETUP).unwrap();
    let matrix = Matrix::new(|_| true, &[]);
    database.psql(&matrix.create).unwrap();
    database.psql("CREATE TABLE other (v aclitem[])").unwrap();
    let catalog = Catalog::read(&database);
    let plan = plan_from(&database, &catalog, "t");
    let of_column = |column: &Column, policy| {
        let mut plan = plan.clone();
        plan.columns = vec![column.clone()];
        plan.relation.columns.clone_from(&plan.columns);
        plan.unrepresentable = policy;
        binary_is_safe(&[plan])
    };
    let types = OWN.iter().chain(AS_TEXT).map(|(type_sql, _)| *type_sql);
    let refused: Vec<_> = types
        .zip(&plan.columns)
        .filter(|(_, column)| !of_column(column, Unrepresentable::Error))
        .map(|(type_sql, _)| type_sql)
        .collect();
    assert_eq!(refused, TEXT_ONLY);
    let date = plan.columns.iter().find(|column| column.type_name == "date").unwrap();
    assert!(of_column(date, Unrepresentable::Null));
    assert!(!of_column(date, Unrepresentable::Text), "it is cast to text in the snapshot");

    let mut left_out = plan_from(&database, &catalog, "other");
    left_out.columns.clear();
    assert!(!binary_is_safe(&[left_out]), "the server cannot send the column, wanted or not");
}
