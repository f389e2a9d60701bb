//! What stands between the waves of a job.

use std::collections::{BTreeMap, HashMap};

use tidemark_model::{Finding, ForeignKey, RelationName, Severity, sql::Ident};
use tidemark_source::{read_catalog, schema};

use super::{limit_waits, patiently};
use crate::Result;
use crate::job::{Job, Wave};

/// A table and a sequence that it owns or that a default of it draws from.
const DRAWS: &str = "SELECT sn.nspname, s.relname, n.nspname, t.relname FROM ( \
      SELECT d.objid AS sequence, d.refobjid AS relation FROM pg_catalog.pg_depend d \
      WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i') \
      UNION SELECT d.refobjid, a.adrelid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_attrdef a ON a.oid = d.objid \
      WHERE d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass \
    ) used JOIN pg_catalog.pg_class s ON s.oid = used.sequence AND s.relkind = 'S' \
    JOIN pg_catalog.pg_namespace sn ON sn.oid = s.relnamespace \
    JOIN pg_catalog.pg_class t ON t.oid = used.relation JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace \
    ORDER BY 1, 2, 3, 4";

/// What ties one wave to another, of all these jobs or of one wave: foreign keys, and sequences that both draw from. Nothing
/// where there are no waves.
///
/// # Errors
/// The source cannot be reached, or a table is in two waves.
pub async fn ties_between_waves(waves: &[Job], of: Option<&str>) -> Result<Vec<Finding>> {
    let Some(first) = waves.first().filter(|job| job.wave.is_some()) else { return Ok(Vec::new()) };
    let client = first.source.connect().await?;
    limit_waits(&client, first.lock_timeout).await?;
    let catalog = patiently(&first.source, async || read_catalog(&client).await).await?;
    let mut wave_of: HashMap<RelationName, &Wave> = HashMap::new();
    for job in waves {
        let Some(wave) = &job.wave else { continue };
        for relation in job.selection.apply(&catalog)? {
            for above in catalog.ancestors(&relation) {
                wave_of.entry(above.clone()).or_insert(wave);
            }
            wave_of.insert(relation.name, wave);
        }
    }
    let objects = schema::read_schema_objects(&client)
        .await
        .map_err(tidemark_wire::Error::sql("read the foreign keys of the source"))?;
    let across = objects.foreign_keys.iter().filter_map(|key| {
        let (from, to) = (wave_of.get(&key.table)?, wave_of.get(&key.references)?);
        let is_meant = of.is_none_or(|of| from.name == of || to.name == of);
        (from.name != to.name && is_meant).then(|| foreign_key(key, from, to))
    });
    let mut findings: Vec<Finding> = across.collect();
    let draws = client.query(DRAWS, &[]).await;
    let draws = draws.map_err(tidemark_wire::Error::sql("read who draws from which sequence"))?;
    let mut users: BTreeMap<RelationName, BTreeMap<&str, RelationName>> = BTreeMap::new();
    for row in &draws {
        let name = |at| RelationName::new(row.get::<_, String>(at), row.get::<_, String>(at + 1));
        if let Some(wave) = wave_of.get(&name(2)) {
            users.entry(name(0)).or_default().entry(&wave.name).or_insert(name(2));
        }
    }
    let is_shared = |waves: &BTreeMap<&str, RelationName>| {
        waves.len() > 1 && of.is_none_or(|of| waves.contains_key(of))
    };
    let shared = users.iter().filter(|(_, waves)| is_shared(waves));
    findings.extend(shared.map(|(name, waves)| sequence(name, waves)));
    Ok(findings)
}

fn sequence(name: &RelationName, waves: &BTreeMap<&str, RelationName>) -> Finding {
    let users: Vec<String> =
        waves.iter().map(|(wave, table)| format!("{table} of wave {wave}")).collect();
    let users = users.join(" and ");
    let message = format!(
        "{users} draw from it: while they are on different servers each side counts on by itself, and one value may be handed out to both"
    );
    let fix = "put the tables into one wave; or give each a sequence of its own; or, where it only has to last for as long as the waves are apart, raise cutover.sequence_margin above what is drawn meanwhile";
    Finding::new(Severity::Warning, "sequence-across-waves", name.to_string(), message)
        .with_fix(fix)
}

fn foreign_key(key: &ForeignKey, from: &Wave, to: &Wave) -> Finding {
    let object = format!("{}.{}", key.table, Ident(&key.name));
    let message = format!(
        "it leads from wave {} to {} of wave {}: while only one of them is on the target, a row may be written whose other row is changed or deleted on the other server, and what it does on DELETE or UPDATE is refused by the fence; on a target that we create it is not made",
        from.name, key.references, to.name
    );
    let name = Ident(&key.name);
    let fix = format!(
        "put both tables into one wave; or, on a target that we create, once both waves are there: ALTER TABLE {table} ADD CONSTRAINT {name} {definition}{later}",
        table = key.table,
        definition = key.definition,
        later = match key.is_valid && !key.is_checked_at_once() {
            true => format!(" NOT VALID; ALTER TABLE {} VALIDATE CONSTRAINT {name}", key.table),
            false => String::new(),
        },
    );
    Finding::new(Severity::Warning, "foreign-key-across-waves", object, message).with_fix(fix)
}
