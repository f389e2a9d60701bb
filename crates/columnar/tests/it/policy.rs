//! Values without a form in the lake: refused, replaced and counted, or kept as text.

use tidemark_columnar::Error;
use tidemark_model::{Unrepresentable, Wire};
use tidemark_testkit::shared;

use crate::catalog::Catalog;
use crate::copy::{binary, decode};
use crate::matrix::{compare, make_table};

/// Type, value without a form, what the message calls it, and a value that has one.
const CASES: &[(&str, &str, &str, &str)] = &[
    ("date", "'infinity'", "infinity", "'2024-01-01'"),
    ("date", "'-infinity'", "-infinity", "'2024-01-01'"),
    ("timestamp", "'infinity'", "infinity", "'2024-01-01'"),
    ("timestamp", "'-infinity'", "-infinity", "'2024-01-01'"),
    (
        "timestamp",
        "'294276-12-31 23:59:59.999999'",
        "a timestamp after the year 294246",
        "'2024-01-01'",
    ),
    ("timestamptz", "'infinity'", "infinity", "'2024-01-01'"),
    (
        "timestamptz",
        "'294276-12-31 23:59:59.999999Z'",
        "a timestamp after the year 294246",
        "'2024-01-01'",
    ),
    ("time", "'24:00:00'", "the time 24:00:00", "'12:00'"),
    ("numeric(15,2)", "'NaN'", "NaN", "1.5"),
    ("numeric(30,2)", "'NaN'", "NaN", "1.5"),
    ("int4[]", "'[0:1]={7,8}'", "an array that does not begin at 1", "'{7,8}'"),
    ("int4[]", "'{{1,2},{3,4}}'", "an array of more than one dimension", "'{1,2}'"),
    ("text[]", "'{{NULL},{NULL}}'", "an array of more than one dimension", "'{NULL}'"),
    ("date[]", "'{infinity}'", "infinity", "'{2024-01-01}'"),
    ("daterange", "'[2024-01-01,infinity)'", "infinity", "'[2024-01-01,)'"),
    ("stamped", "ROW(1, 'infinity')::stamped", "infinity", "ROW(1, '2024-01-01')::stamped"),
];

#[test]
fn values_without_a_form_follow_the_policy() {
    let database = shared().unwrap();
    database.psql("CREATE TYPE stamped AS (a int4, t timestamptz)").unwrap();
    for (index, (type_sql, odd, _, plain)) in CASES.iter().enumerate() {
        make_table(&database, &format!("p{index}"), type_sql, &[*plain, *odd, *plain]);
    }
    let catalog = Catalog::read(&database);
    for (index, (type_sql, _, what, _)) in CASES.iter().enumerate() {
        let table = format!("p{index}");
        let columns = catalog.columns(&database, &table);
        match decode(&database, &table, &columns, Unrepresentable::Error) {
            Err(error @ Error::Unrepresentable { what: told, .. }) => {
                assert_eq!(told, *what, "{type_sql}");
                assert!(error.hint().is_some_and(|hint| hint.contains("unrepresentable")));
                assert!(error.to_string().contains("column \"v\""), "{error}");
            }
            other => panic!("{type_sql}: {other:?}"),
        }
        let (batch, decoder) = decode(&database, &table, &columns, Unrepresentable::Null).unwrap();
        assert_eq!(decoder.replaced(), [("v".to_owned(), 1)], "{type_sql}");
        assert!(batch.column(0).is_valid(0) && batch.column(0).is_valid(2), "{type_sql}");
        compare(&database, &table, &columns[0], Unrepresentable::Text);
    }
}

#[test]
fn a_replaced_value_is_null_at_its_own_place() {
    let database = shared().unwrap();
    make_table(&database, "a", "date", &["'2024-01-01'", "'infinity'", "'1970-01-02'"]);
    let columns = Catalog::read(&database).columns(&database, "a");
    let (batch, _) = decode(&database, "a", &columns, Unrepresentable::Null).unwrap();
    let dates: &arrow_array::Date32Array =
        arrow_array::cast::AsArray::as_primitive(batch.column(0).as_ref());
    assert_eq!(dates.iter().collect::<Vec<_>>(), [Some(19723), None, Some(1), None]);
}

#[test]
fn a_not_null_column_is_nullable_only_where_the_policy_can_make_it_so() {
    let database = shared().unwrap();
    database.psql("CREATE TABLE n (i int4 NOT NULL, d date NOT NULL)").unwrap();
    let columns = Catalog::read(&database).columns(&database, "n");
    for (policy, expected) in [
        (Unrepresentable::Error, [false, false]),
        (Unrepresentable::Null, [false, true]),
        (Unrepresentable::Text, [false, false]),
    ] {
        let program = tidemark_columnar::Program::compile(&columns, policy).unwrap();
        let nullable: Vec<_> =
            program.schema().fields().iter().map(|field| field.is_nullable()).collect();
        assert_eq!(nullable, expected, "{policy:?}");
        let wires: Vec<_> = program.select().iter().map(|column| column.wire).collect();
        let date = if policy == Unrepresentable::Text { Wire::CastToText } else { Wire::Own };
        assert_eq!(wires, [Wire::Own, date]);
    }
}

#[test]
fn text_that_is_not_utf_8_is_refused_by_column() {
    let database = shared().unwrap();
    let name = format!("{}_ascii", database.name());
    let cluster = database.cluster();
    cluster
        .create_database_with(&name, "TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
        .unwrap();
    cluster
        .psql(
            &name,
            "CREATE TABLE s (a int4, v text); INSERT INTO s VALUES (1, 'ok'), (2, E'caf\\xe9')",
        )
        .unwrap();
    // The bytes as that database sends them; the columns are read where `s` has the same definition.
    let output = cluster
        .psql_command(&name)
        .env("PGCLIENTENCODING", "SQL_ASCII")
        .args(["-c", "COPY s TO STDOUT (FORMAT binary)"])
        .output()
        .unwrap();
    let tuples = crate::copy::tuples_of_file(&output.stdout);
    database.psql("CREATE TABLE s (a int4, v text)").unwrap();
    let columns = Catalog::read(&database).columns(&database, "s");
    cluster.drop_database(&name).unwrap();
    let program = tidemark_columnar::Program::compile(&columns, Unrepresentable::Error).unwrap();
    let mut decoder = program.decoder();
    let error = decoder.append(&tuples).and_then(|()| decoder.finish()).unwrap_err();
    assert_eq!(error, Error::NotUtf8 { column: "v".to_owned(), type_name: "text".to_owned() });
    assert_eq!(decoder.finish().unwrap_err(), Error::Failed);
}

#[test]
fn a_null_in_a_column_called_not_null_is_refused() {
    let database = shared().unwrap();
    database.psql("CREATE TABLE nn (v int4 NOT NULL)").unwrap();
    let columns = Catalog::read(&database).columns(&database, "nn");
    let program = tidemark_columnar::Program::compile(&columns, Unrepresentable::Error).unwrap();
    let mut decoder = program.decoder();
    decoder.append(&binary(&database, "SELECT NULL::int4")).unwrap();
    assert!(matches!(decoder.finish(), Err(Error::Malformed { .. })));
}
