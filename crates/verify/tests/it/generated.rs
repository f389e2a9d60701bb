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

/// A row of few values, so that doubles are common.
fn row(random: &mut Lcg) -> [String; 4] {
    let text = ["''", "NULL", "'a'", "'a '", "'A'", "E'a\\n'"][random.below(6) as usize];
    let number = ["0", "NULL", "1.0", "1.00", "-1", "'NaN'"][random.below(6) as usize];
    let array = ["'{}'", "NULL", "'{NULL}'", "'{1,2}'"][random.below(4) as usize];
    [random.below(5).to_string(), text.to_owned(), number.to_owned(), array.to_owned()]
}

fn insert(table: &str, rows: &[[String; 4]]) -> String {
    let mut sql = format!("CREATE TABLE {table} (k int, t text, n numeric, a int[]);");
    if !rows.is_empty() {
        let rows: Vec<String> = rows.iter().map(|row| format!("({})", row.join(", "))).collect();
        write!(sql, "INSERT INTO {table} VALUES {};", rows.join(", ")).unwrap();
    }
    sql
}

/// What the target holds instead: rows in another order, often with a difference.
fn changed(rows: &[[String; 4]], random: &mut Lcg) -> Vec<[String; 4]> {
    let mut other: Vec<_> = rows.to_vec();
    for at in (1..other.len()).rev() {
        other.swap(at, random.below(at as u64 + 1) as usize);
    }
    let some = |other: &[[String; 4]], random: &mut Lcg| random.below(other.len() as u64) as usize;
    match (other.len(), random.below(7)) {
        (0, _) | (_, 0 | 1) => {}
        (_, 2) => other.push(row(random)),
        (_, 3) => drop(other.remove(some(&other, random))),
        (_, 4) => {
            let at = some(&other, random);
            other[at] = row(random);
        }
        (_, 5) => {
            let at = some(&other, random);
            let doubled = other[at].clone();
            other.remove(some(&other, random));
            other.push(doubled);
        }
        _ => {
            let (one, two) = (some(&other, random), some(&other, random));
            let column = random.below(4) as usize;
            let value = other[one][column].clone();
            other[one][column] = std::mem::replace(&mut other[two][column], value);
        }
    }
    other
}

#[tokio::test(flavor = "multi_thread")]
async fn verdicts_are_those_of_except_all_in_both_directions() {
    let seed =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    println!("seed {seed}");
    let mut random = Lcg(seed);
    let pair = Pair::new();
    let (mut source, mut target, mut beside) =
        (String::new(), String::new(), "CREATE SCHEMA b;".to_owned());
    const TABLES: usize = 120;
    for table in 0..TABLES {
        let count = random.below(9) as usize;
        let rows: Vec<_> = (0..count).map(|_| row(&mut random)).collect();
        let other = changed(&rows, &mut random);
        source += &insert(&format!("t{table}"), &rows);
        target += &insert(&format!("t{table}"), &other);
        beside += &insert(&format!("b.t{table}"), &other);
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
    let mut kinds = [0; 2];
    for (table, expected) in expected.lines().enumerate() {
        let is_different = expected != "0";
        let found = crate::support::table(&outcome, &format!("t{table}")).verdict;
        let is_found = found == Verdict::Different;
        assert_eq!(
            is_found, is_different,
            "seed {seed}: t{table}: {found:?}, EXCEPT ALL has {expected} rows"
        );
        kinds[usize::from(is_different)] += 1;
    }
    assert!(kinds.iter().all(|kind| *kind > 10), "{kinds:?}");
}
