//! Differences are found in one scan: exactly those, or it is said that they are not all.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tidemark_digest::{
    Difference, Differences, DigestColumn, DigestKey, Error, Forms, KeyCode, KeyPlan, KeyValue,
    LeafBounds, LocatedForm, LocatedKey, Locator, RowHasher, Side,
};
use tidemark_model::{Column, TupleForm, Tuples, Wire};

use crate::{Row, batch, column, int4, key, lines, numeric, own, text};

fn locator(columns: &[Column], key_columns: &[usize], max_differences: u32) -> Locator {
    let plan = KeyPlan::of(&own(columns), key_columns).unwrap();
    Locator::new(plan, max_differences, &key())
}

fn hasher_of(columns: &[DigestColumn<'_>], form: TupleForm, leaves: LeafBounds) -> RowHasher {
    RowHasher::compile(columns, form, Forms::Raw, &key(), leaves).unwrap()
}

/// A scan of one side.
fn scan(columns: &[Column], key_columns: &[usize], rows: &Tuples) -> Locator {
    let empty = locator(columns, key_columns, 100);
    scan_into(empty, columns, key_columns, rows)
}

fn scan_into(to: Locator, columns: &[Column], key_columns: &[usize], rows: &Tuples) -> Locator {
    let hasher = hasher_of(&own(columns), rows.form, LeafBounds::single());
    let mut hasher = hasher.locate(to, key_columns, LocatedForm::Raw).unwrap();
    hasher.add(rows).unwrap();
    hasher.take_locator().unwrap()
}

fn int(key: i64) -> LocatedKey {
    LocatedKey::Values(vec![KeyValue::Int(key)])
}

fn difference(key: LocatedKey, source_rows: u64, target_rows: u64) -> Difference {
    Difference { key, source_rows, target_rows }
}

fn id_and_name() -> [Column; 2] {
    [column("id", "int4"), column("name", "text")]
}

type Pair = (i32, &'static str);

fn pairs(rows: &[Pair]) -> Tuples {
    batch(&rows.iter().map(|(id, name)| vec![int4(*id), text(name)]).collect::<Vec<Row>>())
}

fn of_pairs(key_columns: &[usize], source: &[Pair], target: &[Pair]) -> Differences {
    let columns = id_and_name();
    let source = scan(&columns, key_columns, &pairs(source));
    source.compare(&scan(&columns, key_columns, &pairs(target))).unwrap()
}

#[test]
fn missing_extra_changed_and_swapped_rows_have_their_keys() {
    let source = [(-1, "same"), (2, "missing"), (3, "before"), (4, "a"), (5, "b")];
    let target = [(5, "a"), (4, "b"), (-7, "extra"), (3, "after"), (-1, "same")];
    let Differences { is_complete, mut found } = of_pairs(&[0], &source, &target);
    assert!(is_complete);
    found.sort_by_key(|difference| format!("{:?}", difference.key));
    let wanted = [(-7, 0, 1), (2, 1, 0), (3, 1, 1), (4, 1, 1), (5, 1, 1)];
    assert_eq!(found, wanted.map(|(id, ours, theirs)| difference(int(id), ours, theirs)));
    let sides: Vec<Side> = found.iter().map(Difference::side).collect();
    assert_eq!(sides, [Side::OnlyTarget, Side::OnlySource, Side::Both, Side::Both, Side::Both]);
}

#[test]
fn copies_are_counted_with_a_key_and_without() {
    let (a, b) = ((1, "a"), (2, "b"));
    let keyed = of_pairs(&[0], &[a, a], &[b, b]);
    assert!(keyed.is_complete);
    assert_eq!(keyed.found, [difference(int(1), 2, 0), difference(int(2), 0, 2)]);
    assert_eq!(of_pairs(&[0], &[a, a, a, a], &[a, a]).found, [difference(int(1), 2, 0)]);
    for (source, target, wanted) in [
        (vec![a, a], vec![b, b], vec![(0, 2), (2, 0)]),
        (vec![a, a, a, a], vec![a, a], vec![(2, 0)]),
        (vec![a, a], vec![a], vec![(1, 0)]),
        (vec![a, b], vec![a, a, b, b, b], vec![(0, 1), (0, 2)]),
    ] {
        let Differences { is_complete, found } = of_pairs(&[], &source, &target);
        assert!(is_complete);
        let mut counts: Vec<(u64, u64)> =
            found.iter().map(|row| (row.source_rows, row.target_rows)).collect();
        counts.sort_unstable();
        assert_eq!(counts, wanted);
    }
}

#[test]
fn a_million_copies_of_one_row_are_one_difference() {
    let columns = id_and_name();
    let rows = pairs(&[(9, "x"); 4096]);
    let hasher = hasher_of(&own(&columns), rows.form, LeafBounds::single());
    let mut hasher = hasher.locate(locator(&columns, &[0], 10), &[0], LocatedForm::Raw).unwrap();
    for _ in 0..256 {
        hasher.add(&rows).unwrap();
    }
    let source = hasher.take_locator().unwrap();
    let found =
        source.compare(&scan_into(locator(&columns, &[0], 10), &columns, &[0], &pairs(&[])));
    let wanted = Differences { is_complete: true, found: vec![difference(int(9), 1 << 20, 0)] };
    assert_eq!(found.unwrap(), wanted);
}

#[test]
fn a_row_without_a_key_is_known_by_its_hash() {
    let columns = id_and_name();
    let found = of_pairs(&[], &[(1, "a"), (2, "b")], &[(1, "a")]).found;
    let [Difference { key: LocatedKey::Row(located), source_rows: 1, target_rows: 0 }] = found[..]
    else {
        panic!("{found:?}")
    };
    let mut hasher = crate::hasher(&columns, Forms::Raw);
    hasher.add(&pairs(&[(2, "b")])).unwrap();
    assert_eq!(located, hasher.sum().raw);
}

#[test]
fn keys_of_up_to_sixteen_bytes_come_back_as_they_are() {
    let bytes = |numbers: &[i64], widths: &[usize]| -> Row {
        let field = |(number, width): (&i64, &usize)| number.to_be_bytes()[8 - width..].to_vec();
        numbers.iter().zip(widths).map(field).map(Some).collect()
    };
    let cases: [(&[&str], &[usize], &[i64]); 5] = [
        (&["int2"], &[2], &[i64::from(i16::MIN)]),
        (&["int8"], &[8], &[i64::MIN]),
        (&["int8", "int8"], &[8, 8], &[i64::MIN, -1]),
        (&["int2", "int4", "int8"], &[2, 4, 8], &[-1, i64::from(i32::MIN), i64::MAX]),
        (&["int4", "int2"], &[4, 2], &[7, -7]),
    ];
    for (types, widths, numbers) in cases {
        let columns: Vec<Column> = types.iter().map(|of| column(of, of)).collect();
        let key_columns: Vec<usize> = (0..types.len()).collect();
        let source = scan(&columns, &key_columns, &batch(&[bytes(numbers, widths)]));
        assert!(source.plan().is_verbatim());
        let found = source.compare(&scan(&columns, &key_columns, &batch(&[]))).unwrap().found;
        let wanted = LocatedKey::Values(numbers.iter().copied().map(KeyValue::Int).collect());
        assert_eq!(found, [difference(wanted, 1, 0)]);
    }
    let columns = [column("id", "uuid")];
    let uuid: [u8; 16] = std::array::from_fn(|at| 0xf0 + at as u8);
    let found = scan(&columns, &[0], &batch(&[])).compare(&scan(
        &columns,
        &[0],
        &batch(&[vec![Some(uuid.to_vec())]]),
    ));
    let wanted = LocatedKey::Values(vec![KeyValue::Uuid(uuid)]);
    assert_eq!(found.unwrap().found, [difference(wanted, 0, 1)]);
}

#[test]
fn text_rows_have_the_keys_of_binary_rows() {
    let columns = [column("id", "int8"), column("u", "uuid"), column("name", "text")];
    let rows = "-5\t\\N\ta\\tb\n7\t00112233-4455-6677-8899-aabbccddeeff\t\\N\n";
    let of = |key_columns: &[usize]| {
        let full = scan(&columns, key_columns, &lines(rows));
        full.compare(&scan(&columns, key_columns, &lines(""))).unwrap()
    };
    assert_eq!(of(&[0]).found, [difference(int(7), 1, 0), difference(int(-5), 1, 0)]);
    let uuid = of(&[1]);
    assert!(!uuid.is_complete, "a NULL has no code");
    let bytes = 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128.to_be_bytes();
    let wanted = LocatedKey::Values(vec![KeyValue::Uuid(bytes)]);
    assert_eq!(uuid.found, [difference(wanted, 1, 0)]);
    assert_eq!(of(&[2]).found.len(), 2);
    assert!(of(&[2]).is_complete);

    let cast = [DigestColumn { column: &columns[0], wire: Wire::CastToText }];
    let plan = KeyPlan::of(&cast, &[0]).unwrap();
    let hasher = hasher_of(&cast, TupleForm::PgBinary, LeafBounds::single());
    let empty = Locator::new(plan, 10, &key());
    let mut hasher = hasher.locate(empty.clone(), &[0], LocatedForm::Raw).unwrap();
    hasher.add(&batch(&[vec![text("-12")]])).unwrap();
    let found = hasher.take_locator().unwrap().compare(&empty).unwrap();
    assert_eq!(found.found, [difference(int(-12), 1, 0)]);
    let bad = hasher_of(&cast, TupleForm::PgBinary, LeafBounds::single());
    let mut bad = bad.locate(empty, &[0], LocatedForm::Raw).unwrap();
    let error = bad.add(&batch(&[vec![text("x1")]])).unwrap_err();
    assert_eq!(error.to_string(), "hash row 0 of a batch, column \"id\": the key cannot be read");
}

#[test]
fn a_long_key_names_its_leaf_and_the_second_reading_finds_its_rows() {
    let mut columns = [column("name", "text"), column("n", "int4")];
    columns[0].collation = Some("pg_catalog.C".to_owned());
    let bounds = ["h".to_owned(), "q".to_owned()];
    let leaves = LeafBounds::from_text_bounds(&columns[0], 0, &bounds);
    let rows = |names: &[(&str, i32)]| {
        batch(&names.iter().map(|(name, n)| vec![text(name), int4(*n)]).collect::<Vec<Row>>())
    };
    let side = |rows: &Tuples| {
        let hasher = hasher_of(&own(&columns), rows.form, leaves.clone());
        let mut hasher =
            hasher.locate(locator(&columns, &[0], 10), &[0], LocatedForm::Raw).unwrap();
        hasher.add(rows).unwrap();
        hasher
    };
    let ours = rows(&[("apple", 1), ("lemon", 2), ("pear", 3), ("zebra", 4)]);
    let mut source = side(&ours);
    let mut target = side(&rows(&[("zebra", 4), ("lemon", 9), ("apple", 1)]));
    let sum = source.sum();
    let mut names = Vec::new();
    source.name_rows(&ours, |named| names.push((named.row, named.code))).unwrap();
    assert_eq!(source.sum(), sum, "naming adds nothing");
    let located = source.take_locator().unwrap().compare(&target.take_locator().unwrap()).unwrap();
    assert!(located.is_complete);
    let mut found: Vec<(Option<usize>, u32, Side)> = located
        .found
        .iter()
        .map(|difference| {
            let LocatedKey::Hashed { leaf, code } = difference.key else { panic!() };
            let named = |(row, is): &(usize, Option<KeyCode>)| (*is == Some(code)).then_some(*row);
            (names.iter().find_map(named), leaf, difference.side())
        })
        .collect();
    found.sort_unstable_by_key(|(row, ..)| *row);
    assert_eq!(found, [(Some(1), 1, Side::Both), (Some(2), 1, Side::OnlySource)]);
    assert!(matches!(source.name_rows(&ours, |_| {}), Err(Error::LocatorKey { .. })));
}

#[test]
fn keys_that_are_equal_to_postgres_are_one_key() {
    let columns = [column("price", "numeric"), column("n", "int4")];
    let row = |scale, n| vec![Some(numeric(0, 0, scale, &[1])), int4(n)];
    let source = scan(&columns, &[0], &batch(&[row(1, 5)]));
    let found = source.compare(&scan(&columns, &[0], &batch(&[row(2, 5)]))).unwrap().found;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].side(), Side::Both);

    let of = |form| {
        let side = |scale| {
            let columns = own(&columns);
            let (pg, forms) = (TupleForm::PgBinary, Forms::RawAndValue);
            let leaves = LeafBounds::single();
            let hasher = RowHasher::compile(&columns, pg, forms, &key(), leaves).unwrap();
            let plan = KeyPlan::of(&columns, &[1]).unwrap();
            let mut hasher = hasher.locate(Locator::new(plan, 10, &key()), &[1], form).unwrap();
            hasher.add(&batch(&[row(scale, 5)])).unwrap();
            hasher.take_locator().unwrap()
        };
        side(1).compare(&side(2)).unwrap().found
    };
    assert_eq!(of(LocatedForm::Raw), [difference(int(5), 1, 1)]);
    assert_eq!(of(LocatedForm::Value), [], "equivalent rows do not differ in value");
}

#[test]
fn a_number_may_be_wider_on_the_other_side() {
    let (narrow, wide) = ([column("id", "int4")], [column("id", "int8")]);
    let side = |columns: &[Column], rows: &[Row]| {
        let plan = KeyPlan::of(&own(&narrow), &[0]).unwrap();
        let (form, forms) = (TupleForm::PgBinary, Forms::RawCanonical);
        let leaves = LeafBounds::single();
        let hasher = RowHasher::compile(&own(columns), form, forms, &key(), leaves).unwrap();
        let mut hasher =
            hasher.locate(Locator::new(plan, 10, &key()), &[0], LocatedForm::Raw).unwrap();
        hasher.add(&batch(rows)).unwrap();
        hasher.take_locator().unwrap()
    };
    let eight = |number: i64| vec![Some(number.to_be_bytes().to_vec())];
    let source = side(&narrow, &[vec![int4(-1)], vec![int4(2)]]);
    let found = source.compare(&side(&wide, &[eight(-1), eight(1 << 40)])).unwrap();
    let wanted = vec![difference(int(2), 1, 0), difference(int(1 << 40), 0, 1)];
    assert_eq!(found, Differences { is_complete: true, found: wanted });

    let pair = [column("a", "int2"), column("b", "int4")];
    let too_wide = batch(&[vec![int4(70_000), int4(1)]]);
    let located = scan(&pair, &[0, 1], &too_wide).compare(&scan(&pair, &[0, 1], &batch(&[])));
    assert_eq!(located.unwrap(), Differences { is_complete: false, found: Vec::new() });
}

#[test]
fn only_locators_that_were_made_alike_are_compared() {
    let columns = id_and_name();
    let rows = pairs(&[(1, "a")]);
    let good = scan(&columns, &[0], &rows);
    let mut others = vec![
        scan(&columns, &[1], &rows),
        scan_into(locator(&columns, &[0], 5000), &columns, &[0], &rows),
        scan(&columns, &[0], &lines("1\ta\n")),
    ];
    let plan = KeyPlan::of(&own(&columns), &[0]).unwrap();
    others.push(Locator::new(plan.clone(), 100, &DigestKey::new([1; 32])));
    for other in others {
        assert_eq!(good.clone().merge(&other), Err(Error::OtherLocator));
        assert_eq!(good.clone().compare(&other), Err(Error::OtherLocator));
    }
    let hasher = || crate::hasher(&columns, Forms::Raw);
    let given = |locator, key_columns: &[usize]| {
        hasher().locate(locator, key_columns, LocatedForm::Raw).unwrap_err()
    };
    let empty = locator(&columns, &[0], 100);
    assert_eq!(given(empty.clone(), &[]), Error::LocatorKey { columns: 0 });
    assert_eq!(given(empty, &[2]), Error::LocatorKey { columns: 1 });
    let foreign = Locator::new(plan, 100, &DigestKey::new([1; 32]));
    assert_eq!(given(foreign, &[0]), Error::OtherLocator);
    assert_eq!(KeyPlan::of(&own(&columns), &[2]), Err(Error::Columns { columns: 2 }));
}

#[test]
fn locators_survive_a_process_boundary_and_damage_is_refused() {
    let columns = id_and_name();
    let source = scan(&columns, &[0], &pairs(&[(1, "a"), (2, "b")]));
    let target = scan(&columns, &[0], &pairs(&[(1, "a"), (2, "c")]));
    let json = serde_json::to_string(&source).unwrap();
    let read: Locator = serde_json::from_str(&json).unwrap();
    assert_eq!(read, source);
    assert_eq!(read.compare(&target).unwrap().found, [difference(int(2), 1, 1)]);
    let damaged = json.replacen("\"sub_table\":4096", "\"sub_table\":4097", 1);
    assert_ne!(damaged, json);
    let refused = serde_json::from_str::<Locator>(&damaged).unwrap_err().to_string();
    assert!(refused.contains("the number of cells does not fit"), "{refused}");
    let damaged = json.replacen("[\"int8\"]", "[\"uuid\",\"uuid\"]", 1);
    assert_ne!(damaged, json);
    assert!(serde_json::from_str::<Locator>(&damaged).is_err());
}

#[test]
fn memory_is_known_before_and_does_not_grow() {
    let columns = id_and_name();
    let empty = locator(&columns, &[0], 100_000);
    assert_eq!(empty.bytes(), 19_200_000);
    assert_eq!(Locator::bytes_for(100_000), 19_200_000);
    assert_eq!(Locator::bytes_for(1), 786_432);
    let rows: Vec<Row> = (0..20_000).map(|id| vec![int4(id), text("x")]).collect();
    assert_eq!(scan_into(empty, &columns, &[0], &batch(&rows)).bytes(), 19_200_000);
}

#[test]
fn a_large_locator_finds_all_whatever_waited_to_be_added() {
    let columns = id_and_name();
    let rows = |ids: &mut dyn Iterator<Item = i32>| {
        batch(&ids.map(|id| vec![int4(id), text("x")]).collect::<Vec<Row>>())
    };
    let large = || locator(&columns, &[0], 20_000);
    let source = scan_into(large(), &columns, &[0], &rows(&mut (0..30_001)));
    let half = scan_into(large(), &columns, &[0], &rows(&mut (20_000..40_000).rev()));
    let mut parts = scan_into(half, &columns, &[0], &rows(&mut (10_000..20_000)));
    let one = scan_into(large(), &columns, &[0], &rows(&mut std::iter::once(9_999)));
    parts.merge(&one).unwrap();
    let Differences { is_complete, found } = source.compare(&parts).unwrap();
    assert!(is_complete);
    let wanted = (0..9_999).map(|id| difference(int(id), 1, 0));
    let wanted = wanted.chain((30_001..40_000).map(|id| difference(int(id), 0, 1)));
    assert!(found.into_iter().eq(wanted));
}

#[test]
fn a_key_that_is_null_makes_the_result_incomplete() {
    let columns = id_and_name();
    let rows = batch(&[vec![None, text("a")], vec![int4(1), text("b")]]);
    let with_null = || scan(&columns, &[0], &rows);
    let located = with_null().compare(&scan(&columns, &[0], &pairs(&[]))).unwrap();
    let found = vec![difference(int(1), 1, 0)];
    assert_eq!(located, Differences { is_complete: false, found });
    let mut merged = scan(&columns, &[0], &pairs(&[]));
    merged.merge(&with_null()).unwrap();
    let located = scan(&columns, &[0], &pairs(&[])).compare(&merged).unwrap();
    assert!(!located.is_complete);
}

#[test]
fn more_than_there_is_room_for_is_said() {
    let columns = id_and_name();
    let none = scan(&columns, &[0], &batch(&[]));
    for count in [9_000, 12_288, 40_000, 200_000] {
        let rows: Vec<Row> = (0..count).map(|id| vec![int4(id), text("x")]).collect();
        let full = scan(&columns, &[0], &batch(&rows));
        let located = full.compare(&none).unwrap();
        let is_all = located.found.len() == count as usize;
        assert_eq!(located.is_complete, is_all, "{count}");
        assert!(is_all == (count == 9_000), "{count}");
        let is_true = |difference: &Difference| {
            let LocatedKey::Values(values) = &difference.key else { return false };
            let [KeyValue::Int(id)] = values[..] else { return false };
            (0..i64::from(count)).contains(&id) && difference.side() == Side::OnlySource
        };
        assert!(located.found.iter().all(is_true), "{count}");
    }
}

/// What `Differences` must say, worked out by counting.
fn counted(source: &[(i32, String)], target: &[(i32, String)]) -> BTreeMap<i32, (u64, u64)> {
    let mut net: BTreeMap<&(i32, String), i64> = BTreeMap::new();
    for row in source {
        *net.entry(row).or_default() += 1;
    }
    for row in target {
        *net.entry(row).or_default() -= 1;
    }
    let mut keys: BTreeMap<i32, (u64, u64)> = BTreeMap::new();
    for ((id, _), count) in net.into_iter().filter(|(_, count)| *count != 0) {
        let entry = keys.entry(*id).or_default();
        if count > 0 {
            entry.0 += count.unsigned_abs();
        } else {
            entry.1 += count.unsigned_abs();
        }
    }
    keys
}

fn any_side() -> impl Strategy<Value = Vec<(i32, String)>> {
    prop::collection::vec((-40..40_i32, "[ab]{0,2}"), 0..120)
}

fn tuples(rows: &[(i32, String)]) -> Tuples {
    batch(&rows.iter().map(|(id, name)| vec![int4(*id), text(name)]).collect::<Vec<Row>>())
}

proptest! {
    #[test]
    fn any_two_tables_differ_in_what_counting_says(source in any_side(), target in any_side()) {
        let columns = id_and_name();
        let sides = |key_columns: &[usize]| {
            let target = scan(&columns, key_columns, &tuples(&target));
            scan(&columns, key_columns, &tuples(&source)).compare(&target).unwrap()
        };
        let wanted = counted(&source, &target);
        let keyed = sides(&[0]);
        prop_assert!(keyed.is_complete);
        let found: BTreeMap<i32, (u64, u64)> = keyed.found.iter().map(|difference| {
            let LocatedKey::Values(values) = &difference.key else { panic!() };
            let [KeyValue::Int(id)] = values[..] else { panic!() };
            (id as i32, (difference.source_rows, difference.target_rows))
        }).collect();
        prop_assert_eq!(found.len(), keyed.found.len());
        prop_assert_eq!(&found, &wanted);
        for key_columns in [&[][..], &[1, 0]] {
            let other = sides(key_columns);
            prop_assert!(other.is_complete);
            let total = |sides: &mut dyn Iterator<Item = (u64, u64)>| {
                sides.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
            };
            let counts = &mut other.found.iter().map(|d| (d.source_rows, d.target_rows));
            prop_assert_eq!(total(counts), total(&mut wanted.values().copied()));
        }
    }

    #[test]
    fn order_batches_and_workers_make_no_difference(
        mut rows in any_side(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        turn in any::<prop::sample::Index>(),
    ) {
        let columns = id_and_name();
        let whole = scan(&columns, &[0], &tuples(&rows));
        if !rows.is_empty() {
            let at = turn.index(rows.len());
            rows.rotate_left(at);
            rows.reverse();
        }
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(rows.len() + 1)).collect();
        at.extend([0, rows.len()]);
        at.sort_unstable();
        let parts = at.windows(2).map(|cut| scan(&columns, &[0], &tuples(&rows[cut[0]..cut[1]])));
        let mut parts: Vec<Locator> = parts.collect();
        parts.reverse();
        let mut merged = locator(&columns, &[0], 100);
        for part in &parts {
            merged.merge(part).unwrap();
        }
        prop_assert_eq!(&merged, &whole);
        let nothing = Differences { is_complete: true, found: Vec::new() };
        prop_assert_eq!(merged.compare(&whole).unwrap(), nothing);
    }
}
