//! Which columns of a row differ, and whether they do to SQL.
//!
//! **Invariant:** a column is called equivalent only if its canonical values are equal, or if its type compares other values as
//! equal (citext, a nondeterministic collation) and the source says that these two are. So are two rows one, whose keys it
//! calls equal.

use std::collections::HashMap;

use tidemark_digest::{DigestKey, Forms, LeafBounds, RowHasher};
use tidemark_model::sql::Ident;
use tidemark_model::{Column, DataType, RowSum, TupleForm, Tuples, TypeKind};
use tidemark_pipeline::{Error, Kind, Result};
use tidemark_report::DiffKind;
use tidemark_wire::Client;
use tidemark_wire::tokio_postgres::types::ToSql;

use crate::Which;
use crate::again::fields;
use crate::naming::{Found, defect};
use crate::pair::{Pair, Shows};
use crate::run::Run;

/// Looks at the columns of rows that are on both sides.
pub(crate) struct Classify<'a> {
    run: &'a Run<'a>,
    pair: &'a Pair,
    /// The source's and the target's of each column.
    hashers: Vec<[RowHasher; 2]>,
    /// Of the columns whose type has one of its own.
    equalities: Vec<Option<Equality>>,
    client: Option<Client>,
}

impl<'a> Classify<'a> {
    pub(crate) async fn open(run: &'a Run<'a>, pair: &'a Pair) -> Result<Self> {
        let key = DigestKey::random();
        let [ours, theirs] = [Which::Source, Which::Target].map(|which| pair.digest_columns(which));
        let compile = |of| {
            let forms = Forms::CanonicalAndValue;
            RowHasher::compile(&[of], TupleForm::PgBinary, forms, &key, LeafBounds::single())
                .map_err(|cause| defect("a column cannot be hashed").because(cause))
        };
        let both = ours.into_iter().zip(theirs);
        let hashers = both.map(|(one, other)| Ok([compile(one)?, compile(other)?]));
        let hashers = hashers.collect::<Result<_>>()?;
        let mut classify = Self { run, pair, hashers, equalities: Vec::new(), client: None };
        let nondeterministic = classify.nondeterministic().await?;
        let columns = pair.source.columns.iter();
        let equalities = columns.map(|column| Equality::of(column, &nondeterministic));
        classify.equalities = equalities.collect();
        Ok(classify)
    }

    /// Those of the columns' collations that may call different strings equal.
    async fn nondeterministic(&mut self) -> Result<Vec<String>> {
        let is_plain = |name: &&str| {
            !["pg_catalog.default", "pg_catalog.C", "pg_catalog.POSIX"].contains(name)
        };
        let columns = self.pair.source.columns.iter();
        let wanted: Vec<&str> =
            columns.filter_map(|column| column.collation.as_deref()).filter(is_plain).collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let sql = "SELECT DISTINCT n.nspname || '.' || c.collname FROM pg_catalog.pg_collation c \
            JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace \
            WHERE NOT c.collisdeterministic AND n.nspname || '.' || c.collname = ANY ($1)";
        let rows = self.client().await?.query(sql, &[&wanted]).await.map_err(unasked)?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    async fn client(&mut self) -> Result<&Client> {
        let client = match self.client.take() {
            Some(client) => client,
            None => {
                let source = &self.run.source;
                source.spec().connect().await.map_err(|error| source.of(error))?
            }
        };
        Ok(self.client.insert(client))
    }

    /// Says of each row on both sides which columns differ and how, and of the row what follows from them.
    pub(crate) async fn classify(&mut self, found: &mut [Found]) -> Result<()> {
        self.columns(found)?;
        for column in 0..self.equalities.len() {
            self.ask(column, found).await?;
        }
        for one in found.iter_mut().filter(|one| one.kind == DiffKind::Changed) {
            let is_same = |(_, class): &(usize, DiffKind)| *class == DiffKind::Equivalent;
            if !one.columns.is_empty() && one.columns.iter().all(is_same) {
                one.kind = DiffKind::Equivalent;
            }
        }
        Ok(())
    }

    /// Whether the source may call keys equal that are not the same.
    pub(crate) fn has_alike_keys(&self) -> bool {
        self.pair.key.iter().any(|at| self.equalities[*at].is_some())
    }

    /// Makes one row of two that only one side has each, where the source calls their keys equal, and no others beside them.
    pub(crate) async fn unite(&mut self, apart: Vec<Found>) -> Result<Vec<Found>> {
        let width = self.pair.key.len();
        let mut columns: Vec<Vec<String>> = vec![Vec::new(); 2 * width];
        let mut places: [Vec<usize>; 2] = [Vec::new(), Vec::new()];
        for (number, one) in apart.iter().enumerate().filter(|(_, one)| one.copies == 1) {
            let side = match one.kind {
                DiffKind::Missing => 0,
                DiffKind::Extra => 1,
                _ => continue,
            };
            let key = self.pair.key.iter().map(|at| self.text(&one.bodies[side], *at));
            if let Some(key) = key.collect::<Option<Vec<String>>>() {
                let of_side = columns.iter_mut().skip(side * width);
                of_side.zip(key).for_each(|(column, text)| column.push(text));
                places[side].push(number);
            }
        }
        if places.iter().any(Vec::is_empty) {
            return Ok(apart);
        }
        let sql = self.alike_keys();
        let parameters: Vec<&(dyn ToSql + Sync)> =
            columns.iter().map(|column| column as &(dyn ToSql + Sync)).collect();
        let rows = self.client().await?.query(&sql, &parameters).await.map_err(unasked)?;
        let place = |side: usize, ordinal: i64| {
            let at = usize::try_from(ordinal).ok()?.checked_sub(1)?;
            places[side].get(at).copied()
        };
        let alike =
            rows.iter().filter_map(|row| Some((place(0, row.get(0))?, place(1, row.get(1))?)));
        Ok(united(apart, &alike.collect::<Vec<_>>()))
    }

    /// The query for the numbers of the keys that are equal: first all columns of the source's, then those of the target's.
    fn alike_keys(&self) -> String {
        let width = self.pair.key.len();
        let names = (0..width).map(|at| format!("k{at}, ")).collect::<String>();
        let conditions = self.pair.key.iter().enumerate().map(|(at, column)| {
            let (one, other) = (format!("a.k{at}"), format!("b.k{at}"));
            match &self.equalities[*column] {
                Some(equality) => equality.condition(&one, &other),
                None => format!("{one} OPERATOR(pg_catalog.=) ({other} COLLATE pg_catalog.\"C\")"),
            }
        });
        format!(
            "SELECT a.n, b.n FROM {} JOIN {} ON {}",
            unnested(&format!("a ({names}n)"), 1..=width),
            unnested(&format!("b ({names}n)"), width + 1..=2 * width),
            conditions.collect::<Vec<_>>().join(" AND ")
        )
    }

    /// The columns in which the rows on both sides differ, by their values alone.
    pub(crate) fn columns(&mut self, found: &mut [Found]) -> Result<()> {
        for one in found {
            if let [Some(source), Some(target)] = &one.bodies {
                one.columns = self.columns_of(source, target)?;
            }
        }
        Ok(())
    }

    fn columns_of(&mut self, source: &[u8], target: &[u8]) -> Result<Vec<(usize, DiffKind)>> {
        let (ours, theirs) = (fields(source, Shows::Row), fields(target, Shows::Row));
        let mut found = Vec::new();
        for (at, [one, other]) in self.hashers.iter_mut().enumerate() {
            let (Some(ours), Some(theirs)) = (ours.get(at), theirs.get(at)) else {
                return Err(defect("a row has fewer columns than were asked for"));
            };
            let (one, other) = (hash(one, *ours)?, hash(other, *theirs)?);
            match () {
                () if one.raw == other.raw => {}
                () if one.value == other.value => found.push((at, DiffKind::Equivalent)),
                () => found.push((at, DiffKind::Changed)),
            }
        }
        Ok(found)
    }

    /// The text of a column, where it is not NULL.
    fn text(&self, body: &Option<Box<[u8]>>, column: usize) -> Option<String> {
        let at = self.pair.source.columns.len() + column;
        let field = fields(body.as_deref()?, Shows::Row).get(at).copied().flatten()?;
        String::from_utf8(field.to_vec()).ok()
    }

    /// Asks the source which of the values of one column it takes for equal, if it may take others than the same for equal.
    async fn ask(&mut self, column: usize, found: &mut [Found]) -> Result<()> {
        let Some(equality) = &self.equalities[column] else { return Ok(()) };
        let sql = format!(
            "SELECT {} FROM {} ORDER BY n",
            equality.condition("a", "b"),
            unnested("u (a, b, n)", 1..=2)
        );
        let mut open = Vec::new();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for (number, one) in found.iter().enumerate() {
            let place = one.columns.iter().position(|of| *of == (column, DiffKind::Changed));
            let values = (self.text(&one.bodies[0], column), self.text(&one.bodies[1], column));
            if let (Some(place), (Some(our), Some(their))) = (place, values) {
                open.push((number, place));
                ours.push(our);
                theirs.push(their);
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        let rows = self.client().await?.query(&sql, &[&ours, &theirs]).await.map_err(unasked)?;
        for ((number, place), row) in open.into_iter().zip(&rows) {
            if row.get::<_, Option<bool>>(0) == Some(true) {
                found[number].columns[place].1 = DiffKind::Equivalent;
            }
        }
        Ok(())
    }
}

/// Puts these pairs together, where neither is in another one.
fn united(apart: Vec<Found>, alike: &[(usize, usize)]) -> Vec<Found> {
    let mut times: HashMap<usize, u32> = HashMap::new();
    for (one, other) in alike {
        *times.entry(*one).or_default() += 1;
        *times.entry(*other).or_default() += 1;
    }
    let mut apart: Vec<Option<Found>> = apart.into_iter().map(Some).collect();
    for (one, other) in alike.iter().filter(|(one, other)| times[one] == 1 && times[other] == 1) {
        let extra = apart[*other].take();
        if let (Some(missing), Some(extra)) = (&mut apart[*one], extra) {
            missing.kind = DiffKind::Changed;
            missing.bodies[1] = extra.bodies.into_iter().nth(1).flatten();
        }
    }
    apart.into_iter().flatten().collect()
}

/// How a type calls values equal though their bytes are not.
struct Equality {
    type_name: String,
    operator: String,
    collate: String,
}

impl Equality {
    fn of(column: &Column, nondeterministic: &[String]) -> Option<Self> {
        let base = base_of(&column.data_type);
        let is_citext = is_citext(base);
        let collation = column.collation.as_ref().filter(|name| nondeterministic.contains(name));
        if !is_citext && collation.is_none() {
            return None;
        }
        let collate = collation.and_then(|name| name.split_once('.'));
        Some(Self {
            // Of the type alone: a length would cut values that are longer on the target.
            type_name: format!("{}.{}", Ident(&base.schema), Ident(&base.name)),
            operator: Ident(if is_citext { &base.schema } else { "pg_catalog" }).to_string(),
            collate: collate.map_or_else(String::new, |(schema, name)| {
                format!(" COLLATE {}.{}", Ident(schema), Ident(name))
            }),
        })
    }

    /// The condition that two texts are equal.
    fn condition(&self, one: &str, other: &str) -> String {
        let Self { type_name, operator, collate } = self;
        format!("({one}::{type_name}) OPERATOR({operator}.=) ({other}::{type_name}{collate})")
    }
}

/// Parameters that are arrays of text, side by side; `as_of` names the columns and the number of the row.
fn unnested(as_of: &str, parameters: std::ops::RangeInclusive<usize>) -> String {
    let arrays =
        parameters.map(|number| format!("pg_catalog.unnest(${number}::pg_catalog.text[])"));
    let arrays = arrays.collect::<Vec<_>>().join(", ");
    format!("ROWS FROM ({arrays}) WITH ORDINALITY AS {as_of}")
}

pub(crate) fn is_citext(base: &DataType) -> bool {
    base.name == "citext" && base.extension.as_deref() == Some("citext")
}

pub(crate) fn base_of(data_type: &DataType) -> &DataType {
    match &data_type.kind {
        TypeKind::Domain { base, .. } => base,
        _ => data_type,
    }
}

/// The hashes of one field.
fn hash(hasher: &mut RowHasher, field: Option<&[u8]>) -> Result<RowSum> {
    let mut row = 1_u16.to_be_bytes().to_vec();
    match field {
        None => row.extend_from_slice(&(-1_i32).to_be_bytes()),
        Some(field) => {
            row.extend_from_slice(&(field.len() as u32).to_be_bytes());
            row.extend_from_slice(field);
        }
    }
    let ends = vec![row.len() as u32];
    let before = hasher.sum();
    let tuples = Tuples { form: TupleForm::PgBinary, data: row.into(), ends };
    hasher.add(&tuples).map_err(|cause| defect("a field cannot be hashed").because(cause))?;
    let after = hasher.sum();
    Ok(RowSum {
        count: 1,
        raw: after.raw.wrapping_sub(before.raw),
        value: after.value.wrapping_sub(before.value),
    })
}

fn unasked(cause: tidemark_wire::tokio_postgres::Error) -> Error {
    Error::new(Kind::Unavailable, "ask the source which values are equal to it").because(cause)
}
