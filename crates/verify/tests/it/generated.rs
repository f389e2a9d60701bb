//! Generated tables with planted differences, judged beside `EXCEPT ALL` in both directions.

use std::fmt::Write as _;

use tidemark_report::Verdict;

use crate::support::Pair;

/// A generator whose whole sequence follows from its seed.
pub(crate) struct Lcg(pub(crate) u64);

impl Lcg {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// The columns beside `k`, with the few values that each may have, so that doubles are common.
const COLUMNS: &[(&str, &[&str])] = &[
    ("t text", &["''", "NULL", "'a'", "'a '", "'A'", "E'a\\n'"]),
    ("n numeric", &["0", "NULL", "1.0", "1.00", "-1", "'NaN'"]),
    ("a int[]", &["'{}'", "NULL", "'{NULL}'", "'{1,2}'"]),
    ("f float8", &["0", "'-0'", "'NaN'", "'Infinity'", "1e-300", "NULL"]),
    ("j jsonb", &["'{}'", "'[]'", "'null'", "NULL", r#"'{"a": 1.0}'"#, r#"'{"a": 1.00}'"#]),
    ("z timestamptz", &["'2024-01-01 00:00Z'", "'2024-01-01 01:00+01'", "'infinity'", "NULL"]),
    ("b bytea", &["''", "NULL", "'\\x00'", "'\\x0000'"]),
    ("i interval", &["'1 mon'", "'30 days'", "NULL"]),
];

type Row = Vec<String>;

/// A row of few values; `k` as well, where it is no key.
fn row(random: &mut Lcg, width: usize) -> Row {
    let key = random.below(5).to_string();
    let value = |(_, values): &(&str, &[&str])| {
        values[random.below(values.len() as u64) as usize].to_owned()
    };
    std::iter::once(key).chain(COLUMNS[..width].iter().map(value)).collect()
}

fn insert(table: &str, key: &str, rows: &[Row], width: usize) -> String {
    let columns: String =
        COLUMNS[..width].iter().map(|(column, _)| format!(", {column}")).collect();
    let mut sql = format!("CREATE TABLE {table} (k int{key}{columns});");
    if !rows.is_empty() {
        let rows: Vec<String> = rows.iter().map(|row| format!("({})", row.join(", "))).collect();
        write!(sql, "INSERT INTO {table} VALUES {};", rows.join(", ")).unwrap();
    }
    sql
}

/// What the target holds instead: rows in another order, often with a difference.
fn changed(rows: &[Row], random: &mut Lcg, width: usize) -> Vec<Row> {
    let mut other: Vec<_> = rows.to_vec();
    for at in (1..other.len()).rev() {
        other.swap(at, random.below(at as u64 + 1) as usize);
    }
    let some = |other: &[Row], random: &mut Lcg| random.below(other.len() as u64) as usize;
    match (other.len(), random.below(7)) {
        (0, _) | (_, 0 | 1) => {}
        (_, 2) => other.push(row(random, width)),
        (_, 3) => drop(other.remove(some(&other, random))),
        (_, 4) => {
            let at = some(&other, random);
            other[at] = row(random, width);
        }
        (_, 5) => {
            let at = some(&other, random);
            let doubled = other[at].clone();
            other.remove(some(&other, random));
            other.push(doubled);
        }
        _ => {
            let (one, two) = (some(&other, random), some(&other, random));
            let column = random.below(width as u64 + 1) as usize;
            let value = other[one][column].clone();
            other[one][column] = std::mem::replace(&mut other[two][column], value);
        }
    }
    other
}

#[tokio::test(flavor = "multi_thread")]
async fn verdicts_are_those_of_except_all_in_both_directions() {
    let seed =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    for seed in (0..3).map(|round| (seed as u64).wrapping_add(round)) {
        println!("seed {seed}");
        judged(seed).await;
    }
}

/// Tables of one seed.
async fn judged(seed: u64) {
    let mut random = Lcg(seed);
    let pair = Pair::new();
    let (mut source, mut target, mut beside) =
        (String::new(), String::new(), "CREATE SCHEMA b;".to_owned());
    const TABLES: usize = 120;
    for table in 0..TABLES {
        let (count, width) = (random.below(9) as usize, random.below(9) as usize);
        let mut rows: Vec<_> = (0..count).map(|_| row(&mut random, width)).collect();
        // Every other table has a key; the target does not hold itself to it.
        let is_keyed = table % 2 == 0;
        if is_keyed {
            (0..).zip(&mut rows).for_each(|(key, row)| row[0] = i32::to_string(&key));
        }
        let other = changed(&rows, &mut random, width);
        let key = if is_keyed { " PRIMARY KEY" } else { "" };
        source += &insert(&format!("t{table}"), key, &rows, width);
        target += &insert(&format!("t{table}"), "", &other, width);
        beside += &insert(&format!("b.t{table}"), "", &other, width);
    }
    pair.source.psql(&source).unwrap();
    pair.target.psql(&target).unwrap();
    pair.source.psql(&beside).unwrap();
    let mut request = pair.request.clone();
    request.job.selection =
        tidemark_source::Selection::new(vec!["public.*".to_owned()], Vec::new());
    let stop = tokio_util::sync::CancellationToken::new();
    let outcome = tidemark_verify::verify_quiesced(&request, &stop).await.unwrap();
    let expected: Vec<String> = (0..TABLES)
        .map(|n| format!("(SELECT count(*) FROM ((TABLE t{n} EXCEPT ALL TABLE b.t{n}) UNION ALL (TABLE b.t{n} EXCEPT ALL TABLE t{n})) d)"))
        .collect();
    let expected =
        pair.source.psql(&format!("SELECT unnest(ARRAY[{}])", expected.join(", "))).unwrap();
    let mut kinds = [[0; 2]; 2];
    for (table, expected) in expected.lines().enumerate() {
        let is_different = expected != "0";
        let found = crate::support::table(&outcome, &format!("t{table}")).verdict;
        let is_found = found == Verdict::Different;
        assert_eq!(
            is_found, is_different,
            "seed {seed}: t{table}: {found:?}, EXCEPT ALL has {expected} rows"
        );
        kinds[table % 2][usize::from(is_different)] += 1;
    }
    assert!(kinds.as_flattened().iter().all(|kind| *kind > 10), "{kinds:?}");
}
