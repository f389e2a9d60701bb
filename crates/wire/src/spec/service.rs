//! The service file: named sets of options.
//!
//! **Invariant:** a service that was asked for is found, or the connection is refused.
//!
//! PostgreSQL manual: libpq, "The Connection Service File".

use std::path::{Path, PathBuf};

use super::options::Options;
use crate::error::Fault;

/// Where the distributions keep the system-wide file.
const SYSTEM_DIRECTORIES: [&str; 2] = ["/etc/postgresql-common", "/etc/sysconfig/pgsql"];

/// Reads a service's options from the first file that has it.
pub(super) fn load(
    name: &str,
    file: Option<&str>,
    env: &impl Fn(&str) -> Option<String>,
) -> Result<Options, Fault> {
    for path in files(file, env) {
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                if let Some(options) = section(&text, name, &path)? {
                    return Ok(options);
                }
            }
            Err(_) if file.is_none() => {}
            Err(error) => {
                return Err(Fault::usage(format!(
                    "read service file \"{}\": {error}",
                    path.display()
                )));
            }
        }
    }
    Err(Fault::usage(format!("service \"{name}\" is not defined in any service file")))
}

fn files(file: Option<&str>, env: &impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let mut files = Vec::new();
    match file {
        Some(file) => files.push(PathBuf::from(file)),
        None => files.extend(env("HOME").map(|home| Path::new(&home).join(".pg_service.conf"))),
    }
    match env("PGSYSCONFDIR") {
        Some(directory) => files.push(Path::new(&directory).join("pg_service.conf")),
        None => files.extend(
            SYSTEM_DIRECTORIES
                .map(|directory| Path::new(directory).join("pg_service.conf"))
                .into_iter()
                .filter(|path| path.exists()),
        ),
    }
    files
}

fn section(text: &str, name: &str, path: &Path) -> Result<Option<Options>, Fault> {
    let mut found: Option<Options> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(title) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            if title.split(']').next() == Some(name) {
                found = Some(Options::default());
            }
            continue;
        }
        let Some(options) = found.as_mut() else { continue };
        let at = || format!("service file \"{}\", line {}", path.display(), index + 1);
        let (key, value) = line
            .split_once('=')
            .filter(|(key, _)| !key.starts_with("ldap"))
            .ok_or_else(|| Fault::usage(format!("{}: expected name=value", at())))?;
        if key == "service" || key == "servicefile" {
            return Err(Fault::usage(format!("{}: services cannot be nested", at())));
        }
        // libpq: the first of two wins inside a section.
        let mut one = Options::default();
        one.set(key, value, true).map_err(|fault| Fault::usage(format!("{}: {fault}", at())))?;
        options.fill(&one);
    }
    Ok(found)
}
