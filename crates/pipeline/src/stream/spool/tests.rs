//! What a spool gives back after whatever happened to its files.

use tidemark_model::TransactionHead;

use super::super::body::Body;
use super::*;

fn identity(base: u64) -> Identity {
    Identity {
        job: "job".to_owned(),
        run: "run".to_owned(),
        system_identifier: "7".to_owned(),
        base: Lsn::new(base),
    }
}

fn head(end: u64) -> TransactionHead {
    let (commit_lsn, end_lsn) = (Lsn::new(end - 1), Lsn::new(end));
    TransactionHead { xid: end, commit_lsn, end_lsn, committed_at: 0 }
}

fn blocks(rows: &[Vec<u8>]) -> Blocks {
    let mut body = Body::default();
    for row in rows {
        body.push(b'I', row);
    }
    Blocks::Body(body.read())
}

fn append(spool: &mut Spool, end: u64, rows: &[Vec<u8>]) {
    spool.append(head(end), blocks(rows)).unwrap();
}

fn relation(oid: u32) -> Blocks {
    let mut body = Body::default();
    body.push(b'R', &[&oid.to_be_bytes()[..], b"description"].concat());
    Blocks::Body(body.read())
}

/// Everything from the reader on: end and number of messages of each transaction, `(0, oid)` for a description.
fn read_all(spool: &Spool, reader: &mut SpoolReader) -> Vec<(u64, usize)> {
    let mut found = Vec::new();
    while let Some(spooled) = spool.read_next(reader).unwrap() {
        match spooled {
            Spooled::Relation(message) => {
                found.push((0, described(&message).unwrap() as usize));
            }
            Spooled::Transaction(head, mut body) => {
                let mut count = 0;
                while let Some(block) = body.next().unwrap() {
                    count += messages(&block).count();
                }
                found.push((head.end_lsn.as_u64(), count));
            }
        }
    }
    found
}

#[test]
fn transactions_come_back_in_order_while_more_are_added() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = Spool::create(directory.path(), identity(10)).unwrap();
    let mut reader = spool.reader();
    assert_eq!(read_all(&spool, &mut reader), []);
    append(&mut spool, 20, &[vec![1; 5], vec![2; 5]]);
    assert_eq!(read_all(&spool, &mut reader), [(20, 2)]);
    append(&mut spool, 30, &[]);
    append(&mut spool, 40, &[vec![3; 3 << 20], vec![4; 9]]);
    assert_eq!(read_all(&spool, &mut reader), [(30, 0), (40, 2)]);
    assert_eq!(spool.end(), Lsn::new(40));
    assert_eq!(spool.sync().unwrap().lsn(), Lsn::new(40));
}

#[test]
fn whatever_is_torn_off_the_end_whole_transactions_remain() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = Spool::create(directory.path(), identity(10)).unwrap();
    let mut lengths = Vec::new();
    for end in [20, 30, 40] {
        append(&mut spool, end, &[vec![end as u8; 40]]);
        lengths.push((spool.bytes(), end));
    }
    spool.sync().unwrap();
    let path = path_of(directory.path(), 1);
    let whole = std::fs::read(&path).unwrap();
    drop(spool);
    for cut in 0..=whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let expected = lengths.iter().rev().find(|(length, _)| *length <= cut as u64);
        let Some(mut spool) = Spool::recover(directory.path()).unwrap() else {
            assert!(expected.is_none());
            continue;
        };
        assert_eq!(spool.end().as_u64(), expected.map_or(10, |(_, end)| *end), "cut at {cut}");
        // It can be written to again, behind what remained.
        append(&mut spool, 99, &[vec![0; 3]]);
        let found = read_all(&spool, &mut spool.reader());
        assert_eq!(found.last(), Some(&(99, 1)), "cut at {cut}");
        assert_eq!(found.len(), expected.map_or(0, |(_, end)| (*end as usize - 10) / 10) + 1);
        drop(std::fs::remove_file(path_of(directory.path(), 2)));
    }
}

#[test]
fn a_changed_byte_ends_the_spool_there() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = Spool::create(directory.path(), identity(10)).unwrap();
    for end in [20, 30, 40] {
        append(&mut spool, end, &[vec![end as u8; 40]]);
    }
    drop(spool);
    let path = path_of(directory.path(), 1);
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 0x40;
        std::fs::write(&path, &changed).unwrap();
        let end = Spool::recover(directory.path()).unwrap().map_or(0, |spool| spool.end().as_u64());
        assert!(end < 40, "byte {at} was changed and nobody saw it");
    }
}

#[test]
fn descriptions_stand_at_the_front_of_each_segment() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = Spool::create(directory.path(), identity(10)).unwrap();
    spool.append(head(20), relation(16_384)).unwrap();
    spool.describe(relation(16_385)).unwrap();
    for number in 0..70_u64 {
        append(&mut spool, 30 + number, &[vec![0; 1 << 20]]);
    }
    assert!(spool.segments.len() >= 2);
    let mut reader = spool.reader();
    while reader.number < 2 {
        spool.read_next(&mut reader).unwrap().unwrap();
    }
    spool.release(Lsn::new(31), &reader);
    assert_eq!(spool.segments.len(), 2, "not all of the first segment is durable");
    spool.release(Lsn::new(1000), &reader);
    assert!(!path_of(directory.path(), 1).exists());
    drop(spool);
    let spool = Spool::recover(directory.path()).unwrap().unwrap();
    let found = read_all(&spool, &mut spool.reader());
    assert_eq!(found[..2], [(0, 16_384), (0, 16_385)]);
}

#[test]
fn a_segment_behind_a_torn_one_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = Spool::create(directory.path(), identity(10)).unwrap();
    for number in 0..70_u64 {
        append(&mut spool, 20 + number, &[vec![0; 1 << 20]]);
    }
    drop(spool);
    let path = path_of(directory.path(), 1);
    let length = path.metadata().unwrap().len();
    File::options().write(true).open(&path).unwrap().set_len(length - 10).unwrap();
    let spool = Spool::recover(directory.path()).unwrap().unwrap();
    assert_eq!(spool.segments.len(), 1);
    assert!(spool.end() < Lsn::new(20 + 69));
}
