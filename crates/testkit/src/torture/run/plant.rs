//! Differences that are planted on the target, for a verification to find: in rows that the storm never writes to, of tables
//! that it does.
//!
//! **Invariant:** what a plant says will be named follows from its edits alone. Taken away again, the target is what it was.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::super::rig::{DATABASE, Rig};
use crate::{lake, process};

/// Writes the snapshot of a lake's table anew, with the edits made.
const REWRITE: &str = include_str!("plant.py");
/// Documents of the start whose body is '', and those whose body is far out of line.
const EMPTY: [i64; 2] = [-400, -800];
const LONG: [i64; 2] = [-399, -799];

/// A row that is taken, and what is put in its place.
#[derive(Debug)]
struct Edit {
    /// Columns that find it.
    row: Value,
    /// Rows with these columns changed; none: it is gone.
    becomes: Vec<Value>,
}

/// A difference.
#[derive(Debug)]
pub(super) struct Plant {
    pub(super) what: &'static str,
    /// In the schema `storm`.
    pub(super) table: String,
    edits: Vec<Edit>,
    /// The rows that have to be named, as [`short`] writes them, sorted.
    pub(super) lines: Vec<String>,
    /// Whether `tidemark repair` can mend it: it writes row by row, which a unique value that two rows exchange refuses.
    pub(super) can_be_repaired: bool,
}

/// What takes a plant away again.
#[derive(Debug)]
pub(super) enum Undo {
    /// The source's rows in the place of the target's.
    Rows,
    /// The files of the lake as they were.
    Files(Vec<(PathBuf, Vec<u8>)>),
}

impl Plant {
    fn of(what: &'static str, table: String, edits: Vec<Edit>, lines: Vec<String>) -> Self {
        Self { what, table, edits, lines, can_be_repaired: true }
    }

    /// Some difference in some row.
    pub(super) fn any(random: &mut StdRng, rig: &Rig) -> Result<Self> {
        match random.random_range(0..10) {
            0 | 1 => Ok(Self::in_bag(random)),
            2 => Ok(Self::null_for_nothing(random)),
            3 => Self::one_byte(random, rig),
            _ => Self::in_keyed(random),
        }
    }

    /// Equal rows of a table without a key, of which there is one more, one less, or one that is another.
    fn in_bag(random: &mut StdRng) -> Self {
        let i = random.random_range(1..=300_i64);
        let (what, day) = (format!("w{}", i % 7), format!("2024-01-{:02}", 1 + i % 3));
        let n = if i % 5 == 0 { Value::Null } else { json!(i % 5) };
        let row = json!({"what": what, "n": n, "at": day});
        let named = |kind: &str, n: &Value| format!("{kind} at={day} n={n} what={what}");
        let (what, becomes, lines) = match random.random_range(0..3) {
            0 => ("a row doubled", vec![json!({}); 2], vec![named("extra", &n)]),
            1 => ("one of several equal rows lost", vec![], vec![named("missing", &n)]),
            _ => {
                let lines = vec![named("extra", &json!(77)), named("missing", &n)];
                ("one of several equal rows changed", vec![json!({"n": 77})], lines)
            }
        };
        Self::of(what, "bag".to_owned(), vec![Edit { row, becomes }], lines)
    }

    fn null_for_nothing(random: &mut StdRng) -> Self {
        let id = EMPTY[random.random_range(0..EMPTY.len())];
        let edits = vec![Edit { row: json!({"id": id}), becomes: vec![json!({"body": null})] }];
        Self::of("NULL for ''", document(random), edits, vec![format!("changed id={id}")])
    }

    /// In a value that is stored out of line.
    fn one_byte(random: &mut StdRng, rig: &Rig) -> Result<Self> {
        let (table, id) = (document(random), LONG[random.random_range(0..LONG.len())]);
        let sql = format!("SELECT body FROM storm.{table} WHERE id = {id}");
        let mut body = rig.source.psql(DATABASE, &sql)?;
        let middle = body.len() / 2;
        body.replace_range(middle..=middle, "X");
        let edits = vec![Edit { row: json!({"id": id}), becomes: vec![json!({"body": body})] }];
        let lines = vec![format!("changed id={id}")];
        Ok(Self::of("one byte of a large value", table, edits, lines))
    }

    fn in_keyed(random: &mut StdRng) -> Result<Self> {
        let place = Place::any(random);
        let (row, id, other) = (place.row(place.id), place.id, place.other);
        let edit = |row: &Value, becomes| Edit { row: row.clone(), becomes };
        let free = json!({"id": other, "position": other});
        let kind = random.random_range(0..5);
        let (what, edits, mut lines) = match kind {
            0 => ("a row lost", vec![edit(&row, vec![])], vec![place.named("missing", id)]),
            1 => {
                let becomes = vec![json!({ place.text: format!("planted {id} ") })];
                ("a value changed", vec![edit(&row, becomes)], vec![place.named("changed", id)])
            }
            2 => {
                let lines = vec![place.named("extra", other)];
                ("a row too many", vec![edit(&row, vec![json!({}), free])], lines)
            }
            3 => {
                let lines = vec![place.named("missing", id), place.named("extra", other)];
                ("a key changed", vec![edit(&row, vec![free])], lines)
            }
            _ => {
                let second = place.second;
                let edits = vec![
                    edit(&row, vec![json!({"id": second})]),
                    edit(&place.row(second), vec![json!({"id": id})]),
                ];
                let lines = vec![place.named("changed", id), place.named("changed", second)];
                ("two rows exchanged", edits, lines)
            }
        };
        lines.sort();
        let can_be_repaired = !(kind == 4 && place.table == "place");
        Ok(Self { can_be_repaired, ..Self::of(what, place.table, edits, lines) })
    }

    /// Makes the difference on the target: in its rows, or in the files of a lake.
    pub(super) fn put(&self, rig: &Rig, lake: Option<&Path>) -> Result<Undo> {
        let Some(root) = lake else {
            rig.target.psql(DATABASE, &self.sql()).context("plant a difference")?;
            return Ok(Undo::Rows);
        };
        let directory = root.join("storm").join(&self.table).join("snapshot");
        let whole = files(&directory)?;
        let edits = self.edits.iter();
        let edits: Value = edits.map(|edit| json!([edit.row, edit.becomes])).collect();
        let mut python = process::command(lake::python());
        process::run(python.args(["-c", REWRITE]).arg(&directory).arg(edits.to_string()))
            .context("plant a difference in a lake")?;
        Ok(Undo::Files(whole))
    }

    /// Takes the rows of all edits, then puts in what becomes of them.
    fn sql(&self) -> String {
        let table = format!("storm.{}", self.table);
        let mut taken = "BEGIN;\n".to_owned();
        let mut put = String::new();
        for (at, Edit { row, becomes }) in self.edits.iter().enumerate() {
            let one = format!("FROM {table} WHERE {} LIMIT 1", condition(row));
            taken.push_str(&format!(
                "CREATE TEMPORARY TABLE taken_{at} ON COMMIT DROP AS SELECT * {one};\n\
                 DELETE FROM {table} WHERE ctid = (SELECT ctid {one});\n"
            ));
            for changes in becomes {
                put.push_str(&format!(
                    "INSERT INTO {table} SELECT (jsonb_populate_record(ROW(t.*)::{table}, {}::jsonb)).* FROM taken_{at} t;\n",
                    literal(&changes.to_string())
                ));
            }
        }
        taken + &put + "COMMIT;"
    }

    /// Makes the target what it was.
    pub(super) fn take_away(&self, rig: &Rig, undo: Undo) -> Result<()> {
        if let Undo::Files(whole) = undo {
            return whole.iter().try_for_each(|(path, bytes)| {
                fs::write(path, bytes).with_context(|| format!("restore {}", path.display()))
            });
        }
        let table = format!("storm.{}", self.table);
        let (mut had, mut has) = (Vec::new(), Vec::new());
        for Edit { row, becomes } in &self.edits {
            had.push(condition(row));
            has.extend(becomes.iter().map(|changes| condition(&changed(row, changes))));
        }
        let rows = format!("COPY (SELECT * FROM {table} WHERE {}) TO STDOUT", had.join(" OR "));
        let rows = rig.source.psql(DATABASE, &rows)?;
        has.extend(had);
        let script = format!(
            "BEGIN;\nDELETE FROM {table} WHERE {};\nCOPY {table} FROM STDIN;\n{rows}\n\\.\nCOMMIT;",
            has.join(" OR ")
        );
        rig.target.psql(DATABASE, &script).map(drop).context("take a planted difference away")
    }
}

/// Where rows with a key are that no client of the storm touches.
struct Place {
    table: String,
    /// A row that is there, another one, and a key that is free.
    id: i64,
    second: i64,
    other: i64,
    /// A column for text.
    text: &'static str,
    /// Of a partition: the other column of its key.
    area: Option<i64>,
}

impl Place {
    fn any(random: &mut StdRng) -> Self {
        let of = |table: String, text, ids: [i64; 3], area| {
            let [id, second, other] = ids;
            Self { table, id, second, other, text, area }
        };
        match random.random_range(0..3) {
            0 => {
                let n = random.random_range(501..1000);
                of("place".to_owned(), "label", [n, n + 1, n + 100_000], None)
            }
            1 => {
                let n = random.random_range(1..=597);
                let area = n % 3;
                let ids = [-n, -n - 3, -n - 6_000];
                of(format!("parted_{area}"), "body", ids, Some(area))
            }
            _ => {
                let n = random.random_range(1..1000);
                of(document(random), "body", [-n, -n - 1, -n - 5_000], None)
            }
        }
    }

    fn row(&self, id: i64) -> Value {
        match self.area {
            None => json!({"id": id}),
            Some(area) => json!({"id": id, "area": area}),
        }
    }

    fn named(&self, kind: &str, id: i64) -> String {
        let area = self.area.map(|area| format!("area={area} ")).unwrap_or_default();
        format!("{kind} {area}id={id}")
    }
}

fn document(random: &mut StdRng) -> String {
    ["document", "document_full", "document_index"][random.random_range(0..3)].to_owned()
}

fn files(directory: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let entries = fs::read_dir(directory).with_context(|| format!("{}", directory.display()))?;
    let file = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry?.path();
        let bytes = fs::read(&path)?;
        Ok((path, bytes))
    };
    entries.map(file).collect::<std::io::Result<_>>().context("read the files of a lake's table")
}

/// A row with some columns changed.
fn changed(row: &Value, changes: &Value) -> Value {
    let columns = [row, changes].into_iter().filter_map(Value::as_object).flatten();
    // Only what finds a row again: a column that is in no table of that name is left out by the server, too.
    let known = columns.filter(|(name, _)| row.get(name).is_some());
    Value::Object(known.map(|(name, value)| (name.clone(), value.clone())).collect())
}

fn condition(row: &Value) -> String {
    let columns = row.as_object().into_iter().flatten();
    let each = columns.map(|(name, value)| {
        let value = match value {
            Value::Null => "NULL".to_owned(),
            other => literal(&plain(other)),
        };
        format!("{name} IS NOT DISTINCT FROM {value}")
    });
    format!("({})", each.collect::<Vec<_>>().join(" AND "))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A line of `diff.ndjson`: kind, key, and how many copies if there are several.
pub(super) fn short(line: &Value) -> String {
    let key = line["key"].as_object().into_iter().flatten();
    let mut key: Vec<String> =
        key.map(|(name, value)| format!("{name}={}", plain(value))).collect();
    key.sort();
    let copies = line["copies"].as_u64().filter(|copies| *copies > 1);
    let copies = copies.map(|copies| format!(" x{copies}")).unwrap_or_default();
    format!("{} {}{copies}", plain(&line["kind"]), key.join(" "))
}
