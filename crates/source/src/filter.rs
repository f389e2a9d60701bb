//! The user's `where` of a table: one SQL expression, and nothing but that.
//!
//! **Invariant:** an expression that passes stays inside the parentheses that it is put in: whatever the server reads in
//! it, what stands behind it is read as ours. `a) OR (b` would otherwise end the condition of a chunk's range, and rows
//! would be read twice.
//!
//! The text is scanned here for what ends or hides a parenthesis (quotes, dollar quotes, comments), by the server's own
//! rules under `standard_conforming_strings`; then the server parses the balanced form, and runs nothing.
//!
//! A stream has to leave out the same rows as the copy, so there the filter is the publication's. What an expression
//! refers to and whether two of them are the same one is asked of the server, which reads them as the conditions of
//! temporary views in a transaction that is rolled back.
//!
//! PostgreSQL manual, section 4.1 (lexical structure), 29.4 (row filters).

use std::collections::{BTreeSet, HashMap};

use tidemark_model::sql::Ident;
use tidemark_model::{Oid, RelationName, TablePlan};
use tidemark_wire::Client;

use crate::{Disposition, Error, Result, sql};

const HINT: &str = "mend the where of this [[table]]";

/// The row filters of tables, by OID.
pub type RowFilters = HashMap<Oid, String>;

/// The filters of those that have one.
pub fn row_filters<'a>(plans: impl IntoIterator<Item = &'a TablePlan>) -> RowFilters {
    let filter = |plan: &TablePlan| Some((plan.relation.oid, plan.filter.clone()?));
    plans.into_iter().filter_map(filter).collect()
}

/// A filter as a publication is given it.
pub(crate) fn publication_clause(filter: Option<&String>) -> String {
    // The line end keeps a comment at its end from hiding the parenthesis.
    filter.map(|filter| format!(" WHERE ({filter}\n)")).unwrap_or_default()
}

/// The numbers (`pg_attribute.attnum`) of the columns that a filter refers to.
pub(crate) async fn filter_columns(
    client: &Client,
    table: (Oid, &RelationName),
    filter: &str,
) -> Result<BTreeSet<i16>> {
    let (oid, name) = table;
    let question = format!(
        "SELECT d.refobjsubid::int2 FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_depend d \
           ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid \
         WHERE r.ev_class = 'pg_temp.tidemark_0'::pg_catalog.regclass \
           AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = {oid} AND d.refobjsubid > 0"
    );
    let rows = ask_of_views(client, name, &[filter], &question).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Whether two filters of a table are the same expression, however they are written.
pub(crate) async fn is_same_filter(
    client: &Client,
    name: &RelationName,
    filters: [&str; 2],
) -> Result<bool> {
    if filters[0] == filters[1] {
        return Ok(true);
    }
    let question = "SELECT pg_catalog.pg_get_viewdef('pg_temp.tidemark_0'::pg_catalog.regclass) \
                  = pg_catalog.pg_get_viewdef('pg_temp.tidemark_1'::pg_catalog.regclass)";
    let rows = ask_of_views(client, name, &filters, question).await?;
    Ok(rows.first().is_some_and(|row| row.get(0)))
}

/// Asks the catalog of temporary views `tidemark_0..` with these conditions, which are gone afterwards.
async fn ask_of_views(
    client: &Client,
    name: &RelationName,
    filters: &[&str],
    question: &str,
) -> Result<Vec<tidemark_wire::tokio_postgres::Row>> {
    let attempt = "ask what a row filter is";
    filters.iter().try_for_each(|filter| refuse_open(name, filter))?;
    let view = |(number, filter): (usize, &&str)| {
        format!(
            "CREATE TEMPORARY VIEW tidemark_{number} AS SELECT 1 AS one FROM ONLY {name} WHERE ({filter}\n);"
        )
    };
    let views: String = filters.iter().enumerate().map(view).collect();
    let asked = async {
        sql::execute(
            client,
            attempt,
            &format!("BEGIN READ WRITE; SET LOCAL lock_timeout = '5s'; {views}"),
        )
        .await?;
        sql::rows(client, attempt, question).await
    };
    let answer = asked.await.map_err(|error: Error| {
        let is_right = error.has_state(&["42501"]);
        let error = error.on(name);
        let hint =
            "it needs the right to make temporary views: GRANT TEMPORARY ON DATABASE, to this role";
        if is_right { error.hint(hint) } else { error }
    });
    // The session is in a transaction that may have failed; where it is gone, so is that.
    sql::execute(client, "go back", "ROLLBACK").await.ok();
    answer
}

/// Whether the server would publish the table with this filter: it knows which expressions it can evaluate while it decodes.
pub(crate) async fn try_to_publish(
    client: &Client,
    name: &RelationName,
    filter: &String,
) -> Result<()> {
    let publication = format!("tidemark_try_{}", client.backend_pid());
    let text = format!(
        "BEGIN READ WRITE; CREATE PUBLICATION {} FOR TABLE ONLY {name}{}",
        Ident(&publication),
        publication_clause(Some(filter))
    );
    let tried = sql::execute(client, "publish a table with its row filter", &text).await;
    sql::execute(client, "go back", "ROLLBACK").await.ok();
    tried.map_err(|error| error.on(name))
}

/// Checks the filters of all tables: balanced, and an expression over the table's columns.
///
/// # Errors
/// [`Disposition::Usage`], naming the table; or the connection failed.
pub async fn check_filters(client: &Client, plans: &[TablePlan]) -> Result<()> {
    for plan in plans {
        let Some(filter) = &plan.filter else { continue };
        let name = &plan.relation.name;
        refuse_open(name, filter)?;
        let text = format!("SELECT FROM ONLY {name} WHERE ({filter}\n)");
        let parsed = client.prepare(&text).await.map_err(|cause| {
            let cause = tidemark_wire::Error::sql("parse")(cause);
            let is_theirs = cause.sqlstate().is_some_and(|state| {
                ["22", "42"].contains(&state.get(..2).unwrap_or_default()) && state != "42501"
            });
            let error = Error::wire("read the where of a table", cause).on(name);
            if is_theirs { error.disposed(Disposition::Usage).hint(HINT) } else { error }
        })?;
        if !parsed.params().is_empty() {
            let attempt = "read the where of a table: it has a parameter ($1)";
            return Err(Error::new(Disposition::Usage, attempt).on(name).hint(HINT));
        }
    }
    Ok(())
}

/// Refuses an expression that would end its parentheses.
pub(crate) fn refuse_open(name: &RelationName, filter: &str) -> Result<()> {
    stays_inside(filter).map_err(|what| {
        Error::new(Disposition::Usage, format!("read the where of a table: {what}"))
            .on(name)
            .hint(HINT)
    })
}

/// Says what would let an expression out of its parentheses, or them into it.
fn stays_inside(text: &str) -> Result<(), &'static str> {
    if text.contains('\0') {
        return Err("it holds a zero byte");
    }
    let mut rest = text;
    let mut depth = 0_u32;
    let mut is_word = false;
    while let Some(c) = rest.chars().next() {
        let (skip, word) = match c {
            '(' => {
                depth += 1;
                (1, false)
            }
            ')' => {
                depth =
                    depth.checked_sub(1).ok_or("a parenthesis is closed that was not opened")?;
                (1, false)
            }
            ';' => return Err("it holds a semicolon: one expression is expected"),
            '\'' => (quoted(rest, '\'', false)?, false),
            '"' => (quoted(rest, '"', false)?, false),
            // E'..' is the only form in which a backslash means something.
            'e' | 'E' if !is_word && rest[1..].starts_with('\'') => {
                let length = 1 + quoted(&rest[1..], '\'', true)?;
                ends_here(&rest[length..])?;
                (length, false)
            }
            // Inside a name, a dollar sign is a letter.
            '$' if !is_word => (dollar_quoted(rest)?, false),
            '-' if rest.starts_with("--") => (rest.find(['\n', '\r']).unwrap_or(rest.len()), false),
            '/' if rest.starts_with("/*") => (comment(rest)?, false),
            _ => (c.len_utf8(), c.is_alphanumeric() || matches!(c, '_' | '$') || !c.is_ascii()),
        };
        is_word = word;
        rest = &rest[skip..];
    }
    if depth > 0 { Err("a parenthesis is not closed") } else { Ok(()) }
}

/// The length of a quoted text at the start; a doubled quote belongs to it.
fn quoted(text: &str, quote: char, has_escapes: bool) -> Result<usize, &'static str> {
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if has_escapes && c == '\\' {
            chars.next();
        } else if c == quote && chars.next_if(|(_, next)| *next == quote).is_none() {
            return Ok(at + 1);
        }
    }
    Err("a quote is not closed")
}

/// A string with escapes may go on after a line end, and then still has escapes: not followed here.
fn ends_here(behind: &str) -> Result<(), &'static str> {
    let mut rest = behind.trim_start();
    while rest.starts_with("--") {
        rest = rest[rest.find(['\n', '\r']).unwrap_or(rest.len())..].trim_start();
    }
    if rest.starts_with('\'') {
        Err("a string of the form E'..' goes on after its end")
    } else {
        Ok(())
    }
}

/// The length of `$tag$..$tag$` at the start, or of the lone dollar sign that it is not.
fn dollar_quoted(text: &str) -> Result<usize, &'static str> {
    let Some(end) = text[1..].find('$') else { return Ok(1) };
    let tag = &text[..end + 2];
    let name = &text[1..=end];
    let is_name = name.chars().all(|c| c.is_alphanumeric() || c == '_' || !c.is_ascii())
        && !name.starts_with(|c: char| c.is_ascii_digit());
    if !is_name {
        return Ok(1);
    }
    let body = &text[tag.len()..];
    body.find(tag).map(|at| tag.len() + at + tag.len()).ok_or("a dollar quote is not closed")
}

/// The length of a comment at the start; comments nest.
fn comment(text: &str) -> Result<usize, &'static str> {
    let mut depth = 0_u32;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Ok(at);
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    Err("a comment is not closed")
}

#[cfg(test)]
mod tests {
    use super::stays_inside;

    #[test]
    fn expressions_stay_inside_their_parentheses() {
        for text in [
            "id > 1 AND (a OR b)",
            "note <> ')' AND note <> 'it''s )'",
            r"note = E'\') OR (' AND a",
            r"note = 'C:\' OR (note = '\')",
            "\"a)\" = 1 AND \"b\"\"(\" = 2",
            "note = $$ ) $$ OR note = $x$ ) $$ ( $x$",
            "price$ > 1 AND (a$b$ = 2)",
            "/* ) /* ( */ */ true -- )",
            "a -- (\n AND b",
            "ä = 'ö)'",
            "name'x)'",
            "",
        ] {
            assert_eq!(stays_inside(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn what_breaks_out_is_refused() {
        for text in [
            "a) OR (b",
            ")(",
            "(a",
            "a OR b)",
            "a; DROP TABLE b",
            "note = 'x",
            "\"x",
            "note = $a$ x",
            "true /* /* */",
            "a /* ' */ ) OR (b /* ' */",
            "a -- '\n) OR (b -- '",
            "note = $$'$$) OR ($$'$$ = note",
            r"note = '\') OR (note = '\'",
            r"type'\') OR (note = '\'",
            "note = E'a'\n'\\' OR ' ) OR ( ''",
            "note = E'a' -- x\n -- y\n '\\' OR ' ) OR ( ''",
            "a$1) OR (b",
            "1$$ = 2) OR (3 = a$$",
            "a\0b",
        ] {
            assert!(stays_inside(text).is_err(), "{text}");
        }
    }
}
