//! Makes the rows that a report calls different what the source has.
//!
//! **Invariant:** nothing that a report says is written: every row is read again on both sides first, as of one point, and a
//! finding that does not hold any more is left alone. What is written is one transaction for each part, in which every
//! statement touches exactly the rows that it is meant for; then the same rows are read again, and a difference that is left
//! is told. Of a pair that moves the stream stands from the reading to the last look, so that no change of it comes in
//! between, and none is undone.

use std::collections::HashMap;

use tidemark_model::sql::{Ident, Literal};
use tidemark_model::{Generated, Identity, RelationName};
use tidemark_pipeline::{Error, Kind, Result, Target, Triggers};
use tidemark_report::DiffKind;
use tokio_util::sync::CancellationToken;

use crate::again::{Ask, fields, read_again};
use crate::classify::Classify;
use crate::exact::{Met, Stays, at_one_point};
use crate::naming::{Found, defect, matched};
use crate::pair::{Pair, Shows};
use crate::run::Run;
use crate::side::View;
use crate::{Request, Which};

/// Rows that are read, written and read again at a time; the stream stands for as long.
const PART: usize = 500;

/// A row that a report calls different.
#[derive(Clone, PartialEq, Eq)]
pub struct Suspect {
    /// Its table.
    pub table: RelationName,
    /// In which way it differs.
    pub kind: DiffKind,
    /// The columns of its key, or of a table without a key all of them, with their text.
    pub key: Vec<(String, Option<String>)>,
}

/// Which pair is repaired, and whether it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct How {
    /// System identifier and database of the source and of the target that the findings are of.
    pub sides: [(Option<String>, Option<String>); 2],
    /// Write to the target.
    pub applies: bool,
    /// A job keeps the two in step.
    pub moves: bool,
}

/// What became of the findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Repaired {
    /// Rows that were written, or would be.
    pub written: u64,
    /// Findings whose rows are equal by now.
    pub healed: u64,
    /// Findings whose rows differ in another way by now, which are left alone.
    pub stale: u64,
    /// Rows that still differ after they were written.
    pub left: u64,
}

/// Repairs these rows, or says what it would do: the statements, one by one.
///
/// # Errors
/// A side cannot be read, or the target refuses a row: of that part nothing is written.
///
/// # Cancel safety
/// Safe: a part that is not committed is undone, and the stream goes on.
pub async fn repair(
    request: &Request,
    how: How,
    suspects: &mut (dyn Iterator<Item = Result<Suspect>> + Send),
    say: &mut (dyn FnMut(&str) -> Result<()> + Send),
    stop: &CancellationToken,
) -> Result<Repaired> {
    let run = Run::open(request, how.moves, stop).await?;
    refuse_others(&run, &how)?;
    let mut repair = Repair { run: &run, how, say, stop, done: Repaired::default() };
    let mut part: Vec<Suspect> = Vec::new();
    for suspect in suspects {
        let suspect = suspect?;
        if part.len() == PART || part.first().is_some_and(|first| first.table != suspect.table) {
            Box::pin(repair.part(std::mem::take(&mut part))).await?;
        }
        part.push(suspect);
    }
    Box::pin(repair.part(part)).await?;
    Ok(repair.done)
}

fn refuse_others(run: &Run<'_>, how: &How) -> Result<()> {
    for (side, (system, database)) in [&run.source, &run.target].into_iter().zip(&how.sides) {
        let server = &side.catalog.server;
        let is_other = *system != Some(server.system_identifier.to_string())
            || *database != Some(server.database.clone());
        if is_other {
            let which = side.which.word();
            let message = format!(
                "repair: the report is of another {which} than database {:?}",
                server.database
            );
            return Err(Error::new(Kind::Usage, message)
                .hint("verify these two, and repair by that report"));
        }
    }
    Ok(())
}

struct Repair<'a> {
    run: &'a Run<'a>,
    how: How,
    say: &'a mut (dyn FnMut(&str) -> Result<()> + Send),
    stop: &'a CancellationToken,
    done: Repaired,
}

/// A row, by the text of its key or by all of its text.
type Key = Vec<Option<String>>;

impl Repair<'_> {
    async fn part(&mut self, suspects: Vec<Suspect>) -> Result<()> {
        let Some(first) = suspects.first() else { return Ok(()) };
        let pairs = &self.run.paired.pairs;
        let number =
            pairs.iter().position(|pair| *pair.name() == first.table).ok_or_else(|| {
                Error::new(
                    Kind::Usage,
                    format!(
                        "repair {}: it is not among the chosen tables that both sides have",
                        first.table
                    ),
                )
                .hint("give the selection that the report was made with")
            })?;
        let keys = keys_of(&pairs[number], suspects)?;
        let (run, stop, applies) = (self.run, self.stop, self.how.applies);
        if self.how.moves {
            let stays = if applies { Stays::WithThePoint } else { Stays::UntilExported };
            let repair = async |met: Met| {
                let done = self.at(number, [&met.source, &met.target], keys).await;
                met.release().await;
                done
            };
            return Box::pin(at_one_point(run, (&[number], stays), stop, repair)).await;
        }
        let (source, target) = tokio::try_join!(
            run.source.view(run.relations(Which::Source, &[number])),
            run.target.view(run.relations(Which::Target, &[number])),
        )?;
        self.at(number, [&source, &target], keys).await?;
        tokio::join!(source.release(), target.release());
        Ok(())
    }

    /// Both sides are as of one point, and nobody else writes these rows.
    async fn at(
        &mut self,
        number: usize,
        views: [&View; 2],
        keys: HashMap<Key, DiffKind>,
    ) -> Result<()> {
        let pair = &self.run.paired.pairs[number];
        let asked: Vec<Key> = keys.keys().cloned().collect();
        let is_one = |key: &Key| keys.get(key).copied().is_none_or(is_on_both);
        let mut found = self.differences(number, views, (&asked, is_one)).await?;
        let mut open = keys;
        let mut stands = Vec::new();
        for one in found.drain(..) {
            let key = key_of(pair, &one)?;
            match open.remove(&key) {
                Some(kind) if is_same_kind(kind, one.kind) => stands.push((key, one)),
                // Another representation of one of several equal rows.
                None => stands.push((key, one)),
                Some(_) => self.done.stale += 1,
            }
        }
        self.done.healed += open.len() as u64;
        // What goes makes room, in a unique index, for what comes.
        stands.sort_by_key(|(_, one)| match one.kind {
            DiffKind::Extra => 0,
            DiffKind::Missing => 2,
            _ => 1,
        });
        let triggers = self.triggers();
        let statements: Result<Vec<Statement>> =
            stands.iter().map(|(_, one)| statement(pair, one, triggers)).collect();
        let statements = statements?;
        self.done.written += statements.iter().map(|statement| statement.rows).sum::<u64>();
        if !self.how.applies {
            return statements.iter().try_for_each(|statement| (self.say)(&statement.sql));
        }
        if statements.is_empty() {
            return Ok(());
        }
        self.write(pair, &statements).await?;
        let after = self.run.target.view(self.run.relations(Which::Target, &[number])).await?;
        let keys: Vec<Key> = stands.into_iter().map(|(key, _)| key).collect();
        let left = self.differences(number, [views[0], &after], (&keys, |_: &Key| true)).await?;
        after.release().await;
        self.done.left += left.len() as u64;
        Ok(())
    }

    /// What differs now among the rows with these keys, with their columns. Two rows are one, as the report took them, if their
    /// keys are equal to the source and `is_one` says so of both.
    async fn differences(
        &self,
        number: usize,
        views: [&View; 2],
        (keys, is_one): (&[Key], impl Fn(&Key) -> bool),
    ) -> Result<Vec<Found>> {
        let (ask, run) = (Ask::Keys(keys.to_vec()), self.run);
        let pair = &run.paired.pairs[number];
        let mut aside = Box::pin(read_again(run, views, number, (ask, Shows::Row))).await?;
        let (mut groups, mut found) = (aside.groups()?, Vec::new());
        while let Some(group) = groups.next()? {
            found.extend(matched(group));
        }
        let mut classify = Classify::open(run, pair).await?;
        if classify.has_alike_keys() {
            let is_apart = |one: &mut Found| {
                !is_on_both(one.kind) && key_of(pair, one).is_ok_and(|key| is_one(&key))
            };
            let apart = found.extract_if(.., is_apart).collect();
            found.extend(classify.unite(apart).await?);
        }
        classify.columns(&mut found)?;
        Ok(found)
    }

    fn triggers(&self) -> Triggers {
        match &self.run.request.job.target {
            Target::Postgres(target) => target.triggers,
            Target::Lake(_) => Triggers::AsIs,
        }
    }

    /// Rows that exchange values of a unique key stand in each other's way: then all that change are taken out before the first
    /// is put back, which no trigger and no foreign key may see.
    async fn write(&self, pair: &Pair, statements: &[Statement]) -> Result<()> {
        let at_once = statements.iter().map(|statement| (statement.sql.clone(), statement.rows));
        let written = self.execute(pair, "", at_once.collect()).await;
        let is_in_the_way = written.as_ref().is_err_and(|refused| refused.is_taken);
        if !is_in_the_way || self.triggers() == Triggers::AsIs {
            return written.map_err(|refused| refused.error);
        }
        let aside = format!(
            "CREATE TEMPORARY TABLE {ASIDE} ON COMMIT DROP AS SELECT 0 AS {NUMBER}, * FROM ONLY {} WHERE false",
            pair.target.relation.name
        );
        let all = || (0..).zip(statements);
        let taken = all().filter_map(|(number, statement)| {
            Some((statement.changed.as_ref()?.taken_out(number), statement.rows))
        });
        let put = all().map(|(number, Statement { sql, rows, changed })| match changed {
            Some(changed) => (changed.put_back(number), *rows),
            None => (sql.clone(), *rows),
        });
        let in_two = taken.chain(put).collect();
        self.execute(pair, &aside, in_two).await.map_err(|refused| refused.error)
    }

    /// All of it or nothing; every statement has to touch as many rows as it says.
    async fn execute(
        &self,
        pair: &Pair,
        before: &str,
        statements: Vec<(String, u64)>,
    ) -> std::result::Result<(), Refused> {
        let target = &self.run.target;
        let mut client = target.spec().connect().await.map_err(|error| target.of(error))?;
        let refused = |cause| refused(pair, &cause);
        let transaction = client.transaction().await.map_err(refused)?;
        transaction.batch_execute("SET LOCAL lock_timeout = '5s'").await.map_err(refused)?;
        if self.triggers() == Triggers::Replica {
            let replica = "SET LOCAL session_replication_role = replica";
            transaction.batch_execute(replica).await.map_err(refused)?;
        }
        transaction.batch_execute(before).await.map_err(refused)?;
        for (sql, rows) in statements {
            if transaction.execute(sql.as_str(), &[]).await.map_err(refused)? != rows {
                let message =
                    format!("repair {}: another number of rows than was read", pair.name());
                return Err(Error::new(Kind::TargetRefused, message)
                    .hint("somebody else writes to the target, or a trigger has its say; nothing of this part was written").into());
            }
        }
        transaction.commit().await.map_err(refused)
    }
}

/// Rows that are taken out before others are changed, by the number of their statement.
const ASIDE: &str = "pg_temp.\"tidemark rows\"";
const NUMBER: &str = "\"tidemark number\"";

/// Why nothing was written.
struct Refused {
    error: Error,
    /// Another row has a value that only one may have.
    is_taken: bool,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self { error, is_taken: false }
    }
}

/// The server's words may quote a value, so only its code is told.
fn refused(pair: &Pair, cause: &tidemark_wire::tokio_postgres::Error) -> Refused {
    let code = cause.code().map(|code| code.code());
    let is_taken = matches!(code, Some("23505" | "23P01"));
    let why = match cause.as_db_error() {
        Some(error) => {
            let constraint = error
                .constraint()
                .map_or(String::new(), |name| format!(", constraint {}", Ident(name)));
            format!("the target refused it (SQLSTATE {}{constraint})", error.code().code())
        }
        None => "the connection was lost".to_owned(),
    };
    let error = Error::new(Kind::TargetRefused, format!("repair {}: {why}", pair.name())).hint(
        "nothing of this part was written; mend what is in the way, and run the same command again",
    );
    Refused { error, is_taken }
}

/// The keys in the order in which the pair knows its rows.
fn keys_of(pair: &Pair, suspects: Vec<Suspect>) -> Result<HashMap<Key, DiffKind>> {
    let names: Vec<&str> =
        pair.known_by().iter().map(|at| pair.source.columns[*at].name.as_str()).collect();
    let keys = suspects.into_iter().map(|suspect| {
        let mut values: HashMap<String, Option<String>> = suspect.key.into_iter().collect();
        let key: Option<Key> = names.iter().map(|name| values.remove(*name)).collect();
        match key {
            Some(key) if values.is_empty() => Ok((key, suspect.kind)),
            _ => Err(Error::new(
                Kind::Usage,
                format!("repair {}: it has another key than when the report was made", pair.name()),
            )
            .hint("verify again, and repair by that report")),
        }
    });
    keys.collect()
}

/// A missing row that was found among the extra ones, say, is another finding.
fn is_same_kind(reported: DiffKind, found: DiffKind) -> bool {
    reported == found || is_on_both(reported) && is_on_both(found)
}

fn is_on_both(kind: DiffKind) -> bool {
    !matches!(kind, DiffKind::Missing | DiffKind::Extra)
}

/// All columns as text, of the side's row. What is no text must not be taken for NULL: it would be written.
fn texts<'a>(pair: &Pair, body: &'a [u8]) -> Result<Vec<Option<&'a str>>> {
    let fields = fields(body, Shows::Row).into_iter().skip(pair.source.columns.len());
    let text = |field: Option<&'a [u8]>| field.map(std::str::from_utf8).transpose();
    fields.map(text).collect::<std::result::Result<_, _>>().map_err(|cause| {
        let message = format!("repair {}: a value that is not UTF-8", pair.name());
        Error::new(Kind::Internal, message).because(cause)
    })
}

/// As the report names the row.
fn key_of(pair: &Pair, found: &Found) -> Result<Key> {
    let [source, target] = &found.bodies;
    let body = source.as_ref().or(target.as_ref()).map(|body| &**body).unwrap_or_default();
    let texts = texts(pair, body)?;
    let text = |at: &usize| texts.get(*at).copied().flatten().map(str::to_owned);
    Ok(pair.known_by().iter().map(text).collect())
}

/// Makes a row of the target what the source's is.
struct Statement {
    sql: String,
    /// So many it touches.
    rows: u64,
    /// Of a row that both sides have.
    changed: Option<Changed>,
}

impl Statement {
    fn of(sql: String, rows: u64) -> Self {
        Self { sql, rows, changed: None }
    }
}

fn statement(pair: &Pair, found: &Found, triggers: Triggers) -> Result<Statement> {
    let [source, target] = &found.bodies;
    let source = source.as_deref().map(|body| texts(pair, body)).transpose()?;
    let target = target.as_deref().map(|body| texts(pair, body)).transpose()?;
    match (source, target) {
        (Some(source), None) => Ok(inserted(pair, &source, found.copies)),
        (Some(source), Some(target)) => changed(pair, found, (&source, &target), triggers),
        (None, Some(target)) => {
            let table = &pair.target.relation.name;
            let rows = some_of(pair, &owned(&target), found.copies);
            Ok(Statement::of(format!("DELETE FROM ONLY {table} WHERE {rows}"), found.copies))
        }
        (None, None) => Err(defect("a row of neither side")),
    }
}

/// A column's value in a statement.
fn literal(pair: &Pair, at: usize, texts: &[Option<&str>]) -> String {
    match texts.get(at).copied().flatten() {
        Some(text) => format!("{}::{}", Literal(text), pair.target.columns[at].type_name),
        None => "NULL".to_owned(),
    }
}

fn inserted(pair: &Pair, source: &[Option<&str>], copies: u64) -> Statement {
    let columns = &pair.target.columns;
    let written = (0..columns.len()).filter(|at| columns[*at].generated == Generated::No);
    let name_and_value =
        |at: usize| (Ident(&columns[at].name).to_string(), literal(pair, at, source));
    let (names, values): (Vec<String>, Vec<String>) = written.map(name_and_value).unzip();
    let sql = format!(
        "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM pg_catalog.generate_series(1, {copies})",
        pair.target.relation.name,
        names.join(", "),
        values.join(", "),
    );
    Statement::of(sql, copies)
}

fn changed(
    pair: &Pair,
    found: &Found,
    (source, target): (&[Option<&str>], &[Option<&str>]),
    triggers: Triggers,
) -> Result<Statement> {
    let (table, columns) = (&pair.target.relation.name, &pair.target.columns);
    let differs = |at: &usize| found.columns.iter().any(|(column, _)| column == at);
    let rows = some_of(pair, &owned(target), found.copies);
    let replaced = Changed::new(pair, &rows, differs, |at| literal(pair, at, source));
    let by_system = |at: &usize| columns[*at].identity == Identity::Always;
    if let Some(at) = (0..columns.len()).filter(differs).find(by_system) {
        if triggers == Triggers::AsIs {
            return Err(unchangeable(pair, &columns[at].name));
        }
        let (sql, changed) = (replaced.at_once(), Some(replaced));
        return Ok(Statement { sql, rows: found.copies, changed });
    }
    let is_written = |at: &usize| columns[*at].generated == Generated::No;
    let is_stored = |at: usize| columns[at].generated == Generated::Stored;
    let is_made_anew = (0..columns.len()).any(|at| is_stored(at) && differs(&at));
    let changes = (0..columns.len()).filter(is_written).filter_map(|at| {
        let name = Ident(&columns[at].name);
        match () {
            () if differs(&at) => Some(format!("{name} = {}", literal(pair, at, source))),
            // So that the target makes its own columns anew, whatever they are made of.
            () if is_made_anew && !by_system(&at) => Some(format!("{name} = {name}")),
            () => None,
        }
    });
    let changes = changes.collect::<Vec<_>>().join(", ");
    if changes.is_empty() {
        // Only what the target makes when it is read differs: the look afterwards will tell.
        return Ok(Statement::of(format!("-- {table}: a generated column differs"), 0));
    }
    let sql = format!("UPDATE ONLY {table} SET {changes} WHERE {rows}");
    Ok(Statement { sql, rows: found.copies, changed: Some(replaced) })
}

/// Other rows in the place of these, where no UPDATE can change them: an identity column that is GENERATED ALWAYS, or values
/// that only one row may have and another one has until it is changed, too. What does not differ, and what only the target
/// has, stays as it is there.
struct Changed {
    /// Takes the rows out and gives them.
    taken: String,
    /// Puts others in, of what comes from `gone`.
    put: String,
}

impl Changed {
    fn new(
        pair: &Pair,
        rows: &str,
        differs: impl Fn(&usize) -> bool,
        literal: impl Fn(usize) -> String,
    ) -> Self {
        let table = &pair.target.relation.name;
        let written =
            pair.target.relation.columns.iter().filter(|column| column.generated == Generated::No);
        let (names, values): (Vec<String>, Vec<String>) = written
            .map(|column| {
                let name = Ident(&column.name);
                let at = pair.target.columns.iter().position(|other| other.name == column.name);
                let value = match at.filter(&differs) {
                    Some(at) => literal(at),
                    None => format!("gone.{name}"),
                };
                (name.to_string(), value)
            })
            .unzip();
        Self {
            taken: format!("DELETE FROM ONLY {table} WHERE {rows} RETURNING *"),
            put: format!(
                "INSERT INTO {table} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM",
                names.join(", "),
                values.join(", ")
            ),
        }
    }

    fn at_once(&self) -> String {
        format!("WITH gone AS ({}) {} gone", self.taken, self.put)
    }

    fn taken_out(&self, number: u32) -> String {
        format!("WITH gone AS ({}) INSERT INTO {ASIDE} SELECT {number}, * FROM gone", self.taken)
    }

    fn put_back(&self, number: u32) -> String {
        format!("{} {ASIDE} gone WHERE {NUMBER} = {number}", self.put)
    }
}

fn unchangeable(pair: &Pair, column: &str) -> Error {
    let (table, column) = (pair.name(), Ident(column));
    let message = format!(
        "repair {table}: {column} is GENERATED ALWAYS AS IDENTITY on the target, so no UPDATE may change it"
    );
    Error::new(Kind::TargetRefused, message).hint(format!(
        "ALTER TABLE {table} ALTER COLUMN {column} SET GENERATED BY DEFAULT there for as long as the repair takes; \
         or repair with target.triggers = \"replica\": the rows are then put in anew, and no trigger or foreign key sees it"
    ))
}

fn owned(texts: &[Option<&str>]) -> Key {
    texts.iter().map(|text| text.map(str::to_owned)).collect()
}

/// So many of the rows that are exactly this one.
fn some_of(pair: &Pair, row: &[Option<String>], copies: u64) -> String {
    let key: Key = pair.known_by().iter().map(|at| row.get(*at).cloned().flatten()).collect();
    let texts = pair.target.columns.iter().zip(row).map(|(column, text)| {
        let name = Ident(&column.name);
        match text {
            None => format!("{name} IS NULL"),
            Some(text) => {
                format!("{name}::pg_catalog.text OPERATOR(pg_catalog.=) {}", Literal(text))
            }
        }
    });
    let table = &pair.target.relation.name;
    format!(
        "ctid IN (SELECT ctid FROM ONLY {table} WHERE {} AND {} LIMIT {copies})",
        pair.is_row(Which::Target, &key),
        texts.collect::<Vec<_>>().join(" AND ")
    )
}
