//! What stands between the waves of a job.

use std::collections::HashMap;

use tidemark_model::{Finding, ForeignKey, RelationName, Severity, sql::Ident};
use tidemark_source::{read_catalog, schema};

use super::{limit_waits, patiently};
use crate::Result;
use crate::job::{Job, Wave};

/// Foreign keys from one wave to another, of all these jobs or of one wave. Nothing where there are no waves.
///
/// # Errors
/// The source cannot be reached, or a table is in two waves.
pub async fn keys_across_waves(waves: &[Job], of: Option<&str>) -> Result<Vec<Finding>> {
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
        (from.name != to.name && is_meant).then(|| finding(key, from, to))
    });
    Ok(across.collect())
}

fn finding(key: &ForeignKey, from: &Wave, to: &Wave) -> Finding {
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
