//! The digests in the ledger: repeatable, sensitive to one bit, and the same when the target is read again.

use std::collections::BTreeMap;

use tidemark_digest::{DigestColumn, DigestKey, Forms, LeafBounds, RowHasher};
use tidemark_ledger::LedgerReader;
use tidemark_model::{Budget, ChunkRange, ChunkSpec, RowSum, SelectColumn, TupleForm, Wire};
use tidemark_pipeline::{NotEmpty, Target};
use tidemark_source::{Reader, Selection, Snapshot, SnapshotOptions, read_catalog};
use tidemark_testkit::workload;
use tidemark_wire::ConnectSpec;

use crate::support::{Fixture, runtime};

type Sums = BTreeMap<String, (RowSum, String)>;

fn ledger(fixture: &Fixture) -> (DigestKey, Sums) {
    let reader = LedgerReader::open(&fixture.job.state_dir).unwrap();
    let key = DigestKey::from_hex(&reader.run().unwrap().unwrap().digest_key).unwrap();
    let relations = reader.relations().unwrap();
    let sums =
        relations.into_iter().map(|of| (of.plan.name.to_string(), (of.sum, of.plan.raw_scheme)));
    (key, sums.collect())
}

/// Reads every table of a database whole and sums its rows in the form that the run moved them in.
async fn sums_of(url: &str, key: &DigestKey, like: &Sums) -> BTreeMap<String, RowSum> {
    let spec = ConnectSpec::parse(url).unwrap();
    let client = spec.connect().await.unwrap();
    let tables = Selection::default().apply(&read_catalog(&client).await.unwrap()).unwrap();
    let snapshot =
        Snapshot::take(&spec, &SnapshotOptions::new(tables.clone(), "digests")).await.unwrap();
    let mut reader = Reader::open(&spec, snapshot.id()).await.unwrap();
    let budget = Budget::new(64 << 20);
    let mut sums = BTreeMap::new();
    for relation in tables {
        let (_, scheme) = &like[&relation.name.to_string()];
        let form = if scheme == "text-line" { TupleForm::PgText } else { TupleForm::PgBinary };
        let columns: Vec<_> = relation
            .columns
            .iter()
            .filter(|column| column.generated == tidemark_model::Generated::No)
            .collect();
        let digest: Vec<_> =
            columns.iter().map(|column| DigestColumn { column, wire: Wire::Own }).collect();
        let mut hasher =
            RowHasher::compile(&digest, form, Forms::Raw, key, LeafBounds::single()).unwrap();
        let select = |column: &&tidemark_model::Column| SelectColumn {
            name: column.name.clone(),
            wire: Wire::Own,
        };
        let chunk = ChunkSpec {
            job: "again".into(),
            run: "1".into(),
            snapshot_id: snapshot.id().into(),
            relation_oid: relation.oid,
            relation: relation.name.clone(),
            chunk: 0,
            range: ChunkRange::Whole,
            filter: None,
            columns: columns.iter().map(select).collect(),
            form,
            estimated_bytes: 0,
        };
        let mut copy = reader.copy(&chunk).await.unwrap();
        while let Some((tuples, _reservation)) = copy.next(1 << 16, &budget).await.unwrap() {
            hasher.add(&tuples).unwrap();
        }
        sums.insert(relation.name.to_string(), hasher.sum());
    }
    sums
}

fn raw(sums: &Sums) -> BTreeMap<String, (u64, u128)> {
    sums.iter().map(|(name, (sum, _))| (name.clone(), (sum.count, sum.raw))).collect()
}

#[test]
fn the_ledger_holds_what_source_and_target_give_when_they_are_read_again() {
    let fixture = Fixture::new();
    workload::load_zoo(fixture.source, &fixture.from).unwrap();
    fixture.copy();
    let (key, recorded) = ledger(&fixture);
    assert!(recorded.values().any(|(_, scheme)| scheme == "text-line"));
    assert!(recorded.values().any(|(_, scheme)| scheme != "text-line"));
    for url in [fixture.source.url(&fixture.from), fixture.target.url(&fixture.to)] {
        let again = runtime().block_on(Box::pin(sums_of(&url, &key, &recorded)));
        let again: BTreeMap<_, _> =
            again.into_iter().map(|(name, sum)| (name, (sum.count, sum.raw))).collect();
        assert_eq!(again, raw(&recorded), "{url}");
    }
}

#[test]
fn the_same_rows_give_the_same_sums_and_one_bit_another() {
    let mut fixture = Fixture::new();
    fixture.sql(
        "CREATE TABLE a (id integer PRIMARY KEY, b bytea, n numeric); INSERT INTO a SELECT i, decode(md5(i::text), 'hex'), i FROM generate_series(1, 3000) i;
         CREATE TABLE b (t text); INSERT INTO b SELECT 't' || i % 7 FROM generate_series(1, 100) i",
    );
    fixture.copy();
    let (key, first) = ledger(&fixture);
    let Target::Postgres(target) = &mut fixture.job.target else { unreachable!() };
    target.not_empty = NotEmpty::Truncate;
    // Other chunks, other places in the heap: the sums are of the rows alone.
    fixture.sql("CREATE TABLE turned AS SELECT * FROM a ORDER BY id DESC; TRUNCATE a; INSERT INTO a SELECT * FROM turned; DROP TABLE turned");
    fixture.job.chunk_bytes = 64 * 1024;
    fixture.copy();
    let (key_again, second) = ledger(&fixture);
    assert_eq!(key.to_hex(), key_again.to_hex());
    assert_eq!(raw(&first), raw(&second));
    fixture.sql("UPDATE a SET b = set_bit(b, 77, 1 - get_bit(b, 77)) WHERE id = 1234");
    fixture.copy();
    let (_, third) = ledger(&fixture);
    let table = |name: &str| format!("\"public\".\"{name}\"");
    assert_ne!(first[&table("a")].0.raw, third[&table("a")].0.raw);
    assert_eq!(first[&table("b")].0.raw, third[&table("b")].0.raw);
}
