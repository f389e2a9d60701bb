//! Random changes of every kind of table, applied in random batches, leave what the source has.
//!
//! Each run prints its seed; `TIDEMARK_STREAM_SEED` repeats one, `TIDEMARK_STREAM_SEEDS` says how many are run.

use std::fmt::Write as _;

use tidemark_model::Transaction;
use tidemark_sink::Sink;

use super::pair::{Pair, batch};

/// Tables with every kind of key that a stream can bring.
pub(crate) const SCHEMA: &str = "
SET client_min_messages = warning;
CREATE TABLE keyed (id int PRIMARY KEY, a text, n numeric, big text, at timestamptz);
ALTER TABLE keyed ALTER big SET STORAGE EXTERNAL;
CREATE TABLE composite (v int, y text, x int, note text, PRIMARY KEY (x, y));
CREATE TABLE uniq (id int PRIMARY KEY, u int UNIQUE, v text);
CREATE TABLE bag (a int, b text, c float8); ALTER TABLE bag REPLICA IDENTITY FULL;
CREATE TABLE heavy_bag (a int, big text); ALTER TABLE heavy_bag REPLICA IDENTITY FULL;
ALTER TABLE heavy_bag ALTER big SET STORAGE EXTERNAL;
CREATE TABLE whole (id int PRIMARY KEY, v text, big text); ALTER TABLE whole REPLICA IDENTITY FULL;
ALTER TABLE whole ALTER big SET STORAGE EXTERNAL;
CREATE TABLE by_index (v text, code text NOT NULL); CREATE UNIQUE INDEX by_code ON by_index (code);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_code;
CREATE TABLE trading (id int PRIMARY KEY DEFERRABLE, v text); ALTER TABLE trading REPLICA IDENTITY FULL;
CREATE TABLE fixed (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int, twice int GENERATED ALWAYS AS (v * 2) STORED);
CREATE TABLE lists (id int PRIMARY KEY, tags int[], doc jsonb, words text[]);
CREATE TABLE only_key (id int PRIMARY KEY);
CREATE TABLE log (at int, line text);
";

/// A generator that is the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }
}

fn statement(random: &mut Random, out: &mut String) {
    let (i, j) = (random.below(12), random.below(12));
    let r = random.below(1_000_000);
    let big = format!("repeat(md5({r}::text), 100)");
    let statement = match random.below(44) {
        0..4 => format!(
            "INSERT INTO keyed VALUES ({i}, E'a\\t{r}\\\\', {r}.50, {big}, 'epoch') ON CONFLICT DO NOTHING"
        ),
        4..6 => format!("UPDATE keyed SET a = '{r}', n = NULL WHERE id = {i}"),
        6 => format!("UPDATE keyed SET big = {big} WHERE id IN ({i}, {j})"),
        7..9 => format!(
            "UPDATE keyed SET id = {j}, a = nullif('{r}', '{r}') WHERE id = {i} AND NOT EXISTS (SELECT FROM keyed WHERE id = {j})"
        ),
        9..11 => format!("DELETE FROM keyed WHERE id = {i}"),
        11 => swap("keyed", "id", i, j),
        12 => {
            format!("INSERT INTO composite VALUES ({r}, 'y{i}', {j}, 'n') ON CONFLICT DO NOTHING")
        }
        13 => format!("UPDATE composite SET v = {r} WHERE x = {j}"),
        14 => format!("UPDATE composite SET y = 'z{r}', note = NULL WHERE x = {j} AND y = 'y{i}'"),
        15 => format!("DELETE FROM composite WHERE x = {j}"),
        16 => format!("INSERT INTO uniq VALUES ({i}, {j}, '{r}') ON CONFLICT DO NOTHING"),
        17 => format!(
            "UPDATE uniq SET u = {j} WHERE id = {i} AND NOT EXISTS (SELECT FROM uniq WHERE u = {j})"
        ),
        18 => swap("uniq", "u", i, j),
        19 => format!("DELETE FROM uniq WHERE id = {i}"),
        20..22 => format!(
            "INSERT INTO bag SELECT {i} % 3, CASE WHEN {r} % 2 = 0 THEN 'b' END, '-0' FROM generate_series(1, 2)"
        ),
        22 => format!(
            "UPDATE bag SET b = 'u{i}' WHERE ctid IN (SELECT ctid FROM bag WHERE a = {i} % 3 LIMIT 2)"
        ),
        23 => format!(
            "DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE a = {i} % 3 LIMIT 1)"
        ),
        24 => format!("INSERT INTO heavy_bag VALUES ({i} % 3, repeat(md5(({i} % 2)::text), 100))"),
        25 => format!("UPDATE heavy_bag SET a = {j} % 3 WHERE a = {i} % 3"),
        26 => format!("INSERT INTO whole VALUES ({i}, '{r}', {big}) ON CONFLICT DO NOTHING"),
        27 => format!("UPDATE whole SET v = '{r}' WHERE id = {i}"),
        28 => format!(
            "UPDATE whole SET id = id + 100 WHERE id = {i} AND NOT EXISTS (SELECT FROM whole WHERE id = {i} + 100)"
        ),
        29 => format!("DELETE FROM whole WHERE id IN ({i}, {i} + 100)"),
        30 => format!("INSERT INTO by_index VALUES ('{r}', 'c{i}') ON CONFLICT DO NOTHING"),
        31 => format!(
            "UPDATE by_index SET code = 'd{j}', v = '{r}' WHERE code = 'c{i}' AND NOT EXISTS (SELECT FROM by_index WHERE code = 'd{j}')"
        ),
        32 => format!("DELETE FROM by_index WHERE code IN ('c{i}', 'd{j}')"),
        33 => format!(
            "INSERT INTO trading SELECT {i}, '{r}' WHERE NOT EXISTS (SELECT FROM trading WHERE id = {i})"
        ),
        34 => format!(
            "UPDATE trading SET id = CASE id WHEN {i} THEN {j} ELSE {i} END, v = v || '.' WHERE id IN ({i}, {j})"
        ),
        35 => format!("DELETE FROM trading WHERE id = {i}"),
        36 => format!("INSERT INTO fixed (v) SELECT {r} % 1000"),
        37 => format!("UPDATE fixed SET v = v + 1 WHERE id % 12 = {i}"),
        38 => match random.below(4) {
            0 => format!("UPDATE fixed SET id = DEFAULT WHERE id % 12 = {i}"),
            _ => format!("DELETE FROM fixed WHERE id % 12 = {i} AND id % 2 = 0"),
        },
        39 => format!(
            "INSERT INTO lists VALUES ({i}, ARRAY[{i}, NULL, {j}], '{{\"k\": {r}}}', ARRAY['', 'a\"b', NULL]) ON CONFLICT DO NOTHING"
        ),
        40 => format!("UPDATE lists SET tags = tags || {j}, words = '{{}}' WHERE id = {i}"),
        41 => format!(
            "INSERT INTO only_key VALUES ({i}) ON CONFLICT DO NOTHING; UPDATE only_key SET id = id WHERE id = {j}; DELETE FROM only_key WHERE id = {j}"
        ),
        42 => format!(
            "INSERT INTO log SELECT g, E'l\\n\\\\{r}' FROM generate_series(1, {}) g",
            random.below(300)
        ),
        _ => match random.below(6) {
            0 => "TRUNCATE keyed, uniq".to_owned(),
            1 => "TRUNCATE fixed RESTART IDENTITY".to_owned(),
            2 => "TRUNCATE bag, log".to_owned(),
            _ => format!("DELETE FROM uniq; DELETE FROM lists WHERE id = {i}"),
        },
    };
    writeln!(out, "{statement};").unwrap();
}

/// Two rows trade their values, one statement each.
fn swap(table: &str, column: &str, i: u64, j: u64) -> String {
    format!(
        "UPDATE {table} SET {column} = -1 WHERE {column} = {i}; UPDATE {table} SET {column} = {i} WHERE {column} = {j}; \
         UPDATE {table} SET {column} = {j} WHERE {column} = -1"
    )
}

fn script(random: &mut Random, transactions: u64) -> String {
    let mut script = String::new();
    for _ in 0..transactions {
        script.push_str("BEGIN;\n");
        let long = random.below(10) == 0;
        for _ in 0..=random.below(if long { 60 } else { 6 }) {
            statement(random, &mut script);
        }
        script.push_str(if random.below(10) == 0 { "ROLLBACK;\n" } else { "COMMIT;\n" });
    }
    script
}

async fn run(seed: u64, is_binary: bool, lanes: usize) {
    eprintln!("seed {seed}");
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let form = if is_binary { "b" } else { "t" };
    let mut pair =
        Pair::new(&format!("random-{form}{lanes}-{}", seed % 100_000_000), SCHEMA, is_binary).await;
    let sink = pair.laned(lanes);
    let mut open = sink.open_stream(&pair.start("s1")).await.unwrap();
    let (mut batches, mut parts) = (0, 0);
    for round in 0..6 {
        let script = script(&mut random, 60);
        pair.source.cluster().run_script(pair.source.name(), &script).unwrap();
        let mut rest = pair.changes().await;
        while !rest.is_empty() {
            let count =
                1 + usize::try_from(random.below(if round % 2 == 0 { 4 } else { 25 })).unwrap();
            let group: Vec<Transaction> = rest.drain(..count.min(rest.len())).collect();
            batches += 1;
            if group.len() > 1 || random.below(3) == 0 {
                open.writer.accept(batch(group, false).await).await.unwrap();
                continue;
            }
            parts += 1;
            let [transaction] = <[Transaction; 1]>::try_from(group).unwrap();
            let mut changes = transaction.changes;
            let head = transaction.head;
            while changes.len() > 1 {
                let cut = 1 + usize::try_from(random.below(changes.len() as u64 - 1)).unwrap();
                let part = Transaction { head, changes: changes.drain(..cut).collect() };
                open.writer.accept(batch(vec![part], true).await).await.unwrap();
            }
            let last = Transaction { head, changes };
            open.writer.accept(batch(vec![last], false).await).await.unwrap();
        }
        open.writer.flush().await.unwrap();
        pair.assert_same(&format!("seed {seed}, round {round}"));
    }
    let counters = open.writer.counters();
    eprintln!("seed {seed}: {batches} batches, {parts} transactions in parts, {counters:?}");
    assert_eq!(counters.in_lanes > 0, lanes > 1);
    open.writer.close().await.unwrap();
}

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("TIDEMARK_STREAM_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("TIDEMARK_STREAM_SEEDS").unwrap_or(2)).collect(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_changes_in_binary_leave_what_the_source_has() {
    for seed in seeds() {
        Box::pin(run(seed, true, 1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_changes_in_text_leave_what_the_source_has() {
    for seed in seeds() {
        Box::pin(run(seed, false, 1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_changes_in_several_lanes_leave_what_the_source_has() {
    for seed in seeds() {
        Box::pin(run(seed, seed % 2 == 0, 2 + usize::try_from(seed % 3).unwrap())).await;
    }
}
