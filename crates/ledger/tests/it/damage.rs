//! Files that are torn, foreign or of another version (`hazards.md` G102).

use std::fs;
use std::path::Path;

use tidemark_ledger::{Error, Ledger, LedgerReader};

use crate::{chunk, open, relation, run};

fn filled(directory: &Path) -> Vec<u8> {
    let ledger = open(directory);
    ledger.begin_run(&run("one")).unwrap();
    ledger.add_relations(&(1..200).map(|oid| relation(oid, "t")).collect::<Vec<_>>()).unwrap();
    for number in 0..200 {
        ledger.record_chunk(&chunk(1 + number % 9, number, &[(0, 1), (number, 2)])).unwrap();
    }
    drop(ledger);
    fs::read(directory.join("ledger.sqlite")).unwrap()
}

/// Reads everything; what it is does not matter here, only that it is an answer or a named error.
fn use_everything(directory: &Path) -> Result<(), Error> {
    if let Ok(reader) = LedgerReader::open(directory) {
        drop((
            reader.run(),
            reader.relations(),
            reader.chunks(1),
            reader.leaves(1),
            reader.journal(),
        ));
    }
    let ledger = Ledger::open(directory, "shop")?;
    ledger.relations()?;
    ledger.leaves(1)?;
    ledger.journal()?;
    ledger.run().map(drop)
}

#[test]
fn a_truncated_ledger_is_a_clear_error_at_every_length() {
    let directory = tempfile::tempdir().unwrap();
    let whole = filled(directory.path());
    let path = directory.path().join("ledger.sqlite");
    let page = 4096;
    let lengths = [1, 15, 16, 50, 99, 100, 101, 511, 512, 1024, page - 1, page, page + 1]
        .into_iter()
        .chain((2 * page..whole.len()).step_by(3001));
    for length in lengths {
        fs::write(&path, &whole[..length]).unwrap();
        let Err(error) = use_everything(directory.path()) else { panic!("{length} bytes pass") };
        assert!(matches!(error, Error::Damaged { .. }), "{length} bytes: {error}");
        let message = error.to_string();
        assert!(message.contains("ledger.sqlite") && message.contains("move it away"), "{message}");
    }
    fs::write(&path, &whole).unwrap();
    use_everything(directory.path()).unwrap();
}

#[test]
fn an_empty_file_is_a_new_ledger() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path());
    fs::write(directory.path().join("ledger.sqlite"), "").unwrap();
    assert!(matches!(LedgerReader::open(directory.path()), Err(Error::Missing { .. })));
    assert_eq!(open(directory.path()).run().unwrap(), None);
}

#[test]
fn flipped_bytes_never_panic() {
    let directory = tempfile::tempdir().unwrap();
    let whole = filled(directory.path());
    let path = directory.path().join("ledger.sqlite");
    for at in (0..whole.len()).step_by(whole.len() / 60) {
        let mut torn = whole.clone();
        for byte in torn.iter_mut().skip(at).take(64) {
            *byte ^= 0xff;
        }
        fs::write(&path, &torn).unwrap();
        // Damage inside a value cannot be seen by SQLite; what can be seen is a named error.
        if let Err(error) = use_everything(directory.path()) {
            assert!(
                error.to_string().contains("ledger.sqlite")
                    || matches!(error, Error::OtherJob { .. })
            );
        }
        for extra in ["ledger.sqlite-wal", "ledger.sqlite-shm"] {
            fs::remove_file(directory.path().join(extra)).ok();
        }
    }
}

#[test]
fn a_ledger_of_a_later_version_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let mut whole = filled(directory.path());
    // The header keeps user_version at byte 60, big-endian.
    assert_eq!(whole[60..64], [0, 0, 0, 2]);
    whole[63] = 9;
    fs::write(directory.path().join("ledger.sqlite"), &whole).unwrap();
    for error in [
        Ledger::open(directory.path(), "shop").unwrap_err(),
        LedgerReader::open(directory.path()).unwrap_err(),
    ] {
        assert!(matches!(error, Error::NewerVersion { found: 9, known: 2, .. }), "{error}");
    }
}

#[test]
fn something_else_in_its_place_is_not_touched() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    let path = directory.path().join("ledger.sqlite");
    fs::write(&path, "this is a letter, not a database. ".repeat(200)).unwrap();
    let before = fs::read(&path).unwrap();
    assert!(matches!(Ledger::open(directory.path(), "shop"), Err(Error::Damaged { .. })));
    assert_eq!(fs::read(&path).unwrap(), before);
}
