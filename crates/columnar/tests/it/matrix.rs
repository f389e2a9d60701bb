//! Every type with its extremes: what is decoded is what PostgreSQL holds.

use serde_json::Value;
use tidemark_columnar::{Program, map_column};
use tidemark_model::{Column, DataType, Unrepresentable, Wire};
use tidemark_testkit::{Database, shared};

use crate::catalog::Catalog;
use crate::copy::decode;
use crate::render::expression;
use crate::values::{AS_TEXT, OWN, SETUP};

/// Makes a table of one column `v` with these values and a NULL at the end.
pub(crate) fn make_table(database: &Database, name: &str, type_sql: &str, values: &[&str]) {
    let rows: String =
        values.iter().map(|value| format!("INSERT INTO {name} VALUES ({value});")).collect();
    database
        .psql(&format!(
            "CREATE TABLE {name} (v {type_sql}); {rows} INSERT INTO {name} VALUES (NULL);"
        ))
        .unwrap_or_else(|error| panic!("{type_sql}: {error:#}"));
}

fn texts(database: &Database, sql: &str) -> Vec<Value> {
    match serde_json::from_str(&database.psql(sql).unwrap()).unwrap() {
        Value::Array(texts) => texts,
        other => panic!("not an array: {other}"),
    }
}

/// Decodes the column `v` of a table and has PostgreSQL compare it.
pub(crate) fn compare(database: &Database, table: &str, column: &Column, policy: Unrepresentable) {
    let (batch, decoder) = decode(database, table, std::slice::from_ref(column), policy).unwrap();
    assert_eq!(decoder.replaced(), [], "{}", column.type_name);
    let text = DataType::builtin(25, "text");
    let mapping = map_column(column, policy);
    let data_type = if mapping.wire() == Wire::Own { &column.data_type } else { &text };
    let array = batch.column(0);
    let rows: Vec<_> = (0..array.len())
        .map(|row| format!("({row}, ({})::text)", expression(array, row, data_type)))
        .collect();
    let ours =
        format!("SELECT json_agg(x ORDER BY i) FROM (VALUES {}) AS rows (i, x)", rows.join(", "));
    let theirs = format!("SELECT json_agg(v::text ORDER BY ctid) FROM {table}");
    assert_eq!(texts(database, &ours), texts(database, &theirs), "{}", column.type_name);
}

fn run_matrix(database: &Database, wire: Wire, matrix: &[(&str, &[&str])]) {
    for (index, (type_sql, values)) in matrix.iter().enumerate() {
        make_table(database, &format!("t{index}"), type_sql, values);
    }
    let catalog = Catalog::read(database);
    for (index, (type_sql, _)) in matrix.iter().enumerate() {
        let table = format!("t{index}");
        let columns = catalog.columns(database, &table);
        assert_eq!(map_column(&columns[0], Unrepresentable::Error).wire(), wire, "{type_sql}");
        for policy in [Unrepresentable::Error, Unrepresentable::Null, Unrepresentable::Text] {
            compare(database, &table, &columns[0], policy);
        }
    }
}

#[test]
fn types_with_their_own_form_arrive_exactly() {
    let database = shared().unwrap();
    database.psql(SETUP).unwrap();
    run_matrix(&database, Wire::Own, OWN);
}

#[test]
fn types_without_a_form_arrive_as_postgres_prints_them() {
    let database = shared().unwrap();
    database.psql(SETUP).unwrap();
    run_matrix(&database, Wire::CastToText, AS_TEXT);
}

#[test]
fn a_table_without_columns_keeps_its_rows() {
    let database = shared().unwrap();
    database
        .psql("CREATE TABLE z (); INSERT INTO z DEFAULT VALUES; INSERT INTO z DEFAULT VALUES;")
        .unwrap();
    let (batch, _) = decode(&database, "z", &[], Unrepresentable::Error).unwrap();
    assert_eq!((batch.num_rows(), batch.num_columns()), (2, 0));
}

#[test]
fn sixteen_hundred_columns_arrive_in_order() {
    let database = shared().unwrap();
    let columns: Vec<_> = (0..1600).map(|i| format!("c{i} int2")).collect();
    database
        .psql(&format!(
            "CREATE TABLE wide ({});
             SELECT format('INSERT INTO wide SELECT %s FROM generate_series(1, 200) AS s (n)',
                 string_agg('(n + ' || i || ')::int2', ', ' ORDER BY i))
             FROM generate_series(0, 1599) AS i \\gexec",
            columns.join(", ")
        ))
        .unwrap();
    let columns = Catalog::read(&database).columns(&database, "wide");
    let (batch, _) = decode(&database, "wide", &columns, Unrepresentable::Error).unwrap();
    assert_eq!((batch.num_rows(), batch.num_columns()), (200, 1600));
    for (index, column) in batch.columns().iter().enumerate() {
        let values: &arrow_array::Int16Array =
            arrow_array::cast::AsArray::as_primitive(column.as_ref());
        let expected: Vec<i16> = (1..=200).map(|row| row + index as i16).collect();
        assert_eq!(values.values().as_ref(), expected, "column {index}");
    }
}

#[test]
fn dropped_columns_and_several_batches_do_not_shift_anything() {
    let database = shared().unwrap();
    database
        .psql(
            "CREATE TABLE d (a int4, gone text, b text NOT NULL, n numeric(8,3));
             INSERT INTO d SELECT i, 'x', 'row ' || i, nullif(i % 7, 0) FROM generate_series(1, 5000) AS i;
             ALTER TABLE d DROP COLUMN gone;",
        )
        .unwrap();
    let columns = Catalog::read(&database).columns(&database, "d");
    let program = Program::compile(&columns, Unrepresentable::Error).unwrap();
    let tuples = crate::copy::table(&database, "d", &program);
    let mut decoder = program.decoder();
    for round in 1..=3 {
        decoder.append(&tuples).unwrap();
        decoder.append(&tuples).unwrap();
        assert_eq!(decoder.row_count(), 10_000);
        assert!(decoder.bytes() > 10_000 * 20);
        let batch = decoder.finish().unwrap();
        assert_eq!((decoder.row_count(), batch.num_rows()), (0, 10_000), "round {round}");
        let text = arrow_array::cast::AsArray::as_string::<i32>(batch.column(1));
        assert_eq!((text.value(4999), text.value(5000)), ("row 5000", "row 1"));
        assert_eq!(batch.column(2).null_count(), 2 * 714);
        assert!(batch.column(2).is_null(6) && batch.column(2).is_valid(7));
    }
}
