//! Restores the source's schema in two halves with the installed `pg_restore`.
//!
//! **Invariant:** an object of the archive is found by the catalog and OID that the table of contents gives, never by its
//! name, so that no name can make us leave out or restore something else. Names from the source reach the target only
//! through `pg_restore`'s own quoting.
//!
//! PostgreSQL manual: pg_restore (`--section`, `--use-list`).

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use tidemark_model::{Oid, RelationName};
use tokio::process::Command;

use super::PostgresOptions;
use crate::{Disposition, Error, Result, SnapshotStart};
use tidemark_model::names::application_name;

/// What libpq says when a connection cannot be made or was lost; the tool's exit code is the same for everything.
const LOST: [&str; 5] = [
    "server closed the connection",
    "terminating connection",
    "connection to server",
    "could not receive data",
    "SSL SYSCALL",
];
/// What the archive's statements must not depend on; `pg_restore` itself sets the rest.
const SETTINGS: &str = "-c synchronous_commit=off -c statement_timeout=0 -c lock_timeout=0 -c array_nulls=on \
    -c transform_null_equals=off -c datestyle=ISO -c intervalstyle=postgres -c timezone=UTC -c lc_monetary=C \
    -c default_transaction_isolation=read\\ committed";

const PG_CLASS: u32 = 1259;
const PG_CONSTRAINT: u32 = 2606;
const PG_EVENT_TRIGGER: u32 = 3466;

/// Which part of an archive is restored; by default all of it.
#[derive(Clone, Copy, Default)]
pub(super) struct Part<'a> {
    /// Only these relations and what belongs to them.
    pub(super) only: Option<&'a HashSet<Oid>>,
    /// Of the relations that stay out these are there all the same: others have made them. What reads them can be made, but
    /// no foreign key from or to them.
    pub(super) there: Option<&'a HashSet<RelationName>>,
}

/// The entries to restore, as a list file beside the archive.
pub(super) struct Contents {
    restore_tool: PathBuf,
    archive: PathBuf,
    list: PathBuf,
    /// What depends on a foreign key, and comments on what we build: restored after the foreign keys are built.
    late: Option<PathBuf>,
    /// Event triggers: they would fire on what we build ourselves, so they come when all else is done.
    last: Option<PathBuf>,
    with_owners: bool,
    /// `pg_restore` sets something that this target does not know.
    is_ahead: bool,
}

/// One line of the table of contents.
#[derive(Debug, PartialEq, Eq)]
struct Entry<'a> {
    id: u32,
    object: (u32, Oid),
    line: &'a str,
    depends_on: Vec<u32>,
}

impl Entry<'_> {
    fn is_comment(&self) -> bool {
        self.line.split_once("; 0 0 ").is_some_and(|(_, rest)| rest.starts_with("COMMENT "))
    }
}

impl Contents {
    /// Reads the archive's table of contents and leaves out what was not chosen and what we build ourselves.
    pub(super) async fn read(
        options: &PostgresOptions,
        start: &SnapshotStart,
        part: Part<'_>,
    ) -> Result<Self> {
        let Some(archive) = start.schema_archive.clone() else {
            return Err(Error::new(
                Disposition::Internal,
                "create the schema without an archive of it",
            ));
        };
        let restore_tool = (options.restore_tool)(start.source_version / 10_000);
        let mut command = tool(&restore_tool);
        command.args(["--list", "--verbose"]).arg(&archive);
        let text = run(command, "read the schema's table of contents").await?;
        let mut built: HashSet<(u32, Oid)> = built_by_us(start);
        built.extend(attached_to(options, start).await?);
        let entries = parse(&text);
        let later = made_later(start);
        let dropped = dropped(&entries, start, part.there, &later);
        let foreign: HashSet<Oid> = start.schema.foreign_keys.iter().map(|key| key.oid).collect();
        let after_keys = with_dependents(&entries, |(catalog, oid)| {
            catalog == PG_CONSTRAINT && foreign.contains(&oid)
        });
        let wanted = part.only.map(|only| {
            with_dependents(&entries, |(catalog, oid)| catalog == PG_CLASS && only.contains(&oid))
        });
        let event_triggers = with_dependents(&entries, |(catalog, _)| catalog == PG_EVENT_TRIGGER);
        let is_wanted = |entry: &Entry<'_>| {
            wanted.as_ref().is_none_or(|wanted| wanted.contains(&entry.id))
                || part.there.is_some() && event_triggers.contains(&entry.id)
        };
        let is_kept = |entry: &&Entry<'_>| {
            !dropped.contains(&entry.id) && !built.contains(&entry.object) && is_wanted(entry)
        };
        let (last, others): (Vec<&Entry<'_>>, Vec<&Entry<'_>>) =
            entries.iter().filter(is_kept).partition(|entry| event_triggers.contains(&entry.id));
        // A comment belongs to the section of what stands before it in the list: that is not there any more.
        let ours = with_dependents(&entries, |object| built.contains(&object));
        let is_late = |entry: &&Entry<'_>| {
            after_keys.contains(&entry.id) || entry.is_comment() && ours.contains(&entry.id)
        };
        let (late, early): (Vec<&Entry<'_>>, Vec<&Entry<'_>>) =
            others.into_iter().partition(is_late);
        let list = archive.with_extension("list");
        write_list(&list, &early).await?;
        let late = write_list_if_any(archive.with_extension("late"), &late).await?;
        let last = write_list_if_any(archive.with_extension("last"), &last).await?;
        let with_owners = roles_are_there(options, &start.schema.roles).await?;
        let is_ahead = is_ahead(options, &restore_tool).await?;
        Ok(Self { restore_tool, archive, list, late, last, with_owners, is_ahead })
    }
}

/// What stays out: what was not chosen and is not there all the same, constraints to it, and what is made later.
fn dropped(
    entries: &[Entry<'_>],
    start: &SnapshotStart,
    there: Option<&HashSet<RelationName>>,
    later: &HashSet<Oid>,
) -> HashSet<u32> {
    let of_others =
        |(catalog, oid): (u32, Oid)| start.excluded.get(&oid).filter(|_| catalog == PG_CLASS);
    let reads_others = with_dependents(entries, |object| of_others(object).is_some());
    let constraints: HashSet<(u32, Oid)> = entries
        .iter()
        .filter(|entry| entry.object.0 == PG_CONSTRAINT && reads_others.contains(&entry.id))
        .map(|entry| entry.object)
        .collect();
    with_dependents(entries, |object| {
        let is_missing =
            of_others(object).is_some_and(|name| there.is_none_or(|there| !there.contains(name)));
        is_missing
            || constraints.contains(&object)
            || object.0 == PG_CONSTRAINT && later.contains(&object.1)
    })
}

async fn write_list_if_any(path: PathBuf, entries: &[&Entry<'_>]) -> Result<Option<PathBuf>> {
    if entries.is_empty() {
        return Ok(None);
    }
    write_list(&path, entries).await?;
    Ok(Some(path))
}

async fn write_list(path: &Path, entries: &[&Entry<'_>]) -> Result<()> {
    let lines: String = entries.iter().flat_map(|entry| [entry.line, "\n"]).collect();
    tokio::fs::write(path, lines).await.map_err(|cause| {
        Error::new(Disposition::Unavailable, "write the list of objects to restore").because(cause)
    })
}

/// Restores what comes before the rows: schemas, types, functions, tables, views, sequences.
pub(super) async fn pre_data(
    options: &PostgresOptions,
    contents: &Contents,
    replace: bool,
    atomic: bool,
) -> Result<()> {
    let mut more = Vec::new();
    if replace {
        more.extend(["--clean", "--if-exists"]);
    }
    if atomic {
        more.push("--single-transaction");
    }
    section(options, contents, &contents.list, "pre-data", &more).await
}

/// Whether the tables can be made in one transaction: beyond this many they would fill the target's table of locks.
pub(super) fn is_atomic(start: &SnapshotStart) -> bool {
    start.tables.len() <= 1000
}

/// Restores what comes after them and is not ours to build: triggers, rules, policies, partitions' index links.
/// With `again` a part of it may be there.
pub(super) async fn post_data(
    options: &PostgresOptions,
    contents: &Contents,
    again: bool,
) -> Result<()> {
    section(options, contents, &contents.list, "post-data", replacing(again)).await
}

fn replacing(again: bool) -> &'static [&'static str] {
    if again { &["--clean", "--if-exists"] } else { &[] }
}

/// Restores what depends on foreign keys.
pub(super) async fn after_foreign_keys(
    options: &PostgresOptions,
    contents: &Contents,
    again: bool,
) -> Result<()> {
    match &contents.late {
        Some(list) => restore(options, contents, list, "the rest", replacing(again)).await,
        None => Ok(()),
    }
}

/// Restores what would fire on everything before it.
pub(super) async fn event_triggers(
    options: &PostgresOptions,
    contents: &Contents,
    again: bool,
) -> Result<()> {
    match &contents.last {
        Some(list) => restore(options, contents, list, "the rest", replacing(again)).await,
        None => Ok(()),
    }
}

async fn section(
    options: &PostgresOptions,
    contents: &Contents,
    list: &Path,
    section: &str,
    more: &[&str],
) -> Result<()> {
    let argument = format!("--section={section}");
    let more: Vec<&str> = more.iter().copied().chain([argument.as_str()]).collect();
    restore(options, contents, list, section, &more).await
}

async fn restore(
    options: &PostgresOptions,
    contents: &Contents,
    list: &Path,
    what: &str,
    more: &[&str],
) -> Result<()> {
    let mut command = tool(&contents.restore_tool);
    command
        .arg("--use-list")
        .arg(list)
        .arg("--dbname")
        .arg(dbname_argument(options.spec.database()))
        .args(["--no-password", "--no-tablespaces"])
        .args(more.iter().filter(|more| !contents.is_ahead || **more != "--single-transaction"))
        .envs(options.spec.libpq_env())
        .env("PGAPPNAME", application_name(&options.job))
        .env("PGOPTIONS", SETTINGS);
    if !contents.with_owners {
        command.args(["--no-owner", "--no-privileges"]);
    }
    if !contents.is_ahead {
        command.arg("--exit-on-error");
    }
    command.arg(&contents.archive);
    let attempt = format!("create the target's schema ({what})");
    let output = output(command, &attempt).await?;
    if output.status.success() || contents.is_ahead && only_unknown_setting(&output.stderr) {
        return Ok(());
    }
    Err(failed(&attempt, &output.stderr))
}

/// From 17 on `pg_restore` begins with this, whatever the version of the server (manual, `transaction_timeout`).
const UNKNOWN_SETTING: &str = "Command was: SET transaction_timeout = 0;";

/// Whether `pg_restore` sends a statement that this target refuses: then an error must not end it, and no transaction may be
/// around everything, because it would end with the error.
async fn is_ahead(options: &PostgresOptions, tool: &Path) -> Result<bool> {
    let client = super::session::Sessions::new(options).plain().await?;
    if client.server_version_num() >= 170_000 {
        return Ok(false);
    }
    let mut command = self::tool(tool);
    command.arg("--version");
    let text = run(command, "ask for pg_restore's version").await?;
    let number = text.split_whitespace().find_map(|word| {
        let digits = word.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse::<u32>().ok()
    });
    // One that does not say it is taken for a new one: what it is refused is looked at all the same.
    Ok(number.is_none_or(|major| major >= 17))
}

/// Whether all that `pg_restore` was refused is that one setting: each of its errors is followed by the statement.
fn only_unknown_setting(stderr: &[u8]) -> bool {
    let text = String::from_utf8_lossy(stderr);
    let errors = text.lines().filter(|line| line.starts_with("pg_restore: error:")).count();
    let unknown = text.lines().filter(|line| *line == UNKNOWN_SETTING).count();
    let ignored = format!("errors ignored on restore: {errors}");
    errors > 0 && errors == unknown && text.lines().any(|line| line.ends_with(&ignored))
}

/// `--dbname` reads a name with `=` or a URL's scheme as a connection string: wrap the name into one.
fn dbname_argument(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn tool(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).kill_on_drop(true);
    for variable in tidemark_wire::LIBPQ_VARIABLES {
        command.env_remove(variable);
    }
    // What it says is read below.
    command.env("LC_ALL", "C");
    command
}

async fn run(command: Command, attempt: &str) -> Result<String> {
    let output = output(command, attempt).await?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failed(attempt, &output.stderr))
}

async fn output(mut command: Command, attempt: &str) -> Result<Output> {
    command.output().await.map_err(|cause| {
        Error::new(Disposition::Usage, format!("{attempt}: run pg_restore"))
            .hint("install the package postgresql-client, or set target.schema = \"exists\"")
            .because(cause)
    })
}

fn failed(attempt: &str, stderr: &[u8]) -> Error {
    let stderr = String::from_utf8_lossy(stderr);
    let is_said = |line: &&str| {
        line.starts_with("pg_restore: error:") && !line.contains("\"transaction_timeout\"")
    };
    let said: Vec<&str> = stderr.lines().filter(is_said).take(4).collect();
    if LOST.iter().any(|words| stderr.contains(words)) {
        return Error::new(Disposition::Unavailable, attempt)
            .hint("bring the target back and run the same command again")
            .because(said.join("; "));
    }
    Error::new(Disposition::Refused, attempt)
        .hint("mend what pg_restore names and run the same command again, or create the tables yourself and set target.schema = \"exists\"")
        .because(said.join("; "))
}

/// Owners and grants are kept only where the target knows every role and lets us give objects to them.
async fn roles_are_there(options: &PostgresOptions, roles: &[String]) -> Result<bool> {
    let sessions = super::session::Sessions::new(options);
    let client = sessions.plain().await?;
    let row = client
        .query_one(
            "SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) \
               AND NOT EXISTS (SELECT FROM unnest($1::text[]) AS wanted(name) \
                               WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted.name))",
            &[&roles],
        )
        .await
        .map_err(|cause| super::session::server_error("ask for the target's roles", None, cause))?;
    let there: bool = row.get(0);
    if !there {
        tracing::warn!(
            "owners and privileges are not copied: the target lacks some of the source's roles, or ours is no superuser there"
        );
    }
    Ok(there)
}

/// Foreign keys that are owed where tables join: what depends on them, a comment, cannot be made with the rest.
fn made_later(start: &SnapshotStart) -> HashSet<Oid> {
    let Some(join) = &start.joins else { return HashSet::new() };
    let keys = start.schema.foreign_keys.iter().filter(|key| key.is_checked_at_once());
    keys.inspect(|key| {
        if join.completes.is_some() {
            tracing::warn!(key = %key.name, table = %key.table, "a foreign key of or to a partitioned table is made later; a comment on it is not copied");
        }
    })
    .map(|key| key.oid)
    .collect()
}

/// Indexes of partitioned tables that a process has made which died in its last part: to drop one would be to drop those of
/// the partitions with it.
async fn attached_to(options: &PostgresOptions, start: &SnapshotStart) -> Result<Vec<(u32, Oid)>> {
    if start.joins.as_ref().is_none_or(|join| join.completes.is_none()) {
        return Ok(Vec::new());
    }
    let sessions = super::session::Sessions::new(options);
    let client = sessions.plain().await?;
    let rows = client
        .query(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'I'",
            &[],
        )
        .await
        .map_err(|cause| {
            super::session::server_error("look which partitioned tables have keys", None, cause)
        })?;
    let there: HashSet<(String, String)> =
        rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let indexes = start
        .schema
        .partitioned_indexes
        .iter()
        .filter(|index| there.contains(&(index.name.schema.clone(), index.name.name.clone())));
    let objects = indexes.flat_map(|index| {
        let constraint = index.constraint.map(|oid| (PG_CONSTRAINT, oid));
        [Some((PG_CLASS, index.oid)), constraint].into_iter().flatten()
    });
    Ok(objects.collect())
}

fn built_by_us(start: &SnapshotStart) -> HashSet<(u32, Oid)> {
    let indexes = start.schema.indexes.iter().map(|index| (PG_CLASS, index.oid));
    let constraints = start.schema.indexes.iter().filter_map(|index| index.constraint.as_ref());
    let constraints = constraints.map(|constraint| (PG_CONSTRAINT, constraint.oid));
    let foreign = start.schema.foreign_keys.iter().map(|key| (PG_CONSTRAINT, key.oid));
    indexes.chain(constraints).chain(foreign).collect()
}

/// The entries whose object is named, and all that depends on them.
fn with_dependents(entries: &[Entry<'_>], is_named: impl Fn((u32, Oid)) -> bool) -> HashSet<u32> {
    let mut dependents: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in entries {
        for on in &entry.depends_on {
            dependents.entry(*on).or_default().push(entry.id);
        }
    }
    let named = entries.iter().filter(|entry| is_named(entry.object));
    let mut open: Vec<u32> = named.map(|entry| entry.id).collect();
    let mut found = HashSet::new();
    while let Some(id) = open.pop() {
        if found.insert(id) {
            open.extend(dependents.get(&id).into_iter().flatten());
        }
    }
    found
}

fn parse(text: &str) -> Vec<Entry<'_>> {
    let mut entries: Vec<Entry<'_>> = Vec::new();
    for line in text.lines() {
        if let Some(list) = line.strip_prefix(";\tdepends on:") {
            if let Some(entry) = entries.last_mut() {
                entry
                    .depends_on
                    .extend(list.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
            }
        } else if let Some(entry) = parse_entry(line) {
            entries.push(entry);
        }
    }
    entries
}

/// `215; 1259 16400 TABLE public customer postgres`
fn parse_entry(line: &str) -> Option<Entry<'_>> {
    let (id, rest) = line.split_once("; ")?;
    let mut words = rest.split(' ');
    let object = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(Entry { id: id.parse().ok()?, object, line, depends_on: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "\
;
; Archive created at 2026-11-20
;
; Selected TOC Entries:
;
215; 1259 16400 TABLE public customer postgres
;\tdepends on: 5
220; 1259 16410 VIEW public rich customers
;\tdepends on: 215
221; 0 0 COMMENT public VIEW rich postgres
;\tdepends on: 220
222; 1259 16420 TABLE public orders postgres
3100; 2606 16430 CONSTRAINT public orders orders_pkey postgres
;\tdepends on: 222
";

    #[test]
    fn entries_are_found_by_catalog_and_oid() {
        let entries = parse(LISTING);
        assert_eq!(entries.len(), 5);
        assert_eq!(entries[0].object, (PG_CLASS, 16400));
        assert_eq!(entries[4].depends_on, [222]);
    }

    #[test]
    fn what_depends_on_a_table_that_stays_out_stays_out_too() {
        let dropped = with_dependents(&parse(LISTING), |object| object == (PG_CLASS, 16400));
        assert_eq!(dropped, HashSet::from([215, 220, 221]));
    }

    #[test]
    fn only_the_unknown_setting_is_overlooked() {
        let unknown = "pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter \"transaction_timeout\"\nCommand was: SET transaction_timeout = 0;\n";
        let other = "pg_restore: error: could not execute query: ERROR:  type \"x\" does not exist\nCommand was: CREATE TABLE t (a x);\n";
        let end =
            |errors: u32| format!("pg_restore: warning: errors ignored on restore: {errors}\n");
        let overlooked = |text: &str| only_unknown_setting(text.as_bytes());
        assert!(overlooked(&format!("{unknown}\n{}", end(1))));
        assert!(!overlooked(&format!("{unknown}{other}{}", end(2))));
        assert!(!overlooked(&format!("{other}{}", end(1))));
        assert!(!overlooked(unknown), "it did not come to its end");
        assert!(!overlooked(""));
    }

    #[test]
    fn a_database_name_cannot_become_a_connection_string() {
        assert_eq!(dbname_argument("a=b 'c'"), r"dbname='a=b \'c\''");
    }
}
