//! Template data directories: `initdb` once per machine and version, then a copy per cluster.
//!
//! **Invariant:** a template is complete or absent: it is made under a temporary name and renamed,
//! under a lock that parallel test processes share.
//!
//! A copy takes a fifth of the time of `initdb`, and a copy of a filled one a tenth of filling it. Manual: "Creating a
//! Database Cluster".

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

use super::builder::Locale;
use super::version::{Installation, cache_home};
use crate::process;

/// The password of the superuser `postgres` in every cluster.
pub const PASSWORD: &str = "testkit-password";

/// Copies the template of this installation and locale to `target`, which must not exist.
pub(crate) fn copy_template(
    installation: &Installation,
    locale: &Locale,
    target: &Path,
) -> Result<()> {
    let template = template(installation, locale)?;
    copy_directory(&template, target)
}

/// Copies a data directory with its owner and modes.
pub(crate) fn copy_directory(from: &Path, to: &Path) -> Result<()> {
    process::run(process::command("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to))?;
    Ok(())
}

/// Copies the template `name` of this installation, which the first call makes from the data directory that `fill` leaves.
pub(crate) fn copy_filled(
    installation: &Installation,
    name: &str,
    target: &Path,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let key = format!("{}-{name}", installation.full_version()?);
    let template = cached(&key, |root, path| {
        let work = tempfile::Builder::new().prefix("making-").tempdir_in(root)?;
        let data = work.path().join("data");
        fill(&data)?;
        fs::rename(&data, path).with_context(|| format!("rename to {}", path.display()))
    })?;
    copy_directory(&template, target)
}

fn template(installation: &Installation, locale: &Locale) -> Result<PathBuf> {
    let key = format!("{}-{}-{}", installation.full_version()?, locale.encoding, locale.name);
    cached(&key, |root, path| make(installation, locale, root, path))
}

/// What is kept under this name; `make` makes it where it is not there.
fn cached(key: &str, make: impl FnOnce(&Path, &Path) -> Result<()>) -> Result<PathBuf> {
    let root = cache_home().join("templates");
    fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
    let key: String = key
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' })
        .collect();
    let path = root.join(&key);
    if path.is_dir() {
        return Ok(path);
    }
    let lock =
        File::create(root.join(format!("{key}.lock"))).context("create the template lock")?;
    flock(&lock, FlockOperation::LockExclusive).context("lock the template")?;
    if !path.is_dir() {
        make(&root, &path)?;
    }
    Ok(path)
}

fn make(installation: &Installation, locale: &Locale, root: &Path, path: &Path) -> Result<()> {
    // The making happens in a directory that the server's user owns; the cache itself stays ours.
    let work = tempfile::Builder::new().prefix("making-").tempdir_in(root)?;
    let password = work.path().join("password");
    fs::write(&password, PASSWORD).context("write the password file")?;
    if process::is_root() {
        let (uid, gid) = process::UNPRIVILEGED;
        chown(work.path(), Some(uid), Some(gid)).context("hand over the template directory")?;
        chown(&password, Some(uid), Some(gid)).context("hand over the password file")?;
    }
    let data = work.path().join("data");
    let mut initdb = installation.command("initdb");
    initdb.arg("-D").arg(&data).args(["-U", "postgres", "-A", "trust", "--no-sync"]);
    initdb.arg(format!("--pwfile={}", password.display()));
    initdb.arg(format!("--encoding={}", locale.encoding));
    initdb.arg(format!("--locale={}", locale.name));
    // 13 hashes with md5 unless told.
    initdb.arg("--auth-host=scram-sha-256");
    process::run(&mut initdb).context("make a template data directory")?;
    fs::rename(&data, path).with_context(|| format!("rename to {}", path.display()))
}
