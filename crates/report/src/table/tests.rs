//! Every rule by which a table gets its verdict, one field changed at a time.

use super::*;

/// A change to a table that is identical otherwise, with its name.
type Change = (&'static str, fn(&mut TableReport));

const A: Digest = Digest { raw: 7, value: 7 };

fn proven() -> TableReport {
    TableReport {
        proof: Some(Proof::Full),
        level: Some(Level::Digest),
        source_rows: Some(10),
        target_rows: Some(10),
        source_digest: Some(A),
        target_digest: Some(A),
        missing: Some(0),
        extra: Some(0),
        changed: Some(0),
        equivalent: Some(0),
        lossy: Some(0),
        leaves: 2,
        heat_map: Some(HeatMap::of(&[(4, LeafState::Same), (6, LeafState::Carried)])),
        ..TableReport::new("public", "orders")
    }
}

fn verdict(change: impl FnOnce(&mut TableReport)) -> Verdict {
    let mut table = proven();
    change(&mut table);
    table.judge()
}

#[test]
fn a_table_whose_rows_were_all_read_and_agree_is_identical() {
    assert_eq!(proven().judge(), Verdict::Identical);
    assert_eq!(verdict(|t| t.level = Some(Level::Rows)), Verdict::Identical);
    assert_eq!(verdict(|t| t.heat_map = None), Verdict::Identical);
    assert_eq!(proven().shortfall(Level::Digest), None);
}

#[test]
fn every_kind_of_difference_is_one_whatever_else_is_missing() {
    let other = Some(Digest { raw: 8, value: 8 });
    let changes: [Change; 8] = [
        ("definition", |t| t.differing_definitions = 1),
        ("missing", |t| t.missing = Some(1)),
        ("extra", |t| t.extra = Some(1)),
        ("changed", |t| t.changed = Some(1)),
        ("rows", |t| t.target_rows = Some(9)),
        ("digest", |t| t.target_digest = Some(Digest { raw: 7, value: 8 })),
        ("differing leaves", |t| t.differing_leaves = 1),
        ("map", |t| t.heat_map = Some(HeatMap::of(&[(10, LeafState::Different)]))),
    ];
    for (name, change) in changes {
        assert_eq!(verdict(change), Verdict::Different, "{name}");
        let with_reason = |t: &mut TableReport| {
            change(t);
            t.skipped_reason = Some("interrupted".to_owned());
        };
        assert_eq!(verdict(with_reason), Verdict::Different, "{name}, then interrupted");
    }
    assert_eq!(verdict(|t| t.source_digest = other), Verdict::Different);
}

#[test]
fn whatever_is_not_known_makes_a_table_incomplete() {
    let changes: [Change; 11] = [
        ("skipped", |t| t.skipped_reason = Some(String::new())),
        ("proof", |t| t.proof = None),
        ("level", |t| t.level = None),
        ("schema only", |t| t.level = Some(Level::Schema)),
        ("counts only", |t| t.level = Some(Level::Count)),
        ("source rows", |t| t.source_rows = None),
        ("target rows", |t| t.target_rows = None),
        ("source digest", |t| t.source_digest = None),
        ("target digest", |t| t.target_digest = None),
        ("a leaf", |t| {
            t.heat_map = Some(HeatMap::of(&[(4, LeafState::Same), (6, LeafState::Unproven)]));
        }),
        ("rows of the leaves", |t| t.heat_map = Some(HeatMap::of(&[(9, LeafState::Same)]))),
    ];
    for (name, change) in changes {
        assert_eq!(verdict(change), Verdict::Incomplete, "{name}");
    }
    assert_eq!(TableReport::new("public", "orders").judge(), Verdict::Incomplete);
    assert_eq!(TableReport::skipped("public", "orders", "RLS").judge(), Verdict::Incomplete);
}

#[test]
fn what_deviates_in_representation_alone_is_equivalent() {
    let changes: [(bool, bool, Change); 5] = [
        (true, false, ("equivalent", |t| t.equivalent = Some(1))),
        (false, true, ("lossy", |t| t.lossy = Some(1))),
        (true, true, ("both", |t| (t.lossy, t.equivalent) = (Some(1), Some(1)))),
        (true, false, ("raw", |t| t.target_digest = Some(Digest { raw: 8, value: 7 }))),
        (
            true,
            false,
            ("map", |t| {
                t.heat_map = Some(HeatMap::of(&[(10, LeafState::Equivalent)]));
            }),
        ),
    ];
    for (equivalent, lossy, (name, change)) in changes {
        let mut table = proven();
        change(&mut table);
        assert_eq!(table.judge(), Verdict::Equivalent, "{name}");
        assert_eq!(table.deviations(), Deviations { equivalent, lossy }, "{name}");
    }
    assert_eq!(proven().deviations(), Deviations::default());
}

#[test]
fn sums_that_differ_are_excused_only_when_every_row_was_looked_at() {
    let classify = |t: &mut TableReport| {
        t.target_digest = Some(Digest { raw: 8, value: 8 });
        t.differing_leaves = 1;
        t.equivalent = Some(3);
        t.level = Some(Level::Rows);
    };
    assert_eq!(verdict(classify), Verdict::Equivalent);
    let undone: [Change; 5] = [
        ("not at level rows", |t| t.level = Some(Level::Digest)),
        ("missing unknown", |t| t.missing = None),
        ("changed unknown", |t| t.changed = None),
        ("nothing found", |t| t.equivalent = Some(0)),
        ("other row counts", |t| t.target_rows = Some(11)),
    ];
    for (name, undo) in undone {
        let both = |t: &mut TableReport| {
            classify(t);
            undo(t);
        };
        assert_eq!(verdict(both), Verdict::Different, "{name}");
    }
}

#[test]
fn a_level_that_reads_no_rows_falls_short_in_a_way_of_its_own() {
    let at = |level| TableReport { level: Some(level), ..proven() };
    let no_rows = Some(Shortfall::LevelReadsNoRows);
    assert_eq!(at(Level::Count).shortfall(Level::Count), no_rows);
    assert_eq!(at(Level::Schema).shortfall(Level::Schema), no_rows);
    assert_eq!(at(Level::Digest).shortfall(Level::Count), None);
    assert_eq!(at(Level::Count).shortfall(Level::Digest), Some(Shortfall::NotProven));
    assert_eq!(at(Level::Digest).shortfall(Level::Rows), None);
    let uncounted = TableReport { target_rows: None, ..at(Level::Count) };
    assert_eq!(uncounted.shortfall(Level::Count), Some(Shortfall::NotProven));
}

#[test]
fn sums_are_printed_as_32_hexadecimal_digits_and_read_again() {
    let digest = Digest { raw: 0xab, value: u128::MAX };
    let text = serde_json::to_string(&digest).unwrap();
    assert_eq!(text, format!(r#"{{"raw":"{}ab","value":"{}"}}"#, "0".repeat(30), "f".repeat(32)));
    assert_eq!(serde_json::from_str::<Digest>(&text).unwrap(), digest);
    assert!(serde_json::from_str::<Digest>(&text.replace("ab\"", "g0\"")).is_err());
    assert!(serde_json::from_str::<Digest>(r#"{"raw":"1","value":"2"}"#).is_err());
}
