//! The hard cases with a lake as the target: one side's values are copied into it, then the source has the other's.
//!
//! The source gets its other values by ALTER TABLE ... USING, which rewrites a table without a change in the stream, so that
//! what the lake holds is what it was.

use std::fmt::Write as _;

use tidemark_model::Unrepresentable::{self, Null, Text};
use tidemark_report::Verdict::{self, Different as D, Equivalent as E, Identical as I};
use tidemark_source::Selection;
use tidemark_verify::TableOutcome;

use crate::cases::{CASES, TYPES, name_of};
use crate::lake::Lake;
use crate::support::table;

/// A lake's column has one type, that of the source, and these cases are about two of them; or they are about the number of
/// rows, which a rewrite leaves as it is: `lake_damage` has those.
const OTHER_TYPES: [&str; 9] = [
    "6 text",
    "6 widened",
    "16 trimmed",
    "47 cidr",
    "48",
    "48 bit",
    "63 width",
    "63 narrow",
    "58 copies",
];

/// The cases whose verdict is another one in a lake where values without a form become NULL.
const BY_NULL: &[(&str, Verdict)] =
    &[("8 fixed", E), ("22", E), ("23", E), ("24", E), ("28", E), ("36 same", E), ("37 same", E)];
/// And where they are written as text, of which nobody knows that two of them say the same.
const BY_TEXT: &[(&str, Verdict)] = &[("30", D), ("30 day", D), ("40", D)];

const REWRITTEN: &str = "DO $$ DECLARE c record; BEGIN \
    FOR c IN SELECT relname AS t, attname AS a, format_type(atttypid, atttypmod) AS of, format_type(atttypid, NULL) AS base, \
        relname || '_' || attname AS f FROM pg_attribute JOIN pg_class ON oid = attrelid \
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0 AND attname <> 'id' LOOP \
      EXECUTE format('CREATE FUNCTION o.%I(int8) RETURNS %s LANGUAGE sql AS %L', c.f, c.base, \
        format('SELECT %I FROM o.%I WHERE id = $1', c.a, c.t)); \
      EXECUTE format('ALTER TABLE %I ALTER %I TYPE %s USING o.%I(id)', c.t, c.a, c.of, c.f); \
    END LOOP; END $$";

/// A column of one case has the same name on both sides.
const ONE_COLUMN: &str = "DO $$ DECLARE c record; BEGIN \
    FOR c IN SELECT attrelid::regclass AS t, min(attname) AS a FROM pg_attribute JOIN pg_class ON oid = attrelid \
        WHERE relnamespace IN ('public'::regnamespace, 'o'::regnamespace) AND relkind = 'r' AND attnum > 0 AND attname <> 'id' \
        GROUP BY 1 HAVING count(*) = 1 LOOP \
      EXECUTE format('ALTER TABLE %s RENAME %I TO the_column', c.t, c.a); \
    END LOOP; END $$";

fn cases() -> impl Iterator<Item = &'static (&'static str, &'static str, &'static str, Verdict)> {
    CASES.iter().filter(|(case, ..)| !OTHER_TYPES.contains(case) && *case != "60 one")
}

/// The verdicts before and after the source has its other values.
async fn verdicts(name: &str, policy: Unrepresentable) -> (Vec<TableOutcome>, Vec<TableOutcome>) {
    let mut sql = format!("{TYPES} CREATE SCHEMA o;");
    for (case, one, other, _) in cases() {
        let case = name_of(case);
        for (table, query) in [(case.clone(), one), (format!("o.{case}"), other)] {
            // In the order of the values, so that the same ones are in the same rows.
            writeln!(
                sql,
                "CREATE TABLE {table} AS SELECT row_number() OVER (ORDER BY q::text) AS id, q.* FROM ({query}) q;"
            )
            .unwrap();
        }
        writeln!(sql, "ALTER TABLE {case} ADD PRIMARY KEY (id);").unwrap();
    }
    let mut lake = Lake::new(name, &sql);
    lake.sql(ONE_COLUMN);
    lake.request.job.selection = Selection::new(vec!["public.*".to_owned()], Vec::new());
    for (case, ..) in cases() {
        lake.unrepresentable(&name_of(case), policy);
    }
    lake.fill().await;
    let before = lake.verify().await;
    lake.sql(REWRITTEN);
    let after = lake.verify().await;
    let found = |outcome| cases().map(|(case, ..)| table(outcome, &name_of(case))).collect();
    (found(&before), found(&after))
}

#[track_caller]
fn assert_verdicts(
    policy: Unrepresentable,
    (before, after): (Vec<TableOutcome>, Vec<TableOutcome>),
    others: &[(&str, Verdict)],
) {
    let mut wrong = Vec::new();
    for ((case, _, _, of_pair), (before, after)) in cases().zip(before.iter().zip(&after)) {
        let other = others.iter().find(|(known, _)| known == case).map(|(_, verdict)| *verdict);
        let expected = other.unwrap_or(*of_pair);
        if after.verdict != expected {
            wrong.push(format!("{case}: {:?} instead of {expected:?}", after.verdict));
        }
        // What was replaced is never silent, and what was not is what it was.
        let is_whole = match before.lossy.unwrap_or_default() {
            0 => before.verdict == I,
            _ => before.verdict == E && policy == Null,
        };
        if !is_whole {
            wrong.push(format!("{case} untouched: {:?}, {:?} lossy", before.verdict, before.lossy));
        }
        if expected == E && other == Some(E) && after.lossy == Some(0) {
            wrong.push(format!("{case}: nothing is told to be lost"));
        }
    }
    assert!(wrong.is_empty(), "{policy:?}:\n{}", wrong.join("\n"));
    assert!(after.iter().filter(|table| table.verdict == D).count() > 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hard_cases_have_their_verdicts_in_a_lake_whose_odd_values_become_null() {
    assert_verdicts(Null, Box::pin(verdicts("casesnull", Null)).await, BY_NULL);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hard_cases_have_their_verdicts_in_a_lake_whose_odd_values_become_text() {
    assert_verdicts(Text, Box::pin(verdicts("casestext", Text)).await, BY_TEXT);
}
