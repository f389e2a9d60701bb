//! Definitions: every object of a database, as its own server prints it.
//!
//! **Invariant:** one object has one line, `(kind, name) -> definition`; objects of extensions are the
//! extension's, not ours. `search_path` is empty, so all names inside definitions are qualified.
//!
//! Manual: "System Information Functions" (`pg_get_indexdef` and its kin).

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::{Difference, PINNED};
use crate::Cluster;

/// Schemas that are ours to compare, as a condition on `n.nspname`.
const OURS: &str = "n.nspname NOT IN ('pg_catalog', 'information_schema', 'tidemark') AND n.nspname NOT LIKE 'pg\\_%'";

/// Queries of `(kind, name, definition)`; `{ours}` is [`OURS`].
const QUERIES: &[&str] = &[
    "SELECT 'schema', quote_ident(n.nspname), '' FROM pg_catalog.pg_namespace n WHERE {ours}",
    "SELECT 'extension', quote_ident(e.extname), '' FROM pg_catalog.pg_extension e",
    "SELECT 'table', c.oid::regclass::text, concat_ws(' ', c.relkind, c.relpersistence, c.relreplident, c.relrowsecurity, c.relforcerowsecurity,
            (SELECT string_agg(o, ',' ORDER BY o) FROM unnest(c.reloptions) o), c.reloftype::regtype,
            CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END, pg_get_expr(c.relpartbound, c.oid),
            (SELECT string_agg(i.inhparent::regclass::text, ',' ORDER BY i.inhseqno) FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid),
            CASE WHEN c.relkind = 'm' THEN c.relispopulated END)
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'm', 'v', 'f') AND {ours}",
    "SELECT 'column', c.oid::regclass || '.' || quote_ident(a.attname), concat_ws(' ', row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum),
            format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'not null' END, a.attidentity, a.attgenerated, a.attstorage,
            (SELECT l.collname FROM pg_catalog.pg_collation l WHERE l.oid = a.attcollation), pg_get_expr(d.adbin, d.adrelid))
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'm', 'v', 'f', 'c') AND {ours}",
    "SELECT 'index', i.indexrelid::regclass::text, concat_ws(' ', pg_get_indexdef(i.indexrelid), i.indisprimary, i.indisunique, i.indisvalid, i.indisreplident, i.indisclustered)
        FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE {ours}",
    "SELECT 'constraint', coalesce(o.conrelid::regclass::text, o.contypid::regtype::text) || '.' || quote_ident(o.conname),
            concat_ws(' ', pg_get_constraintdef(o.oid), CASE WHEN o.convalidated THEN 'valid' ELSE 'not valid' END, o.condeferrable, o.condeferred)
        FROM pg_catalog.pg_constraint o JOIN pg_catalog.pg_namespace n ON n.oid = o.connamespace WHERE o.contype NOT IN ('n', 't') AND {ours}",
    "SELECT 'sequence definition', c.oid::regclass::text, concat_ws(' ', format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle,
            (SELECT d.refobjid::regclass || '.' || a.attname || d.deptype::text FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')))
        FROM pg_catalog.pg_sequence s JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE {ours}",
    "SELECT 'view', c.oid::regclass::text, pg_get_viewdef(c.oid)
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('v', 'm') AND {ours}",
    "SELECT 'function', p.oid::regprocedure::text, CASE WHEN p.prokind IN ('f', 'p') THEN pg_get_functiondef(p.oid) ELSE p.prokind::text END
        FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
        WHERE {ours} AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')",
    "SELECT 'type', t.oid::regtype::text, concat_ws(' ', t.typtype, (SELECT string_agg(quote_literal(e.enumlabel), ',' ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid),
            format_type(nullif(t.typbasetype, 0), t.typtypmod), t.typnotnull, t.typdefault, (SELECT r.rngsubtype::regtype::text FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid))
        FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
        WHERE t.typtype <> 'c' AND t.typelem = 0 AND {ours} AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e')",
    "SELECT 'trigger', t.tgrelid::regclass || '.' || quote_ident(t.tgname), concat_ws(' ', pg_get_triggerdef(t.oid), t.tgenabled)
        FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE NOT t.tgisinternal AND {ours}",
    "SELECT 'rule', r.ev_class::regclass || '.' || quote_ident(r.rulename), concat_ws(' ', pg_get_ruledef(r.oid), r.ev_enabled)
        FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE r.rulename <> '_RETURN' AND {ours}",
    "SELECT 'policy', p.polrelid::regclass || '.' || quote_ident(p.polname), concat_ws(' ', p.polcmd, p.polpermissive, pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
        FROM pg_catalog.pg_policy p JOIN pg_catalog.pg_class c ON c.oid = p.polrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE {ours}",
    "SELECT 'statistics', format('%I.%I', n.nspname, s.stxname), pg_get_statisticsobjdef(s.oid) FROM pg_catalog.pg_statistic_ext s JOIN pg_catalog.pg_namespace n ON n.oid = s.stxnamespace WHERE {ours}",
    "SELECT 'collation', format('%I.%I', n.nspname, l.collname), concat_ws(' ', l.collprovider, l.collisdeterministic, l.collcollate) FROM pg_catalog.pg_collation l JOIN pg_catalog.pg_namespace n ON n.oid = l.collnamespace WHERE {ours}",
    "SELECT 'comment', i.type || ' ' || i.identity, d.description FROM pg_catalog.pg_description d, LATERAL pg_identify_object(d.classoid, d.objoid, d.objsubid) i
        WHERE d.objoid >= 16384 AND i.type <> 'extension' AND coalesce(i.schema, '') NOT IN ('pg_catalog', 'information_schema', 'tidemark')
            AND NOT (i.type = 'schema' AND i.identity = 'tidemark')
            AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend e WHERE e.classid = d.classoid AND e.objid = d.objoid AND e.deptype = 'e')",
];

/// Compares the definitions of all objects of two databases.
///
/// # Errors
/// When one side's catalog cannot be read.
pub fn schema_diff(source: (&Cluster, &str), target: (&Cluster, &str)) -> Result<Vec<Difference>> {
    let (one, two) = (definitions(source)?, definitions(target)?);
    let mut found = Vec::new();
    let difference = |key: &(String, String), detail: String| Difference {
        kind: key.0.clone(),
        object: key.1.clone(),
        detail,
    };
    for (key, ours) in &one {
        match two.get(key) {
            None => found.push(difference(key, format!("only on the source: {ours}"))),
            Some(theirs) if theirs != ours => {
                found.push(difference(
                    key,
                    format!("{ours:?} on the source, {theirs:?} on the target"),
                ));
            }
            Some(_) => {}
        }
    }
    for (key, theirs) in &two {
        if !one.contains_key(key) {
            found.push(difference(key, format!("only on the target: {theirs}")));
        }
    }
    Ok(found)
}

fn definitions(
    (cluster, database): (&Cluster, &str),
) -> Result<BTreeMap<(String, String), String>> {
    let mut script = String::from(PINNED);
    for query in QUERIES {
        let query = query.replace("{ours}", OURS);
        script
            .push_str(&format!("SELECT json_build_array(k, o, d) FROM ({query}) AS q(k, o, d);\n"));
    }
    let text = cluster.psql(database, &script)?;
    let mut all = BTreeMap::new();
    for line in text.lines() {
        let (kind, name, definition): (String, String, Option<String>) =
            serde_json::from_str(line).context("read an object's definition")?;
        all.insert((kind, name), definition.unwrap_or_default());
    }
    Ok(all)
}
