//! Keys out of changes written by hand.

use std::sync::Arc;

use tidemark_model::{OldRow, RelationName, StreamColumn};

use super::*;

const UNCHANGED: Option<&[u8]> = None;

fn tuple(cells: &[Option<&[u8]>]) -> TupleData {
    let mut bytes = BytesMut::new();
    bytes.extend_from_slice(&(cells.len() as u16).to_be_bytes());
    for cell in cells {
        match cell {
            None => bytes.extend_from_slice(b"u"),
            Some(value) => {
                bytes.extend_from_slice(b"t");
                bytes.extend_from_slice(&(value.len() as u32).to_be_bytes());
                bytes.extend_from_slice(value);
            }
        }
    }
    TupleData::split_from(&mut bytes.freeze()).unwrap()
}

fn relation(columns: &[(&str, bool)]) -> Arc<StreamRelation> {
    let column = |&(name, is_identity): &(&str, bool)| StreamColumn {
        name: name.to_owned(),
        type_oid: 25,
        typmod: -1,
        is_identity,
    };
    let columns = columns.iter().map(column).collect();
    let name = RelationName::new("public", "t");
    Arc::new(StreamRelation { oid: 7, name, replica_identity: 'd', columns })
}

fn change(operation: Operation) -> Change {
    Change { relation: relation(&[("v", false), ("k", true)]), operation }
}

fn table() -> Table {
    Table {
        columns: vec![("v".to_owned(), 25), ("k".to_owned(), 25)],
        names: vec!["k".to_owned()],
        key: vec![1],
        form: None,
        keys: HashSet::new(),
        because: None,
    }
}

fn keys(table: &Table) -> Vec<String> {
    let text = |key: &[u8]| String::from_utf8(key.to_vec()).unwrap();
    let mut keys: Vec<_> = table.keys.iter().map(|key| text(key)).collect();
    keys.sort();
    keys
}

#[test]
fn every_key_of_every_kind_of_change_is_there_once() {
    let mut table = table();
    let row = |key: &'static str| tuple(&[Some(b"x"), Some(key.as_bytes())]);
    table.add(&change(Operation::Insert { new: row("a") })).unwrap();
    table.add(&change(Operation::Insert { new: row("a") })).unwrap();
    table.add(&change(Operation::Update { old: None, new: row("b") })).unwrap();
    let old = Some(OldRow::Key(row("c")));
    table.add(&change(Operation::Update { old, new: row("d") })).unwrap();
    table.add(&change(Operation::Delete { old: OldRow::Full(row("e\t\\")) })).unwrap();
    assert_eq!(keys(&table), ["a\n", "b\n", "c\n", "d\n", "e\\t\\\\\n"]);
    let (number, keys) = table.finish().unwrap();
    assert_eq!((number, keys.form), (5, TupleForm::PgText));
}

#[test]
fn a_key_that_an_update_left_outside_the_row_is_that_of_the_old_row() {
    let mut table = table();
    let new = tuple(&[Some(b"x"), UNCHANGED]);
    let old = Some(OldRow::Key(tuple(&[Some(b""), Some(b"long")])));
    table.add(&change(Operation::Update { old, new: new.clone() })).unwrap();
    assert_eq!(keys(&table), ["long\n"]);
    table.add(&change(Operation::Update { old: None, new })).unwrap_err();
}

#[test]
fn a_table_that_was_described_in_another_way_is_given_up() {
    let row = || tuple(&[Some(b"x"), Some(b"y")]);
    for columns in
        [[("k", true), ("v", true)], [("w", false), ("k", true)], [("v", true), ("k", false)]]
    {
        let other =
            Change { relation: relation(&columns), operation: Operation::Insert { new: row() } };
        table().add(&other).unwrap_err();
    }
}

#[test]
fn a_truncate_of_several_tables_gives_each_of_them_up() {
    let tables = HashMap::from([(7, table()), (9, table())]);
    let mut gathering = Gathering { relations: Relations::new(), tables, bytes: 0 };
    // Two tables, no flags.
    let message =
        [&b"T"[..], &2_u32.to_be_bytes(), &[0], &8_u32.to_be_bytes(), &9_u32.to_be_bytes()];
    gathering.take(&Bytes::from(message.concat())).unwrap();
    assert!(gathering.tables[&9].because.is_some() && gathering.tables[&7].because.is_none());
}

#[test]
fn a_stream_is_waited_for_that_is_not_further_behind_than_the_tables_are_large() {
    let (large, from) = (4 * WORTH_WAITING, Lsn::new(1 << 40));
    let behind = |bytes: u64| Lsn::new((1 << 40) + bytes);
    assert!(is_worth_waiting(large, from, behind(large)));
    assert!(!is_worth_waiting(large, from, behind(large + 1)));
    assert!(is_worth_waiting(0, from, behind(WORTH_WAITING)));
    assert!(!is_worth_waiting(0, from, behind(WORTH_WAITING + 1)));
    assert!(is_worth_waiting(0, behind(1), from));
}
