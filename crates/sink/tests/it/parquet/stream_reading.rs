//! What `docs/guides/reading-the-lake.md` tells readers to run gives the rows that PostgreSQL has.
//!
//! A random workload on a real server goes through the stream; DuckDB then runs the very text of the guide.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use tidemark_model::{JoinPoint, StreamBatch, TablePlan, Transaction};
use tidemark_sink::{Join, SnapshotStart, SnapshotSummary, StreamWriter};
use tidemark_testkit::{Database, shared};

use super::lake::LocalLake;
use super::pgoutput::{Feed, plan_from};
use super::support::{batch, commits, debris, stream_start};
use crate::catalog::Catalog;
use crate::conformance::{JOB, Target as _, accept, begin, result, spec, start, summary};
use crate::copy;

const SCHEMA: &str = "
CREATE TABLE orders (id int8 PRIMARY KEY, note text, price numeric(10,2));
CREATE TABLE pairs (n int4, \"a'\"\"B\" int4, b text, note text, PRIMARY KEY (b, \"a'\"\"B\"));
CREATE TABLE whole (id int4 PRIMARY KEY, note text, x int4);
CREATE TABLE log (who int4, what text);
CREATE TABLE still (id int4 PRIMARY KEY);
ALTER TABLE orders ALTER note SET STORAGE EXTERNAL;
ALTER TABLE pairs ALTER note SET STORAGE EXTERNAL;
ALTER TABLE whole ALTER note SET STORAGE EXTERNAL;
ALTER TABLE whole REPLICA IDENTITY FULL;
ALTER TABLE log REPLICA IDENTITY FULL;
INSERT INTO orders SELECT i, repeat(md5(i::text), 80), i / 4.0 FROM generate_series(1, 12) AS i;
INSERT INTO pairs SELECT i, i % 4, 'b' || i, repeat(md5(i::text), 80) FROM generate_series(1, 12) AS i;
INSERT INTO whole SELECT i, repeat(md5(i::text), 80), i FROM generate_series(1, 12) AS i;
INSERT INTO log SELECT i % 3, CASE WHEN i % 2 = 0 THEN 'x' END FROM generate_series(1, 12) AS i;
INSERT INTO still VALUES (1), (2);
";

/// Each table as lines, in SQL that PostgreSQL and DuckDB understand.
const TABLES: [(&str, &str); 5] = [
    (
        "orders",
        "concat_ws('|', id, coalesce(md5(note), '-'), coalesce(CAST(price AS varchar), '-'))",
    ),
    ("pairs", "concat_ws('|', coalesce(n, -1), \"a'\"\"B\", b, coalesce(md5(note), '-'))"),
    ("whole", "concat_ws('|', id, coalesce(md5(note), '-'), coalesce(x, -1))"),
    ("log", "concat_ws('|', coalesce(who, -1), coalesce(what, '-'))"),
    ("still", "CAST(id AS varchar)"),
];

/// Runs the guide's text: all tables as of a commit by the function, and `orders` by the SQL if no commit is named.
const SCRIPT: &str = r#"
import json, re, sys
import duckdb
root, guide, at, tables = sys.argv[1], open(sys.argv[2]).read(), sys.argv[3], json.loads(sys.argv[4])
sql, function = [re.findall(r"```%s\n(.*?)```" % kind, guide, re.S)[0] for kind in ("sql", "python")]
space = {}
exec(function, space)
at = None if at == "last" else int(at)
for name, line in tables:
    rows = space["current_state"](root, "public", name, at)
    for (text,) in sorted(rows.select(duckdb.SQLExpression(line)).fetchall()):
        print(name + ":" + text)
if at is None:
    statements = sql.replace("/srv/lake", root).replace("SELECT * FROM orders ORDER BY id;", "")
    connection = duckdb.connect()
    connection.execute(statements)
    for (text,) in sorted(connection.sql("SELECT %s FROM orders" % tables[0][1]).fetchall()):
        print("sql:" + text)
"#;

/// Numbers that look random and are always the same.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

/// One statement that never fails.
fn statement(dice: &mut Dice) -> String {
    let (k, n) = (dice.roll(12), dice.roll(1_000_000));
    let one = |table: &str, key: &str| {
        format!("{key} = (SELECT {key} FROM {table} ORDER BY {key} OFFSET {k} LIMIT 1)")
    };
    let log = format!("ctid = (SELECT ctid FROM log ORDER BY who, what OFFSET {k} LIMIT 1)");
    match dice.roll(25) {
        0..=2 => format!(
            "INSERT INTO orders VALUES ({k}, repeat(md5('{n}'), 80), {n} / 100.0) ON CONFLICT DO NOTHING"
        ),
        3..=5 => format!("UPDATE orders SET price = {n} / 100.0 WHERE {}", one("orders", "id")),
        6 => {
            format!("UPDATE orders SET note = repeat(md5('{n}'), 80) WHERE {}", one("orders", "id"))
        }
        7..=9 => format!(
            "UPDATE orders SET id = {n} WHERE {} AND NOT EXISTS (SELECT FROM orders WHERE id = {n})",
            one("orders", "id")
        ),
        10 => format!(
            "UPDATE orders SET id = id + {n} WHERE NOT EXISTS (SELECT FROM orders AS a JOIN orders AS b ON a.id + {n} = b.id)"
        ),
        11..=12 => format!("DELETE FROM orders WHERE {}", one("orders", "id")),
        13 => format!(
            "UPDATE orders SET id = {k} WHERE id = (SELECT max(id) FROM orders) AND NOT EXISTS (SELECT FROM orders WHERE id = {k})"
        ),
        14 => format!(
            "INSERT INTO pairs VALUES ({n}, {k}, 'b{k}', repeat(md5('{n}'), 80)) ON CONFLICT DO NOTHING"
        ),
        15 => format!("UPDATE pairs SET b = 'b{n}' WHERE {}", one("pairs", "b")),
        16 => format!("UPDATE pairs SET n = {n} WHERE {}", one("pairs", "b")),
        17 => format!("DELETE FROM pairs WHERE {}", one("pairs", "b")),
        18 => format!(
            "UPDATE whole SET id = {n}, x = NULL WHERE {} AND NOT EXISTS (SELECT FROM whole WHERE id = {n})",
            one("whole", "id")
        ),
        19 => format!("UPDATE whole SET x = {n} WHERE {}", one("whole", "id")),
        20 => format!(
            "DELETE FROM whole WHERE {}; INSERT INTO whole VALUES ({k}, NULL, {n}) ON CONFLICT DO NOTHING",
            one("whole", "id")
        ),
        21 => format!("INSERT INTO log SELECT {n} % 3, 'x' FROM generate_series(1, 2)"),
        22 => format!("UPDATE log SET who = who + 1 WHERE {log}"),
        23 => format!("DELETE FROM log WHERE {log}"),
        _ if k == 0 => "TRUNCATE orders, log".to_owned(),
        _ => format!("INSERT INTO log VALUES (NULL, NULL), ({n} % 3, NULL)"),
    }
}

fn workload(database: &Database, dice: &mut Dice) {
    let mut sql = String::new();
    for _ in 0..80 {
        sql.push_str("BEGIN;\n");
        for _ in 0..=dice.roll(4) {
            writeln!(sql, "{};", statement(dice)).unwrap();
        }
        sql.push_str("COMMIT;\n");
    }
    database.psql(&sql).unwrap();
}

/// The snapshot of all tables, as the slot sees them.
async fn snapshot(lake: &LocalLake, database: &Database, feed: &Feed<'_>, plans: &[TablePlan]) {
    let begun = SnapshotStart { continues: true, lsn: feed.position(), ..start("r1", plans) };
    copied(lake, database, begun).await;
}

/// Tables that were given up are copied as they are now, which is what the stream has come to.
async fn joins_again(
    lake: &LocalLake,
    database: &Database,
    plans: &[TablePlan],
    again: &[&TablePlan],
) {
    let sink = lake.sink();
    let names: Vec<_> = again.iter().map(|plan| plan.relation.name.clone()).collect();
    sink.forget(JOB, &names).await.unwrap();
    let stored = sink.stored().await.unwrap().unwrap();
    let others = plans.iter().filter(|plan| !names.contains(&plan.relation.name));
    let now = database.psql("SELECT pg_current_snapshot()").unwrap();
    let join = Join {
        run: stored.run,
        point: JoinPoint { snapshot: now.parse().unwrap(), lsn: stored.end_lsn, timeline: None },
        position: stored.end_lsn,
        followed: others.map(|plan| (plan.relation.name.clone(), plan.relation.oid)).collect(),
        above: Vec::new(),
        completes: None,
        halves: Vec::new(),
    };
    let again: Vec<TablePlan> = again.iter().map(|plan| (*plan).clone()).collect();
    let begun = SnapshotStart { continues: true, joins: Some(join), ..start("j1", &again) };
    copied(lake, database, begun).await;
}

/// Copies the tables and finishes the run.
async fn copied(lake: &LocalLake, database: &Database, begun: SnapshotStart) {
    let sink = lake.sink();
    sink.prepare(&begun).await.unwrap();
    let mut counts = Vec::new();
    for plan in begun.tables.iter() {
        let program =
            tidemark_columnar::Program::compile(&plan.columns, plan.unrepresentable).unwrap();
        let tuples = copy::table(database, &plan.relation.name.name, &program);
        let (rows, spec) = (tuples.row_count() as u64, spec(&begun.run, plan, 0));
        let mut writer = begin(&*sink, &spec).await;
        accept(&mut writer, tuples).await.unwrap();
        writer.commit(&result(&spec, rows)).await.unwrap();
        sink.table_loaded(&plan.relation.name).await.unwrap();
        counts.push((plan, rows));
    }
    let finished = SnapshotSummary { lsn: begun.lsn, ..summary(&counts) };
    sink.finish(&finished).await.unwrap();
}

/// Sends transactions in batches of any size, with flushes in between.
async fn send(writer: &mut Box<dyn StreamWriter>, transactions: Vec<Transaction>, dice: &mut Dice) {
    let mut rest = transactions.into_iter().peekable();
    while rest.peek().is_some() {
        let count = 1 + dice.roll(9) as usize;
        let next: StreamBatch = batch(rest.by_ref().take(count).collect(), false);
        writer.accept(next).await.unwrap();
        if dice.roll(3) == 0 {
            writer.flush().await.unwrap();
        }
    }
    writer.flush().await.unwrap();
}

fn rows_of_postgres(database: &Database) -> Vec<String> {
    let mut rows = Vec::new();
    for (name, line) in TABLES {
        let mut lines: Vec<String> =
            (database.psql(&format!("SELECT {line} FROM {name}")).unwrap().lines())
                .map(|line| format!("{name}:{line}"))
                .collect();
        lines.sort_unstable();
        rows.extend(lines);
    }
    rows
}

fn rows_of_lake(
    python: &std::ffi::OsStr,
    lake: &LocalLake,
    at: &str,
    tables: &[(&str, &str)],
) -> Vec<String> {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guides/reading-the-lake.md");
    let tables = serde_json::to_string(tables).unwrap();
    let mut command = Command::new(python);
    command.args(["-c", SCRIPT]).arg(lake.path()).arg(guide).args([at, &tables]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

async fn the_guide_gives_the_rows(seed: u64, is_binary: bool) {
    let Some(python) = std::env::var_os("TIDEMARK_PYTHON") else {
        eprintln!("TIDEMARK_PYTHON is not set: the guide is not tested");
        return;
    };
    let mut dice = Dice(seed);
    let database = shared().unwrap();
    database.psql(SCHEMA).unwrap();
    let catalog = Catalog::read(&database);
    let plans: Vec<_> =
        TABLES.iter().map(|(name, _)| plan_from(&database, &catalog, name)).collect();
    let mut feed = Feed::new(&database, is_binary);
    let lake = LocalLake::new();
    snapshot(&lake, &database, &feed, &plans).await;
    let mut before = Vec::new();
    for run in ["r1", "r2", "r3"] {
        if run == "r3" {
            joins_again(&lake, &database, &plans, &[&plans[0], &plans[3]]).await;
        }
        let started = stream_start(run, &plans);
        let mut opened = lake.sink().open_stream(&started).await.unwrap();
        workload(&database, &mut dice);
        send(&mut opened.writer, feed.drain(), &mut dice).await;
        opened.writer.close().await.unwrap();
        let expected = rows_of_postgres(&database);
        before.push((commits(&lake.files()).len() - 1, expected.clone()));
        let found = rows_of_lake(&python, &lake, "last", &TABLES);
        let (by_sql, by_function): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|row| row.starts_with("sql:"));
        assert_eq!(by_function, expected, "seed {seed}, {run}");
        let orders = expected.iter().filter_map(|row| row.strip_prefix("orders:"));
        assert_eq!(
            by_sql,
            orders.map(|row| format!("sql:{row}")).collect::<Vec<_>>(),
            "seed {seed}, {run}"
        );
    }
    let (last, expected) = before.pop().unwrap();
    assert_eq!(at_commit(&python, &lake, last, &TABLES), expected, "seed {seed}, commit {last}");
    // What was given up since then is gone.
    let kept: Vec<_> =
        TABLES.into_iter().filter(|(name, _)| !["orders", "log"].contains(name)).collect();
    for (commit, mut expected) in before {
        expected.retain(|row| !row.starts_with("orders:") && !row.starts_with("log:"));
        let found = at_commit(&python, &lake, commit, &kept);
        assert_eq!(found, expected, "seed {seed}, commit {commit}");
    }
    assert_eq!(debris(&lake.files()), [""; 0]);
}

/// The rows at a commit, by the function.
fn at_commit(
    python: &std::ffi::OsStr,
    lake: &LocalLake,
    commit: usize,
    tables: &[(&str, &str)],
) -> Vec<String> {
    let mut found = rows_of_lake(python, lake, &commit.to_string(), tables);
    found.retain(|row| !row.starts_with("sql:"));
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_query_of_the_guide_gives_the_rows_of_postgres_from_binary_values() {
    for seed in [0x9E37_79B9, 0x85EB_CA6B, 0xC2B2_AE35] {
        the_guide_gives_the_rows(seed, true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_query_of_the_guide_gives_the_rows_of_postgres_from_text() {
    the_guide_gives_the_rows(0x27D4_EB2F, false).await;
}
