//! The sample: rows of some of the chosen tables, as they are on the source, in tables of the scratch schema.
//!
//! **Invariant:** the source is only read, under one read snapshot; rows, bytes and tables are bounded. What cannot be brought
//! over (a type that the target does not have, a value that it refuses) is named without its values.

use std::collections::HashSet;
use std::pin::pin;

use bytes::Bytes;
use futures::SinkExt as _;
use tidemark_model::sql::Ident;
use tidemark_model::{
    Budget, ChunkRange, ChunkSpec, Column, Relation, RelationName, SelectColumn, TupleForm,
    TypeKind, Wire,
};
use tidemark_pipeline::{Error, Kind, Result, TableOptions};
use tidemark_source::Catalog;
use tidemark_wire::tokio_postgres;

use super::mutation::{OWN_ROWS, OWN_TYPES, base_of};
use super::scratch::{Scratch, failed};
use crate::pair::hidden;
use crate::side::{Side, View};
use crate::{Request, Skipped, Which};

/// Tables that a sample is taken of.
const TABLES: usize = 12;
/// Rows of each, at most, and the bytes of one and of those that are looked at for them.
const ROWS: usize = 200;
const ROW_BYTES: usize = 32 << 10;
const LOOKED_AT_BYTES: usize = 4 << 20;
const BATCH_BYTES: usize = 256 << 10;

/// A table of the scratch schema with the rows that are copied.
#[derive(Debug)]
pub(super) struct Sample {
    /// The user's table that the rows are from; none of a table of our own.
    pub(super) of: Option<RelationName>,
    /// Its name in the scratch schema, ready for SQL.
    pub(super) table: String,
    /// The column that numbers its rows, ready for SQL.
    pub(super) number: String,
    pub(super) columns: Vec<Column>,
    /// The columns of the key, by their numbers; none: rows are a multiset.
    pub(super) key: Vec<usize>,
    pub(super) rows: u64,
}

impl Sample {
    /// A column, ready for SQL.
    pub(super) fn column(&self, at: usize) -> String {
        Ident(&self.columns[at].name).to_string()
    }

    /// The columns that are no part of the key.
    pub(super) fn outside_the_key(&self) -> impl Iterator<Item = usize> {
        (0..self.columns.len()).filter(|at| !self.key.contains(at))
    }
}

/// Takes samples of the chosen tables; also what none was taken of, and why.
pub(super) async fn take(
    request: &Request,
    source: &Side,
    scratch: &Scratch,
) -> Result<(Vec<Sample>, Vec<Skipped>)> {
    let job = &request.job;
    let mut skipped = Vec::new();
    let chosen = choose(job.selection.apply(&source.catalog)?, &mut skipped);
    let view = source.view(chosen).await?;
    let budget = Budget::new(job.memory / 2);
    let mut samples = Vec::new();
    for relation in view.tables() {
        let options = job.tables.iter().find(|options| options.name == relation.name);
        let taking = Taking { scratch, view: &view, relation, options };
        match Box::pin(taking.take(samples.len(), &budget)).await? {
            Ok(sample) if sample.rows == 0 => {}
            Ok(sample) => samples.push(sample),
            Err(because) => skipped.push(Skipped { name: relation.name.clone(), because }),
        }
    }
    view.release().await;
    Ok((samples, skipped))
}

/// So many tables with rows, first those that bring a type that none before has.
fn choose(chosen: Vec<Relation>, skipped: &mut Vec<Skipped>) -> Vec<Relation> {
    let mut readable = Vec::new();
    for relation in chosen.into_iter().filter(|relation| relation.heap_bytes > 0) {
        match hidden(Which::Source, &relation) {
            Some(because) => skipped.push(Skipped { name: relation.name, because }),
            None => readable.push(relation),
        }
    }
    let mut seen = HashSet::new();
    let is_new = |relation: &Relation| {
        let types = relation.columns.iter().map(|column| base_of(&column.data_type).name.clone());
        let shape = format!("{} key", if relation.keys.is_empty() { "no" } else { "a" });
        // All of them are to be seen.
        types.chain([shape]).filter(|word| seen.insert(word.clone())).count() > 0
    };
    let (first, then): (Vec<_>, Vec<_>) = readable.into_iter().partition(is_new);
    first.into_iter().chain(then).take(TABLES).collect()
}

struct Taking<'a> {
    scratch: &'a Scratch,
    view: &'a View,
    relation: &'a Relation,
    options: Option<&'a TableOptions>,
}

impl Taking<'_> {
    /// The sample, or why there is none.
    async fn take(&self, number: usize, budget: &Budget) -> Result<Result<Sample, String>> {
        let columns = self.columns().await?;
        if columns.is_empty() {
            return Ok(Err("the target has none of its types".to_owned()));
        }
        let mut sample = Sample {
            of: Some(self.relation.name.clone()),
            table: self.scratch.name(&format!("sample_{number}")),
            number: Ident(&free_name(&columns)).to_string(),
            key: key_of(self.relation, &columns),
            columns,
            rows: 0,
        };
        let rows = self.read(&sample, budget).await?;
        sample.rows = rows.len() as u64;
        let list = sample
            .columns
            .iter()
            .map(|column| format!(", {} {}", Ident(&column.name), column.type_name));
        let create = format!(
            "CREATE UNLOGGED TABLE {} ({} int8 GENERATED ALWAYS AS IDENTITY{})",
            sample.table,
            sample.number,
            list.collect::<String>()
        );
        let filled = match self.scratch.client.batch_execute(&create).await {
            Ok(()) => self.fill(&sample, rows).await,
            Err(error) => Err(error),
        };
        match filled {
            Ok(()) => Ok(Ok(sample)),
            Err(error) => match error.code() {
                Some(code) => {
                    Ok(Err(format!("the target refused its rows (SQLSTATE {})", code.code())))
                }
                None => Err(failed("copy the sample", &error)),
            },
        }
    }

    /// The chosen columns whose types the target knows by the same name.
    async fn columns(&self) -> Result<Vec<Column>> {
        let wanted = self.options.and_then(|options| options.columns.as_ref());
        let is_wanted =
            |column: &&Column| wanted.is_none_or(|wanted| wanted.contains(&column.name));
        let columns: Vec<&Column> = self.relation.columns.iter().filter(is_wanted).collect();
        let types: Vec<&str> = columns.iter().map(|column| column.type_name.as_str()).collect();
        let sql = "SELECT pg_catalog.to_regtype(t) IS NOT NULL FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS u (t, n) ORDER BY n";
        let rows = self.scratch.client.query(sql, &[&types]).await;
        let rows = rows.map_err(|cause| failed("look for the types of the sample", &cause))?;
        let known = columns.into_iter().zip(&rows).filter(|(_, row)| row.get(0));
        Ok(known.map(|(column, _)| column.clone()).collect())
    }

    /// Rows as COPY writes them as text: the first ones that are not too long.
    async fn read(&self, sample: &Sample, budget: &Budget) -> Result<Vec<Bytes>> {
        let chunk = ChunkSpec {
            job: String::new(),
            run: String::new(),
            snapshot_id: String::new(),
            relation_oid: self.relation.oid,
            relation: self.relation.name.clone(),
            chunk: 0,
            range: ChunkRange::Whole,
            filter: self.options.and_then(|options| options.filter.clone()),
            columns: sample
                .columns
                .iter()
                .map(|column| SelectColumn { name: column.name.clone(), wire: Wire::Own })
                .collect(),
            form: TupleForm::PgText,
            estimated_bytes: 0,
        };
        let mut reader = self.view.reader().await?;
        let mut copy = reader.copy(&chunk).await.map_err(|error| self.view.of(error))?;
        let (mut rows, mut looked_at) = (Vec::new(), 0);
        while rows.len() < ROWS && looked_at < LOOKED_AT_BYTES {
            let next = copy.next(BATCH_BYTES, budget).await.map_err(|error| self.view.of(error))?;
            let Some((tuples, _reserved)) = next else { return Ok(rows) };
            looked_at += tuples.data.len();
            let short = tuples.rows().filter(|row| row.len() <= ROW_BYTES);
            rows.extend(short.take(ROWS - rows.len()).map(Bytes::copy_from_slice));
        }
        // The reader goes with its connection; what the server says of it is nothing to us.
        copy.abort().await.ok();
        Ok(rows)
    }

    async fn fill(&self, sample: &Sample, rows: Vec<Bytes>) -> Result<(), tokio_postgres::Error> {
        let list: Vec<String> = (0..sample.columns.len()).map(|at| sample.column(at)).collect();
        let copy = format!("COPY {} ({}) FROM STDIN (FORMAT text)", sample.table, list.join(", "));
        let mut copy = pin!(self.scratch.client.copy_in::<_, Bytes>(&copy).await?);
        for row in rows {
            copy.feed(row).await?;
        }
        copy.finish().await.map(drop)
    }
}

/// The first key whose columns all came over.
fn key_of(relation: &Relation, columns: &[Column]) -> Vec<usize> {
    let position = |name: &String| columns.iter().position(|column| column.name == *name);
    let keys = relation.keys.iter().filter(|key| !key.columns.is_empty());
    keys.filter_map(|key| key.columns.iter().map(position).collect()).next().unwrap_or_default()
}

/// A name that no column has.
fn free_name(columns: &[Column]) -> String {
    let mut name = "tidemark_row".to_owned();
    while columns.iter().any(|column| column.name == name) {
        name.push('_');
    }
    name
}

/// A table of our own that has all types, for what no chosen table lets be planted.
pub(super) async fn own(
    scratch: &Scratch,
    read: impl AsyncFn() -> Result<Catalog>,
) -> Result<Sample> {
    let schema = Ident(&scratch.schema).to_string();
    let table = scratch.name("own");
    let sql = format!(
        "{OWN_TYPES}; CREATE UNLOGGED TABLE {table} AS SELECT row_number() OVER () AS tidemark_row, r.* FROM ({OWN_ROWS}) r"
    );
    scratch.run("make a table of its own", &sql.replace("{schema}", &schema)).await?;
    let name = RelationName::new(&scratch.schema, "own");
    let catalog = read().await?;
    let missing =
        || Error::new(Kind::Internal, "verify selftest: its own table is not in the catalog");
    let relation = catalog.relation(&name).ok_or_else(missing)?;
    let columns: Vec<Column> =
        relation.columns.iter().filter(|column| column.name != "tidemark_row").cloned().collect();
    let key = columns.iter().position(|column| column.name == "id").into_iter().collect();
    Ok(Sample { of: None, table, number: "tidemark_row".to_owned(), columns, key, rows: 20 })
}

/// What stands between the attributes of a composite's text.
pub(super) fn commas(column: &Column) -> String {
    match &base_of(&column.data_type).kind {
        TypeKind::Composite(attributes) => ",".repeat(attributes.len().saturating_sub(1)),
        _ => String::new(),
    }
}
