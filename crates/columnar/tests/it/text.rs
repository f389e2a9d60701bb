//! Values that come as text end as the same Arrow values as those that come in binary form.

use arrow_array::RecordBatch;
use tidemark_columnar::{Error, Program, map_column};
use tidemark_model::{Column, TupleForm, Tuples, Unrepresentable};
use tidemark_testkit::{Database, shared};

use crate::catalog::Catalog;
use crate::copy::decode;
use crate::matrix::make_table;
use crate::values::{AS_TEXT, OWN, SETUP};

/// The column `v` of a table as the type's output function prints it, under the settings that we pin.
fn printed(database: &Database, table: &str) -> Vec<Option<Vec<u8>>> {
    let mut command = database.cluster().psql_command(database.name());
    let settings = "SET datestyle = 'ISO, MDY'; SET intervalstyle = postgres; SET timezone = 'UTC'; \
        SET bytea_output = hex; SET extra_float_digits = 3;";
    let copy = format!("COPY (SELECT v FROM {table} ORDER BY ctid) TO STDOUT");
    let output = command.args(["-q", "-c", settings, "-c", &copy]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = output.stdout.strip_suffix(b"\n").unwrap();
    lines.split(|byte| *byte == b'\n').map(unescape).collect()
}

fn unescape(line: &[u8]) -> Option<Vec<u8>> {
    if line == b"\\N" {
        return None;
    }
    let mut value = Vec::new();
    let mut bytes = line.iter().copied();
    while let Some(byte) = bytes.next() {
        value.push(match byte {
            b'\\' => match bytes.next().unwrap() {
                b'n' => b'\n',
                b't' => b'\t',
                b'r' => b'\r',
                b'b' => 8,
                b'f' => 12,
                b'v' => 11,
                other => other,
            },
            _ => byte,
        });
    }
    Some(value)
}

/// Decodes printed values of one column.
fn decode_text(
    column: &Column,
    policy: Unrepresentable,
    values: &[Option<Vec<u8>>],
) -> Result<(RecordBatch, Vec<(String, u64)>), Error> {
    let program = Program::compile(std::slice::from_ref(column), policy)?;
    let mapping = &program.mappings()[0];
    let (mut data, mut ends) = (Vec::new(), Vec::new());
    for value in values {
        data.extend(1_i16.to_be_bytes());
        match value {
            None => data.extend((-1_i32).to_be_bytes()),
            Some(text) => {
                let mut binary = Vec::new();
                mapping.recode_text(text, &mut binary)?;
                data.extend(i32::try_from(binary.len()).unwrap().to_be_bytes());
                data.extend(binary);
            }
        }
        ends.push(data.len() as u32);
    }
    let mut decoder = program.decoder();
    decoder.append(&Tuples { form: TupleForm::PgBinary, data: data.into(), ends })?;
    let batch = decoder.finish()?;
    Ok((batch, decoder.replaced()))
}

/// Values whose printed form differs from what a cast to text gives, or has lost bits (`'Infinity' - 'Infinity'` is a NaN
/// with a sign).
const NOT_ALIKE: &[&str] = &["'10.1.2.3'", "'::1'", "<?xml", "'Infinity'::float8 - 'Infinity'"];

#[test]
fn every_type_arrives_the_same_as_text_and_in_binary_form() {
    let database = shared().unwrap();
    database.psql(SETUP).unwrap();
    let all: Vec<_> = OWN.iter().chain(AS_TEXT).collect();
    for (index, (type_sql, values)) in all.iter().enumerate() {
        let alike: Vec<_> = values
            .iter()
            .copied()
            .filter(|value| !NOT_ALIKE.iter().any(|other| value.contains(other)))
            .collect();
        make_table(&database, &format!("t{index}"), type_sql, &alike);
    }
    let catalog = Catalog::read(&database);
    for (index, (type_sql, _)) in all.iter().enumerate() {
        let table = format!("t{index}");
        let column = &catalog.columns(&database, &table)[0];
        let values = printed(&database, &table);
        for policy in [Unrepresentable::Error, Unrepresentable::Null, Unrepresentable::Text] {
            let (expected, _) =
                decode(&database, &table, std::slice::from_ref(column), policy).unwrap();
            let (found, _) = decode_text(column, policy, &values)
                .unwrap_or_else(|error| panic!("{type_sql} {policy:?}: {error}"));
            assert_eq!(found, expected, "{type_sql} {policy:?}");
        }
    }
}

#[test]
fn values_without_a_form_fall_under_the_policy_as_text_too() {
    let database = shared().unwrap();
    let matrix: &[(&str, &[&str])] = &[
        ("date", &["'infinity'", "'-infinity'"]),
        ("timestamp", &["'infinity'", "'-infinity'"]),
        ("timestamptz", &["'infinity'", "'-infinity'"]),
        ("time", &["'24:00'"]),
        ("numeric(5,2)", &["'NaN'"]),
        ("int4[]", &["'{{1,2},{3,4}}'", "'[0:1]={7,8}'", "'[5:5]={7}'", "'{{{1}}}'"]),
        ("text[]", &["'[2:2]={\"a=b\"}'"]),
    ];
    for (index, (type_sql, values)) in matrix.iter().enumerate() {
        make_table(&database, &format!("u{index}"), type_sql, values);
    }
    let catalog = Catalog::read(&database);
    for (index, (type_sql, rows)) in matrix.iter().enumerate() {
        let table = format!("u{index}");
        let column = &catalog.columns(&database, &table)[0];
        let values = printed(&database, &table);
        let (batch, replaced) = decode_text(column, Unrepresentable::Null, &values).unwrap();
        assert_eq!(batch.column(0).null_count(), rows.len() + 1, "{type_sql}");
        assert_eq!(replaced, [("v".to_owned(), rows.len() as u64)], "{type_sql}");
        for value in values.into_iter().flatten() {
            let error = decode_text(column, Unrepresentable::Error, &[Some(value)]).unwrap_err();
            assert!(matches!(error, Error::Unrepresentable { .. }), "{type_sql}: {error}");
        }
    }
}

#[test]
fn text_of_another_type_is_refused_and_names_the_column() {
    let database = shared().unwrap();
    database.psql(SETUP).unwrap();
    let wrong: &[(&str, &[&str])] = &[
        ("bool", &["", "true", "T"]),
        ("int2", &["", "32768", "1.0", " 1"]),
        ("float8", &["", "1,5"]),
        ("numeric", &["", "-", "1e5", ".5", "1.2.3", "0x1"]),
        ("bytea", &["", "\\x0", "\\xzz", "abc"]),
        ("uuid", &["", "a0eebc99", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1122"]),
        ("\"char\"", &["ab", "\\800"]),
        ("int4[]", &["", "{", "{1", "{1,2", "{1}x", "[0:1={1}", "{\"1"]),
        ("pair", &["", "(1)", "(1,2", "(1,2,3)", "(1,2)x"]),
        ("int4range", &["", "[1", "[1,2", "1,2)", "[1,2)x"]),
        ("int4multirange", &["", "{", "{[1,2)", "{[1,2)[3,4)}"]),
    ];
    for (index, (type_sql, _)) in wrong.iter().enumerate() {
        make_table(&database, &format!("w{index}"), type_sql, &[]);
    }
    let catalog = Catalog::read(&database);
    for (index, (type_sql, texts)) in wrong.iter().enumerate() {
        let column = &catalog.columns(&database, &format!("w{index}"))[0];
        let mapping = map_column(column, Unrepresentable::Error);
        for text in *texts {
            let error = mapping.recode_text(text.as_bytes(), &mut Vec::new()).err();
            let error = error.unwrap_or_else(|| panic!("{type_sql}: {text:?} was taken"));
            assert!(error.to_string().contains("\"v\""), "{type_sql} {text:?}: {error}");
        }
    }
}
