//! How rows and statements are shared out among lanes.

use bytes::Bytes;
use tidemark_model::{OldRow, RelationName, StreamColumn};

use super::*;

const ID: u32 = 23;

fn relation(types: &[u32], identity: char) -> Arc<StreamRelation> {
    let column = |(place, type_oid): (usize, &u32)| StreamColumn {
        name: format!("c{place}"),
        type_oid: *type_oid,
        typmod: -1,
        is_identity: identity == 'f' || identity == 'd' && place == 0,
    };
    Arc::new(StreamRelation {
        oid: 77,
        name: RelationName::new("public", "t"),
        replica_identity: identity,
        columns: types.iter().enumerate().map(column).collect(),
    })
}

fn row(cells: &[Cell<'_>]) -> TupleData {
    TupleData::of(cells.iter().copied())
}

fn by(class: Class) -> Rule {
    Rule::Key(vec![KeyColumn { name: "c0".to_owned(), class }])
}

fn splitter(count: usize, rule: Rule) -> Splitter {
    Splitter::new(count, HashMap::from([(77, rule)]))
}

fn insert(relation: &Arc<StreamRelation>, cells: &[Cell<'_>]) -> Change {
    Change { relation: Arc::clone(relation), operation: Operation::Insert { new: row(cells) } }
}

fn update(relation: &Arc<StreamRelation>, old: Option<OldRow>, new: &[Cell<'_>]) -> Change {
    let operation = Operation::Update { old, new: row(new) };
    Change { relation: Arc::clone(relation), operation }
}

fn transaction(end_lsn: u64, changes: Vec<Change>) -> Transaction {
    let lsn = Lsn::new(end_lsn);
    let head = TransactionHead { xid: end_lsn, commit_lsn: lsn, end_lsn: lsn, committed_at: 0 };
    Transaction { head, changes }
}

/// Positions that an earlier version stored rely on these numbers.
#[test]
fn the_lane_of_a_key_never_changes_between_versions() {
    let table = relation(&[ID], 'd');
    let lanes: Vec<usize> = (1..=12)
        .map(|id: i32| {
            let cell = id.to_be_bytes();
            let change = insert(&table, &[Cell::Binary(&cell)]);
            splitter(4, by(Class::Integer)).lane(&change, Lsn::new(1)).unwrap()
        })
        .collect();
    assert_eq!(lanes, LANES_OF_1_TO_12);
    let table = relation(&[25], 'd');
    let change = insert(&table, &[Cell::Text(b"shop")]);
    assert_eq!(splitter(32, by(Class::Text)).lane(&change, Lsn::new(1)), Some(LANE_OF_SHOP));
}

const LANES_OF_1_TO_12: [usize; 12] = [3, 1, 0, 3, 2, 1, 3, 1, 0, 1, 3, 1];
const LANE_OF_SHOP: usize = 31;

#[test]
fn a_key_goes_to_the_same_lane_in_either_form() {
    let uuid = [0xAB; 16];
    let uuid_text = "abABabab-abab-abab-abab-abababababab";
    for (types, class, text, binary) in [
        (21, Class::Integer, "-7", (-7_i16).to_be_bytes().to_vec()),
        (23, Class::Integer, "-7", (-7_i32).to_be_bytes().to_vec()),
        (20, Class::Integer, "9000000000", 9_000_000_000_i64.to_be_bytes().to_vec()),
        (2950, Class::Uuid, uuid_text, uuid.to_vec()),
        (25, Class::Text, "a b", b"a b".to_vec()),
    ] {
        let table = relation(&[types], 'd');
        let mut splitter = splitter(31, by(class));
        let text = splitter.lane(&insert(&table, &[Cell::Text(text.as_bytes())]), Lsn::new(1));
        let binary = splitter.lane(&insert(&table, &[Cell::Binary(&binary)]), Lsn::new(1));
        assert!(text.is_some());
        assert_eq!(text, binary, "{types}");
    }
}

#[test]
fn a_value_that_cannot_be_told_has_no_lane() {
    let table = relation(&[ID], 'd');
    for cell in [Cell::Null, Cell::Unchanged, Cell::Text(b"x"), Cell::Binary(b"abc")] {
        let change = insert(&table, &[cell]);
        assert_eq!(splitter(4, by(Class::Integer)).lane(&change, Lsn::new(1)), None, "{cell:?}");
    }
    let uuids = relation(&[2950], 'd');
    let change = insert(&uuids, &[Cell::Text(b"abc")]);
    assert_eq!(splitter(4, by(Class::Uuid)).lane(&change, Lsn::new(1)), None);
}

#[test]
fn a_key_that_moves_to_another_lane_has_none() {
    let table = relation(&[25, ID], 'd');
    let mut splitter = splitter(4, by(Class::Text));
    let key = |text: &'static str| [Cell::Text(text.as_bytes()), Cell::Text(b"1")];
    let lane =
        |splitter: &mut Splitter, text| splitter.lane(&insert(&table, &key(text)), Lsn::new(1));
    let own = lane(&mut splitter, "a");
    let names = ["b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m"];
    let same = names.iter().find(|name| lane(&mut splitter, name) == own).unwrap();
    let other = names.iter().find(|name| lane(&mut splitter, name) != own).unwrap();
    let moved = |to| update(&table, Some(OldRow::Key(row(&key("a")))), &key(to));
    assert_eq!(splitter.lane(&moved(same), Lsn::new(1)), own);
    assert_eq!(splitter.lane(&moved(other), Lsn::new(1)), None);
    // An unchanged TOASTed key is the old row's.
    let new = [Cell::Unchanged, Cell::Text(b"2")];
    let kept = update(&table, Some(OldRow::Key(row(&key("a")))), &new);
    assert_eq!(splitter.lane(&kept, Lsn::new(1)), own);
}

#[test]
fn what_cannot_be_spread_by_key_stays_together() {
    let table = relation(&[ID, 25], 'd');
    let cells = |id: &'static str| [Cell::Text(id.as_bytes()), Cell::Text(b"x")];
    for rule in [Rule::Whole, Rule::First, by(Class::Text)] {
        // The last one is a rule for a column of another type than the stream's.
        let mut splitter = splitter(8, rule.clone());
        let lanes: Vec<_> = ["1", "2", "3", "4", "5"]
            .map(|id| splitter.lane(&insert(&table, &cells(id)), Lsn::new(1)))
            .to_vec();
        assert!(lanes.iter().all(|lane| lane.is_some() && *lane == lanes[0]), "{rule:?}");
        if rule == Rule::First {
            assert_eq!(lanes[0], Some(0));
        }
    }
    // Without a key there are inserts only: one transaction is one lane's.
    let log = relation(&[ID, 25], 'n');
    let mut splitter = splitter(8, Rule::Whole);
    let mut lane = |id, lsn| splitter.lane(&insert(&log, &cells(id)), Lsn::new(lsn)).unwrap();
    assert_eq!(lane("1", 7), lane("2", 7));
    let used: std::collections::HashSet<_> = (0..50).map(|lsn| lane("1", lsn)).collect();
    assert_eq!(used.len(), 8);
    // A table without a rule, and a TRUNCATE, are nobody's.
    assert_eq!(
        Splitter::new(8, HashMap::new()).lane(&insert(&log, &cells("1")), Lsn::new(1)),
        None
    );
    let truncate =
        Operation::Truncate { with: Vec::new(), cascade: false, restart_identity: false };
    let truncate = Change { relation: log, operation: truncate };
    assert_eq!(splitter.lane(&truncate, Lsn::new(1)), None);
}

fn some(count: i32) -> Vec<Transaction> {
    let table = relation(&[ID, 25], 'd');
    let change = |id: i32| {
        let id = Bytes::copy_from_slice(&id.to_be_bytes());
        insert(&table, &[Cell::Binary(&id), Cell::Text(b"x")])
    };
    (0..count)
        .map(|n| transaction(n as u64 + 10, (0..=n % 4).map(|k| change(n * 4 + k)).collect()))
        .collect()
}

fn copy(transactions: &[Transaction]) -> Vec<Transaction> {
    transactions
        .iter()
        .map(|one| Transaction { head: one.head, changes: one.changes.clone() })
        .collect()
}

fn same(one: &[Transaction], other: &[Transaction]) -> bool {
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .all(|(one, other)| one.head == other.head && one.changes == other.changes)
}

#[test]
fn a_batch_that_was_split_can_be_joined_again() {
    let all = some(40);
    let split = splitter(3, by(Class::Integer)).split(copy(&all)).unwrap();
    assert_eq!(split.parts.len(), 3);
    assert!(split.parts.iter().all(|part| !part.is_empty()));
    let Split { parts, order } = split;
    assert!(same(&Split::join(parts.into_iter(), order), &all));
}

#[test]
fn one_change_without_a_lane_keeps_the_batch_together() {
    let mut all = some(40);
    let relation = Arc::clone(&all[0].changes[0].relation);
    let truncate =
        Operation::Truncate { with: Vec::new(), cascade: false, restart_identity: false };
    all.push(transaction(99, vec![Change { relation, operation: truncate }]));
    let back = splitter(3, by(Class::Integer)).split(copy(&all)).unwrap_err();
    assert!(same(&back, &all));
    // And so does one lane that has everything.
    assert!(splitter(3, Rule::First).split(some(40)).is_err());
}

#[test]
fn what_lanes_have_that_are_ahead_is_passed_over_however_batches_are_cut() {
    let all = some(40);
    let parts = splitter(3, by(Class::Integer)).split(copy(&all)).unwrap().parts;
    // The second lane has committed up to 30, the third up to 20 in a redo that was cut short.
    for size in [1, 3, 7, 40] {
        let mut redo =
            Redo::new(splitter(3, by(Class::Integer)), &[(1, Lsn::new(30)), (2, Lsn::new(20))]);
        assert_eq!(redo.until, Lsn::new(30));
        let mut rest = copy(&all);
        for batch in rest.chunks_mut(size) {
            redo.pass_over(batch).unwrap();
        }
        let left: usize = rest.iter().map(|transaction| transaction.changes.len()).sum();
        let had = |lane: usize, until: u64| -> usize {
            let had = parts[lane].iter().filter(|one| one.head.end_lsn <= Lsn::new(until));
            had.map(|one| one.changes.len()).sum()
        };
        let whole: usize = all.iter().map(|transaction| transaction.changes.len()).sum();
        assert_eq!(left, whole - had(1, 30) - had(2, 20), "in batches of {size}");
    }
}

#[test]
fn a_table_that_joined_since_is_not_passed_over_and_what_had_no_lane_is_an_error() {
    let ahead = [(1, Lsn::new(1000)), (2, Lsn::new(1000)), (0, Lsn::new(1000))];
    let mut redo = Redo::new(Splitter::new(3, HashMap::new()), &ahead);
    let mut all = some(5);
    redo.pass_over(&mut all).unwrap();
    assert!(same(&all, &some(5)));
    let mut redo = Redo::new(splitter(3, by(Class::Integer)), &ahead);
    let relation = Arc::clone(&all[0].changes[0].relation);
    let truncate =
        Operation::Truncate { with: Vec::new(), cascade: false, restart_identity: false };
    let error = redo
        .pass_over(&mut [transaction(99, vec![Change { relation, operation: truncate }])])
        .unwrap_err();
    assert!(error.to_string().contains("was in no lane"), "{error}");
}

#[test]
fn rules_are_stored_as_they_were() {
    for (rule, text) in [
        (Rule::Whole, r#""whole""#),
        (Rule::First, r#""first""#),
        (by(Class::Integer), r#"{"key":[{"name":"c0","class":"integer"}]}"#),
    ] {
        assert_eq!(serde_json::to_string(&rule).unwrap(), text);
        assert_eq!(serde_json::from_str::<Rule>(text).unwrap(), rule);
    }
}
