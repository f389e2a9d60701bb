//! What is known of leaves, as it is written by whoever holds the job and by a verification beside it.

use rusqlite::Connection;
use tidemark_ledger::{Ledger, LedgerReader, NewProof, Proofs, ProvenLeaf};
use tidemark_model::{LeafSum, Lsn, RowSum};

use crate::{chunk, open, relation, run};

fn proven(leaf: u32, lsn: u64) -> ProvenLeaf {
    let sum = RowSum { count: 5, raw: u128::MAX - 3, value: 7 };
    ProvenLeaf { lsn: Lsn::new(lsn), sum: LeafSum { leaf, sum } }
}

/// A relation that was copied in three chunks of two leaves.
fn copied(ledger: &Ledger) {
    ledger.begin_run(&run("r1")).unwrap();
    ledger.add_relation(&relation(7, "a")).unwrap();
    for number in 0..3 {
        ledger.record_chunk(&chunk(7, number, &[(0, 100), (2, 200)])).unwrap();
    }
}

#[test]
fn what_was_copied_touched_and_proven_is_there_for_whoever_reads_beside() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path());
    copied(&ledger);
    let reader = LedgerReader::open(directory.path()).unwrap();
    let [record] = &reader.leaf_records().unwrap()[..] else { panic!("one relation") };
    let leaves = &record.copied.as_ref().unwrap().leaves;
    assert_eq!(leaves.iter().map(|found| found.leaf).collect::<Vec<_>>(), [0, 2]);
    assert!(record.proof.is_none() && record.is_untouched(0, None));

    ledger.mark_touched(&[(7, 1), (9, 0)], Lsn::new(50)).unwrap();
    let proofs = Proofs::open(directory.path()).unwrap();
    let seen = ledger.data_version().unwrap();
    let new = NewProof {
        copy: record.copy,
        scheme: "s".to_owned(),
        leaves: vec![proven(0, 40), proven(1, 60)],
        whole: Some(Lsn::new(60)),
    };
    proofs.record(std::slice::from_ref(&new)).unwrap();
    assert_ne!(ledger.data_version().unwrap(), seen, "the holder sees that somebody has written");
    let [record] = &reader.leaf_records().unwrap()[..] else { panic!("one relation") };
    let proof = record.proof.as_ref().unwrap();
    assert_eq!((proof.leaves.len(), proof.leaves[1]), (2, proven(1, 60)));
    assert_eq!(proof.last.unwrap().0, Lsn::new(60));
    assert!(record.is_untouched(1, Some(Lsn::new(60))), "the mark is of an earlier position");
    assert!(!record.is_untouched(1, Some(Lsn::new(50))) && !record.is_untouched(1, None));
    assert!(record.is_untouched(0, Some(Lsn::new(40))));

    // What was not found the same is not known any more; when it last was stays.
    proofs.record(&[NewProof { leaves: vec![proven(0, 80)], whole: None, ..new }]).unwrap();
    let [record] = &reader.leaf_records().unwrap()[..] else { panic!("one relation") };
    let proof = record.proof.as_ref().unwrap();
    assert_eq!(proof.leaves, [proven(0, 80)]);
    assert_eq!(proof.last.unwrap().0, Lsn::new(60));
}

#[test]
fn nothing_is_known_of_what_is_copied_or_cut_again_and_a_late_proof_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path());
    copied(&ledger);
    let old = ledger.leaf_records().unwrap().remove(0).copy;
    let proofs = Proofs::open(directory.path()).unwrap();
    let proof = |copy| NewProof {
        copy,
        scheme: "s".to_owned(),
        leaves: vec![proven(0, 40)],
        whole: Some(Lsn::new(40)),
    };
    proofs.record(&[proof(old)]).unwrap();
    ledger.mark_touched(&[(7, 0)], Lsn::new(50)).unwrap();
    ledger.add_relation(&relation(7, "a")).unwrap();
    proofs.record(&[proof(old)]).unwrap();
    proofs.cut(&[(old, "other".to_owned())]).unwrap();
    let record = ledger.leaf_records().unwrap().remove(0);
    assert!(record.copied.is_none() && record.proof.is_none() && record.touched.is_empty());
    assert_eq!(record.leaf_bounds, relation(7, "a").leaf_bounds);

    for number in 0..3 {
        ledger.record_chunk(&chunk(7, number, &[(0, 100)])).unwrap();
    }
    proofs.record(&[proof(record.copy)]).unwrap();
    proofs.cut(&[(record.copy, "other".to_owned())]).unwrap();
    let record = ledger.leaf_records().unwrap().remove(0);
    assert_eq!(
        (record.leaf_bounds.as_str(), &record.proof, &record.copied),
        ("other", &None, &None)
    );

    proofs.record(&[proof(record.copy)]).unwrap();
    ledger.forget_leaves().unwrap();
    proofs.record(&[proof(record.copy)]).unwrap();
    assert_eq!(ledger.leaf_records().unwrap().remove(0).proof, None);
}

#[test]
fn the_session_and_where_it_stood_are_of_the_run() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path());
    assert_eq!((ledger.epoch().unwrap(), ledger.stood().unwrap()), (None, None));
    copied(&ledger);
    ledger.set_epoch(3).unwrap();
    ledger.set_stood(Lsn::new(70)).unwrap();
    drop(ledger);
    let ledger = open(directory.path());
    assert_eq!((ledger.epoch().unwrap(), ledger.stood().unwrap()), (Some(3), Some(Lsn::new(70))));
    ledger.begin_run(&run("r2")).unwrap();
    assert_eq!((ledger.epoch().unwrap(), ledger.stood().unwrap()), (None, None));
    assert!(ledger.leaf_records().unwrap().is_empty());
}

#[test]
fn a_ledger_of_version_1_is_read_and_brought_up_by_whoever_holds_it() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path());
    copied(&ledger);
    drop(ledger);
    let file = Connection::open(directory.path().join("ledger.sqlite")).unwrap();
    file.execute_batch(
        "DROP TABLE proven; DROP TABLE proof; DROP TABLE touched; ALTER TABLE relation DROP COLUMN generation; \
         ALTER TABLE relation DROP COLUMN shape; ALTER TABLE run DROP COLUMN epoch; ALTER TABLE run DROP COLUMN stood; \
         PRAGMA user_version = 1",
    )
    .unwrap();
    drop(file);
    let reader = LedgerReader::open(directory.path()).unwrap();
    assert_eq!(reader.relations().unwrap()[0].chunks_done, 3);
    assert!(reader.leaf_records().unwrap().is_empty());
    assert!(Proofs::open(directory.path()).is_err());
    let ledger = open(directory.path());
    let record = ledger.leaf_records().unwrap().remove(0);
    // Of the leaves that version 1 cut nobody knows the bounds.
    assert_eq!((record.copied, record.leaf_bounds.as_str()), (None, "null"));
    assert_eq!(ledger.run().unwrap().unwrap().run, "r1");
}
