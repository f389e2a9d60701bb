//! Who may open the ledger, and where it may be.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::process::{Command, Stdio};

use tidemark_ledger::{Error, Ledger, LedgerReader};

use crate::open;

fn mode(path: impl AsRef<std::path::Path>) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[test]
fn directory_and_files_are_for_the_user_alone() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("new/state");
    let ledger = open(&directory);
    ledger.begin_run(&crate::run("one")).unwrap();
    assert_eq!(mode(&directory), 0o700);
    let files: Vec<_> =
        fs::read_dir(&directory).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[test]
fn a_directory_that_others_can_write_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    for bad in [0o777, 0o770, 0o702] {
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(bad)).unwrap();
        let error = Ledger::open(directory.path(), "shop").unwrap_err();
        assert!(matches!(error, Error::UnsafeDirectory { .. }), "{bad:o}: {error}");
        assert!(fs::read_dir(directory.path()).unwrap().next().is_none());
    }
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    open(directory.path());
}

#[test]
fn a_directory_of_another_user_is_refused() {
    if !is_root() {
        // Only root can make one; the check itself is the same comparison for everybody.
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(directory.path(), Some(65534), None).unwrap();
    let error = Ledger::open(directory.path(), "shop").unwrap_err();
    assert!(error.to_string().contains("belongs to another user"), "{error}");
    assert!(LedgerReader::open(directory.path()).is_err());
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
fn symbolic_links_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("target");
    fs::create_dir(&target).unwrap();
    let link = parent.path().join("link");
    symlink(&target, &link).unwrap();
    let error = Ledger::open(&link, "shop").unwrap_err();
    assert!(error.to_string().contains("symbolic link"), "{error}");

    let victim = parent.path().join("victim");
    for name in ["lock", "ledger.sqlite"] {
        fs::write(&victim, "mine").unwrap();
        symlink(&victim, target.join(name)).unwrap();
        let error = Ledger::open(&target, "shop").unwrap_err();
        assert!(matches!(error, Error::UnsafeFile { .. }), "{name}: {error}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
        fs::remove_file(target.join(name)).unwrap();
    }
    // A link above the directory is the user's own business.
    open(&link.join("state"));
}

#[test]
fn a_file_in_place_of_the_directory_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("file");
    fs::write(&path, "x").unwrap();
    let error = Ledger::open(&path, "shop").unwrap_err();
    assert!(error.to_string().contains("not a directory"), "{error}");
}

#[test]
fn a_second_holder_is_refused_with_the_number_of_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path());
    match Ledger::open(directory.path(), "shop").unwrap_err() {
        Error::Held { pid, .. } => assert_eq!(pid, Some(std::process::id())),
        other => panic!("{other}"),
    }
    drop(ledger);
    open(directory.path());
}

#[test]
fn the_lock_of_a_killed_process_is_free() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    let lock = directory.path().join("lock");
    // flock(1) holds the file as a run would, and says so before it waits.
    let mut child = Command::new("flock")
        .args([lock.to_str().unwrap(), "sh", "-c", "echo held; exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    assert_eq!(line, "held\n");
    assert!(matches!(Ledger::open(directory.path(), "shop"), Err(Error::Held { .. })));

    child.kill().unwrap();
    child.wait().unwrap();
    // Its child ends with its standard input.
    drop(child);
    let freed = (0..100_000).any(|_| Ledger::open(directory.path(), "shop").is_ok());
    assert!(freed, "the lock outlived its process");
}

#[test]
fn a_directory_serves_one_job() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    match Ledger::open(directory.path(), "other").unwrap_err() {
        Error::OtherJob { found, wanted, .. } => assert_eq!((&*found, &*wanted), ("shop", "other")),
        other => panic!("{other}"),
    }
}

#[test]
fn a_reader_of_nothing_is_told_so_and_makes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("none");
    assert!(matches!(LedgerReader::open(&missing), Err(Error::Missing { .. })));
    assert!(!missing.exists());
    assert!(matches!(LedgerReader::open(directory.path()), Err(Error::Missing { .. })));
    assert!(fs::read_dir(directory.path()).unwrap().next().is_none());
}
