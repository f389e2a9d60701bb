//! What is written is what is read.

use serde_json::json;
use tidemark_ledger::{Error, LedgerReader};
use tidemark_model::{ChunkResult, RowSum};

use crate::{chunk, open, relation, run};

#[test]
fn a_run_is_read_as_it_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path());
    assert_eq!(ledger.run().unwrap(), None);
    assert!(matches!(ledger.set_phase("snapshot"), Err(Error::NoRun { .. })));

    ledger.begin_run(&run("one")).unwrap();
    assert_eq!(ledger.run().unwrap(), Some(run("one")));
    ledger.set_phase("snapshot").unwrap();
    ledger.set_error(Some("the source went away")).unwrap();
    let found = ledger.run().unwrap().unwrap();
    assert_eq!(found.phase, "snapshot");
    assert_eq!(found.last_error.as_deref(), Some("the source went away"));

    ledger.finish_run().unwrap();
    let found = ledger.run().unwrap().unwrap();
    assert_eq!(found.last_error, None);
    assert!(found.finished_at_ms.unwrap() > found.started_at_ms);
}

#[test]
fn chunks_add_up_to_their_relation_and_its_leaves() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path());
    ledger.begin_run(&run("one")).unwrap();
    ledger.add_relations(&[relation(20, "b"), relation(10, "a")]).unwrap();
    let chunks = [
        chunk(10, 0, &[(0, u128::MAX), (1, 5)]),
        chunk(10, 2, &[(1, u128::MAX), (7, 9)]),
        chunk(20, 0, &[(0, 3)]),
    ];
    for chunk in &chunks {
        ledger.record_chunk(chunk).unwrap();
    }
    ledger.finish_relation(10).unwrap();

    let relations = ledger.relations().unwrap();
    assert_eq!(
        relations.iter().map(|r| r.plan.name.plain()).collect::<Vec<_>>(),
        ["public.a", "public.b"]
    );
    let first = &relations[0];
    assert_eq!(first.plan, relation(10, "a"));
    assert_eq!((first.chunks_done, first.rows_out, first.rows_in, first.bytes), (2, 40, 40, 1000));
    assert_eq!(first.sum, total(&chunks[..2]));
    assert_eq!(first.replaced, [("price".to_owned(), 4)]);
    assert!(first.is_finished && !relations[1].is_finished);

    let leaves = ledger.leaves(10).unwrap();
    assert_eq!(leaves.iter().map(|leaf| leaf.leaf).collect::<Vec<_>>(), [0, 1, 7]);
    assert_eq!(leaves[1].sum.count, 20);
    assert_eq!(leaves[1].sum.raw, 4, "5 and the largest number wrap");
    let mut sum = RowSum::default();
    for leaf in leaves {
        sum += leaf.sum;
    }
    assert_eq!(sum, first.sum);
    let numbers: Vec<_> = ledger.chunks(10).unwrap().iter().map(|chunk| chunk.chunk).collect();
    assert_eq!(numbers, [0, 2]);
}

fn total(chunks: &[ChunkResult]) -> RowSum {
    let mut sum = RowSum::default();
    for chunk in chunks {
        sum += chunk.sum;
    }
    sum
}

#[test]
fn a_chunk_that_is_recorded_twice_counts_once() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path());
    ledger.begin_run(&run("one")).unwrap();
    ledger.add_relation(&relation(10, "a")).unwrap();
    let mut result = chunk(10, 0, &[(0, 4), (3, 5)]);
    ledger.record_chunk(&result).unwrap();
    let (relations, leaves) = (ledger.relations().unwrap(), ledger.leaves(10).unwrap());

    result.duration_ms += 1;
    ledger.record_chunk(&result).unwrap();
    assert_eq!(ledger.relations().unwrap(), relations);
    assert_eq!(ledger.leaves(10).unwrap(), leaves);

    result.sum.raw ^= 1;
    let error = ledger.record_chunk(&result).unwrap_err();
    assert!(matches!(error, Error::ChunkDiffers { oid: 10, chunk: 0 }), "{error}");
    assert_eq!(ledger.relations().unwrap(), relations);
}

#[test]
fn a_refused_chunk_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path());
    ledger.begin_run(&run("one")).unwrap();
    ledger.add_relation(&relation(10, "a")).unwrap();
    let error = ledger.record_chunk(&chunk(11, 0, &[(0, 1)])).unwrap_err();
    assert!(matches!(error, Error::UnknownRelation { oid: 11 }));
    assert!(matches!(ledger.finish_relation(11), Err(Error::UnknownRelation { oid: 11 })));
    let mut result = chunk(10, 0, &[(0, 1), (1, 1)]);
    result.leaves[1].sum.count = u64::MAX;
    assert!(matches!(ledger.record_chunk(&result), Err(Error::TooLarge { .. })));
    assert!(ledger.chunks(10).unwrap().is_empty());
    assert!(ledger.leaves(10).unwrap().is_empty());
}

#[test]
fn a_new_run_forgets_the_old_one_but_not_the_journal() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path());
    ledger.write_journal("opened", &json!({})).unwrap();
    ledger.begin_run(&run("one")).unwrap();
    ledger.add_relation(&relation(10, "a")).unwrap();
    ledger.record_chunk(&chunk(10, 0, &[(0, 4)])).unwrap();
    ledger.write_journal("stopped", &json!({"reason": "killed", "chunks": 1})).unwrap();

    ledger.begin_run(&run("two")).unwrap();
    assert_eq!(ledger.run().unwrap(), Some(run("two")));
    assert!(ledger.relations().unwrap().is_empty());
    assert!(ledger.chunks(10).unwrap().is_empty());
    assert!(ledger.leaves(10).unwrap().is_empty());
    let journal = ledger.journal().unwrap();
    let lines: Vec<_> = journal.iter().map(|e| (e.run.as_deref(), e.event.as_str())).collect();
    assert_eq!(lines, [(None, "opened"), (Some("one"), "stopped")]);
    assert_eq!(journal[1].detail["reason"], "killed");
    assert!(journal[0].at_ms <= journal[1].at_ms);
}

#[test]
fn everything_is_there_after_it_was_closed() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path());
    ledger.begin_run(&run("one")).unwrap();
    ledger.add_relation(&relation(10, "a")).unwrap();
    ledger.record_chunk(&chunk(10, 0, &[(0, 4)])).unwrap();
    let relations = ledger.relations().unwrap();
    drop(ledger);
    let ledger = open(directory.path());
    assert_eq!(ledger.run().unwrap(), Some(run("one")));
    assert_eq!(ledger.relations().unwrap(), relations);
}

#[test]
fn ten_thousand_relations_are_added_in_one_transaction() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path());
    ledger.begin_run(&run("one")).unwrap();
    let mut relations: Vec<_> = (1..=10_000).map(|oid| relation(oid, &format!("t{oid}"))).collect();
    let started = std::time::Instant::now();
    ledger.add_relations(&relations).unwrap();
    assert!(started.elapsed().as_secs() < 10);
    assert_eq!(ledger.relations().unwrap().len(), 10_000);

    // One that does not fit takes the others with it.
    ledger.begin_run(&run("two")).unwrap();
    relations[9_999].estimated_bytes = u64::MAX;
    assert!(ledger.add_relations(&relations).is_err());
    assert!(ledger.relations().unwrap().is_empty());
}

#[test]
fn another_connection_reads_while_the_ledger_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path());
    ledger.begin_run(&run("one")).unwrap();
    ledger.add_relation(&relation(10, "a")).unwrap();
    let reader = LedgerReader::open(directory.path()).unwrap();
    assert_eq!(reader.job().unwrap(), "shop");
    assert_eq!(reader.holder(), Some(Some(std::process::id())));
    for number in 0..20 {
        ledger.record_chunk(&chunk(10, number, &[(0, 1)])).unwrap();
        assert_eq!(reader.relations().unwrap()[0].chunks_done, number + 1);
    }
    drop(ledger);
    assert_eq!(reader.holder(), None);
    assert_eq!(LedgerReader::open(directory.path()).unwrap().chunks(10).unwrap().len(), 20);
}

#[test]
fn threads_share_one_ledger() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path());
    ledger.begin_run(&run("one")).unwrap();
    ledger.add_relation(&relation(10, "a")).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let ledger = &ledger;
            scope.spawn(move || {
                for number in 0..10 {
                    ledger.record_chunk(&chunk(10, thread * 10 + number, &[(0, 1)])).unwrap();
                }
            });
        }
    });
    assert_eq!(ledger.leaves(10).unwrap()[0].sum.count, 400);
}
