//! Which tables may go on by chunk and what is read of them, without a server; `tests/e2e/half.rs` of the command has them with two.

use tidemark_ledger::NewRelation;
use tidemark_model::{
    Column, DataType, Generated, Identity, Key, Persistence, RelationKind, RelationName,
};

use super::*;

fn column(name: &str, type_name: &str) -> Column {
    Column {
        attnum: 1,
        name: name.into(),
        data_type: DataType::builtin(0, type_name),
        typmod: -1,
        type_name: type_name.into(),
        is_nullable: false,
        generated: Generated::No,
        identity: Identity::No,
        has_default: false,
        key_position: None,
        collation: None,
    }
}

fn relation(types: &[(&str, &str)], identity: ReplicaIdentity) -> Relation {
    let key = Key {
        index: "pk".into(),
        columns: vec!["a".into(), "b\"".into()],
        is_primary: true,
        is_deferrable: false,
    };
    Relation {
        oid: 7,
        name: RelationName::new("public", "t"),
        kind: RelationKind::Table,
        persistence: Persistence::Permanent,
        columns: types.iter().map(|(name, type_name)| column(name, type_name)).collect(),
        keys: vec![key],
        indexes: Vec::new(),
        replica_identity: identity,
        partition_root: None,
        inherits: Vec::new(),
        row_security_applies: false,
        can_select: true,
        row_estimate: 0,
        heap_bytes: 0,
        toast_bytes: 0,
        extension: None,
    }
}

fn blocks(bounds: &[(u32, Option<u32>)]) -> Vec<ChunkRange> {
    bounds.iter().map(|&(from, to)| ChunkRange::Blocks { from, to }).collect()
}

#[test]
fn blocks_of_chunks_that_stay_are_joined_and_the_last_is_open() {
    let ranges =
        blocks(&[(0, Some(10)), (10, Some(20)), (20, Some(30)), (30, Some(40)), (40, None)]);
    let text = blocks_of(&ranges, &HashSet::from([0, 1, 3, 4]));
    let between = |from: u32, to: u32| {
        format!(
            "ctid OPERATOR(pg_catalog.>=) '({from},0)'::pg_catalog.tid AND ctid OPERATOR(pg_catalog.<) '({to},0)'::pg_catalog.tid"
        )
    };
    let open = "ctid OPERATOR(pg_catalog.>=) '(30,0)'::pg_catalog.tid";
    assert_eq!(text, format!("{} OR {open}", between(0, 20)));
    assert_eq!(blocks_of(&ranges, &HashSet::from([2])), between(20, 30));
}

#[test]
fn keys_are_literals_of_their_columns_types() {
    let relation = relation(&[("a", "int4"), ("b\"", "text")], ReplicaIdentity::Default);
    let columns = touched_key(&relation).unwrap().to_vec();
    let keys = [vec!["1".to_owned(), "o'c".to_owned()], vec!["2".to_owned(), "\\".to_owned()]];
    let text = with_keys(&relation, &columns, &keys);
    assert!(
        text.starts_with(r#"("a", "b""") IN (VALUES ('1'::pg_catalog."int4", 'o''c'"#),
        "{text}"
    );
    assert_eq!(text.matches("pg_catalog").count(), 4);
}

#[test]
fn only_keys_that_the_stream_has_and_both_sides_compare_alike_are_taken() {
    let plain = [("a", "int4"), ("b\"", "text")];
    assert!(touched_key(&relation(&plain, ReplicaIdentity::Full)).is_some());
    assert!(touched_key(&relation(&plain, ReplicaIdentity::Index("pk".into()))).is_some());
    assert!(touched_key(&relation(&plain, ReplicaIdentity::Index("other".into()))).is_none());
    assert!(touched_key(&relation(&plain, ReplicaIdentity::Nothing)).is_none());
    let odd = relation(&[("a", "float8"), ("b\"", "text")], ReplicaIdentity::Default);
    assert!(touched_key(&odd).is_none());
    let mut nullable = relation(&plain, ReplicaIdentity::Default);
    nullable.columns[1].is_nullable = true;
    assert!(touched_key(&nullable).is_none());
    let collated = |name: &str| {
        let mut relation = relation(&plain, ReplicaIdentity::Default);
        relation.columns[1].collation = Some(name.to_owned());
        relation
    };
    assert!(touched_key(&collated("pg_catalog.default")).is_some());
    // Upper and lower case may be equal there, and not be on the other server.
    assert!(touched_key(&collated("public.ignoring_case")).is_none());
}

fn plan(run: &str, oid: Oid) -> ChunkPlan {
    ChunkPlan {
        run: run.into(),
        oid,
        shape: String::new(),
        select: Vec::new(),
        form: TupleForm::PgBinary,
        ranges: blocks(&[(0, Some(1)), (1, Some(2)), (2, Some(3)), (3, None)]),
    }
}

fn entry(event: &str, detail: serde_json::Value) -> JournalEntry {
    JournalEntry { at_ms: 0, run: None, event: event.into(), detail }
}

#[test]
fn a_table_that_was_begun_anew_once_does_not_go_on_any_more() {
    let noted = |run: &str, oid| entry(CHUNKS_EVENT, serde_json::to_value(plan(run, oid)).unwrap());
    let anew = |run: &str, oids: &[Oid]| {
        entry(ANEW_EVENT, serde_json::json!({ "run": run, "tables": oids }))
    };
    let journal = vec![
        noted("r", 7),
        noted("r", 8),
        noted("other", 9),
        anew("other", &[7, 9]),
        anew("r", &[8]),
    ];
    assert_eq!(planned(journal.clone(), "r"), [plan("r", 7)]);
    assert_eq!(planned(journal, "other"), []);
}

#[test]
fn a_table_is_half_copied_from_its_first_chunk_on_until_all_of_it_is_in() {
    let journal = || vec![entry(CHUNKS_EVENT, serde_json::to_value(plan("r", 7)).unwrap())];
    let known = |oid, chunks_done, is_finished| RelationRecord {
        plan: NewRelation {
            oid,
            name: RelationName::new("public", "t"),
            chunks_total: 4,
            leaf_bounds: String::new(),
            shape: String::new(),
            estimated_rows: 0,
            estimated_bytes: 0,
            raw_scheme: String::new(),
        },
        chunks_done,
        rows_out: 0,
        rows_in: 0,
        bytes: 0,
        sum: tidemark_model::RowSum::default(),
        replaced: Vec::new(),
        is_finished,
    };
    assert_eq!(half_copied(journal(), &[known(7, 0, false), known(8, 1, false)], "r"), 0);
    assert_eq!(half_copied(journal(), &[known(7, 1, false)], "r"), 1);
    assert_eq!(half_copied(journal(), &[known(7, 4, true)], "r"), 0);
}

#[test]
fn one_row_in_twenty_may_have_changed_and_no_more() {
    let half = Half { chunks: plan("r", 7), published: PublicationState::default() };
    let kept = [KeptChunk { chunk: 0, rows: 80 }, KeptChunk { chunk: 2, rows: 120 }];
    let keys = |number| {
        let rows = bytes::Bytes::new();
        (number, TouchedKeys { columns: Vec::new(), form: TupleForm::PgText, rows })
    };
    assert!(few(keys(20), &kept, &half).is_ok());
    assert!(few(keys(21), &kept, &half).unwrap_err().contains("21 of about 400 rows"));
}
