//! What the target stores of the lanes.
//!
//! **Invariant:** `tidemark.progress.end_lsn` is the job's position and the first lane's; it never moves before the other lanes
//! have committed. A row of `tidemark.lane` says more than that only where its `end_lsn` is beyond it: then that lane has
//! everything up to there, and the rules by which it got it are those in `tidemark.relation.lanes`, which are written before
//! lanes are used and not while they stand apart.
//!
//! **Invariant:** a lane commits under the epoch of the process that has the job: its row carries the epoch, and whoever takes
//! the job over puts his there, which waits for commits in flight (`hazards.md` G101).

use std::collections::HashMap;

use tidemark_model::{Lsn, Oid, RelationName, TablePlan};
use tidemark_wire::Client;
use tidemark_wire::tokio_postgres::Row;

use super::super::super::record::held;
use super::super::super::session::server_error;
use super::super::apply::Fence;
use super::{Class, KeyColumn, Redo, Rule, Splitter};
use crate::{Disposition, Error, Result};

/// What decides how a table is spread: its unique and exclusion indexes, the key if it is the only one and enforced at once,
/// and triggers that fire although the session is a replica's.
const FACTS: &str = "
SELECT n.nspname::text, c.relname::text, c.relkind = 'r', u.count,
       EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgenabled IN ('A', 'R')),
       k.names, k.types
FROM unnest($1::text[], $2::text[]) AS want(schema_name, relation_name)
JOIN pg_namespace n ON n.nspname = want.schema_name
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = want.relation_name AND c.relkind IN ('r', 'p')
CROSS JOIN LATERAL (
  SELECT count(*) FROM pg_index i WHERE i.indrelid = c.oid AND (i.indisunique OR i.indisexclusion)) AS u
LEFT JOIN LATERAL (
  SELECT array_agg(a.attname::text ORDER BY a.attnum) AS names, array_agg(a.atttypid ORDER BY a.attnum) AS types
  FROM pg_index i
  JOIN pg_class ic ON ic.oid = i.indexrelid
  JOIN pg_am am ON am.oid = ic.relam AND am.amname = 'btree'
  CROSS JOIN generate_series(0, i.indnkeyatts - 1) AS k(n)
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k.n] AND a.attnotnull
  JOIN pg_opclass oc ON oc.oid = i.indclass[k.n] AND oc.opcnamespace = 'pg_catalog'::regnamespace
  LEFT JOIN pg_collation co ON co.oid = i.indcollation[k.n]
  WHERE i.indrelid = c.oid AND i.indisunique AND NOT i.indisexclusion AND i.indimmediate AND i.indisvalid
    AND i.indpred IS NULL AND i.indexprs IS NULL AND co.collisdeterministic IS NOT FALSE) AS k ON true";

/// Takes the job's lanes over and says which of them are beyond `position`, with the number of lanes there were then.
pub(crate) async fn claim(
    client: &Client,
    job: &str,
    epoch: i64,
) -> Result<Vec<(usize, usize, Lsn)>> {
    let attempt = "take the job's lanes on the target over";
    let rows = client
        .query(
            "UPDATE tidemark.lane SET epoch = $2 WHERE job = $1 RETURNING lane, lanes, end_lsn::text",
            &[&job, &epoch],
        )
        .await
        .map_err(|cause| server_error(attempt, None, cause))?;
    let lane = |row: &Row| {
        let (lane, lanes): (i32, i32) = (row.get(0), row.get(1));
        let lsn = row.get::<_, &str>(2).parse().ok()?;
        Some((usize::try_from(lane).ok()?, usize::try_from(lanes).ok()?, lsn))
    };
    let lanes: Option<Vec<_>> = rows.iter().map(lane).collect();
    lanes.ok_or_else(|| Error::new(Disposition::Internal, attempt))
}

/// What is to be made up for where lanes are beyond `position`.
pub(in super::super) async fn apart(
    client: &Client,
    fence: &Fence,
    position: Lsn,
    tables: &[TablePlan],
) -> Result<Option<Redo>> {
    let mut lanes = claim(client, &fence.job, fence.epoch).await?;
    lanes.retain(|(_, _, lsn)| *lsn > position);
    let Some((_, count, _)) = lanes.first().copied() else { return Ok(None) };
    let attempt = "read how the tables were spread over the lanes";
    let rows = client
        .query(
            "SELECT schema_name, relation_name, lanes FROM tidemark.relation WHERE job = $1 AND lanes IS NOT NULL",
            &[&fence.job],
        )
        .await
        .map_err(|cause| server_error(attempt, None, cause))?;
    let mut rules = HashMap::with_capacity(rows.len());
    for row in rows {
        let name = RelationName::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
        let rule = serde_json::from_str(row.get(2))
            .map_err(|cause| Error::new(Disposition::Internal, attempt).on(&name).because(cause))?;
        if let Some(plan) = tables.iter().find(|plan| plan.relation.name == name) {
            rules.insert(plan.relation.oid, rule);
        }
    }
    let lanes: Vec<(usize, Lsn)> = lanes.into_iter().map(|(lane, _, lsn)| (lane, lsn)).collect();
    Ok(Some(Redo::new(Splitter::new(count.max(1), rules), &lanes)))
}

/// Decides how the tables are spread, and stores it before the first change is.
pub(in super::super) async fn begin(
    client: &Client,
    fence: &Fence,
    tables: &[TablePlan],
    count: usize,
) -> Result<Splitter> {
    let rules = rules(client, tables).await?;
    let (mut schemas, mut names, mut texts) = (Vec::new(), Vec::new(), Vec::new());
    for (name, rule) in &rules {
        schemas.push(name.schema.as_str());
        names.push(name.name.as_str());
        texts.push(serde_json::to_string(rule).map_err(|cause| {
            Error::new(Disposition::Internal, "write down how a table is spread").because(cause)
        })?);
    }
    let lanes = i32::try_from(count).unwrap_or(i32::MAX);
    let rows = client
        .query(
            "WITH owner AS (UPDATE tidemark.progress SET heartbeat = clock_timestamp() \
               WHERE job = $1 AND wave = '' AND run = $2 AND epoch = $3 AND phase = 'follow' RETURNING job), \
             gone AS (DELETE FROM tidemark.lane l USING owner WHERE l.job = owner.job AND l.lane >= $4), \
             made AS (INSERT INTO tidemark.lane (job, lane, lanes, end_lsn, epoch) \
               SELECT job, l, $4, '0/0', $3 FROM owner, generate_series(1, $4 - 1) AS l \
               ON CONFLICT (job, lane) DO UPDATE SET lanes = excluded.lanes, end_lsn = excluded.end_lsn, epoch = excluded.epoch), \
             spread AS (UPDATE tidemark.relation r SET lanes = t.rule \
               FROM owner, unnest($5::text[], $6::text[], $7::text[]) AS t(s, n, rule) \
               WHERE r.job = owner.job AND r.schema_name = t.s AND r.relation_name = t.n \
               RETURNING r.schema_name, r.relation_name) \
             SELECT s.schema_name, s.relation_name FROM owner LEFT JOIN spread s ON true",
            &[&fence.job, &fence.run, &fence.epoch, &lanes, &schemas, &names, &texts],
        )
        .await
        .map_err(|cause| server_error("store how the tables are spread over the lanes", None, cause))?;
    if rows.is_empty() {
        return Err(held(&fence.job));
    }
    let stored = |row: &Row| {
        Some(RelationName::new(row.get::<_, Option<&str>>(0)?, row.get::<_, Option<&str>>(1)?))
    };
    let mut by_oid = HashMap::with_capacity(rules.len());
    for name in rows.iter().filter_map(stored) {
        let plan = tables.iter().find(|plan| plan.relation.name == name);
        if let (Some(plan), Some(rule)) = (plan, rules.get(&name)) {
            by_oid.insert(plan.relation.oid, rule.clone());
        }
    }
    Ok(Splitter::new(count, by_oid))
}

async fn rules(client: &Client, tables: &[TablePlan]) -> Result<HashMap<RelationName, Rule>> {
    let (schemas, names): (Vec<&str>, Vec<&str>) = tables
        .iter()
        .map(|plan| (plan.relation.name.schema.as_str(), plan.relation.name.name.as_str()))
        .unzip();
    let rows = client.query(FACTS, &[&schemas, &names]).await.map_err(|cause| {
        server_error("read the unique indexes and triggers of the target's tables", None, cause)
    })?;
    Ok(rows
        .iter()
        .map(|row| {
            let name = RelationName::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
            (name, rule(row))
        })
        .collect())
}

fn rule(row: &Row) -> Rule {
    let (is_plain, indexes, fires): (bool, i64, bool) = (row.get(2), row.get(3), row.get(4));
    if fires {
        return Rule::First;
    }
    // A second unique index would see the rows of several lanes at once; a partition may have one of its own.
    if !is_plain || indexes != 1 {
        return Rule::Whole;
    }
    let names: Vec<String> = row.get::<_, Option<_>>(5).unwrap_or_default();
    let types: Vec<Oid> = row.get::<_, Option<_>>(6).unwrap_or_default();
    let column = |(name, type_oid): (String, Oid)| {
        Class::of(type_oid).map(|class| KeyColumn { name, class })
    };
    let columns: Vec<KeyColumn> = names.into_iter().zip(types).filter_map(column).collect();
    if columns.is_empty() { Rule::Whole } else { Rule::Key(columns) }
}
