//! Which table of the lake belongs to which one of the source, and what is hashed of both.
//!
//! **Invariant:** the source sends each column in the form from which the lake's values can be told: in its own, or cast to
//! text where the lake has its text. Both sides hash the same columns.

use std::collections::HashMap;

use tidemark_digest::canonical::Form;
use tidemark_digest::{
    DigestColumn, DigestKey, KeyPlan, LocatedForm, Locator, RowHasher, lake_cell,
};
use tidemark_model::sql::Literal;
use tidemark_model::{
    ChunkRange, ChunkSpec, Column, Lsn, Relation, RelationName, SelectColumn, TupleForm,
    Unrepresentable, Wire,
};
use tidemark_pipeline::{Error, Kind, Result, TableOptions};
use tidemark_report::{Level, SchemaSeverity};
use tidemark_sink::parquet::{CommitColumn, Member, MemberState};
use tidemark_wire::Client;
use tidemark_wire::tokio_postgres::error::SqlState;
use tidemark_wire::tokio_postgres::types::{FromSql, Type};

use super::cells::wire_of;
use super::rows::{FormColumn, RowForm};
use super::table::LakeTable;
use crate::findings::{self, SchemaFinding};
use crate::pair::{Shows, hidden, key_of, left_behind};
use crate::side::Side;
use crate::{Request, Skipped, Which};

/// One table on both sides.
#[derive(Clone)]
pub(super) struct LakePair {
    pub(super) relation: Relation,
    pub(super) table: LakeTable,
    pub(super) form: RowForm,
    /// Definitions differ so that the table cannot be the same whatever its rows are.
    pub(super) is_other: bool,
    /// Of the source's rows only these were moved.
    filter: Option<String>,
    /// The columns that are hashed, as the source sends them.
    pub(super) columns: Vec<(Column, Wire)>,
    /// Those of them that a row is named by, whatever tells it apart in the changes; none: rows are compared as a multiset.
    pub(super) named_by: Vec<usize>,
    /// Values without a form in the lake stand as NULL.
    replaces: bool,
    /// Why its rows cannot be read.
    trouble: Option<String>,
}

/// All tables that were chosen.
#[derive(Default)]
pub(super) struct Paired {
    pub(super) pairs: Vec<LakePair>,
    pub(super) alone: Vec<RelationName>,
    pub(super) skipped: Vec<Skipped>,
    pub(super) findings: Vec<SchemaFinding>,
}

/// Pairs the chosen tables by name.
///
/// # Errors
/// The selection does not fit the source, or the source cannot be asked for the defaults of columns.
pub(super) async fn pair(
    request: &Request,
    source: &Side,
    mut tables: HashMap<RelationName, LakeTable>,
    members: &[Member],
) -> Result<Paired> {
    let mut paired = Paired::default();
    let mut defaults = Defaults { source, client: None };
    for relation in request.job.selection.apply(&source.catalog)? {
        let name = &relation.name;
        let member =
            members.iter().find(|known| known.schema == name.schema && known.name == name.name);
        let skip = |because: String| Skipped { name: name.clone(), because };
        let because = hidden(Which::Source, &relation)
            .or_else(|| left_behind(&relation, true))
            .or_else(|| member.and_then(|member| without_stream(member.state)));
        if let Some(because) = because {
            tables.remove(name);
            paired.skipped.push(skip(because));
            continue;
        }
        let Some(table) = tables.remove(name) else {
            paired.findings.push(findings::missing_table(name, true));
            paired.alone.push(name.clone());
            continue;
        };
        let made =
            LakePair::new(request, relation, table, &mut defaults, &mut paired.findings).await?;
        paired.pairs.push(made);
    }
    let is_joined = |name: &RelationName| {
        let is_left = |member: &&Member| {
            member.state != MemberState::Joined
                && (&member.schema, &member.name) == (&name.schema, &name.name)
        };
        !members.iter().any(|member| is_left(&member))
    };
    // What the selection leaves out is none of our business; what the source does not have any more is.
    let gone = tables.into_keys().filter(|name| source.catalog.relation(name).is_none());
    for name in gone.filter(is_joined) {
        paired.findings.push(findings::missing_table(&name, false));
        paired.alone.push(name);
    }
    Ok(paired)
}

/// Why the stream does not keep a table in step.
fn without_stream(state: MemberState) -> Option<String> {
    match state {
        MemberState::Joined => None,
        MemberState::Left => {
            Some("the job goes on without it: the lake has its rows of when it was left".to_owned())
        }
        MemberState::Reset => {
            Some("it was given up (tidemark reset) and has not joined again".to_owned())
        }
    }
}

impl LakePair {
    async fn new(
        request: &Request,
        relation: Relation,
        table: LakeTable,
        defaults: &mut Defaults<'_>,
        findings: &mut Vec<SchemaFinding>,
    ) -> Result<Self> {
        let options = request.job.tables.iter().find(|options| options.name == relation.name);
        let wanted = chosen(&relation, options);
        let found = findings::of_tables(&relation, &wanted, &as_relation(&relation, &table));
        let is_other = found.iter().any(|finding| finding.severity == SchemaSeverity::Different);
        findings.extend(found);
        let replaces =
            options.is_some_and(|options| options.unrepresentable == Unrepresentable::Null);
        let mut trouble = table.trouble.clone();
        let mut both: Vec<(Column, Wire, Option<String>)> = Vec::new();
        for column in wanted {
            let Some(other) = table.columns.iter().find(|other| other.name == column.name) else {
                continue;
            };
            let wire = wire_of(&column.data_type, &other.arrow_type);
            both.push((column, wire, other.default.clone()));
        }
        both.sort_by(|(one, ..), (other, ..)| one.name.as_bytes().cmp(other.name.as_bytes()));
        let is_hashed = request.level >= Level::Digest;
        let mut form =
            RowForm { columns: Vec::new(), is_hashed, key: Vec::new(), has_value: false };
        for (column, wire, default) in &both {
            let of = DigestColumn { column, wire: *wire };
            let (field, absent_text) = match default {
                None => (None, None),
                Some(default) => match defaults.value(of, default).await? {
                    Ok(found) => found.unzip(),
                    Err(because) => {
                        trouble = Some(because);
                        (None, None)
                    }
                },
            };
            let absent = [Form::Raw, Form::Value]
                .map(|form| lake_cell(&of, replaces, field.as_deref(), form));
            let [raw, value] = absent;
            let unfit = |cause| unhashable(&relation.name, cause);
            form.columns.push(FormColumn {
                name: column.name.clone(),
                data_type: column.data_type.clone(),
                typmod: column.typmod,
                wire: *wire,
                absent: [raw.map_err(unfit)?, value.map_err(unfit)?],
                absent_text,
            });
        }
        for name in &table.key {
            match form.columns.iter().position(|column| column.name == *name) {
                Some(at) => form.key.push(at),
                None => {
                    trouble = Some(format!("its key column {name:?} is not on both sides"));
                }
            }
        }
        let place = |name: &String| form.columns.iter().position(|column| column.name == *name);
        let named_by = key_of(&relation, place);
        let filter = options.and_then(|options| options.filter.clone());
        let columns = both.into_iter().filter(|_| is_hashed);
        let columns = columns.map(|(column, wire, _)| (column, wire)).collect();
        let mut pair =
            Self { relation, table, form, is_other, filter, columns, named_by, replaces, trouble };
        pair.form.has_value = pair.hasher(&DigestKey::new([0; 32]))?.has_value_sum();
        Ok(pair)
    }

    /// Why the rows of the lake cannot be told as of this position.
    pub(super) fn trouble(&self, lsn: Lsn) -> Option<String> {
        let is_ahead = self.table.joined_at.is_some_and(|joined_at| joined_at > lsn);
        let ahead = is_ahead.then(|| "it has joined and is ahead of the others".to_owned());
        self.trouble.clone().or(ahead)
    }

    /// A hasher for the source's rows.
    pub(super) fn hasher(&self, key: &DigestKey) -> Result<RowHasher> {
        let columns = self.columns.iter();
        let columns: Vec<_> =
            columns.map(|(column, wire)| DigestColumn { column, wire: *wire }).collect();
        RowHasher::compile_for_lake(&columns, self.replaces, key)
            .map_err(|cause| unhashable(&self.relation.name, cause))
    }

    /// A hasher that names the source's rows as [`Hasher::name`](super::rows::Hasher::name) does the lake's.
    pub(super) fn naming_hasher(&self, key: &DigestKey) -> Result<RowHasher> {
        // It is fed nothing.
        let locator = Locator::new(KeyPlan::hashed(self.named_by.len()), 0, key);
        self.hasher(key)?
            .locate(locator, &self.named_by, LocatedForm::Raw)
            .map_err(|cause| unhashable(&self.relation.name, cause))
    }

    /// The columns whose text is shown, in this order.
    pub(super) fn shown(&self, shows: Shows) -> Vec<usize> {
        match shows {
            Shows::Nothing => Vec::new(),
            Shows::Key => self.named_by.clone(),
            Shows::Row => (0..self.columns.len()).collect(),
        }
    }

    /// The cell of a column as it is in a row of the lake, of what the source sends.
    pub(super) fn cell(&self, at: usize, field: Option<&[u8]>, form: Form) -> Result<Vec<u8>> {
        let (column, wire) = &self.columns[at];
        let of = DigestColumn { column, wire: *wire };
        lake_cell(&of, self.replaces, field, form)
            .map_err(|cause| unhashable(&self.relation.name, cause))
    }

    /// The chunk that reads this range of the source.
    pub(super) fn chunk(&self, chunk: u32, range: ChunkRange) -> ChunkSpec {
        let columns = self.columns.iter();
        ChunkSpec {
            job: String::new(),
            run: String::new(),
            snapshot_id: String::new(),
            relation_oid: self.relation.oid,
            relation: self.relation.name.clone(),
            chunk,
            range,
            filter: self.filter.clone(),
            columns: columns
                .map(|(column, wire)| SelectColumn { name: column.name.clone(), wire: *wire })
                .collect(),
            form: TupleForm::PgBinary,
            estimated_bytes: 0,
        }
    }
}

fn chosen(relation: &Relation, options: Option<&TableOptions>) -> Vec<Column> {
    let wanted = options.and_then(|options| options.columns.as_ref());
    let is_wanted = |column: &&Column| wanted.is_none_or(|wanted| wanted.contains(&column.name));
    relation.columns.iter().filter(is_wanted).cloned().collect()
}

/// The lake's table as if it were one of a database like the source.
fn as_relation(source: &Relation, table: &LakeTable) -> Relation {
    let column = |listed: &CommitColumn| {
        let known = source.columns.iter().find(|column| column.name == listed.name);
        let like = known.or(source.columns.first())?;
        Some(Column {
            name: listed.name.clone(),
            type_name: listed.pg_type.clone(),
            is_nullable: listed.nullable,
            ..like.clone()
        })
    };
    let columns = table.columns.iter().filter_map(column).collect();
    Relation { columns, ..source.clone() }
}

fn unhashable(name: &RelationName, cause: tidemark_digest::Error) -> Error {
    Error::new(Kind::Internal, format!("prepare to hash the rows of {name}")).because(cause)
}

/// Classes of errors that are about a value and its type, not about the server.
const ABOUT_VALUES: [&str; 4] = ["0A", "22", "23", "42"];

/// Asks the source what the defaults of columns are.
struct Defaults<'a> {
    source: &'a Side,
    client: Option<Client>,
}

impl Defaults<'_> {
    /// What the source sends for a column's constant default, and its text; `None` is NULL. The text comes from a document
    /// of the lake: of it nothing but one literal gets into a statement.
    async fn value(
        &mut self,
        of: DigestColumn<'_>,
        default: &str,
    ) -> Result<Result<Option<(Vec<u8>, String)>, String>> {
        let column = of.column;
        let Some(literal) = literal(default) else {
            return Ok(Err(format!("the default of its column {:?} is no constant", column.name)));
        };
        let Some(literal) = literal else { return Ok(Ok(None)) };
        let text = match of.wire {
            Wire::Own => "",
            Wire::CastToText => "::pg_catalog.text",
        };
        let value = format!("{}::{}", Literal(&literal), column.type_name);
        let sql = format!("SELECT {value}{text}, {value}::pg_catalog.text");
        let client = match self.client.take() {
            Some(client) => client,
            None => {
                let source = self.source;
                source.spec().connect().await.map_err(|error| source.of(error))?
            }
        };
        let cause = match self.client.insert(client).query_one(&sql, &[]).await {
            Ok(row) => match (row.try_get::<_, Option<Sent>>(0), row.try_get(1)) {
                (Ok(sent), Ok(text)) => return Ok(Ok(sent.map(|Sent(bytes)| bytes).zip(text))),
                (Err(cause), _) | (_, Err(cause)) => cause,
            },
            Err(cause) => cause,
        };
        // What else the server has to say may quote the value.
        let code = cause.code().map(SqlState::code).unwrap_or_default();
        if ABOUT_VALUES.iter().any(|class| code.starts_with(class)) {
            return Ok(Err(format!(
                "the source does not take the default of its column {:?} (SQLSTATE {code})",
                column.name
            )));
        }
        let attempt = format!("ask the source for the default of {:?}", column.name);
        Err(Error::new(Kind::Unavailable, attempt).because(cause))
    }
}

/// The text of a constant, as the server prints defaults: a literal with a cast or without. The inner `None` is NULL.
fn literal(default: &str) -> Option<Option<String>> {
    if let Some(rest) = default.strip_prefix('\'') {
        let mut text = String::new();
        let mut letters = rest.chars().peekable();
        while let Some(letter) = letters.next() {
            match letter {
                '\'' if letters.peek() == Some(&'\'') => {
                    letters.next();
                    text.push('\'');
                }
                '\'' => return Some(Some(text)),
                letter => text.push(letter),
            }
        }
        return None;
    }
    let bare = default.split("::").next().unwrap_or_default();
    let bare = bare.trim_start_matches('(').trim_end_matches(')');
    match bare {
        "NULL" => Some(None),
        "true" | "false" => Some(Some(bare.to_owned())),
        _ => bare.parse::<f64>().is_ok_and(f64::is_finite).then(|| Some(bare.to_owned())),
    }
}

/// The bytes of a value of any type.
struct Sent(Vec<u8>);

impl<'a> FromSql<'a> for Sent {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_is_one_literal_or_nothing() {
        for (default, expected) in [
            ("'a''b'::text", Some(Some("a'b"))),
            ("0", Some(Some("0"))),
            ("(-1)", Some(Some("-1"))),
            ("'-1'::integer", Some(Some("-1"))),
            ("0::numeric(10,2)", Some(Some("0"))),
            ("true", Some(Some("true"))),
            ("NULL::text", Some(None)),
            ("now()", None),
            ("'open", None),
            ("pg_sleep(1)", None),
        ] {
            let expected = expected.map(|text| text.map(str::to_owned));
            assert_eq!(literal(default), expected, "{default}");
        }
    }
}
