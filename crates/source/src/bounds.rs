//! Bounds of key ranges: for chunks on 13, and for leaves.
//!
//! **Invariant:** bounds ascend strictly in the server's own order of that column, because the server sorts them; a list
//! that did not would read rows twice or never (`hazards.md` A9). Only NOT NULL columns have bounds (A8).
//!
//! PostgreSQL manual, section 54.27 (`pg_stats`).

use std::collections::HashMap;

use tidemark_model::sql::{Ident, Literal};
use tidemark_model::{ChunkRange, Column, Oid, Relation};
use tidemark_wire::Client;

use crate::catalog::read_server;
use crate::{Result, sql};

/// Cuts a relation into about `parts` key ranges over the first column of a unique key: by arithmetic for integers, by the
/// server's histogram for other types. [`ChunkRange::Whole`] where neither is to be had.
///
/// # Errors
/// The connection failed.
pub async fn key_bounds(
    client: &Client,
    relation: &Relation,
    parts: u32,
) -> Result<Vec<ChunkRange>> {
    let whole = vec![ChunkRange::Whole];
    if parts <= 1 {
        return Ok(whole);
    }
    let integer = first_column(relation, |column| {
        ["int2", "int4", "int8"].iter().any(|name| column.data_type.is_builtin(name))
    });
    if let Some(column) = integer {
        return Ok(ranges(column, integer_bounds(client, relation, column, parts).await?));
    }
    // Of other types' operators an empty search_path sees none, or those of a type underneath, which order differently.
    let is_builtin = |column: &Column| column.data_type.schema == "pg_catalog";
    let Some(column) = first_column(relation, is_builtin) else { return Ok(whole) };
    Ok(ranges(column, histogram_bounds(client, relation, column, parts).await?))
}

/// The first column of the first key whose first column is NOT NULL and fits.
fn first_column(relation: &Relation, fits: impl Fn(&Column) -> bool) -> Option<&Column> {
    relation.keys.iter().find_map(|key| {
        let name = key.columns.first()?;
        relation
            .columns
            .iter()
            .find(|column| column.name == *name && !column.is_nullable && fits(column))
    })
}

/// Ranges between strictly ascending bounds; both ends open.
fn ranges(column: &Column, bounds: Vec<String>) -> Vec<ChunkRange> {
    if bounds.is_empty() {
        return vec![ChunkRange::Whole];
    }
    let starts = [None].into_iter().chain(bounds.iter().cloned().map(Some));
    let ends = bounds.iter().cloned().map(Some).chain([None]);
    let range = |range| ChunkRange::Keys {
        column: column.name.clone(),
        type_name: column.type_name.clone(),
        ranges: vec![range],
    };
    starts.zip(ends).map(range).collect()
}

async fn integer_bounds(
    client: &Client,
    relation: &Relation,
    column: &Column,
    parts: u32,
) -> Result<Vec<String>> {
    let name = Ident(&column.name);
    let text = format!("SELECT min({name})::int8, max({name})::int8 FROM ONLY {}", relation.name);
    let row = sql::one(client, "read the ends of a key", &text)
        .await
        .map_err(|e| e.on(&relation.name))?;
    let (Some(min), Some(max)) = (row.get::<_, Option<i64>>(0), row.get::<_, Option<i64>>(1))
    else {
        return Ok(Vec::new());
    };
    Ok(divide(min, max, parts).iter().map(i64::to_string).collect())
}

/// At most `parts - 1` numbers that cut `min..=max` evenly.
fn divide(min: i64, max: i64, parts: u32) -> Vec<i64> {
    let span = i128::from(max) - i128::from(min) + 1;
    let mut bounds: Vec<i64> = (1..parts)
        .map(|part| i128::from(min) + span * i128::from(part) / i128::from(parts))
        .filter(|bound| *bound > i128::from(min))
        .filter_map(|bound| i64::try_from(bound).ok())
        .collect();
    bounds.dedup();
    bounds
}

async fn histogram_bounds(
    client: &Client,
    relation: &Relation,
    column: &Column,
    parts: u32,
) -> Result<Vec<String>> {
    // The statistics may be older than the collation's present version: the server sorts them again, by the column's order.
    let collate = column.collation.as_deref().and_then(|name| name.split_once('.'));
    let collate = collate.map_or_else(String::new, |(schema, name)| {
        format!(" COLLATE {}.{}", Ident(schema), Ident(name))
    });
    let text = format!(
        "SELECT v::text FROM (SELECT DISTINCT v FROM (\
           SELECT (u.b::{type_name}){collate} AS v FROM pg_catalog.pg_stats s, unnest(s.histogram_bounds::text::text[]) u(b) \
           WHERE s.schemaname = {} AND s.tablename = {} AND s.attname = {} AND NOT s.inherited) x) y ORDER BY v",
        Literal(&relation.name.schema),
        Literal(&relation.name.name),
        Literal(&column.name),
        type_name = column.type_name,
    );
    let rows =
        sql::rows(client, "read a histogram", &text).await.map_err(|e| e.on(&relation.name))?;
    let all: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    Ok(pick(&all, parts))
}

/// At most `parts - 1` of the inner bounds, evenly spread.
fn pick(all: &[String], parts: u32) -> Vec<String> {
    let inner = all.get(1..all.len().saturating_sub(1)).unwrap_or_default();
    let parts = usize::try_from(parts).unwrap_or(usize::MAX);
    if inner.len() < parts {
        return inner.to_vec();
    }
    (1..parts).map(|part| inner[part * inner.len() / parts].clone()).collect()
}

/// Rows of a leaf, where the key can be cut as finely as one likes, and the most leaves of a table: what the stream touches
/// is read again leaf by leaf.
const LEAF_ROWS: u64 = 250;
const LEAVES_MAX: u64 = 20_000;
/// So many leaves of those are kept for keys that will come behind the last one.
const GROWTH_SHARE: usize = 8;

/// Bounds of leaves for many relations in one query: the histogram of the first column of each primary key, where it is an
/// integer, uuid, date, timestamp or C-collated text. Integers and uuids are cut finer than the histogram is, by arithmetic,
/// and integers beyond its end. A relation without an entry is one leaf.
///
/// # Errors
/// The connection failed.
pub async fn leaf_bounds(
    client: &Client,
    relations: &[Relation],
) -> Result<HashMap<Oid, (String, Vec<String>)>> {
    let default_is_c = read_server(client).await?.default_collation_is_c();
    let mut wanted = HashMap::new();
    let (mut schemas, mut tables, mut columns) = (Vec::new(), Vec::new(), Vec::new());
    for relation in relations {
        let Some(column) = leaf_column(relation, default_is_c) else { continue };
        schemas.push(relation.name.schema.as_str());
        tables.push(relation.name.name.as_str());
        columns.push(column.name.as_str());
        let key = (relation.name.schema.as_str(), relation.name.name.as_str());
        wanted.insert(key, (relation, column));
    }
    if wanted.is_empty() {
        return Ok(HashMap::new());
    }
    let text = format!(
        "SELECT s.schemaname::text, s.tablename::text, s.histogram_bounds::text::text[] FROM pg_catalog.pg_stats s \
         JOIN unnest({}, {}, {}) k(s, t, a) ON s.schemaname = k.s AND s.tablename = k.t AND s.attname = k.a \
         WHERE NOT s.inherited AND s.histogram_bounds IS NOT NULL",
        text_array(&schemas),
        text_array(&tables),
        text_array(&columns),
    );
    let rows = sql::rows(client, "read the histograms of keys", &text).await?;
    let mut bounds = HashMap::new();
    for row in &rows {
        let (schema, table): (String, String) = (row.get(0), row.get(1));
        if let Some((relation, column)) = wanted.get(&(schema.as_str(), table.as_str())) {
            let known: Vec<String> = row.get(2);
            let finer =
                Number::of(column).and_then(|number| number.finer(&known, leaves_of(relation)));
            bounds.insert(relation.oid, (column.name.clone(), finer.unwrap_or(known)));
        }
    }
    Ok(bounds)
}

/// The column whose ranges are leaves, if its order is the same everywhere.
fn leaf_column(relation: &Relation, default_is_c: bool) -> Option<&Column> {
    let name = relation.primary_key()?.columns.first()?;
    let column = relation.columns.iter().find(|column| column.name == *name)?;
    let is_one_of = |names: &[&str]| names.iter().any(|name| column.data_type.is_builtin(name));
    if is_one_of(&["int2", "int4", "int8", "uuid", "date", "timestamp", "timestamptz"]) {
        return Some(column);
    }
    let is_c = match column.collation.as_deref() {
        Some("pg_catalog.C" | "pg_catalog.POSIX") => true,
        Some("pg_catalog.default") => default_is_c,
        _ => false,
    };
    (is_c && is_one_of(&["text", "varchar"])).then_some(column)
}

/// How many leaves a table is to have.
fn leaves_of(relation: &Relation) -> usize {
    usize::try_from((relation.row_estimate / LEAF_ROWS).min(LEAVES_MAX)).unwrap_or_default()
}

/// What a bound is if it is a number that others can be found beside.
#[derive(Debug, Clone, Copy)]
enum Number {
    /// Not beyond this.
    Integer {
        most: i64,
    },
    Uuid,
}

impl Number {
    fn of(column: &Column) -> Option<Self> {
        let most = [("int2", i16::MAX.into()), ("int4", i32::MAX.into()), ("int8", i64::MAX)];
        let is_of = |name| column.data_type.is_builtin(name);
        let integer = most.into_iter().find(|(name, _)| is_of(name));
        let integer = integer.map(|(_, most)| Self::Integer { most });
        integer.or_else(|| is_of("uuid").then_some(Self::Uuid))
    }

    /// Half of the uuids are negative, in the same order.
    fn read(self, text: &str) -> Option<i128> {
        match self {
            Self::Integer { .. } => text.parse::<i64>().ok().map(i128::from),
            Self::Uuid => {
                let bits = u128::from_str_radix(&text.replace('-', ""), 16).ok()?;
                Some((bits ^ (1 << 127)).cast_signed())
            }
        }
    }

    fn write(self, number: i128) -> String {
        match self {
            Self::Integer { .. } => number.to_string(),
            Self::Uuid => {
                let hex = format!("{:032x}", number.cast_unsigned() ^ (1 << 127));
                [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
            }
        }
    }

    /// About so many bounds in the place of those of a histogram; none where one of those cannot be read.
    fn finer(self, histogram: &[String], leaves: usize) -> Option<Vec<String>> {
        let known: Option<Vec<i128>> = histogram.iter().map(|text| self.read(text)).collect();
        let known = known.filter(|known| known.is_sorted())?;
        let bounds = match self {
            Self::Uuid => between(&known, leaves),
            Self::Integer { most } => {
                let growth = leaves / GROWTH_SHARE;
                let mut bounds = between(&known, leaves - growth);
                beyond(&mut bounds, growth, most.into());
                bounds
            }
        };
        Some(bounds.into_iter().map(|number| self.write(number)).collect())
    }
}

/// The numbers that are known, and as many more between each two that about so many are there in all.
fn between(known: &[i128], wanted: usize) -> Vec<i128> {
    let intervals = known.len().saturating_sub(1).max(1);
    let parts = (wanted / intervals).max(1) as u128;
    let mut bounds = Vec::with_capacity(intervals * parts as usize + 1);
    for ends in known.windows(2) {
        let step = ends[1].abs_diff(ends[0]) / parts;
        let rest = ends[1].abs_diff(ends[0]) % parts;
        // Without a product that could be too large.
        let inner = (0..parts).map(|part| step * part + (rest * part) / parts);
        bounds.extend(inner.map(|distance| ends[0].wrapping_add_unsigned(distance)));
    }
    bounds.extend(known.last());
    bounds.dedup();
    bounds
}

/// So many more behind the last one, as far apart as those before are on average, and none beyond `most`.
fn beyond(bounds: &mut Vec<i128>, more: usize, most: i128) {
    let [first, .., last] = bounds[..] else { return };
    let step = ((last - first) / (bounds.len() as i128 - 1)).max(1);
    bounds
        .extend((1..=more as i128).map(|nth| last + step * nth).take_while(|bound| *bound <= most));
}

fn text_array(values: &[&str]) -> String {
    let list: Vec<String> = values.iter().map(|value| Literal(value).to_string()).collect();
    format!("ARRAY[{}]::pg_catalog.text[]", list.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integer_bounds_ascend_inside_the_range_even_at_its_limits() {
        assert_eq!(divide(1, 100, 4), [26, 51, 76]);
        assert_eq!(divide(5, 5, 8), Vec::<i64>::new());
        assert_eq!(divide(0, 1, 8), [1]);
        let all = divide(i64::MIN, i64::MAX, 4);
        assert_eq!(all, [i64::MIN / 2, 0, i64::MAX / 2 + 1]);
    }

    #[test]
    fn bounds_between_known_ones_ascend_and_go_on_behind_the_last() {
        let mut bounds = between(&[0, 100, 1_000_000], 8);
        assert_eq!(bounds, [0, 25, 50, 75, 100, 250_075, 500_050, 750_025, 1_000_000]);
        beyond(&mut bounds, 3, 1_300_000);
        assert_eq!(bounds[8..], [1_000_000, 1_125_000, 1_250_000]);
        assert_eq!(between(&[5, 6], 100), [5, 6]);
        assert_eq!(between(&[7], 100), [7]);
        let ends = [i128::MIN, i128::MAX];
        let whole = between(&ends, 4);
        assert!(whole.is_sorted() && whole.len() == 5, "{whole:?}");
        let mut few = vec![i128::from(i64::MAX)];
        beyond(&mut few, 5, i128::from(i64::MAX));
        assert_eq!(few.len(), 1);
    }

    #[test]
    fn uuids_are_numbers_in_their_own_order() {
        let ends = ["00000000-0000-0000-0000-000000000000", "80000000-0000-0000-0000-000000000000"];
        let cut = Number::Uuid.finer(&ends.map(str::to_owned), 2).unwrap();
        assert_eq!(cut, [ends[0], "40000000-0000-0000-0000-000000000000", ends[1]]);
    }

    #[test]
    fn histograms_are_thinned_evenly_without_their_ends() {
        let all: Vec<String> = (0..101).map(|n| n.to_string()).collect();
        assert_eq!(pick(&all, 4), ["25", "50", "75"]);
        assert_eq!(pick(&all[..3], 8), ["1"]);
        assert!(pick(&all[..2], 8).is_empty());
    }
}
