//! What sums are and are not blind to.

use proptest::prelude::*;
use tidemark_digest::{DigestKey, Error, Forms, LeafBounds, RawScheme, RowHasher};
use tidemark_model::{RowSum, TupleForm, Tuples};

use crate::{Row, batch, column, hasher, int4, key, lines, own, sum, text};

fn pairs(rows: &[(i32, &str)]) -> Vec<Row> {
    rows.iter().map(|(number, name)| vec![int4(*number), text(name)]).collect()
}

fn sum_of_pairs(rows: &[(i32, &str)]) -> RowSum {
    sum(&[column("id", "int4"), column("name", "text")], &pairs(rows))
}

#[test]
fn duplicates_count() {
    let (a, b) = ((1, "a"), (2, "b"));
    let sums = [
        sum_of_pairs(&[a, a]),
        sum_of_pairs(&[b, b]),
        sum_of_pairs(&[a, b]),
        sum_of_pairs(&[a, a, b]),
        sum_of_pairs(&[a, b, b]),
        sum_of_pairs(&[a, a, a, a]),
        sum_of_pairs(&[]),
    ];
    for (number, one) in sums.iter().enumerate() {
        for two in &sums[..number] {
            assert!(one.raw != two.raw && one.value != two.value);
        }
    }
}

#[test]
fn values_swapped_between_rows_are_seen() {
    assert_ne!(sum_of_pairs(&[(1, "a"), (2, "b")]).raw, sum_of_pairs(&[(1, "b"), (2, "a")]).raw);
    assert_eq!(sum_of_pairs(&[(1, "a"), (2, "b")]), sum_of_pairs(&[(2, "b"), (1, "a")]));
}

#[test]
fn another_key_changes_every_sum() {
    let columns = [column("id", "int4"), column("price", "float8")];
    let rows = batch(&[vec![int4(1), Some(1.5_f64.to_be_bytes().to_vec())]]);
    let of = |key: &DigestKey, forms| {
        let form = TupleForm::PgBinary;
        let leaves = LeafBounds::single();
        let mut hasher = RowHasher::compile(&own(&columns), form, forms, key, leaves).unwrap();
        hasher.add(&rows).unwrap();
        hasher.sum()
    };
    for forms in [Forms::Raw, Forms::RawCanonical, Forms::RawAndValue] {
        let (one, two) = (of(&key(), forms), of(&DigestKey::new([43; 32]), forms));
        assert!(one.raw != two.raw && one.value != two.value);
    }
}

#[test]
fn the_scheme_follows_the_columns() {
    let stable = [column("id", "int4"), column("price", "numeric")];
    let unstable = [column("id", "int4"), column("price", "float8")];
    let flat = [column("id", "int4"), column("name", "text")];
    assert_eq!(hasher(&stable, Forms::Raw).raw_scheme(), RawScheme::Tuple);
    assert_eq!(hasher(&stable, Forms::RawCanonical).raw_scheme(), RawScheme::Canonical);
    assert_eq!(hasher(&stable, Forms::RawAndValue).raw_scheme(), RawScheme::Tuple);
    assert_eq!(hasher(&unstable, Forms::Raw).raw_scheme(), RawScheme::Canonical);
    assert_eq!(hasher(&flat, Forms::RawAndValue).raw_scheme(), RawScheme::Canonical);
}

#[test]
fn where_one_form_was_asked_for_both_sums_are_the_same() {
    let columns = [column("id", "int4"), column("name", "bpchar")];
    let rows = batch(&[vec![int4(1), text("a  ")]]);
    for forms in [Forms::Raw, Forms::RawCanonical] {
        let mut hasher = hasher(&columns, forms);
        hasher.add(&rows).unwrap();
        assert_eq!(hasher.sum().raw, hasher.sum().value);
    }
    let mut both = hasher(&columns, Forms::RawAndValue);
    both.add(&rows).unwrap();
    assert_ne!(both.sum().raw, both.sum().value);
}

#[test]
fn text_lines_are_hashed_without_their_line_feed() {
    let columns = [column("id", "int4"), column("name", "text")];
    let form = TupleForm::PgText;
    let of = |forms| RowHasher::compile(&own(&columns), form, forms, &key(), LeafBounds::single());
    let mut hasher = of(Forms::Raw).unwrap();
    assert_eq!(hasher.raw_scheme(), RawScheme::TextLine);
    hasher.add(&lines("1\ta\n2\t\\N\n")).unwrap();
    let wanted = key().hash(b"1\ta").wrapping_add(key().hash(b"2\t\\N"));
    assert_eq!(hasher.sum(), RowSum { count: 2, raw: wanted, value: wanted });
    assert_eq!(of(Forms::RawAndValue).unwrap_err(), Error::TextHasNoValueForm);
    assert_eq!(hasher.add(&batch(&[])), Err(Error::OtherForm));
}

#[test]
fn a_batch_whose_ends_do_not_fit_is_an_error() {
    let columns = [column("id", "int4")];
    let good = batch(&[vec![int4(1)], vec![int4(2)]]);
    for ends in [vec![10, 21], vec![10], vec![20, 10], vec![], vec![u32::MAX]] {
        let bad = Tuples { ends, ..good.clone() };
        assert!(hasher(&columns, Forms::Raw).add(&bad).is_err());
    }
    hasher(&columns, Forms::Raw).add(&good).unwrap();
}

fn any_rows() -> impl Strategy<Value = Vec<Row>> {
    let field = prop::option::of(prop::collection::vec(any::<u8>(), 0..40));
    let number = prop::option::of(any::<i64>().prop_map(|number| number.to_be_bytes().to_vec()));
    prop::collection::vec((number, field).prop_map(|(number, text)| vec![number, text]), 0..30)
}

proptest! {
    #[test]
    fn any_order_and_any_cut_gives_the_same_sum(
        mut rows in any_rows(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        turn in any::<prop::sample::Index>(),
    ) {
        let columns = [column("id", "int8"), column("name", "bpchar")];
        let whole = sum(&columns, &rows);
        let mut merged = RowSum::default();
        if !rows.is_empty() {
            let at = turn.index(rows.len());
            rows.rotate_left(at);
            rows.reverse();
        }
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(rows.len() + 1)).collect();
        at.extend([0, rows.len()]);
        at.sort_unstable();
        for cut in at.windows(2) {
            merged += sum(&columns, &rows[cut[0]..cut[1]]);
        }
        prop_assert_eq!(merged, whole);
    }

    #[test]
    fn two_rows_have_one_canonical_hash_only_if_they_are_the_same(one in any_rows(), two in any_rows()) {
        let columns = [column("id", "int8"), column("name", "text")];
        for (one, two) in one.iter().zip(&two) {
            let (left, right) = (sum(&columns, std::slice::from_ref(one)), sum(&columns, std::slice::from_ref(two)));
            prop_assert_eq!(left == right, one == two);
        }
    }
}
