//! Which table of the target belongs to which one of the source, and how both are read so that their sums can be compared.
//!
//! **Invariant:** both SELECT lists name the same columns in the same order, in the same wire form, so that equal rows have
//! equal sums whatever the order of the columns in the tables; leaves are cut the same on both sides.

use std::collections::HashMap;

use tidemark_digest::{
    DigestColumn, DigestKey, Forms, KeyPlan, LeafBounds, LeafCut, LocatedForm, Locator, RawScheme,
    RowHasher, has_value_form,
};
use tidemark_model::sql::{Ident, Literal};
use tidemark_model::{
    ChunkRange, ChunkSpec, Column, DataType, Oid, Persistence, Relation, RelationKind,
    RelationName, SelectColumn, TupleForm, TypeKind, Wire,
};
use tidemark_pipeline::{Error, Job, Kind, Result};
use tidemark_report::{Level, SchemaSeverity};
use tidemark_source::{Catalog, Selection};

use crate::classify::{base_of, is_citext};
use crate::findings::{self, SchemaFinding};
use crate::naming::text_of;
use crate::{Request, Skipped, Which};

/// One table on both sides.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The source's.
    pub source: Half,
    /// The target's.
    pub target: Half,
    /// Of the source's rows only these were moved.
    filter: Option<String>,
    select: Vec<SelectColumn>,
    pub(crate) forms: Forms,
    /// The columns that a row is known by, by their numbers in the SELECT list; none: rows are compared as a multiset.
    pub key: Vec<usize>,
    plan: KeyPlan,
    pub(crate) leaves: Leaves,
    /// Definitions differ so that the table cannot be the same whatever its rows are.
    pub(crate) is_other: bool,
}

/// One side of a pair.
#[derive(Debug, Clone)]
pub struct Half {
    /// The table.
    pub relation: Relation,
    /// In the order of the SELECT list.
    pub columns: Vec<Column>,
}

impl Half {
    pub(crate) fn oid(&self) -> Oid {
        self.relation.oid
    }
}

/// Ranges of leaves that one statement reads: more are slow to plan.
const RANGES_PER_CHUNK: usize = 48;

/// What is selected beside the columns that are hashed, as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shows {
    Nothing,
    /// The columns of the key, in its order.
    Key,
    /// All columns.
    Row,
}

/// The leaves of a pair.
#[derive(Debug, Clone)]
pub(crate) struct Leaves {
    bounds: LeafBounds,
    /// Column and bounds as the server writes them; none where there is one leaf.
    text: Option<(Column, Vec<String>)>,
}

impl Leaves {
    pub(crate) fn count(&self) -> usize {
        self.bounds.leaf_count()
    }

    /// As the ledger keeps it; none where there is one leaf.
    pub(crate) fn cut(&self) -> Option<LeafCut> {
        let (column, bounds) = self.text.as_ref()?;
        Some(LeafCut { column: column.name.clone(), bounds: bounds.clone() })
    }
}

/// All tables that were chosen.
#[derive(Debug, Default)]
pub struct Paired {
    /// Those that can be compared.
    pub pairs: Vec<Pair>,
    /// Tables that only one side has.
    pub alone: Vec<RelationName>,
    /// Tables that cannot be compared, and why.
    pub skipped: Vec<Skipped>,
    /// What their definitions do not have in common.
    pub findings: Vec<SchemaFinding>,
}

/// Bounds of leaves as the source's statistics have them.
pub type Bounds = HashMap<Oid, (String, Vec<String>)>;

/// Pairs the chosen tables by name; `moves`: a stream keeps them in step.
///
/// # Errors
/// The selection does not fit the source.
pub fn pair(
    request: &Request,
    moves: bool,
    (source, target): (&Catalog, &Catalog),
    bounds: &mut Bounds,
) -> Result<Paired> {
    let (job, level) = (&request.job, request.level);
    let mut paired = Paired { findings: findings::of_sides(source, target), ..Paired::default() };
    let chosen = job.selection.apply(source)?;
    for relation in &chosen {
        let name = &relation.name;
        let Some(other) = target.relation(name) else {
            if let Some(whole) = whole_on(target, source.ancestors(relation)) {
                let because = format!(
                    "a partition of {whole}, which is one table on the target: rows of the two are not compared"
                );
                paired.skipped.push(Skipped { name: name.clone(), because });
                continue;
            }
            paired.findings.push(findings::missing_table(name, true));
            paired.alone.push(name.clone());
            continue;
        };
        match unreadable(relation, other).or_else(|| left_behind(relation, moves)) {
            Some(because) => paired.skipped.push(Skipped { name: name.clone(), because }),
            None => {
                let pair = Pair::new(job, level, (relation, other), bounds, &mut paired.findings)?;
                paired.pairs.push(pair);
            }
        }
    }
    for extra in extra_tables(&job.selection, source, target) {
        paired.findings.push(findings::missing_table(&extra, false));
        paired.alone.push(extra);
    }
    Ok(paired)
}

/// Why a table cannot be compared.
fn unreadable(source: &Relation, target: &Relation) -> Option<String> {
    if target.kind != RelationKind::Table {
        let kind = match target.kind {
            RelationKind::PartitionedTable => "partitioned there",
            RelationKind::ForeignTable => "a foreign table there",
            _ => "a view there",
        };
        return Some(format!("a table on the source and {kind}: rows of the two are not compared"));
    }
    let sides = [(Which::Source, source), (Which::Target, target)];
    sides.into_iter().find_map(|(which, relation)| hidden(which, relation))
}

/// Why the rows of a table cannot be read on one side.
pub(crate) fn hidden(which: Which, relation: &Relation) -> Option<String> {
    let side = which.word();
    if relation.row_security_applies {
        return Some(format!(
            "row security hides rows from our role on the {side}: use a role with BYPASSRLS"
        ));
    }
    (!relation.can_select).then(|| format!("our role may not read it on the {side}: GRANT SELECT"))
}

/// Why a table cannot be the same while the source is written to.
pub(crate) fn left_behind(source: &Relation, moves: bool) -> Option<String> {
    let is_unlogged = moves && source.persistence == Persistence::Unlogged;
    is_unlogged.then(|| {
        "it is unlogged: its changes are in no WAL, so the stream does not carry them".to_owned()
    })
}

/// The one of these partitioned tables that is a plain one on the other side.
fn whole_on<'a>(other: &Catalog, above: Vec<&'a RelationName>) -> Option<&'a RelationName> {
    above.into_iter().find(|name| other.relation(name).is_some_and(Relation::holds_rows))
}

/// Tables that the selection would take and the source has not. A pattern that is only of the source's tables is none of
/// the target's business, and the partitions of a table that the source has whole are told with it.
fn extra_tables(selection: &Selection, source: &Catalog, target: &Catalog) -> Vec<RelationName> {
    let there = selection.apply(target).unwrap_or_default();
    let is_extra = |relation: &&Relation| {
        source.relation(&relation.name).is_none()
            && whole_on(source, target.ancestors(relation)).is_none()
    };
    there.iter().filter(is_extra).map(|relation| relation.name.clone()).collect()
}

impl Pair {
    pub(crate) fn new(
        job: &Job,
        level: Level,
        (source, target): (&Relation, &Relation),
        bounds: &mut Bounds,
        findings: &mut Vec<SchemaFinding>,
    ) -> Result<Self> {
        let options = job.tables.iter().find(|options| options.name == source.name);
        let is_wanted = |column: &&Column| {
            let wanted = options.and_then(|options| options.columns.as_ref());
            wanted.is_none_or(|wanted| wanted.contains(&column.name))
        };
        let wanted: Vec<Column> = source.columns.iter().filter(is_wanted).cloned().collect();
        let found = findings::of_tables(source, &wanted, target);
        let is_other = found.iter().any(|finding| finding.severity == SchemaSeverity::Different);
        findings.extend(found);
        let mut both: Vec<(Column, Column)> = wanted
            .into_iter()
            .filter_map(|column| {
                let other = target.columns.iter().find(|other| other.name == column.name)?;
                Some((column, other.clone()))
            })
            .collect();
        if level < Level::Digest {
            // A row without columns is a row all the same.
            both.clear();
        }
        let select = both.iter().map(|(one, other)| select_of(one, other)).collect::<Vec<_>>();
        let text = bounds.remove(&source.oid);
        let leaves = leaves_of(&both, text);
        let place = |name: &String| both.iter().position(|(column, _)| column.name == *name);
        let key = key_of(source, place);
        let (ours, theirs) = both.into_iter().unzip();
        let mut pair = Self {
            source: Half { relation: source.clone(), columns: ours },
            target: Half { relation: target.clone(), columns: theirs },
            filter: options.and_then(|options| options.filter.clone()),
            select,
            forms: Forms::Raw,
            plan: KeyPlan::of(&[], &[]).map_err(|cause| unhashable(&source.name, cause))?,
            key,
            leaves,
            is_other,
        };
        pair.forms = pair.forms_of_both()?;
        let plan = KeyPlan::of(&pair.digest_columns(Which::Source), &pair.key);
        pair.plan = plan.map_err(|cause| unhashable(pair.name(), cause))?;
        Ok(pair)
    }

    /// The same rows known by these columns of both sides alone, the filter left out, in one leaf, and hashed in the exact form
    /// only: for what keeps a hash of every row.
    ///
    /// # Errors
    /// The columns cannot be hashed.
    pub fn narrowed(&self, keep: impl Fn(&Column, &Column) -> bool) -> Result<Self> {
        let kept: Vec<usize> = (0..self.select.len())
            .filter(|at| keep(&self.source.columns[*at], &self.target.columns[*at]))
            .collect();
        let of = |half: &Half| Half {
            relation: half.relation.clone(),
            columns: kept.iter().map(|at| half.columns[*at].clone()).collect(),
        };
        let key = self.key.iter().map(|at| kept.iter().position(|kept| kept == at));
        let mut narrowed = Self {
            source: of(&self.source),
            target: of(&self.target),
            filter: None,
            select: kept.iter().map(|at| self.select[*at].clone()).collect(),
            key: key.collect::<Option<_>>().unwrap_or_default(),
            leaves: Leaves { bounds: LeafBounds::single(), text: None },
            ..self.clone()
        };
        narrowed.forms = match narrowed.forms_of_both()? {
            Forms::Raw | Forms::RawAndValue => Forms::Raw,
            Forms::RawCanonical | Forms::CanonicalAndValue => Forms::RawCanonical,
        };
        let plan = KeyPlan::of(&narrowed.digest_columns(Which::Source), &narrowed.key);
        narrowed.plan = plan.map_err(|cause| unhashable(self.name(), cause))?;
        Ok(narrowed)
    }

    /// A hasher that only names rows: by the codes of their keys and their hashes.
    ///
    /// # Errors
    /// The columns cannot be hashed.
    pub fn naming_hasher(&self, which: Which, key: &DigestKey) -> Result<RowHasher> {
        self.locating_hasher(which, key, 0)
    }

    /// The text of the key that a code stands for, where the code holds its values.
    pub fn key_texts(&self, code: u128) -> Option<Vec<String>> {
        let values = self.plan.values(code)?;
        Some(values.iter().map(text_of).collect())
    }

    /// The row filter of the job; the target has only rows that it lets through.
    pub fn filter(&self) -> Option<&str> {
        self.filter.as_deref()
    }

    /// Its name, which both sides share.
    pub fn name(&self) -> &RelationName {
        &self.source.relation.name
    }

    /// One side of it.
    pub fn half(&self, which: Which) -> &Half {
        match which {
            Which::Source => &self.source,
            Which::Target => &self.target,
        }
    }

    /// The forms in which both sides sum the same: as the server sends a row where that is the same everywhere, and the
    /// canonical form otherwise.
    fn forms_of_both(&self) -> Result<Forms> {
        let has_value = [Which::Source, Which::Target]
            .into_iter()
            .any(|which| has_value_form(&self.digest_columns(which)));
        let wanted = if has_value { Forms::RawAndValue } else { Forms::Raw };
        let same = self.scheme(Which::Source, wanted)? == self.scheme(Which::Target, wanted)?;
        let types = |half: &Half| {
            let types = half.columns.iter().map(|column| column.data_type.name.clone());
            types.collect::<Vec<_>>()
        };
        Ok(match same && types(&self.source) == types(&self.target) {
            true => wanted,
            false if has_value => Forms::CanonicalAndValue,
            false => Forms::RawCanonical,
        })
    }

    fn scheme(&self, which: Which, forms: Forms) -> Result<RawScheme> {
        let key = DigestKey::new([0; 32]);
        Ok(self.compile(which, forms, &key, LeafBounds::single())?.raw_scheme())
    }

    /// How its rows are hashed, for the ledger: sums that were taken in another way compare with nothing.
    pub fn hashed_as(&self) -> String {
        let names: Vec<(&str, Wire)> =
            self.select.iter().map(|select| (select.name.as_str(), select.wire)).collect();
        format!("{:?} {names:?} {:?}", self.forms, self.filter)
    }

    /// Whether the raw sums of a copy are over what these are over.
    pub(crate) fn is_hashed_as(&self, raw_scheme: &str) -> Result<bool> {
        let is_own = self.select.iter().all(|select| select.wire == Wire::Own);
        let scheme = serde_json::to_value(self.scheme(Which::Source, self.forms)?).ok();
        let is_same = scheme.as_ref().and_then(|scheme| scheme.as_str()) == Some(raw_scheme);
        Ok(is_own && is_same)
    }

    /// Whether rows are read for more than to be counted.
    pub(crate) fn is_hashed(&self) -> bool {
        !self.select.is_empty()
    }

    /// Whether a row may have an equal one that looks different.
    pub(crate) fn has_value_form(&self) -> bool {
        matches!(self.forms, Forms::RawAndValue | Forms::CanonicalAndValue)
    }

    /// Whether the code of a key gives its values.
    pub fn has_verbatim_key(&self) -> bool {
        self.plan.is_verbatim()
    }

    pub(crate) fn digest_columns(&self, which: Which) -> Vec<DigestColumn<'_>> {
        let columns = self.half(which).columns.iter().zip(&self.select);
        columns.map(|(column, select)| DigestColumn { column, wire: select.wire }).collect()
    }

    /// A hasher for one side's rows.
    pub(crate) fn hasher(&self, which: Which, key: &DigestKey) -> Result<RowHasher> {
        self.compile(which, self.forms, key, self.leaves.bounds.clone())
    }

    fn compile(
        &self,
        which: Which,
        forms: Forms,
        key: &DigestKey,
        leaves: LeafBounds,
    ) -> Result<RowHasher> {
        let columns = self.digest_columns(which);
        RowHasher::compile(&columns, TupleForm::PgBinary, forms, key, leaves)
            .map_err(|cause| unhashable(self.name(), cause))
    }

    /// A hasher that feeds a locator with room for so many differing rows: by their exact forms, so that those which are
    /// only equivalent are named too.
    pub(crate) fn locating_hasher(
        &self,
        which: Which,
        key: &DigestKey,
        differences: u32,
    ) -> Result<RowHasher> {
        let locator = Locator::new(self.plan.clone(), differences, key);
        self.hasher(which, key)?
            .locate(locator, &self.key, LocatedForm::Raw)
            .map_err(|cause| unhashable(self.name(), cause))
    }

    /// The chunk that reads this range of one side.
    pub fn chunk(&self, which: Which, chunk: u32, range: ChunkRange) -> ChunkSpec {
        let relation = &self.half(which).relation;
        ChunkSpec {
            job: String::new(),
            run: String::new(),
            snapshot_id: String::new(),
            relation_oid: relation.oid,
            relation: relation.name.clone(),
            chunk,
            range,
            filter: if which == Which::Source { self.filter.clone() } else { None },
            columns: self.select.clone(),
            form: TupleForm::PgBinary,
            estimated_bytes: 0,
        }
    }

    /// The columns that such a chunk selects as text behind the others.
    pub(crate) fn shown(&self, shows: Shows) -> Vec<usize> {
        match shows {
            Shows::Nothing => Vec::new(),
            Shows::Key => self.key.clone(),
            Shows::Row => (0..self.select.len()).collect(),
        }
    }

    /// Whether rows can be asked for by the text of their key: the operators are found with an empty `search_path`, and one
    /// type holds the values of both sides.
    pub(crate) fn is_found_by_key(&self) -> bool {
        let mut types = self.key.iter().map(|at| self.key_type(*at));
        !self.key.is_empty() && types.all(|found| found.is_some())
    }

    /// The columns that a row is found by: those of its key, or all.
    pub(crate) fn known_by(&self) -> Vec<usize> {
        if self.key.is_empty() { self.shown(Shows::Row) } else { self.key.clone() }
    }

    /// The condition that these keys meet on one side, and perhaps others that are equal to the server.
    pub(crate) fn has_key(&self, which: Which, keys: &[Vec<Option<String>>]) -> String {
        let is_whole = keys.iter().flatten().all(Option::is_some);
        if !self.is_found_by_key() || !is_whole {
            let each = keys.iter().map(|key| format!("({})", self.is_row(which, key)));
            return format!("({})", each.collect::<Vec<_>>().join(" OR "));
        }
        let tuple = |parts: Vec<String>| format!("({})", parts.join(", "));
        let columns = self.key.iter().map(|at| &self.half(which).columns[*at].name);
        let names = tuple(columns.map(|name| Ident(name).to_string()).collect());
        let types = self.key.iter().map(|at| self.key_type(*at).unwrap_or("pg_catalog.text"));
        let values = keys.iter().map(|key| {
            let literals = key.iter().flatten().zip(types.clone());
            tuple(literals.map(|(text, of)| format!("{}::{of}", Literal(text))).collect())
        });
        format!("{names} IN (VALUES {})", values.collect::<Vec<_>>().join(", "))
    }

    /// The condition that a row with this key meets, or without a key this row; by an index where there may be one.
    pub(crate) fn is_row(&self, which: Which, key: &[Option<String>]) -> String {
        let condition = |(at, text): (&usize, &Option<String>)| {
            let name = Ident(&self.half(which).columns[*at].name);
            let has_key = !self.key.is_empty();
            let citext = base_of(&self.source.columns[*at].data_type);
            match (text, self.key_type(*at).filter(|_| has_key)) {
                (None, _) => format!("{name} IS NULL"),
                // So that the rows are found that are equal to the server, as those of other types are.
                (Some(text), None) if has_key && is_citext(citext) => {
                    let schema = Ident(&citext.schema);
                    format!("{name} OPERATOR({schema}.=) {}::{schema}.citext", Literal(text))
                }
                (Some(text), Some(of)) => {
                    format!("{name} OPERATOR(pg_catalog.=) {}::{of}", Literal(text))
                }
                // Not every type has an equality.
                (Some(text), None) => {
                    format!("{name}::pg_catalog.text OPERATOR(pg_catalog.=) {}", Literal(text))
                }
            }
        };
        let known_by = self.known_by();
        known_by.iter().zip(key).map(condition).collect::<Vec<_>>().join(" AND ")
    }

    /// The type that a key column's values can be written in on both sides.
    fn key_type(&self, at: usize) -> Option<&str> {
        let (one, other) = (&self.source.columns[at], &self.target.columns[at]);
        let is_integer = |column: &Column| {
            ["int2", "int4", "int8"].iter().any(|name| column.data_type.is_builtin(name))
        };
        let base = base_of(&one.data_type);
        let is_plain = base.schema == "pg_catalog" || matches!(base.kind, TypeKind::Enum(_));
        match () {
            () if is_integer(one) && is_integer(other) => Some("pg_catalog.int8"),
            () if one.type_name != other.type_name => None,
            () if is_plain && !stands_for_a_name(base) => Some(&one.type_name),
            () => None,
        }
    }

    /// The ranges that hold these leaves on both sides; none where only the whole table does.
    pub(crate) fn ranges_of(&self, leaves: &[u32]) -> Option<Vec<ChunkRange>> {
        let (column, bounds) = self.leaves.text.as_ref()?;
        // Rows whose key is NULL are in no range.
        let of_target = self.target.columns.iter().find(|other| other.name == column.name)?;
        if column.is_nullable || of_target.is_nullable || leaves.len() * 2 > self.leaves.count() {
            return None;
        }
        let bound = |at: Option<usize>| at.and_then(|at| bounds.get(at)).cloned();
        // Leaves that lie side by side are read as one.
        let range = |leaves: &[u32]| {
            let from = bound((leaves[0] as usize).checked_sub(1));
            (from, bound(leaves.last().map(|leaf| *leaf as usize)))
        };
        let ranges: Vec<_> = leaves.chunk_by(|one, next| one + 1 == *next).map(range).collect();
        let chunk = |ranges: &[_]| ChunkRange::Keys {
            column: column.name.clone(),
            type_name: column.type_name.clone(),
            ranges: ranges.to_vec(),
        };
        Some(ranges.chunks(RANGES_PER_CHUNK).map(chunk).collect())
    }
}

/// Defects, for the tests of what has to notice them.
#[cfg(test)]
impl Pair {
    /// Leaves a column out of everything that is read.
    pub(crate) fn look_away(&mut self, column: &str) {
        let is_it = |known: &Column| known.name == column;
        let Some(at) = self.source.columns.iter().position(is_it) else { return };
        self.select.remove(at);
        self.source.columns.remove(at);
        self.target.columns.remove(at);
        for key in self.key.iter_mut().filter(|key| **key > at) {
            *key -= 1;
        }
        self.forms = self.forms_of_both().expect("the others were hashed before");
        let plan = KeyPlan::of(&self.digest_columns(Which::Source), &self.key);
        self.plan = plan.expect("the key is as it was");
    }

    /// Reads no row of the source.
    pub(crate) fn lose_rows(&mut self) {
        self.filter = Some("false".to_owned());
    }
}

/// The first key of the source whose columns are all compared, the primary key before others; `place`: where a column is
/// among those that are.
pub(crate) fn key_of(source: &Relation, place: impl Fn(&String) -> Option<usize>) -> Vec<usize> {
    let keys = source.keys.iter().filter(|key| !key.columns.is_empty());
    keys.filter_map(|key| key.columns.iter().map(&place).collect()).next().unwrap_or_default()
}

fn unhashable(name: &RelationName, cause: tidemark_digest::Error) -> Error {
    Error::new(Kind::Internal, format!("prepare to hash the rows of {name}")).because(cause)
}

/// In binary where both sides have it. An OID that stands for a name is another one on each cluster: there the name is read.
fn select_of(one: &Column, other: &Column) -> SelectColumn {
    let is_binary =
        |column: &Column| column.data_type.has_binary && !stands_for_a_name(&column.data_type);
    let wire = if is_binary(one) && is_binary(other) { Wire::Own } else { Wire::CastToText };
    SelectColumn { name: one.name.clone(), wire }
}

fn stands_for_a_name(data_type: &DataType) -> bool {
    match &data_type.kind {
        TypeKind::Domain { base, .. } => stands_for_a_name(base),
        TypeKind::Array(element) => stands_for_a_name(element),
        _ => data_type.schema == "pg_catalog" && data_type.name.starts_with("reg"),
    }
}

fn leaves_of(both: &[(Column, Column)], text: Option<(String, Vec<String>)>) -> Leaves {
    let single = Leaves { bounds: LeafBounds::single(), text: None };
    let Some((name, text)) = text else { return single };
    let Some(index) = both.iter().position(|(column, _)| column.name == name) else {
        return single;
    };
    let (column, other) = &both[index];
    // Of one type and in one order, or a row would be in one leaf here and in another there.
    if column.type_name != other.type_name || column.collation != other.collation {
        return single;
    }
    let bounds = LeafBounds::from_text_bounds(column, index, &text);
    match bounds.leaf_count() {
        1 => single,
        _ => Leaves { bounds, text: Some((column.clone(), text)) },
    }
}
