//! Bodies written by hand after the manual's section 55.9.

use tidemark_model::Cell;

use super::*;

fn relation(oid: Oid, columns: &[&str]) -> StreamRelation {
    let column = |(index, name): (usize, &&str)| StreamColumn {
        name: (*name).to_owned(),
        type_oid: 23,
        typmod: -1,
        is_identity: index == 0,
    };
    StreamRelation {
        oid,
        name: RelationName::new("public", format!("t{oid}")),
        replica_identity: 'd',
        columns: columns.iter().enumerate().map(column).collect(),
    }
}

/// Relations 1 (one column) and 2 (two columns).
fn known() -> Relations {
    let mut relations = Relations::new();
    for description in [relation(1, &["a"]), relation(2, &["a", "b"])] {
        let found = relations.decode(RowKind::Relation, encode_relation(&description)).unwrap();
        assert_eq!(found, Decoded::Relation(Arc::new(description)));
    }
    relations
}

fn decode(relations: &mut Relations, kind: RowKind, body: &[u8]) -> Result<Decoded, Malformed> {
    relations.decode(kind, Bytes::copy_from_slice(body))
}

fn change(relations: &mut Relations, kind: RowKind, body: &[u8]) -> Change {
    match decode(relations, kind, body).unwrap() {
        Decoded::Change(change) => change,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_description_that_did_not_change_is_nothing_and_keeps_its_place() {
    let mut relations = known();
    let before = Arc::clone(relations.get(2).unwrap());
    let again = relations.decode(RowKind::Relation, encode_relation(&before)).unwrap();
    assert_eq!(again, Decoded::Nothing);
    assert!(Arc::ptr_eq(&before, relations.get(2).unwrap()));
    let mut renamed = (*before).clone();
    renamed.columns[1].name = "c".into();
    let changed = relations.decode(RowKind::Relation, encode_relation(&renamed)).unwrap();
    assert_eq!(changed, Decoded::Relation(Arc::new(renamed)));
}

#[test]
fn a_change_after_a_new_description_has_the_new_one() {
    let mut relations = known();
    let insert = b"\0\0\0\x01N\0\x01n";
    assert_eq!(change(&mut relations, RowKind::Insert, insert).relation.columns.len(), 1);
    let wider = relation(1, &["a", "b"]);
    relations.decode(RowKind::Relation, encode_relation(&wider)).unwrap();
    assert!(decode(&mut relations, RowKind::Insert, insert).is_err());
    let new = change(&mut relations, RowKind::Insert, b"\0\0\0\x01N\0\x02nn");
    assert_eq!(*new.relation, wider);
}

#[test]
fn an_empty_schema_is_pg_catalog() {
    let mut relations = Relations::new();
    decode(&mut relations, RowKind::Relation, b"\0\0\0\x09\0t\0d\0\0").unwrap();
    assert_eq!(relations.get(9).unwrap().name, RelationName::new("pg_catalog", "t"));
}

#[test]
fn updates_have_the_old_row_that_was_sent() {
    let mut relations = known();
    let update = RowKind::Update;
    let plain = change(&mut relations, update, b"\0\0\0\x02N\0\x02t\0\0\0\x011u");
    let Operation::Update { old: None, new } = plain.operation else { panic!() };
    assert_eq!(new.cells().collect::<Vec<_>>(), [Cell::Text(b"1"), Cell::Unchanged]);
    let key = change(&mut relations, update, b"\0\0\0\x02K\0\x02t\0\0\0\x010nN\0\x02nn");
    let Operation::Update { old: Some(OldRow::Key(old)), .. } = key.operation else { panic!() };
    assert_eq!(old.cells().collect::<Vec<_>>(), [Cell::Text(b"0"), Cell::Null]);
    let full = change(&mut relations, update, b"\0\0\0\x02O\0\x02nnN\0\x02nn");
    assert!(matches!(full.operation, Operation::Update { old: Some(OldRow::Full(_)), .. }));
    let delete = change(&mut relations, RowKind::Delete, b"\0\0\0\x01K\0\x01n");
    assert!(matches!(delete.operation, Operation::Delete { old: OldRow::Key(_) }));
}

#[test]
fn a_truncate_of_several_relations_is_one_change() {
    let mut relations = known();
    let body = b"\0\0\0\x02\x03\0\0\0\x02\0\0\0\x01";
    let found = change(&mut relations, RowKind::Truncate, body);
    assert_eq!(found.relation.oid, 2);
    let Operation::Truncate { with, cascade, restart_identity } = found.operation else { panic!() };
    assert_eq!((with.len(), with[0].oid, cascade, restart_identity), (1, 1, true, true));
}

#[test]
fn what_does_not_fit_is_refused_with_the_relation_and_without_values() {
    let mut relations = known();
    for (kind, body, expected) in [
        (RowKind::Insert, &b"\0\0\0\x09N\0\x01n"[..], "relation 9 was never described"),
        (RowKind::Insert, b"\0\0\0\x02N\0\x01t\0\0\0\x06secret", "\"public\".\"t2\""),
        (RowKind::Insert, b"\0\0\0\x02N\0\x02t\0\0\0\x06secretn!", "\"public\".\"t2\""),
        (RowKind::Insert, b"\0\0\0\x01N\0\x01t\0\0\x01\0secret", "\"public\".\"t1\""),
        (RowKind::Insert, b"\0\0\0\x01K\0\x01n", "no new row"),
        (RowKind::Update, b"\0\0\0\x01K\0\x01nK\0\x01n", "no new row"),
        (RowKind::Update, b"\0\0\0\x02K\0\x01nN\0\x02nn", "\"public\".\"t2\""),
        (RowKind::Delete, b"\0\0\0\x01N\0\x01n", "no old row"),
        (RowKind::Delete, b"\0\0\0\x01", "ends too soon"),
        (RowKind::Truncate, b"\0\0\0\0\0", "no relation"),
        (RowKind::Truncate, b"\xff\xff\xff\xff\0", "number of relations"),
        (RowKind::Truncate, b"\x40\0\0\x01\0\0\0\0\x01", "number of relations"),
        (RowKind::Truncate, b"\0\0\0\x01\x04\0\0\0\x01", "flags"),
        (RowKind::Relation, b"\0\0\0\x01public\0t", "without an end"),
        (RowKind::Relation, b"\0\0\0\x01public\0\xff\0d\0\0", "UTF-8"),
        (RowKind::Relation, b"\0\0\0\x01public\0t\0x\0\0", "replica identity"),
        (RowKind::Relation, b"\0\0\0\x01public\0t\0d\xff\xff", "ends too soon"),
        (RowKind::Type, b"\0\0\0\x01public\0t\0!", "after its end"),
    ] {
        let text = decode(&mut relations, kind, body).unwrap_err().to_string();
        assert!(text.contains(expected), "{kind:?}: {text}");
        assert!(!text.contains("secret"), "{text}");
    }
    // A refusal leaves what was known.
    assert_eq!(relations.get(1).unwrap().columns.len(), 1);
}
