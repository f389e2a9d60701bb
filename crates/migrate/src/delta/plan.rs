//! What is compared of each table, with what, and how its rows are written.
//!
//! **Invariant:** a file is compared with only if the target says that it tells what the target has, and if it was made of the
//! same columns, key, source and way of hashing. A table without a key is written to only if it is known what it holds.

use serde::{Deserialize, Serialize};
use tidemark_digest::{CANONICAL_VERSION, DigestKey};
use tidemark_ledger::{KnownRows, RowFiles};
use tidemark_model::{Column, Generated, RelationName, SelectColumn, TupleForm, Wire};
use tidemark_pipeline::Result;
use tidemark_sink::postgres::{DeltaTable, DeltaTarget, Triggers, copy_form};
use tidemark_verify::{Pair, Paired, Side};

use super::report::ComparedWith;

/// The way out where the local files do not tell what the target has.
const SCAN_TARGET: &str = "--scan-target compares with the target's rows instead";

/// One table that is compared.
pub(super) struct Table {
    pub(super) write: DeltaTable,
    /// What is read of a row that is moved.
    pub(super) select: Vec<SelectColumn>,
    pub(super) form: TupleForm,
    pub(super) with: ComparedWith,
    pub(super) known: Option<KnownRows>,
    /// What the target says.
    pub(super) generation: Option<String>,
    /// What the file of this run says of itself.
    pub(super) head: Head,
    pub(super) filter: Option<String>,
    /// The filter of the run before, where it is another one.
    pub(super) before: Option<Option<String>>,
}

/// What a file says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// Of another one's rows hashes and codes compare with nothing.
    made_with: String,
    /// What has let its rows through.
    filter: Option<String>,
}

/// What is common to all tables of a run.
pub(super) struct Planning<'a> {
    pub(super) source: &'a Side,
    pub(super) target: &'a DeltaTarget,
    pub(super) target_version: u32,
    pub(super) files: &'a RowFiles,
    pub(super) key: &'a DigestKey,
    pub(super) triggers: Triggers,
    pub(super) scan_target: bool,
    /// Whether rows are moved that another filter lets through or keeps out.
    pub(super) unfilters: bool,
}

/// A table with the pair of its columns that are compared, or why it is left out.
pub(super) type Planned = std::result::Result<(Pair, Table), String>;

/// The chosen tables that the target does not have, or not so that they can be written, with the reason.
pub(super) fn left_out(paired: &Paired, source: &Side) -> Vec<(RelationName, String)> {
    let skipped = paired.skipped.iter();
    let mut out: Vec<_> =
        skipped.map(|skipped| (skipped.name.clone(), skipped.because.clone())).collect();
    let missing = paired.alone.iter().filter(|name| source.catalog.relation(name).is_some());
    out.extend(missing.map(|name| {
        let because = "the target does not have it: create it there (pg_dump --schema-only), delta moves rows only";
        (name.clone(), because.to_owned())
    }));
    out
}

impl Planning<'_> {
    /// How a table is compared; `generation` is the target's.
    pub(super) async fn table(
        &self,
        pair: &Pair,
        missing: Option<&str>,
        generation: Option<String>,
    ) -> Result<Planned> {
        if let Some(column) = missing {
            return Ok(Err(format!(
                "the target's table has no column {column:?}: add it there, or leave it out with columns = [...] of its [[table]]"
            )));
        }
        let in_key: Vec<String> =
            pair.key.iter().map(|at| pair.source.columns[*at].name.clone()).collect();
        let is_moved = |one: &Column, other: &Column| {
            one.generated == Generated::No && other.generated == Generated::No
        };
        let compared =
            pair.narrowed(|one, other| is_moved(one, other) || in_key.contains(&one.name))?;
        let moved: Vec<(&Column, &Column)> = (compared.source.columns.iter())
            .zip(&compared.target.columns)
            .filter(|(one, other)| is_moved(one, other))
            .collect();
        if moved.is_empty() {
            return Ok(Err("it has no columns to move: leave it out (select.exclude)".to_owned()));
        }
        let (ours, theirs): (Vec<Column>, Vec<Column>) =
            moved.into_iter().map(|(one, other)| (one.clone(), other.clone())).unzip();
        let form = copy_form(&ours, self.source.catalog.server.version_num, self.target_version);
        let relation = &compared.target.relation;
        let write = DeltaTable::new(relation, (&theirs, form), &in_key, self.triggers);
        let write = match write {
            Ok(write) => write,
            Err(because) => return Ok(Err(because)),
        };
        let select = |column: &Column| SelectColumn { name: column.name.clone(), wire: Wire::Own };
        let head = self.head(&compared, &in_key, pair.filter());
        let mut table = Table {
            write,
            select: ours.iter().map(select).collect(),
            form,
            with: ComparedWith::Target,
            known: None,
            generation,
            filter: head.filter.clone(),
            head,
            before: None,
        };
        if !self.scan_target
            && let Err(because) = self.compare_with_files(&compared, &mut table).await?
        {
            return Ok(Err(because));
        }
        Ok(Ok((compared, table)))
    }

    /// Finds the file that tells what the target has; why none can be used.
    async fn compare_with_files(
        &self,
        pair: &Pair,
        table: &mut Table,
    ) -> Result<std::result::Result<(), String>> {
        let (name, is_multiset) = (pair.name(), pair.key.is_empty());
        let Some(generation) = &table.generation else {
            if self.files.has_any(name)? {
                return Ok(Err(format!(
                    "the target does not know of what earlier runs have moved, as if it were another one: {SCAN_TARGET}, tidemark reset {} --yes forgets",
                    name.plain()
                )));
            }
            if is_multiset && !self.target.is_empty(name).await? {
                return Ok(Err(format!(
                    "it has no key, the target has rows of it, and it is not known which: {SCAN_TARGET}"
                )));
            }
            table.with = ComparedWith::Nothing;
            return Ok(Ok(()));
        };
        let Some(known) = self.files.read(name, generation, is_multiset)? else {
            return Ok(Err(format!(
                "what the target has was moved by a run with another state directory, or its file is lost: {SCAN_TARGET}"
            )));
        };
        let head: Option<Head> = serde_json::from_str(known.head()).ok();
        let Some(head) = head.filter(|head| head.made_with == table.head.made_with) else {
            return Ok(Err(format!(
                "its columns, its key, the source or the way of hashing are others than in the run before: {SCAN_TARGET}"
            )));
        };
        if head.filter != table.filter {
            if !self.unfilters {
                // For the next run the rows still are what the filter before has let through.
                table.head.filter.clone_from(&head.filter);
            }
            table.before = Some(head.filter);
        }
        (table.with, table.known) = (ComparedWith::Ledger, Some(known));
        Ok(Ok(()))
    }

    fn head(&self, pair: &Pair, key: &[String], filter: Option<&str>) -> Head {
        let types: Vec<&str> =
            pair.source.columns.iter().map(|column| column.type_name.as_str()).collect();
        let server = &self.source.catalog.server;
        let made_with = format!(
            "{} {types:?} key {key:?} canonical {CANONICAL_VERSION} by {} of {} {:?}",
            pair.hashed_as(),
            self.key.id(),
            server.system_identifier,
            server.database
        );
        Head { made_with, filter: filter.map(str::to_owned) }
    }
}

impl Head {
    pub(super) fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}
