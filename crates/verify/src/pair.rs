//! Which table of the target belongs to which one of the source, and how both are read so that their sums can be compared.
//!
//! **Invariant:** both SELECT lists name the same columns in the same order, in the same wire form, so that equal rows have
//! equal sums whatever the order of the columns in the tables; leaves are cut the same on both sides.

use std::collections::HashMap;

use tidemark_digest::{
    DigestColumn, DigestKey, Forms, LeafBounds, RawScheme, RowHasher, has_value_form,
};
use tidemark_model::{
    ChunkRange, ChunkSpec, Column, DataType, Oid, Persistence, Relation, RelationKind,
    RelationName, SelectColumn, TupleForm, TypeKind, Wire,
};
use tidemark_pipeline::{Error, Job, Kind, Result};
use tidemark_report::{Level, SchemaSeverity};
use tidemark_source::{Catalog, Selection};

use crate::findings::{self, SchemaFinding};
use crate::{Request, Skipped, Which};

/// One table on both sides.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) source: Half,
    pub(crate) target: Half,
    /// Of the source's rows only these were moved.
    filter: Option<String>,
    select: Vec<SelectColumn>,
    forms: Forms,
    pub(crate) leaves: Leaves,
    /// Definitions differ so that the table cannot be the same whatever its rows are.
    pub(crate) is_other: bool,
}

/// One side of a pair.
#[derive(Debug, Clone)]
pub(crate) struct Half {
    pub(crate) relation: Relation,
    /// In the order of the SELECT list.
    columns: Vec<Column>,
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
}

/// All tables that were chosen.
#[derive(Debug, Default)]
pub(crate) struct Paired {
    pub(crate) pairs: Vec<Pair>,
    /// Tables that only one side has.
    pub(crate) alone: Vec<RelationName>,
    pub(crate) skipped: Vec<Skipped>,
    pub(crate) findings: Vec<SchemaFinding>,
}

/// Bounds of leaves as the source's statistics have them.
pub(crate) type Bounds = HashMap<Oid, (String, Vec<String>)>;

/// Pairs the chosen tables by name; `moves`: a stream keeps them in step.
///
/// # Errors
/// The selection does not fit the source.
pub(crate) fn pair(
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
    for (which, relation) in [(Which::Source, source), (Which::Target, target)] {
        if relation.row_security_applies {
            return Some(format!(
                "row security hides rows from our role on the {}: use a role with BYPASSRLS",
                which.word()
            ));
        }
        if !relation.can_select {
            return Some(format!("our role may not read it on the {}: GRANT SELECT", which.word()));
        }
    }
    None
}

/// Why a table cannot be the same while the source is written to.
fn left_behind(source: &Relation, moves: bool) -> Option<String> {
    let is_unlogged = moves && source.persistence == Persistence::Unlogged;
    is_unlogged.then(|| {
        "it is unlogged: its changes are in no WAL, so the stream does not carry them".to_owned()
    })
}

/// Tables that the selection would take and the source has not. A pattern that is only of the source's tables is none of
/// the target's business.
fn extra_tables(selection: &Selection, source: &Catalog, target: &Catalog) -> Vec<RelationName> {
    let there = selection.apply(target).unwrap_or_default();
    let is_extra = |relation: &&Relation| source.relation(&relation.name).is_none();
    there.iter().filter(is_extra).map(|relation| relation.name.clone()).collect()
}

impl Pair {
    fn new(
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
        let (ours, theirs) = both.into_iter().unzip();
        let mut pair = Self {
            source: Half { relation: source.clone(), columns: ours },
            target: Half { relation: target.clone(), columns: theirs },
            filter: options.and_then(|options| options.filter.clone()),
            select,
            forms: Forms::Raw,
            leaves,
            is_other,
        };
        pair.forms = pair.forms_of_both()?;
        Ok(pair)
    }

    pub(crate) fn name(&self) -> &RelationName {
        &self.source.relation.name
    }

    pub(crate) fn half(&self, which: Which) -> &Half {
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

    fn digest_columns(&self, which: Which) -> Vec<DigestColumn<'_>> {
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
        RowHasher::compile(&columns, TupleForm::PgBinary, forms, key, leaves).map_err(|cause| {
            let message = format!("prepare to hash the rows of {}", self.name());
            Error::new(Kind::Internal, message).because(cause)
        })
    }

    /// The chunk that reads this range of one side.
    pub(crate) fn chunk(&self, which: Which, chunk: u32, range: ChunkRange) -> ChunkSpec {
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

    /// The ranges that hold these leaves on both sides; none where only the whole table does.
    pub(crate) fn ranges_of(&self, leaves: &[u32]) -> Option<Vec<ChunkRange>> {
        let (column, bounds) = self.leaves.text.as_ref()?;
        // Rows whose key is NULL are in no range.
        let of_target = self.target.columns.iter().find(|other| other.name == column.name)?;
        if column.is_nullable || of_target.is_nullable || leaves.len() * 2 > self.leaves.count() {
            return None;
        }
        let bound = |at: Option<usize>| at.and_then(|at| bounds.get(at)).cloned();
        let range = |leaf: &u32| ChunkRange::Key {
            column: column.name.clone(),
            from: bound((*leaf as usize).checked_sub(1)),
            to: bound(Some(*leaf as usize)),
            type_name: column.type_name.clone(),
        };
        Some(leaves.iter().map(range).collect())
    }
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
