//! Sessions, plans and row counts for the tests.

use tidemark_model::{
    Budget, ChunkRange, ChunkSpec, Column, Relation, SelectColumn, TablePlan, TupleForm,
    Unrepresentable, Wire,
};
use tidemark_source::{Catalog, Reader, Selection, SnapshotOptions, read_catalog};
use tidemark_wire::{Client, ConnectSpec};

pub(crate) fn spec(url: &str) -> ConnectSpec {
    ConnectSpec::parse(url).unwrap()
}

pub(crate) async fn session(url: &str) -> Client {
    spec(url).connect().await.unwrap()
}

pub(crate) async fn catalog(url: &str) -> Catalog {
    read_catalog(&session(url).await).await.unwrap()
}

/// The tables that globs choose, without any: all.
pub(crate) async fn tables(url: &str, globs: &[&str]) -> Vec<Relation> {
    let include = globs.iter().map(|glob| (*glob).to_owned()).collect();
    Selection::new(include, vec![]).apply(&catalog(url).await).unwrap()
}

pub(crate) async fn options(url: &str, globs: &[&str]) -> SnapshotOptions {
    let mut options = SnapshotOptions::new(tables(url, globs).await, "tidemark test");
    options.lock_timeout = std::time::Duration::from_millis(200);
    options.lock_attempts = 3;
    options
}

pub(crate) fn plan(relation: &Relation) -> TablePlan {
    let columns: Vec<Column> = relation.columns.clone();
    TablePlan {
        select: select(relation),
        relation: relation.clone(),
        columns,
        form: TupleForm::PgText,
        filter: None,
        unrepresentable: Unrepresentable::Error,
    }
}

fn select(relation: &Relation) -> Vec<SelectColumn> {
    relation
        .columns
        .iter()
        .map(|column| SelectColumn { name: column.name.clone(), wire: Wire::Own })
        .collect()
}

pub(crate) fn chunk(relation: &Relation, snapshot_id: &str, range: ChunkRange) -> ChunkSpec {
    ChunkSpec {
        job: "test".into(),
        run: "1".into(),
        snapshot_id: snapshot_id.into(),
        relation_oid: relation.oid,
        relation: relation.name.clone(),
        chunk: 0,
        range,
        filter: None,
        columns: select(relation),
        form: TupleForm::PgText,
        estimated_bytes: 0,
    }
}

/// All rows of a chunk as text lines.
pub(crate) async fn lines(reader: &mut Reader, chunk: &ChunkSpec) -> Vec<String> {
    let budget = Budget::new(64 << 20);
    let mut copy = reader.copy(chunk).await.unwrap();
    let mut lines = Vec::new();
    while let Some((tuples, _reservation)) = copy.next(1 << 16, &budget).await.unwrap() {
        lines.extend(tuples.rows().map(|row| String::from_utf8(row.to_vec()).unwrap()));
    }
    assert_eq!(copy.rows(), Some(lines.len() as u64));
    lines
}

/// All rows of several ranges, sorted.
pub(crate) async fn rows_of(
    url: &str,
    relation: &Relation,
    snapshot_id: &str,
    ranges: Vec<ChunkRange>,
) -> Vec<String> {
    let mut reader = Reader::open(&spec(url), snapshot_id).await.unwrap();
    let mut all = Vec::new();
    for range in ranges {
        all.extend(lines(&mut reader, &chunk(relation, snapshot_id, range)).await);
    }
    all.sort();
    all
}
