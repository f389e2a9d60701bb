//! Names the rows in which both sides of a table differ.
//!
//! **Invariant:** what is named is exactly what the sums differ by: the hashes of the named rows, those of the source less
//! those of the target, add up to the difference of the two sums. Where they do not, somebody wrote meanwhile, and the rows
//! count as not determined. Neither the number of the rows nor their size is in memory, and none is left out.
//!
//! ```text
//! locator complete, key in it, nothing to look up ── the keys are known
//! locator complete ── these keys, or these leaves for these hashes, again on both sides ─┐
//! else, keys only ─── the differing leaves again on both sides ──────────────────────────┴ Aside ─ groups ─ lines
//! else, whole rows ── the differing leaves again for hashes (and keys), then those rows by parts ── as above
//! ```

use std::collections::HashSet;

use tidemark_digest::{Differences, KeyValue, LocatedKey};
use tidemark_model::{Column, RelationName, RowSum};
use tidemark_pipeline::{Error, Kind, Result};
use tidemark_report::{
    ColumnDifference, ColumnFinding, DiffCounts, DiffKind, Difference, FieldValue, Key, Level,
    ShownKey,
};

use crate::Lines;
use crate::again::{Ask, fields, read_again};
use crate::aside::{Aside, Group, Surplus};
use crate::classify::Classify;
use crate::pair::{Pair, Shows};
use crate::run::Run;
use crate::side::View;
use crate::state::State;

/// Rows that are looked up at a time.
const PART: usize = 50_000;
/// Rows that are classified and written at a time, and the bytes of them.
const WRITTEN: usize = 500;
const WRITTEN_BYTES: usize = 4 << 20;
/// What the server selects at most.
const SELECTED: usize = 1664;
/// Keys that are kept for whoever looks at a terminal.
const EXAMPLES: usize = 5;
/// Why rows are not named whose hashes do not add up to what the sums differ by.
pub(crate) const CHANGED: &str = "it changed while the differing rows were read";

/// The differing rows of a table, which are all named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    /// How many there are of each kind.
    pub rows: DiffCounts,
    /// The first and the last key, by number where it is one, else by the bytes of its text.
    pub ends: Option<(ShownKey, ShownKey)>,
    /// Some of them.
    pub examples: Vec<(DiffKind, ShownKey)>,
    /// The columns that differ, where they were looked at.
    pub columns: Vec<ColumnFinding>,
}

/// Names them under the snapshots that the table was read under last; each one becomes a line.
///
/// # Errors
/// A side cannot be read, or the lines cannot be written.
pub(crate) async fn name(
    run: &Run<'_>,
    views: [&View; 2],
    number: usize,
    state: &mut State,
) -> Result<()> {
    let leaves = state.leaves_that_differ();
    let keys = state.take_keys(&leaves);
    let expected = state.excess();
    let Some(mut naming) = Naming::new(run, views, number) else {
        state.unnamed =
            Some("it has no key and more columns than can be read beside their text".to_owned());
        return Ok(());
    };
    let is_known = naming.level < Level::Rows
        && naming.pair.has_verbatim_key()
        && !naming.pair.has_value_form();
    match keys {
        Some(keys) if is_known => naming.write_keys(&keys)?,
        keys => {
            let ask = keys.and_then(|keys| naming.ask_for(&keys, &leaves));
            naming.read(ask, leaves, expected).await?;
        }
    }
    match naming.has_changed {
        true => state.unnamed = Some(CHANGED.to_owned()),
        false => state.named = Some(naming.telling.finish()?),
    }
    Ok(())
}

/// Reads the rows that the last reading found to differ once more under these snapshots, and only those. Where they are the
/// same ones again they hold still, so that the table is different, and they are named; else nothing is known.
///
/// # Errors
/// As [`name`].
pub(crate) async fn confirm(
    run: &Run<'_>,
    views: [&View; 2],
    number: usize,
    state: &mut State,
) -> Result<()> {
    let Some((keys, leaves)) = state.suppose() else { return Ok(()) };
    let naming = Naming::new(run, views, number);
    let asks = naming.and_then(|naming| Some((naming.ask_for(&keys, &leaves)?, naming)));
    let named = match asks {
        Some((ask, mut naming)) => {
            naming.read(Some(ask), leaves, state.excess()).await?;
            if naming.has_changed { None } else { Some(naming.telling.finish()?) }
        }
        None => None,
    };
    state.conclude(named);
    Ok(())
}

/// What the source has more of: rows, and the sums of their hashes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Excess {
    pub(crate) rows: u64,
    pub(crate) raw: u128,
    pub(crate) value: u128,
}

impl Excess {
    /// What a source with this sum has more of than a target with that one.
    pub(crate) fn between(source: RowSum, target: RowSum) -> Self {
        Self {
            rows: source.count.wrapping_sub(target.count),
            raw: source.raw.wrapping_sub(target.raw),
            value: source.value.wrapping_sub(target.value),
        }
    }

    fn add(&mut self, surplus: &Surplus, sign: i64) {
        let rows = surplus.rows.wrapping_mul(sign.cast_unsigned());
        let factor = i128::from(rows.cast_signed()).cast_unsigned();
        self.rows = self.rows.wrapping_add(rows);
        self.raw = self.raw.wrapping_add(surplus.raw.wrapping_mul(factor));
        self.value = self.value.wrapping_add(surplus.value.wrapping_mul(factor));
    }

    pub(crate) fn add_group(&mut self, group: &Group) {
        group.source.iter().for_each(|surplus| self.add(surplus, 1));
        group.target.iter().for_each(|surplus| self.add(surplus, -1));
    }

    pub(crate) fn of(aside: &mut Aside) -> Result<Self> {
        let (mut excess, mut groups) = (Self::default(), aside.groups()?);
        while let Some(group) = groups.next()? {
            excess.add_group(&group);
        }
        Ok(excess)
    }
}

/// One differing row, or several equal ones.
pub(crate) struct Found {
    pub(crate) kind: DiffKind,
    pub(crate) copies: u64,
    /// What was put aside of it on either side.
    pub(crate) bodies: [Option<Box<[u8]>>; 2],
    pub(crate) columns: Vec<(usize, DiffKind)>,
}

impl Found {
    fn bytes(&self) -> usize {
        self.bodies.iter().flatten().map(|body| body.len()).sum()
    }
}

struct Naming<'a> {
    run: &'a Run<'a>,
    views: [&'a View; 2],
    number: usize,
    pair: &'a Pair,
    level: Level,
    classify: Option<Classify<'a>>,
    /// Rows that only one side has, as long as the other side may have one whose key is equal to the source.
    apart: Vec<Found>,
    apart_bytes: u64,
    telling: Telling<'a>,
    has_changed: bool,
}

/// Writes the lines of one table, and keeps what is said of them elsewhere.
pub(crate) struct Telling<'a> {
    lines: &'a Lines,
    table: &'a RelationName,
    named: Named,
    ends: Option<[(Vec<Place>, Key); 2]>,
}

/// Where a key is among others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Number(i64),
    Text(String),
    Null,
}

impl<'a> Naming<'a> {
    /// None where the rows have nothing that they could be named by: no key, and too many columns.
    fn new(run: &'a Run<'a>, views: [&'a View; 2], number: usize) -> Option<Self> {
        let pair = &run.paired.pairs[number];
        // A row cannot be selected beside the text of its columns, but may be beside that of its key.
        let is_too_wide = 2 * pair.source.columns.len() > SELECTED;
        if is_too_wide && pair.key.is_empty() {
            return None;
        }
        let level = run.request.level;
        Some(Self {
            run,
            views,
            number,
            pair,
            level: if is_too_wide { level.min(Level::Digest) } else { level },
            classify: None,
            apart: Vec::new(),
            apart_bytes: 0,
            telling: Telling::new(&run.request.lines, pair.name()),
            has_changed: false,
        })
    }

    /// Without reading anything.
    fn write_keys(&mut self, keys: &Differences) -> Result<()> {
        for found in &keys.found {
            let LocatedKey::Values(values) = &found.key else { continue };
            let columns = self.pair.key.iter().map(|at| &self.pair.source.columns[*at]);
            let key = columns.zip(values).map(|(column, value)| {
                (column.name.clone(), field_value(column, Some(text_of(value).as_bytes())))
            });
            let key = Key::Columns(key.collect());
            let both = found.source_rows.min(found.target_rows);
            for (kind, copies) in [
                (DiffKind::Changed, both),
                (DiffKind::Missing, found.source_rows - both),
                (DiffKind::Extra, found.target_rows - both),
            ] {
                if copies > 0 {
                    self.telling.tell(kind, copies, key.clone(), Vec::new())?;
                }
            }
        }
        Ok(())
    }

    /// Reads the rows that are asked for, or all of these leaves; they are named if they are what the source is expected to
    /// have more of.
    async fn read(&mut self, ask: Option<Ask>, leaves: Vec<u32>, expected: Excess) -> Result<()> {
        let is_keyless = self.pair.key.is_empty();
        let shows = if self.level == Level::Rows || is_keyless { Shows::Row } else { Shows::Key };
        let (ask, shows_now) = match (ask, shows) {
            (Some(ask), shows) => (ask, shows),
            // Whole rows are read when it is known which.
            (None, Shows::Row) if is_keyless => (Ask::Leaves(leaves.clone()), Shows::Nothing),
            (None, _) => (Ask::Leaves(leaves.clone()), Shows::Key),
        };
        let mut aside = self.read_again(ask, shows_now).await?;
        if Excess::of(&mut aside)? != expected {
            self.has_changed = true;
            return Ok(());
        }
        match shows_now == shows {
            true => self.write_all(aside, shows).await?,
            false => self.write_parts(aside, (leaves, shows_now)).await?,
        }
        self.write_apart().await
    }

    async fn read_again(&self, ask: Ask, shows: Shows) -> Result<Aside> {
        Box::pin(read_again(self.run, self.views, self.number, (ask, shows))).await
    }

    /// What to ask for so that only these rows are put aside.
    fn ask_for(&self, keys: &Differences, leaves: &[u32]) -> Option<Ask> {
        if self.pair.has_verbatim_key() {
            let values = keys.found.iter().filter_map(|found| match &found.key {
                LocatedKey::Values(values) => {
                    Some(values.iter().map(|value| Some(text_of(value))).collect())
                }
                _ => None,
            });
            return self.pair.is_found_by_key().then(|| Ask::Keys(values.collect()));
        }
        let names = keys.found.iter().filter_map(|found| match &found.key {
            LocatedKey::Hashed { code, .. } => Some(code.number()),
            LocatedKey::Row(hash) => Some(*hash),
            LocatedKey::Values(_) => None,
        });
        Some(Ask::Some(leaves.to_vec(), names.collect()))
    }

    /// Reads the rows whose keys or hashes are aside, so many at a time, and writes them.
    async fn write_parts(
        &mut self,
        mut aside: Aside,
        (leaves, shows): (Vec<u32>, Shows),
    ) -> Result<()> {
        let mut groups = aside.groups()?;
        let mut part = Part::default();
        loop {
            let group = groups.next()?;
            let is_last = group.is_none();
            if let Some(group) = group {
                part.add(&group, shows, self.pair);
            }
            if part.is_full() || is_last && !part.names.is_empty() {
                let Part { names, keys, excess } = std::mem::take(&mut part);
                let ask = match keys {
                    Some(keys) => Ask::Keys(keys),
                    None => Ask::Some(leaves.clone(), names),
                };
                let mut rows = self.read_again(ask, Shows::Row).await?;
                if Excess::of(&mut rows)? != excess {
                    self.has_changed = true;
                    return Ok(());
                }
                self.write_all(rows, Shows::Row).await?;
            }
            if is_last {
                return Ok(());
            }
        }
    }

    async fn write_all(&mut self, mut aside: Aside, shows: Shows) -> Result<()> {
        let mut groups = aside.groups()?;
        let (mut waiting, mut bytes) = (Vec::new(), 0);
        while let Some(group) = groups.next()? {
            for found in matched(group) {
                bytes += found.bytes();
                waiting.push(found);
            }
            if waiting.len() >= WRITTEN || bytes >= WRITTEN_BYTES {
                self.write_some(std::mem::take(&mut waiting), shows).await?;
                bytes = 0;
            }
        }
        self.write_some(waiting, shows).await
    }

    async fn write_some(&mut self, mut found: Vec<Found>, shows: Shows) -> Result<()> {
        if self.level == Level::Rows {
            let classify = match &mut self.classify {
                Some(classify) => classify,
                none => none.insert(Classify::open(self.run, self.pair).await?),
            };
            if classify.has_alike_keys() {
                let is_alone = |one: &mut Found| one.bodies.iter().any(Option::is_none);
                let alone = found.extract_if(.., is_alone);
                self.apart.extend(alone.inspect(|one| self.apart_bytes += one.bytes() as u64));
            }
            classify.classify(&mut found).await?;
        }
        found.iter().try_for_each(|found| self.write_found(found, shows))?;
        // Beyond that it is not known any more which rows are one.
        match self.apart_bytes > self.run.request.job.memory / 8 {
            true => self.write_apart().await,
            false => Ok(()),
        }
    }

    /// Writes the rows that only one side has, those as one that the source calls the same.
    async fn write_apart(&mut self) -> Result<()> {
        let Some(classify) = &mut self.classify else { return Ok(()) };
        self.apart_bytes = 0;
        let mut united = classify.unite(std::mem::take(&mut self.apart)).await?;
        for part in united.chunks_mut(WRITTEN) {
            classify.classify(part).await?;
        }
        united.iter().try_for_each(|found| self.write_found(found, Shows::Row))
    }

    fn write_found(&mut self, found: &Found, shows: Shows) -> Result<()> {
        let pair = self.pair;
        let [source, target] = &found.bodies;
        let (which, body) = match (source, target) {
            (Some(body), _) => (&pair.source, body),
            (None, Some(body)) => (&pair.target, body),
            (None, None) => return Ok(()),
        };
        let hashed = if shows == Shows::Row { pair.source.columns.len() } else { 0 };
        let values = shown(body, shows, hashed);
        let is_keyless = pair.key.is_empty();
        let all: Vec<usize> = (0..pair.source.columns.len()).collect();
        let key = if is_keyless { &all } else { &pair.key };
        let value_of = |(place, at): (usize, &usize)| {
            let column = &which.columns[*at];
            let place = if shows == Shows::Row { *at } else { place };
            let value = field_value(column, values.get(place).copied().flatten());
            (pair.source.columns[*at].name.clone(), value)
        };
        let key: Vec<(String, FieldValue)> = key.iter().enumerate().map(value_of).collect();
        let key = if is_keyless { Key::WholeRow(key) } else { Key::Columns(key) };
        let other = target.as_ref().map(|body| shown(body, shows, hashed)).unwrap_or_default();
        let column = |(at, class): &(usize, DiffKind)| ColumnDifference {
            column: pair.source.columns[*at].name.clone(),
            class: *class,
            source: field_value(&pair.source.columns[*at], values.get(*at).copied().flatten()),
            target: field_value(&pair.target.columns[*at], other.get(*at).copied().flatten()),
        };
        let columns = found.columns.iter().map(column).collect();
        self.telling.tell(found.kind, found.copies, key, columns)
    }
}

impl<'a> Telling<'a> {
    pub(crate) fn new(lines: &'a Lines, table: &'a RelationName) -> Self {
        Self { lines, table, named: Named::default(), ends: None }
    }

    /// The next row that differs, and how many of it.
    pub(crate) fn tell(
        &mut self,
        kind: DiffKind,
        copies: u64,
        key: Key,
        columns: Vec<ColumnDifference>,
    ) -> Result<()> {
        for column in &columns {
            self.count_column(column, copies);
        }
        let difference = Difference { table: self.table.clone(), key, kind, copies, columns };
        self.lines.write(&difference)?;
        self.named.count(kind, copies);
        if self.named.examples.len() < EXAMPLES {
            let shown = self.lines.shown(self.table, &difference.key)?;
            self.named.examples.push((kind, shown));
        }
        self.place(difference.key);
        Ok(())
    }

    fn count_column(&mut self, found: &ColumnDifference, rows: u64) {
        let columns = &mut self.named.columns;
        let at = columns.iter().position(|known| known.column == found.column);
        let at = at.unwrap_or_else(|| {
            columns.push(ColumnFinding {
                column: found.column.clone(),
                changed: 0,
                equivalent: 0,
                lossy: 0,
                hint: None,
            });
            columns.len() - 1
        });
        let column = &mut columns[at];
        match found.class {
            DiffKind::Equivalent => column.equivalent += rows,
            DiffKind::Lossy => column.lossy += rows,
            _ => column.changed += rows,
        }
    }

    /// Keeps the first and the last key.
    fn place(&mut self, key: Key) {
        let Key::Columns(values) = &key else { return };
        let place: Vec<Place> = values.iter().map(|(_, value)| Place::of(value)).collect();
        match &mut self.ends {
            None => self.ends = Some([(place.clone(), key.clone()), (place, key)]),
            Some([first, _]) if place < first.0 => *first = (place, key),
            Some([_, last]) if place > last.0 => *last = (place, key),
            Some(_) => {}
        }
    }

    /// All of them were told.
    pub(crate) fn finish(mut self) -> Result<Named> {
        if let Some([(_, first), (_, last)]) = &self.ends {
            let shown = |key| self.lines.shown(self.table, key);
            self.named.ends = Some((shown(first)?, shown(last)?));
        }
        // They were met in the order of hashes, which is another one each time.
        self.named.columns.sort_by(|one, other| one.column.cmp(&other.column));
        Ok(self.named)
    }
}

impl Named {
    fn count(&mut self, kind: DiffKind, rows: u64) {
        let count = match kind {
            DiffKind::Missing => &mut self.rows.missing,
            DiffKind::Extra => &mut self.rows.extra,
            DiffKind::Changed => &mut self.rows.changed,
            DiffKind::Equivalent => &mut self.rows.equivalent,
            DiffKind::Lossy => &mut self.rows.lossy,
        };
        *count = count.saturating_add(rows);
    }

    /// Whether every difference turned out to be none of values.
    pub(crate) fn is_equivalent(&self) -> bool {
        let rows = &self.rows;
        rows.missing + rows.extra + rows.changed == 0 && rows.total() > 0
    }
}

/// Rows that are to be read as a whole.
#[derive(Default)]
struct Part {
    names: HashSet<u128>,
    /// Their keys, where they can be asked for.
    keys: Option<Vec<Vec<Option<String>>>>,
    excess: Excess,
}

impl Part {
    fn add(&mut self, group: &Group, shows: Shows, pair: &Pair) {
        self.excess.add_group(group);
        for surplus in group.source.iter().chain(&group.target) {
            let is_keyless = shows == Shows::Nothing;
            self.names.insert(if is_keyless { surplus.raw } else { group.code });
        }
        let text = |field: Option<&[u8]>| field.map(|text| String::from_utf8_lossy(text).into());
        let surplus = group.source.first().or(group.target.first());
        let key: Option<Vec<Option<String>>> = surplus
            .filter(|_| shows == Shows::Key && pair.is_found_by_key())
            .map(|surplus| fields(&surplus.body, shows).into_iter().map(text).collect());
        let key = key.filter(|key| key.iter().all(Option::is_some));
        match key {
            Some(key) if self.names.len() == 1 || self.keys.is_some() => {
                self.keys.get_or_insert_default().push(key);
            }
            _ => self.keys = None,
        }
    }

    fn is_full(&self) -> bool {
        self.names.len() >= PART
    }
}

impl Place {
    fn of(value: &FieldValue) -> Self {
        match value {
            FieldValue::Null => Self::Null,
            FieldValue::Bool(is) => Self::Number((*is).into()),
            FieldValue::Int4(number) => Self::Number((*number).into()),
            FieldValue::Int8(number) => Self::Number(*number),
            FieldValue::Bytes(bytes) => Self::Text(String::from_utf8_lossy(bytes).into_owned()),
            FieldValue::Text(text) => Self::Text(text.clone()),
        }
    }
}

/// Pairs what both sides have of one key: first the rows whose values are equal, then any.
pub(crate) fn matched(mut group: Group) -> Vec<Found> {
    let mut found = Vec::new();
    for kind in [DiffKind::Equivalent, DiffKind::Changed] {
        for one in &mut group.source {
            for other in &mut group.target {
                let copies = one.rows.min(other.rows);
                if copies == 0 || kind == DiffKind::Equivalent && one.value != other.value {
                    continue;
                }
                one.rows -= copies;
                other.rows -= copies;
                let bodies = [Some(one.body.clone()), Some(other.body.clone())];
                found.push(Found { kind, copies, bodies, columns: Vec::new() });
            }
        }
    }
    let alone = |kind: DiffKind, surplus: Surplus| Found {
        kind,
        copies: surplus.rows,
        bodies: match kind {
            DiffKind::Missing => [Some(surplus.body), None],
            _ => [None, Some(surplus.body)],
        },
        columns: Vec::new(),
    };
    let left = |surplus: &Surplus| surplus.rows > 0;
    let missing = group.source.into_iter().filter(left);
    found.extend(missing.map(|surplus| alone(DiffKind::Missing, surplus)));
    let extra = group.target.into_iter().filter(left);
    found.extend(extra.map(|surplus| alone(DiffKind::Extra, surplus)));
    found
}

/// What is shown stands behind what is hashed, and that only where whole rows were put aside.
fn shown(body: &[u8], shows: Shows, hashed: usize) -> Vec<Option<&[u8]>> {
    fields(body, shows).into_iter().skip(hashed).collect()
}

/// As the server reads it.
pub(crate) fn text_of(value: &KeyValue) -> String {
    match value {
        KeyValue::Int(number) => number.to_string(),
        KeyValue::Uuid(bytes) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
        }
    }
}

/// A field as the server wrote it as text.
pub(crate) fn field_value(column: &Column, text: Option<&[u8]>) -> FieldValue {
    let Some(text) = text else { return FieldValue::Null };
    let text = String::from_utf8_lossy(text);
    let is_one_of = |names: &[&str]| names.iter().any(|name| column.data_type.is_builtin(name));
    let number = || match () {
        () if is_one_of(&["bool"]) => Some(FieldValue::Bool(text == "true")),
        () if is_one_of(&["int2", "int4"]) => text.parse().ok().map(FieldValue::Int4),
        () if is_one_of(&["int8"]) => text.parse().ok().map(FieldValue::Int8),
        () => None,
    };
    number().unwrap_or_else(|| FieldValue::Text(text.to_string()))
}

/// What a broken invariant of this module says.
pub(crate) fn defect(what: &str) -> Error {
    Error::new(Kind::Internal, format!("name the differing rows: {what}"))
}
