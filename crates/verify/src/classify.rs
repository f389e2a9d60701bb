//! Which columns of a row differ, and whether they do to SQL.
//!
//! **Invariant:** a column is called equivalent only if its canonical values are equal, or if its type compares other values as
//! equal (citext, a nondeterministic collation) and the source says that these two are.

use tidemark_digest::{DigestKey, Forms, LeafBounds, RowHasher};
use tidemark_model::sql::Ident;
use tidemark_model::{Column, DataType, RowSum, TupleForm, Tuples, TypeKind};
use tidemark_pipeline::{Error, Kind, Result};
use tidemark_report::DiffKind;
use tidemark_wire::Client;

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
    /// For the columns whose type has an equality of its own: the query that asks for it.
    asks: Vec<Option<String>>,
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
        let mut classify = Self { run, pair, hashers, asks: Vec::new(), client: None };
        let nondeterministic = classify.nondeterministic().await?;
        let columns = pair.source.columns.iter();
        classify.asks = columns.map(|column| equality(column, &nondeterministic)).collect();
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
        for column in 0..self.asks.len() {
            if let Some(sql) = self.asks[column].clone() {
                self.ask(column, &sql, found).await?;
            }
        }
        for one in found.iter_mut().filter(|one| one.kind == DiffKind::Changed) {
            let is_same = |(_, class): &(usize, DiffKind)| *class == DiffKind::Equivalent;
            if !one.columns.is_empty() && one.columns.iter().all(is_same) {
                one.kind = DiffKind::Equivalent;
            }
        }
        Ok(())
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

    /// Asks the source which of the values of one column it takes for equal.
    async fn ask(&mut self, column: usize, sql: &str, found: &mut [Found]) -> Result<()> {
        let hashed = self.pair.source.columns.len();
        let text = |body: &Option<Box<[u8]>>| {
            let body = body.as_deref()?;
            let field = fields(body, Shows::Row).get(hashed + column).copied().flatten()?;
            String::from_utf8(field.to_vec()).ok()
        };
        let mut open = Vec::new();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for (number, one) in found.iter().enumerate() {
            let place = one.columns.iter().position(|of| *of == (column, DiffKind::Changed));
            let values = (text(&one.bodies[0]), text(&one.bodies[1]));
            if let (Some(place), (Some(our), Some(their))) = (place, values) {
                open.push((number, place));
                ours.push(our);
                theirs.push(their);
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        let rows = self.client().await?.query(sql, &[&ours, &theirs]).await.map_err(unasked)?;
        for ((number, place), row) in open.into_iter().zip(&rows) {
            if row.get::<_, Option<bool>>(0) == Some(true) {
                found[number].columns[place].1 = DiffKind::Equivalent;
            }
        }
        Ok(())
    }
}

/// The query for the values that a type itself calls equal though their bytes are not, if it does that.
fn equality(column: &Column, nondeterministic: &[String]) -> Option<String> {
    let base = base_of(&column.data_type);
    let is_citext = base.name == "citext" && base.extension.as_deref() == Some("citext");
    let collation = column.collation.as_ref().filter(|name| nondeterministic.contains(name));
    if !is_citext && collation.is_none() {
        return None;
    }
    let collate = collation.and_then(|name| name.split_once('.'));
    let collate = collate.map_or_else(String::new, |(schema, name)| {
        format!(" COLLATE {}.{}", Ident(schema), Ident(name))
    });
    // Of the type alone: a length would cut values that are longer on the target.
    let (schema, name) = (Ident(&base.schema), Ident(&base.name));
    let operator = if is_citext { schema } else { Ident("pg_catalog") };
    Some(format!(
        "SELECT (a::{schema}.{name}) OPERATOR({operator}.=) (b::{schema}.{name}{collate}) \
         FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[])) \
         WITH ORDINALITY AS u (a, b, n) ORDER BY n"
    ))
}

fn base_of(data_type: &DataType) -> &DataType {
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
