//! Two copies of a sample, of which one has a mutation.
//!
//! **Invariant:** a copy is one SELECT over the sample, so that nothing but the mutation tells the two apart; that it changes
//! a value, and not into itself, the server says by the bytes (`*<>`).

use tidemark_model::sql::Ident;
use tidemark_pipeline::Result;
use tidemark_report::{DiffCounts, DiffKind, Verdict};
use tidemark_wire::tokio_postgres::Row;

use super::mutation::{Change, Mutation, Plant, is_plain, is_text};
use super::sample::{Sample, commas};
use super::scratch::{Scratch, failed};

/// Two copies, and what has to be found.
#[derive(Debug, Clone)]
pub(super) struct Planted {
    one: Rows,
    other: Rows,
    /// Whether rows are known by a key.
    pub(super) is_keyed: bool,
    pub(super) verdict: Verdict,
    pub(super) rows: DiffCounts,
    /// Rows that have to be named, by their numbers in the sample.
    pub(super) named: Vec<(DiffKind, i64)>,
    /// The only column that differs.
    pub(super) column: Option<usize>,
    /// The sums alone say that the values are equal, at every level.
    pub(super) is_equal_by_sums: bool,
}

/// The rows of a copy: those of the sample, but for this.
#[derive(Debug, Clone, Default)]
struct Rows {
    is_empty: bool,
    without: Option<i64>,
    again: Option<i64>,
    /// Row, column, what is there.
    values: Vec<(i64, usize, String)>,
}

impl Rows {
    fn select(&self, sample: &Sample, is_reversed: bool) -> String {
        let value = |at: usize| {
            let column = sample.column(at);
            let changed = self.values.iter().filter(|(_, of, _)| *of == at);
            let whens: String = changed
                .map(|(row, _, value)| format!(" WHEN {row} THEN {}", cast(sample, at, value)))
                .collect();
            match whens.is_empty() {
                true => column,
                false => format!("CASE {}{whens} ELSE {column} END AS {column}", sample.number),
            }
        };
        let list: Vec<String> = (0..sample.columns.len()).map(value).collect();
        let (list, from, number) = (list.join(", "), &sample.table, &sample.number);
        let mut sql = format!("(SELECT {list} FROM {from} WHERE {}", !self.is_empty);
        if let Some(row) = self.without {
            sql += &format!(" AND {number} <> {row}");
        }
        sql += &format!(" ORDER BY {number} {})", if is_reversed { "DESC" } else { "" });
        if let Some(row) = self.again {
            sql += &format!(" UNION ALL (SELECT {list} FROM {from} WHERE {number} = {row})");
        }
        sql
    }
}

fn cast(sample: &Sample, at: usize, expression: &str) -> String {
    format!("CAST({expression} AS {})", sample.columns[at].type_name)
}

/// Finds where a mutation can be planted.
pub(super) struct Planter<'a> {
    pub(super) scratch: &'a Scratch,
    pub(super) sample: &'a Sample,
}

impl Planter<'_> {
    /// Where and how; nowhere if no row of the sample lets it be planted.
    pub(super) async fn plan(&self, mutation: &Mutation) -> Result<Option<Planted>> {
        match mutation.plant {
            Plant::Nothing => Ok(Some(self.planted(Verdict::Identical, DiffCounts::default()))),
            Plant::Value(changes) => self.value(changes).await,
            Plant::Key(changes) => self.key(changes).await,
            Plant::Letter => self.letter().await,
            Plant::Swapped => self.swapped().await,
            Plant::Missing => Ok(Some(self.missing(1))),
            Plant::Doubled => Ok(Some(self.doubled(1))),
            Plant::MissingAndDoubled => self.missing_and_doubled().await,
            Plant::OtherDoubled => self.other_doubled().await,
            Plant::Emptied => {
                let rows = DiffCounts { missing: self.sample.rows, ..DiffCounts::default() };
                let mut planted = self.planted(Verdict::Different, rows);
                planted.other.is_empty = true;
                Ok(Some(planted))
            }
        }
    }

    /// Makes both copies, `one_N` and `other_N`.
    pub(super) async fn make(&self, planted: &Planted, number: usize) -> Result<()> {
        let [one, other] = tables(self.scratch, number);
        let sample = self.sample;
        let mut sql = format!(
            "CREATE UNLOGGED TABLE {one} AS {}; CREATE UNLOGGED TABLE {other} AS {};",
            planted.one.select(sample, false),
            planted.other.select(sample, true)
        );
        if planted.is_keyed {
            let key: Vec<String> = sample.key.iter().map(|at| sample.column(*at)).collect();
            sql +=
                &format!(" ALTER TABLE {one} ADD PRIMARY KEY ({}); ANALYZE {one};", key.join(", "));
        }
        self.scratch.run("copy the sample", &sql).await
    }

    fn planted(&self, verdict: Verdict, rows: DiffCounts) -> Planted {
        Planted {
            one: Rows::default(),
            other: Rows::default(),
            is_keyed: !self.sample.key.is_empty(),
            verdict,
            rows,
            named: Vec::new(),
            column: None,
            is_equal_by_sums: false,
        }
    }

    /// A row of which values differ: one of two with the same key, or of two without a key.
    fn changed(&self, verdict: Verdict, rows: &[i64]) -> Planted {
        let (count, is_keyed) = (rows.len() as u64, !self.sample.key.is_empty());
        let (kind, counts) = match (verdict, is_keyed) {
            (Verdict::Equivalent, _) => {
                (DiffKind::Equivalent, DiffCounts { equivalent: count, ..DiffCounts::default() })
            }
            (_, true) => {
                (DiffKind::Changed, DiffCounts { changed: count, ..DiffCounts::default() })
            }
            (_, false) => (
                DiffKind::Missing,
                DiffCounts { missing: count, extra: count, ..DiffCounts::default() },
            ),
        };
        let mut planted = self.planted(verdict, counts);
        planted.named = rows.iter().map(|row| (kind, *row)).collect();
        planted
    }

    async fn value(&self, changes: &[Change]) -> Result<Option<Planted>> {
        let sample = self.sample;
        for change in changes.iter().filter(|change| !change.needs_key || !sample.key.is_empty()) {
            for at in sample.outside_the_key().filter(|at| change.is_for(&sample.columns[*at])) {
                let Some((row, before, after)) = self.row_for(change, at).await? else { continue };
                let mut planted = self.changed(change.verdict, &[row]);
                planted.one.values.extend(before.map(|before| (row, at, before)));
                planted.other.values.push((row, at, after));
                planted.column = Some(at);
                planted.is_equal_by_sums =
                    change.verdict == Verdict::Equivalent && !change.needs_key;
                return Ok(Some(planted));
            }
        }
        Ok(None)
    }

    async fn key(&self, changes: &[Change]) -> Result<Option<Planted>> {
        let sample = self.sample;
        for change in changes {
            for at in sample.key.iter().copied().filter(|at| change.is_for(&sample.columns[*at])) {
                let Some((row, _, after)) = self.row_for(change, at).await? else { continue };
                let rows = DiffCounts { missing: 1, extra: 1, ..DiffCounts::default() };
                let mut planted = self.planted(Verdict::Different, rows);
                planted.other.values.push((row, at, after));
                planted.named.push((DiffKind::Missing, row));
                return Ok(Some(planted));
            }
        }
        Ok(None)
    }

    /// A row whose value the change changes, with what is there before and after.
    async fn row_for(
        &self,
        change: &Change,
        at: usize,
    ) -> Result<Option<(i64, Option<String>, String)>> {
        let sample = self.sample;
        let column = sample.column(at);
        let filled = |text: &str| {
            text.replace("{c}", &column).replace("{commas}", &commas(&sample.columns[at]))
        };
        let (before, after) = (change.before.map(filled), filled(change.after));
        let old = before.as_ref().map_or(column.clone(), |before| cast(sample, at, before));
        let condition = match before {
            Some(_) => String::new(),
            None => format!("{column} IS NOT NULL AND "),
        };
        let new = cast(sample, at, &after);
        let condition = format!("{condition}{}", differ(&new, &old));
        let found = self
            .ask(&format!(
                "SELECT {} FROM {} WHERE {condition} ORDER BY 1 LIMIT 1",
                sample.number, sample.table
            ))
            .await?;
        Ok(found.map(|row| (row.get(0), before, after)))
    }

    async fn letter(&self) -> Result<Option<Planted>> {
        let sample = self.sample;
        let texts: Vec<usize> =
            sample.outside_the_key().filter(|at| is_text(&sample.columns[*at])).collect();
        for pair in texts.windows(2) {
            let [from, to] = [sample.column(pair[0]), sample.column(pair[1])];
            let shorter = format!("left({from}::text, -1)");
            let longer = format!("right({from}::text, 1) || {to}::text");
            let sql = format!(
                "SELECT {number} FROM {table} WHERE length({from}::text) > 0 AND length({}::text) > length({to}::text) ORDER BY 1 LIMIT 1",
                cast(sample, pair[1], &longer),
                number = sample.number,
                table = sample.table,
            );
            let Some(row) = self.ask(&sql).await? else { continue };
            let row = row.get(0);
            let mut planted = self.changed(Verdict::Different, &[row]);
            planted.other.values = vec![(row, pair[0], shorter), (row, pair[1], longer)];
            return Ok(Some(planted));
        }
        Ok(None)
    }

    async fn swapped(&self) -> Result<Option<Planted>> {
        let sample = self.sample;
        let is_keyed = !sample.key.is_empty();
        for at in sample.outside_the_key().filter(|at| is_keyed && is_plain(&sample.columns[*at])) {
            let Some((one, other)) = self.two_that_differ_in(at).await? else { continue };
            let value = |row: i64| {
                format!(
                    "(SELECT s.{} FROM {} s WHERE s.{} = {row})",
                    sample.column(at),
                    sample.table,
                    sample.number
                )
            };
            let mut planted = self.changed(Verdict::Different, &[one, other]);
            planted.other.values = vec![(one, at, value(other)), (other, at, value(one))];
            planted.column = Some(at);
            return Ok(Some(planted));
        }
        Ok(None)
    }

    fn missing(&self, row: i64) -> Planted {
        let rows = DiffCounts { missing: 1, ..DiffCounts::default() };
        let mut planted = self.planted(Verdict::Different, rows);
        planted.other.without = Some(row);
        planted.named.push((DiffKind::Missing, row));
        planted
    }

    fn doubled(&self, row: i64) -> Planted {
        let rows = DiffCounts { extra: 1, ..DiffCounts::default() };
        let mut planted = self.planted(Verdict::Different, rows);
        planted.other.again = Some(row);
        planted.named.push((DiffKind::Extra, row));
        planted
    }

    async fn missing_and_doubled(&self) -> Result<Option<Planted>> {
        let Some((one, other)) = self.two_that_differ().await? else { return Ok(None) };
        let mut planted = self.missing(one);
        planted.rows.extra = 1;
        planted.other.again = Some(other);
        planted.named.push((DiffKind::Extra, other));
        Ok(Some(planted))
    }

    async fn other_doubled(&self) -> Result<Option<Planted>> {
        let Some((one, other)) = self.two_that_differ().await? else { return Ok(None) };
        let rows = DiffCounts { missing: 1, extra: 1, ..DiffCounts::default() };
        let mut planted = self.planted(Verdict::Different, rows);
        planted.is_keyed = false;
        (planted.one.again, planted.other.again) = (Some(one), Some(other));
        Ok(Some(planted))
    }

    /// Two rows whose values are not equal.
    async fn two_that_differ(&self) -> Result<Option<(i64, i64)>> {
        let all = 0..self.sample.columns.len();
        for at in all.filter(|at| is_plain(&self.sample.columns[*at])) {
            if let Some(two) = self.two_that_differ_in(at).await? {
                return Ok(Some(two));
            }
        }
        Ok(None)
    }

    async fn two_that_differ_in(&self, at: usize) -> Result<Option<(i64, i64)>> {
        let (column, table, number) =
            (self.sample.column(at), &self.sample.table, &self.sample.number);
        let sql = format!(
            "SELECT a.{number}, b.{number} FROM {table} a, {table} b WHERE a.{number} = 1 AND b.{number} > 1 \
             AND {} ORDER BY 2 LIMIT 1",
            differ(&format!("a.{column}"), &format!("b.{column}")),
        );
        Ok(self.ask(&sql).await?.map(|row| (row.get(0), row.get(1))))
    }

    /// The first row of an answer; none where a value cannot be what the question wants it to be.
    async fn ask(&self, sql: &str) -> Result<Option<Row>> {
        // Data that is out of range, a constraint of a domain, a domain that has no such cast.
        let is_of_values =
            |code: &str| code.starts_with("22") || code.starts_with("23") || code == "42846";
        match self.scratch.client.query_opt(sql, &[]).await {
            Ok(row) => Ok(row),
            Err(error) if error.code().is_some_and(|code| is_of_values(code.code())) => Ok(None),
            Err(error) => Err(failed("look where to plant a mutation", &error)),
        }
    }
}

/// Whether two expressions of one type have other bytes.
fn differ(one: &str, other: &str) -> String {
    // Two rows without a cast would be compared column by column, for which most types have no such operator.
    format!(
        "ROW({one})::pg_catalog.record OPERATOR(pg_catalog.*<>) ROW({other})::pg_catalog.record"
    )
}

/// The two copies of a number, ready for SQL.
pub(super) fn tables(scratch: &Scratch, number: usize) -> [String; 2] {
    ["one", "other"].map(|word| scratch.name(&format!("{word}_{number}")))
}

/// The texts of the keys of these rows.
pub(super) async fn keys_of(
    scratch: &Scratch,
    sample: &Sample,
    planted: &Planted,
) -> Result<Vec<(DiffKind, Vec<(String, String)>)>> {
    if !planted.is_keyed {
        return Ok(Vec::new());
    }
    let list = sample.key.iter().map(|at| format!("{}::text", Ident(&sample.columns[*at].name)));
    let list = list.collect::<Vec<_>>().join(", ");
    let mut keys = Vec::new();
    for (kind, row) in &planted.named {
        let sql =
            format!("SELECT ARRAY[{list}] FROM {} WHERE {} = {row}", sample.table, sample.number);
        let found = scratch.client.query_one(&sql, &[]).await;
        let texts: Vec<String> =
            found.map_err(|cause| failed("read the keys of the sample", &cause))?.get(0);
        let names = sample.key.iter().map(|at| sample.columns[*at].name.clone());
        keys.push((*kind, names.zip(texts).collect()));
    }
    Ok(keys)
}
