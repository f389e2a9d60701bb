//! The Parquet target: what is visible is whole.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;
use tidemark_testkit::Database;

use crate::support::{Job, assert_source_clean, files_below, filled, reached, side};

const COMMIT: &str = "_tidemark/commits/00000000000000000000.json";

fn lake_job(name: &str, source: &Database, root: &Path) -> Job {
    Job::new(name, &source.url(), &format!("file://{}", root.display())).configured(
        "[snapshot]\nreaders = 2\nchunk_bytes = \"512KiB\"\n[parquet]\nfile_bytes = \"1MiB\"\n",
    )
}

/// The manifest lists exactly the files that are there, and as many rows as the source has.
#[track_caller]
fn assert_whole(source: &Database, root: &Path) {
    let text = std::fs::read_to_string(root.join(COMMIT)).unwrap();
    let commit: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut listed = Vec::new();
    for table in commit["tables"].as_array().unwrap() {
        let name =
            format!("{}.{}", table["schema"].as_str().unwrap(), table["name"].as_str().unwrap());
        let files = table["files"].as_array().unwrap();
        let rows: u64 = files.iter().map(|file| file["rows"].as_u64().unwrap()).sum();
        let there = source.psql(&format!("SELECT count(*) FROM {name}")).unwrap();
        assert_eq!(rows.to_string(), there, "rows of {name}");
        listed.extend(files.iter().map(|file| file["path"].as_str().unwrap().to_owned()));
    }
    listed.sort();
    let mut there = files_below(root);
    there.retain(|path| !path.starts_with("_tidemark/"));
    assert_eq!(listed, there, "what is listed and what is there");
}

#[test]
fn a_killed_run_shows_nothing_and_the_same_command_makes_the_lake_whole() {
    let source = filled();
    for files in [0, 1, 4] {
        let root = TempDir::new().unwrap();
        let lake = root.path().join("lake");
        let job = lake_job("lake", &source, &lake);
        let mut running = job.start_sync();
        reached(&mut running, || {
            let parquet = |path: &String| !path.starts_with("_tidemark/");
            lake.join("_tidemark").exists()
                && files_below(&lake).iter().filter(|path| parquet(path)).count() >= files
        });
        running.signal(Signal::KILL);
        if running.end().code != 0 {
            assert!(!lake.join(COMMIT).exists(), "nothing is visible");
            job.sync(&[]).expect(0);
        }
        assert_whole(&source, &lake);
        assert_source_clean(side(&source));
    }
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let source = filled();
    let root = TempDir::new().unwrap();
    std::fs::write(root.path().join("file"), "").unwrap();
    let ran = lake_job("nowhere", &source, &root.path().join("file/lake")).sync(&[]);
    assert!([2, 5, 8].contains(&ran.code), "{ran:?}");
    ran.says(&["file/lake"]);
}

#[test]
fn a_full_disk_ends_the_run_with_8_and_shows_nothing() {
    let source = filled();
    let Some(disk) = SmallDisk::mount() else {
        println!("not run: a small file system needs the right to mount");
        return;
    };
    let lake = disk.0.path().join("lake");
    let ran = lake_job("full", &source, &lake).sync(&[]).expect(8);
    let ran = ran.says(&["way out"]);
    assert!(ran.stderr.to_lowercase().contains("no space"), "{}", ran.stderr);
    assert!(!lake.join(COMMIT).exists());
    assert_source_clean(side(&source));
}

/// A file system of half a megabyte.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let directory = TempDir::new().unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"])
            .arg(directory.path())
            .stderr(std::process::Stdio::null())
            .status();
        status.is_ok_and(|status| status.success()).then(|| Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.0.path()).status().ok();
    }
}
