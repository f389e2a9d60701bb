//! The statements of each kind of transaction, made from a seeded generator.
//!
//! **Invariant:** a script never fails for what another client does: a client touches only rows of its own, or locks
//! shared ones in one order (accounts before vaults, each by id). What a script leaves in shared tables keeps the storm's
//! promises whether it commits or not.

use rand::Rng;
use rand::rngs::StdRng;

/// Ids of one client's rows start at a multiple of this.
const CLIENT_SPAN: u64 = 1_000_000_000_000;
/// Rows that a client has in each table of documents, before their keys are moved.
const DOCUMENTS: u64 = 120;
/// A storm that may have so many rows in a transaction has such ones often.
const HUGE: u64 = 1_000_000;
/// Where the key of a document is moved to.
const MOVED: u64 = 1_000;

/// Writes the scripts of one client.
#[derive(Debug)]
pub(super) struct Pen<'a> {
    pub(super) random: &'a mut StdRng,
    pub(super) client: u32,
    /// One in so many places is swapped.
    pub(super) swaps_one_in: u32,
}

impl Pen<'_> {
    /// The entry that makes a transaction count: both ledgers and the client's last number.
    pub(super) fn entry(&self, seq: u64) -> String {
        let client = self.client;
        format!(
            "INSERT INTO storm.ledger VALUES ({client}, {seq}, 'c{client} s{seq}'); \
             INSERT INTO storm.ledger_copy VALUES ({client}, {seq}, 'c{client} s{seq}'); \
             INSERT INTO storm.latest VALUES ({client}, {seq}) ON CONFLICT (client) DO UPDATE SET seq = {seq};\n"
        )
    }

    /// A number that is this client's alone.
    fn own(&self, number: u64) -> u64 {
        (u64::from(self.client) + 1) * CLIENT_SPAN + number
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random.random_range(0..end)
    }

    /// Moves money between 2 to 20 rows of two tables.
    pub(super) fn transfer(&mut self) -> String {
        let pairs = self.random.random_range(1..=10);
        let mut accounts = std::collections::BTreeMap::new();
        let mut vaults = std::collections::BTreeMap::new();
        for _ in 0..pairs {
            let amount = self.random.random_range(1..=50_i64);
            let amount = if self.random.random() { amount } else { -amount };
            let from = accounts.entry(self.random.random_range(1..=1000)).or_insert(0);
            *from -= amount;
            if self.random.random_ratio(1, 3) {
                *accounts.entry(self.random.random_range(1..=1000)).or_insert(0) += amount;
            } else {
                *vaults.entry(self.random.random_range(1..=100)).or_insert(0) += amount;
            }
        }
        let update = |table: &str, id: &u32, amount: &i64| {
            format!("UPDATE storm.{table} SET balance = balance + {amount} WHERE id = {id};\n")
        };
        let first: String =
            accounts.iter().map(|(id, amount)| update("account", id, amount)).collect();
        let second: String =
            vaults.iter().map(|(id, amount)| update("vault", id, amount)).collect();
        first + &second
    }

    /// Writes that a savepoint takes back: they must be seen nowhere.
    pub(super) fn taken_back(&mut self) -> String {
        let client = self.client;
        let rows = if self.random.random_ratio(1, 8) { 1500 } else { 3 };
        let first = self.own(999_000_000_000);
        format!(
            "SAVEPOINT s;\nUPDATE storm.latest SET seq = -1 WHERE client = {client};\n\
             INSERT INTO storm.woven SELECT i, repeat('x', 100) FROM generate_series({first}, {first} + {rows} - 1) i;\n\
             INSERT INTO storm.ledger_copy VALUES ({client}, -1, 'taken back');\nROLLBACK TO s;\n{}",
            if self.random.random() { "RELEASE s;\n" } else { "" }
        )
    }

    /// The next tick, which waits for whoever has the clock.
    pub(super) fn tick(&self, seq: u64) -> String {
        let client = self.client;
        format!(
            "UPDATE storm.clock SET tick = tick + 1 WHERE id = 1;\n\
             INSERT INTO storm.tick SELECT tick, {client}, {seq} FROM storm.clock WHERE id = 1;\n"
        )
    }

    /// Rows of the client's own beside those of others: many, so that they are streamed before they commit, or few.
    pub(super) fn weave(&mut self, seq: u64) -> String {
        let rows =
            if self.random.random_ratio(1, 10) { 1200 } else { self.random.random_range(1..4) };
        let part = self.below(8);
        let first = self.own(seq * 10_000 + part * 1_200);
        let gone = self.own(seq.saturating_sub(40) * 10_000);
        format!(
            "INSERT INTO storm.woven SELECT i, repeat(md5(i::text), 3) FROM generate_series({first}, {first} + {rows} - 1) i ON CONFLICT DO NOTHING;\n\
             DELETE FROM storm.woven WHERE id BETWEEN {gone} AND {gone} + 9999;\n"
        )
    }

    /// One to six changes of documents, places, bags and partitioned rows.
    pub(super) fn churn(&mut self) -> String {
        let count = self.random.random_range(1..=6);
        (0..count)
            .map(|_| match self.below(10) {
                0..=5 => self.document(),
                6 if self.random.random_ratio(1, self.swaps_one_in) => self.swap_places(),
                6 => self.label_place(),
                7 | 8 => self.bag(),
                _ => self.part(),
            })
            .collect()
    }

    fn body(&mut self) -> String {
        let count = match self.below(50) {
            0 => self.random.random_range(5_000..30_000),
            1..=20 => self.random.random_range(70..700),
            _ => self.random.random_range(0..20),
        };
        let salt = self.below(1 << 40);
        format!("repeat(md5('{salt}'), {count})")
    }

    fn document(&mut self) -> String {
        let table = ["document", "document_full", "document_index"][self.random.random_range(0..3)];
        let number = self.below(DOCUMENTS);
        let id = self.own(number);
        let moved = id + MOVED;
        let either = format!("WHERE id IN ({id}, {moved})");
        let is_free = format!("NOT EXISTS (SELECT FROM storm.{table} WHERE id = {moved})");
        let number = self.below(1_000_000);
        let body = self.body();
        let insert = format!(
            "INSERT INTO storm.{table} SELECT {id}, {body}, jsonb_build_object('n', {number}, 'more', repeat('j', {number} % 3000)), {number}, \
             {number} / 13.0, timestamptz '2026-01-01 00:00+00' + {number} * interval '1 second', ARRAY['{number}', NULL, 'a\"b'], \
             decode(md5('{number}'), 'hex') WHERE NOT EXISTS (SELECT FROM storm.{table} {either});\n"
        );
        match self.below(12) {
            0..=2 => insert,
            // The body stays outside the row and is not in the stream.
            3 | 4 => format!("UPDATE storm.{table} SET small = small + 1 {either};\n"),
            5 => format!("UPDATE storm.{table} SET body = {body} {either};\n"),
            6 => format!(
                "UPDATE storm.{table} SET id = {moved}, small = {number} WHERE id = {id} AND {is_free};\n"
            ),
            7 => format!(
                "UPDATE storm.{table} SET id = {moved} WHERE id = {id} AND {is_free};\nUPDATE storm.{table} SET small = small + 1 WHERE id = {moved};\n"
            ),
            8 => format!("{insert}UPDATE storm.{table} SET small = -1, tags = NULL {either};\n"),
            9 => format!("DELETE FROM storm.{table} {either};\n"),
            10 => format!(
                "DELETE FROM storm.{table} {either};\n{insert}UPDATE storm.{table} SET price = NULL {either};\n"
            ),
            _ => format!(
                "UPDATE storm.{table} SET small = small {either};\nUPDATE storm.{table} SET extra = NULL, raw = '\\x00ff', price = 'NaN' {either};\n"
            ),
        }
    }

    /// A change of a place that moves nothing.
    fn label_place(&mut self) -> String {
        let id = u64::from(self.client % 50) * 20 + 1 + self.below(20);
        format!("UPDATE storm.place SET label = right(label, 10) || 'l' WHERE id = {id};\n")
    }

    /// Exchanges the keys or the unique values of two rows.
    fn swap_places(&mut self) -> String {
        let first = self.random.random_range(0..20) + u64::from(self.client % 50) * 20 + 1;
        let base = u64::from(self.client % 50) * 20 + 1;
        let second = base + (first - base + 1 + self.below(19)) % 20;
        let column = if self.random.random() { "id" } else { "position" };
        let swap = |from: u64, to: i64, by: &str| {
            format!(
                "UPDATE storm.place SET {column} = {to}, label = label || '{by}' WHERE {column} = {from};\n"
            )
        };
        let aside = -i64::try_from(first).unwrap_or(1);
        let back = format!(
            "UPDATE storm.place SET {column} = {second}, label = right(label, 20) WHERE {column} = {aside};\n"
        );
        swap(first, aside, "a") + &swap(second, i64::try_from(first).unwrap_or(1), "b") + &back
    }

    /// Equal rows and NULLs, by name of this client.
    fn bag(&mut self) -> String {
        let kind = self.below(4);
        let what = format!("c{}-{kind}", self.client);
        let n = ["NULL", "1", "2"][self.random.random_range(0..3)];
        let one = format!("ctid = (SELECT ctid FROM storm.bag WHERE what = '{what}' LIMIT 1)");
        match self.below(6) {
            0..=2 => format!(
                "INSERT INTO storm.bag SELECT '{what}', {n}, '2024-02-29' FROM generate_series(1, {});\n",
                self.random.random_range(1..4)
            ),
            3 => format!(
                "DELETE FROM storm.bag WHERE {one};\nDELETE FROM storm.bag WHERE ctid IN (SELECT ctid FROM storm.bag WHERE what = '{what}' OFFSET 6);\n"
            ),
            4 => format!("UPDATE storm.bag SET n = {n} WHERE {one};\n"),
            _ => format!(
                "UPDATE storm.bag SET at = NULL WHERE what = '{what}';\nDELETE FROM storm.bag WHERE what = '{what}' AND n IS NULL;\n"
            ),
        }
    }

    fn part(&mut self) -> String {
        let number = self.below(60);
        let id = self.own(number);
        let area = self.below(3);
        match self.below(5) {
            0 | 1 => format!(
                "INSERT INTO storm.parted SELECT {id}, {area}, md5('{id}') WHERE NOT EXISTS (SELECT FROM storm.parted WHERE id = {id});\n"
            ),
            // The row may move to another partition: a delete and an insert in the stream.
            2 | 3 => format!(
                "UPDATE storm.parted SET area = {area}, body = body || '+' WHERE id = {id};\n"
            ),
            _ => format!("DELETE FROM storm.parted WHERE id = {id};\n"),
        }
    }

    /// Writes many rows in one of many ways; `rows_max` bounds them.
    pub(super) fn bulk(&mut self, seq: u64, rows_max: u64) -> String {
        let first = self.own(seq * 2_000_000);
        let rows = match self.below(100) {
            0..=49 => self.random.random_range(1..=10),
            50..=96 => self.random.random_range(300..=2_500),
            97..=98 => self.random.random_range(10_000..=100_000),
            _ => HUGE,
        }
        .min(rows_max);
        let is_huge = rows_max >= HUGE && self.random.random_ratio(1, 8);
        let insert = |from: u64, rows: u64| {
            format!(
                "INSERT INTO storm.bulk SELECT i, md5(i::text), i % 100 FROM generate_series({from}, {from} + {rows} - 1) i;\n"
            )
        };
        if is_huge {
            return insert(first, self.random.random_range(HUGE / 5..=HUGE));
        }
        let bounded = "(SELECT id FROM storm.bulk ORDER BY id LIMIT 2000)";
        match self.below(14) {
            0..=3 => insert(first, rows),
            4 => format!(
                "UPDATE storm.bulk SET n = n + 1, body = md5(body) WHERE id IN {bounded};\n"
            ),
            5 => format!(
                "DELETE FROM storm.bulk WHERE id IN {bounded};\nINSERT INTO storm.bulk_note VALUES ({first}, 'deleted') ON CONFLICT DO NOTHING;\n"
            ),
            6 => format!(
                "{}TRUNCATE storm.bulk, storm.bulk_note;\n{}INSERT INTO storm.bulk_note SELECT i, 'after' FROM generate_series({first}, {first} + 9) i;\n",
                insert(first + 1_500_000, 20),
                insert(first, rows.min(5_000))
            ),
            // Streamed, and then a part of it is taken back.
            7 | 8 => {
                let part = rows.clamp(1_500, 4_000);
                let (second, third) = (first + 500_000, first + 1_000_000);
                format!(
                    "{}SAVEPOINT a;\n{}SAVEPOINT b;\n{}ROLLBACK TO b;\n{}{}{}",
                    insert(first, part),
                    insert(second, part),
                    insert(third, part),
                    insert(third + 100_000, 10),
                    if self.random.random() { "ROLLBACK TO a;\n" } else { "RELEASE a;\n" },
                    insert(third + 200_000, 10)
                )
            }
            9 | 10 => self.many_subtransactions(first),
            11 => self.copied(seq),
            12 => self.churn() + &insert(first, rows.min(3_000)) + &self.churn(),
            _ => self.taken_back() + &insert(first, rows.min(3_000)) + &self.taken_back(),
        }
    }

    /// More than 64 sub-transactions, every second one taken back (manual, "Subtransactions").
    fn many_subtransactions(&mut self, first: u64) -> String {
        let count = self.random.random_range(66..300);
        format!(
            "DO $do$ BEGIN FOR i IN 0..{count} LOOP BEGIN \
               INSERT INTO storm.bulk SELECT {first} + i * 20 + k, repeat('s', 50), i FROM generate_series(0, 19) k; \
               IF i % 2 = 1 THEN RAISE division_by_zero; END IF; \
             EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $do$;\n"
        )
    }

    /// Rows by COPY: the server writes many of them with one WAL record.
    fn copied(&mut self, seq: u64) -> String {
        let batch = self.own(seq);
        let rows = self.random.random_range(100..1500);
        let mut script = format!(
            "DELETE FROM storm.copied WHERE batch < {batch} - 30 AND batch > {};\n",
            self.own(0)
        );
        script.push_str("COPY storm.copied FROM STDIN;\n");
        for row in 0..rows {
            let body = "copied ".repeat(row % 5);
            script.push_str(&format!("{batch}\t{row}\t{body}\\\\ \\N{row}\n"));
        }
        script.push_str("\\.\n");
        script
    }

    /// What commits without a change of any published table.
    pub(super) fn nothing(&mut self) -> &'static str {
        [
            "BEGIN; COMMIT;",
            "BEGIN; SELECT txid_current() \\gset\nCOMMIT;",
            "SELECT count(*) FROM storm.idle \\gset\n",
            "CREATE TEMPORARY TABLE IF NOT EXISTS scratch (i integer); INSERT INTO scratch VALUES (1);",
            "SELECT pg_logical_emit_message(true, 'storm', 'transactional') \\gset\n",
            "SELECT pg_logical_emit_message(false, 'storm', 'at once') \\gset\n",
            "BEGIN; SAVEPOINT s; INSERT INTO storm.idle VALUES (99, 'no'); ROLLBACK TO s; COMMIT;",
            "UPDATE storm.idle SET note = 'no' WHERE id = -1;",
        ][self.random.random_range(0..8)]
    }
}
