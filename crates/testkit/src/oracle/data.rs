//! Rows: what each table holds, as one SHA-256 per table.
//!
//! **Invariant:** the order of rows comes from their text in the "C" collation, hence is the same on
//! every server; a table's children are never counted with it (`ONLY`).
//!
//! One `psql` reads all tables of a side, in one snapshot; the two sides are read at the same time. The
//! output of each table follows a line with a random word that no row can hold by accident.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::{Difference, PINNED};
use crate::{Cluster, process};

/// How many rows a table has, and the SHA-256 of their text in a fixed order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableHash {
    /// The number of rows.
    pub rows: u64,
    /// SHA-256 over the lines of `COPY .. TO STDOUT`.
    pub sha256: [u8; 32],
}

impl TableHash {
    /// The hash as 64 hex digits.
    pub fn hex(&self) -> String {
        self.sha256.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A query whose output is compared: a table's rows or a sequence's state.
#[derive(Debug, Clone)]
struct Item {
    kind: &'static str,
    /// Qualified and quoted.
    name: String,
    query: String,
}

const TABLES: &str = r#"
SELECT json_build_object('kind', 'rows', 'name', format('%I.%I', n.nspname, c.relname),
    'query', format('SELECT %s FROM %s %I.%I ORDER BY %s',
        (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attname COLLATE pg_catalog."C") FROM pg_catalog.pg_attribute
            WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
        CASE c.relkind WHEN 'r' THEN 'ONLY' ELSE '' END, n.nspname, c.relname,
        coalesce(
            (SELECT string_agg(format('%I::text COLLATE pg_catalog."C"', a.attname), ', ' ORDER BY k.position)
                FROM pg_catalog.pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, position), pg_catalog.pg_attribute a
                WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate AND k.position <= i.indnkeyatts
                    AND a.attrelid = c.oid AND a.attnum = k.attnum),
            (SELECT format('ROW(%s)::text COLLATE pg_catalog."C"', string_agg(quote_ident(attname), ', ' ORDER BY attname COLLATE pg_catalog."C"))
                FROM pg_catalog.pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped))))
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE (c.relkind = 'r' OR c.relkind = 'm' AND c.relispopulated)
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'tidemark') AND n.nspname NOT LIKE 'pg\_%'
ORDER BY 1::text;
SELECT json_build_object('kind', 'sequence', 'name', format('%I.%I', n.nspname, c.relname),
    'query', format('SELECT last_value, is_called FROM %I.%I', n.nspname, c.relname))
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'S' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'tidemark') AND n.nspname NOT LIKE 'pg\_%'
ORDER BY 1::text;
"#;

/// The hash of one table, given as `schema.table` with the quotes that SQL needs.
///
/// # Errors
/// When there is no such table.
pub fn table_hash(cluster: &Cluster, database: &str, table: &str) -> Result<TableHash> {
    let items = items(cluster, database)?;
    let Some(item) = items.into_iter().find(|item| item.kind == "rows" && item.name == table)
    else {
        bail!("hash table {table} in database {database}: there is no such table");
    };
    let hashes = hash_all(cluster, database, std::slice::from_ref(&item))?;
    hashes.into_iter().next().context("hash one table")
}

/// Compares rows and sequences of two databases.
///
/// # Errors
/// When one side cannot be read.
pub fn data_diff(source: (&Cluster, &str), target: (&Cluster, &str)) -> Result<Vec<Difference>> {
    data_diff_of(source, target, |_| true)
}

/// As [`data_diff`], only for the qualified, quoted names that `wanted` takes.
///
/// # Errors
/// As [`data_diff`].
pub fn data_diff_of(
    source: (&Cluster, &str),
    target: (&Cluster, &str),
    wanted: impl Fn(&str) -> bool + Sync,
) -> Result<Vec<Difference>> {
    data_diff_counted(source, target, wanted).map(|(found, _)| found)
}

/// As [`data_diff_of`], with the number of the source's rows that were compared.
///
/// # Errors
/// As [`data_diff`].
pub fn data_diff_counted(
    source: (&Cluster, &str),
    target: (&Cluster, &str),
    wanted: impl Fn(&str) -> bool + Sync,
) -> Result<(Vec<Difference>, u64)> {
    let read = |side: (&Cluster, &str)| read_side(side, &wanted);
    let (one, two) = std::thread::scope(|scope| {
        let one = scope.spawn(|| read(source));
        let two = read(target);
        (one.join().expect("the reader of the source does not panic"), two)
    });
    let (one, two) = (one?, two?);
    let mut found = Vec::new();
    for (name, (item, hash)) in &one {
        match two.get(name) {
            None => found.push(difference(item, "only on the source".into())),
            Some((other, theirs)) if theirs != hash => {
                let detail = describe(source, target, (item, hash), (other, theirs))?;
                found.push(difference(item, detail));
            }
            Some(_) => {}
        }
    }
    for (name, (item, _)) in &two {
        if !one.contains_key(name) {
            found.push(difference(item, "only on the target".into()));
        }
    }
    let rows = one.iter().filter(|((kind, _), _)| *kind == "rows").map(|(_, (_, hash))| hash.rows);
    Ok((found, rows.sum()))
}

/// How the rows of a table differ, as multisets of their text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowDifference {
    /// Rows that only the source has, beyond those that `wrong` may stand for.
    pub missing: u64,
    /// Rows that both have and the target more often.
    pub duplicated: u64,
    /// Rows that only the target has: changed ones, or from nowhere.
    pub wrong: u64,
}

/// Compares one table row by row; for a table that is known to differ.
///
/// # Errors
/// When one side cannot be read or has no such table.
pub fn row_difference(
    source: (&Cluster, &str),
    target: (&Cluster, &str),
    table: &str,
) -> Result<RowDifference> {
    let read = |side: (&Cluster, &str)| -> Result<BTreeMap<Vec<u8>, u64>> {
        let items = items(side.0, side.1)?;
        let item = items.into_iter().find(|item| item.kind == "rows" && item.name == table);
        let item = item.with_context(|| format!("find table {table} in database {}", side.1))?;
        let mut counts = BTreeMap::new();
        for line in lines(side, &item)? {
            *counts.entry(line.context("read psql's output")?).or_insert(0) += 1;
        }
        Ok(counts)
    };
    let (ours, theirs) = (read(source)?, read(target)?);
    let mut found = RowDifference::default();
    for (line, count) in &ours {
        found.missing += count.saturating_sub(theirs.get(line).copied().unwrap_or(0));
    }
    for (line, count) in &theirs {
        match ours.get(line) {
            Some(there) => found.duplicated += count.saturating_sub(*there),
            None => found.wrong += count,
        }
    }
    // A changed row is one wrong row, not a missing one, too.
    found.missing = found.missing.saturating_sub(found.wrong);
    Ok(found)
}

type SideHashes = BTreeMap<(&'static str, String), (Item, TableHash)>;

fn read_side(
    (cluster, database): (&Cluster, &str),
    wanted: &(impl Fn(&str) -> bool + Sync),
) -> Result<SideHashes> {
    let mut items = items(cluster, database)?;
    items.retain(|item| wanted(&item.name));
    let hashes = hash_all(cluster, database, &items)?;
    let named = items.into_iter().zip(hashes);
    Ok(named.map(|(item, hash)| ((item.kind, item.name.clone()), (item, hash))).collect())
}

fn difference(item: &Item, detail: String) -> Difference {
    Difference { kind: item.kind.into(), object: item.name.clone(), detail }
}

/// Counts and the first line that differs: it is test data, so it may be shown.
fn describe(
    source: (&Cluster, &str),
    target: (&Cluster, &str),
    (item, hash): (&Item, &TableHash),
    (other, theirs): (&Item, &TableHash),
) -> Result<String> {
    let mut ours = lines(source, item)?;
    let mut their = lines(target, other)?;
    let show = |line: Option<Vec<u8>>| match line {
        None => "nothing more".to_owned(),
        Some(line) => String::from_utf8_lossy(&line).chars().take(300).collect(),
    };
    let mut number = 0_u64;
    let (left, right) = loop {
        number += 1;
        let (left, right) = (ours.next().transpose()?, their.next().transpose()?);
        if left != right || left.is_none() {
            break (show(left), show(right));
        }
    };
    Ok(format!(
        "{} rows on the source, {} on the target; line {number}: {left:?} != {right:?}",
        hash.rows, theirs.rows
    ))
}

fn lines(
    (cluster, database): (&Cluster, &str),
    item: &Item,
) -> Result<impl Iterator<Item = std::io::Result<Vec<u8>>>> {
    let mut command = cluster.psql_command(database);
    let script = format!("{PINNED}COPY ({}) TO STDOUT;\n", item.query);
    let output = process::run_with_input(&mut command, script.as_bytes())?;
    Ok(BufReader::new(std::io::Cursor::new(output.stdout)).split(b'\n'))
}

fn items(cluster: &Cluster, database: &str) -> Result<Vec<Item>> {
    let text = cluster.psql(database, &format!("{PINNED}{TABLES}"))?;
    text.lines()
        .map(|line| {
            let json: serde_json::Value = serde_json::from_str(line).context("read the catalog")?;
            let field = |name: &str| json[name].as_str().map(str::to_owned);
            let kind = if json["kind"] == "rows" { "rows" } else { "sequence" };
            let name = field("name").context("read a table's name")?;
            let query = match field("query") {
                Some(query) => query,
                // format() gives NULL when there is no column to name.
                None => format!("SELECT FROM ONLY {name}"),
            };
            Ok(Item { kind, name, query })
        })
        .collect()
}

fn hash_all(cluster: &Cluster, database: &str, items: &[Item]) -> Result<Vec<TableHash>> {
    let marker = format!("---- oracle {:032x}", rand::random::<u128>());
    let mut script = format!("{PINNED}BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;\n");
    for item in items {
        script.push_str(&format!("\\echo '{marker}'\nCOPY ({}) TO STDOUT;\n", item.query));
    }
    script.push_str(&format!("COMMIT;\n\\echo '{marker}'\n"));
    let mut command = cluster.psql_command(database);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("spawn psql")?;
    let mut stdin = child.stdin.take().context("take psql's stdin")?;
    let mut stderr = child.stderr.take().context("take psql's stderr")?;
    let stdout = child.stdout.take().context("take psql's stdout")?;
    let (hashes, errors) = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(script.as_bytes()).ok());
        let errors = scope.spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).ok();
            text
        });
        let hashes = hash_sections(BufReader::with_capacity(1 << 20, stdout), &marker);
        (hashes, errors.join().unwrap_or_default())
    });
    let status = child.wait().context("wait for psql")?;
    let hashes = hashes?;
    if !status.success() || hashes.len() != items.len() {
        bail!("read the tables of database {database}: {status}\n{}", process::tail(&errors, 10));
    }
    Ok(hashes)
}

/// One hash per section between two marker lines.
fn hash_sections(mut reader: impl BufRead, marker: &str) -> Result<Vec<TableHash>> {
    let mut hashes = Vec::new();
    let mut current: Option<(u64, Sha256)> = None;
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).context("read psql's output")? == 0 {
            return Ok(hashes);
        }
        if line.strip_suffix(b"\n") == Some(marker.as_bytes()) {
            if let Some((rows, hasher)) = current.replace((0, Sha256::new())) {
                hashes.push(TableHash { rows, sha256: hasher.finalize().into() });
            }
        } else if let Some((rows, hasher)) = current.as_mut() {
            *rows += 1;
            hasher.update(&line);
        }
    }
}
