//! What tables are declared to be beyond their columns, their sequences, and the collations that sort their text.
//!
//! **Invariant:** a constraint or an index is known by what it says and not by its name, everything else by its name; each
//! is told once. Rows are not read, whatever the level, and no table waits for us for longer than a lock may take.

use std::collections::{HashMap, HashSet};

use tidemark_model::{Oid, Relation, RelationName, ReplicaIdentity};
use tidemark_pipeline::{Job, Result};
use tidemark_report::SchemaSeverity;
use tidemark_source::{
    CollationVersion, Definition, DefinitionKind, Definitions, Sequence, read_collation_versions,
    read_definitions, read_owned_ends, read_sequences,
};
use tidemark_wire::Client;

use crate::Which;
use crate::findings::{SchemaFinding, finding};
use crate::side::Side;

/// Compares what the chosen tables, and the partitioned ones above them, are on both sides.
///
/// # Errors
/// A side cannot be read, or the selection does not fit.
pub(crate) async fn compare(job: &Job, source: &Side, target: &Side) -> Result<Vec<SchemaFinding>> {
    let both = on_both(job, source, target)?;
    let (ours, theirs): (Vec<Oid>, Vec<Oid>) =
        both.iter().map(|(one, other)| (one.oid, other.oid)).unzip();
    let (ours, theirs) = tokio::try_join!(read(source, &ours), read(target, &theirs))?;
    let mut found = Vec::new();
    for (one, other) in &both {
        of_table(job, (one, &ours.definitions), (other, &theirs.definitions), &mut found);
    }
    let names: HashSet<&RelationName> = both.iter().map(|(one, _)| &one.name).collect();
    of_sequences(&names, &ours.sequences, (&theirs.sequences, &theirs.ends), &mut found);
    of_collations(&ours.collations, &theirs.collations, &mut found);
    Ok(found)
}

/// The chosen tables that both sides have, and those above them.
fn on_both<'a>(
    job: &Job,
    source: &'a Side,
    target: &'a Side,
) -> Result<Vec<(&'a Relation, &'a Relation)>> {
    let (ours, theirs) = (&source.catalog, &target.catalog);
    let chosen = job.selection.apply(ours)?;
    let mut names = HashSet::new();
    for relation in &chosen {
        names.insert(relation.name.clone());
        names.extend(ours.ancestors(relation).into_iter().cloned());
    }
    let of_target: HashMap<&RelationName, &Relation> =
        theirs.relations.iter().map(|relation| (&relation.name, relation)).collect();
    let ours = ours.relations.iter().filter(|relation| names.contains(&relation.name));
    Ok(ours.filter_map(|one| Some((one, *of_target.get(&one.name)?))).collect())
}

/// What one side declares.
struct Declared {
    definitions: Definitions,
    collations: Vec<CollationVersion>,
    sequences: Vec<Sequence>,
    /// The farthest values of the columns that own a sequence; of the target.
    ends: HashMap<RelationName, i64>,
}

async fn read(side: &Side, tables: &[Oid]) -> Result<Declared> {
    let version = side.catalog.server.version_num;
    let read = async |client: &Client| {
        Ok(Declared {
            definitions: read_definitions(client, tables).await?,
            collations: read_collation_versions(client, version, tables).await?,
            // Before the sequences: of what is written meanwhile the number is taken first.
            ends: match side.which {
                Which::Source => HashMap::new(),
                Which::Target => read_owned_ends(client, tables).await?,
            },
            sequences: read_sequences(client).await?,
        })
    };
    side.read(read).await
}

fn of_table(
    job: &Job,
    (source, ours): (&Relation, &Definitions),
    (target, theirs): (&Relation, &Definitions),
    found: &mut Vec<SchemaFinding>,
) {
    let table = &source.name;
    let is_compared = |definition: &&Definition| {
        !is_of_column(definition.kind) || has_both(job, source, target, &definition.name)
    };
    let [mut ours, mut theirs] = [(ours, source.oid), (theirs, target.oid)].map(|(all, oid)| {
        let of_table = all.get(&oid).into_iter().flatten();
        of_table.filter(is_compared).collect::<Vec<&Definition>>()
    });
    take(&mut ours, &mut theirs, |one, other| one == other);
    let renamed = take(&mut ours, &mut theirs, |one, other| {
        has_free_name(one.kind) && one.text == other.text
    });
    found.extend(renamed.into_iter().map(|(one, other)| {
        let kind = if one.kind == DefinitionKind::Index { "index-name" } else { "constraint-name" };
        let what = (kind, SchemaSeverity::Note);
        finding(table, what, &one.name, Some(&one.name), Some(&other.name))
    }));
    let others = take(&mut ours, &mut theirs, |one, other| one.name == other.name);
    found.extend(others.into_iter().map(|(one, other)| {
        let what = (words(one.kind)[2], severity(one.kind));
        finding(table, what, &one.name, Some(&one.text), Some(&other.text))
    }));
    found.extend(ours.into_iter().map(|one| {
        let what = (words(one.kind)[0], severity(one.kind));
        finding(table, what, &one.name, Some(&one.text), None)
    }));
    found.extend(theirs.into_iter().map(|other| {
        // An index more takes nothing away, unless it refuses rows.
        let is_harmless =
            other.kind == DefinitionKind::Index && !other.text.starts_with("CREATE UNIQUE");
        let severity = if is_harmless { SchemaSeverity::Note } else { severity(other.kind) };
        finding(table, (words(other.kind)[1], severity), &other.name, None, Some(&other.text))
    }));
    if source.replica_identity != target.replica_identity {
        let [ours, theirs] = [source, target].map(|side| identity_of(&side.replica_identity));
        let what = ("replica-identity", SchemaSeverity::Note);
        found.push(finding(table, what, "replica identity", Some(&ours), Some(&theirs)));
    }
}

/// Takes out of both what is the same thing, of one kind, on both sides.
fn take<'a>(
    ours: &mut Vec<&'a Definition>,
    theirs: &mut Vec<&'a Definition>,
    is_same: impl Fn(&Definition, &Definition) -> bool,
) -> Vec<(&'a Definition, &'a Definition)> {
    let mut taken = Vec::new();
    ours.retain(|one| {
        let same = |other: &&Definition| one.kind == other.kind && is_same(one, other);
        let place = theirs.iter().position(same);
        taken.extend(place.map(|at| (*one, theirs.remove(at))));
        place.is_none()
    });
    taken
}

/// Whether only what it says matters.
fn has_free_name(kind: DefinitionKind) -> bool {
    use DefinitionKind::{Constraint, Index, PrimaryKey};
    matches!(kind, PrimaryKey | Constraint | Index)
}

fn is_of_column(kind: DefinitionKind) -> bool {
    use DefinitionKind::{Default, Generated, Identity};
    matches!(kind, Default | Generated | Identity)
}

/// Whether a column was chosen and is on both sides; one that is not is told as such.
fn has_both(job: &Job, source: &Relation, target: &Relation, name: &str) -> bool {
    let options = job.tables.iter().find(|options| options.name == source.name);
    let chosen = options.and_then(|options| options.columns.as_ref());
    let has = |relation: &Relation| relation.columns.iter().any(|column| column.name == name);
    has(source) && has(target) && chosen.is_none_or(|chosen| chosen.iter().any(|c| c == name))
}

/// What the finding is called if the target lacks it, if it has it beside, and if it has another one.
fn words(kind: DefinitionKind) -> [&'static str; 3] {
    match kind {
        DefinitionKind::PrimaryKey => ["primary-key"; 3],
        DefinitionKind::Constraint => {
            ["constraint-missing", "constraint-extra", "constraint-definition"]
        }
        DefinitionKind::Index => ["index-missing", "index-extra", "index-definition"],
        DefinitionKind::Partitioning => ["partitioning"; 3],
        DefinitionKind::Default => ["column-default"; 3],
        DefinitionKind::Generated => ["column-generated"; 3],
        DefinitionKind::Identity => ["column-identity"; 3],
        DefinitionKind::RowSecurity => ["row-security"; 3],
        DefinitionKind::Policy => ["policy-missing", "policy-extra", "policy-definition"],
        DefinitionKind::Trigger => ["trigger-missing", "trigger-extra", "trigger-definition"],
        DefinitionKind::Rule => ["rule-missing", "rule-extra", "rule-definition"],
    }
}

fn severity(kind: DefinitionKind) -> SchemaSeverity {
    match kind {
        DefinitionKind::Trigger | DefinitionKind::Rule => SchemaSeverity::Note,
        _ => SchemaSeverity::Warning,
    }
}

fn identity_of(identity: &ReplicaIdentity) -> String {
    match identity {
        ReplicaIdentity::Default => "DEFAULT".to_owned(),
        ReplicaIdentity::Nothing => "NOTHING".to_owned(),
        ReplicaIdentity::Full => "FULL".to_owned(),
        ReplicaIdentity::Index(name) => format!("USING INDEX {name}"),
    }
}

/// The stream does not carry sequences. One that lags behind, or behind the rows, gives numbers out that rows have already.
fn of_sequences(
    tables: &HashSet<&RelationName>,
    ours: &[Sequence],
    (theirs, ends): (&[Sequence], &HashMap<RelationName, i64>),
    found: &mut Vec<SchemaFinding>,
) {
    let is_ours = |sequence: &&Sequence| {
        sequence.owned_by.as_ref().is_none_or(|(table, _)| tables.contains(table))
    };
    let of_target: HashMap<&RelationName, &Sequence> =
        theirs.iter().map(|sequence| (&sequence.name, sequence)).collect();
    let mut behind = HashSet::new();
    for source in ours.iter().filter(is_ours) {
        let Some(target) = of_target.get(&source.name) else {
            let value = Some(source.last_value.to_string());
            found.push(of_sequence(source, "sequence-missing", value, None));
            continue;
        };
        let (here, there) = (shape(source), shape(target));
        if here != there {
            found.push(of_sequence(source, "sequence-definition", Some(here), Some(there)));
        }
        let is_readable = source.can_select && target.can_select;
        if is_readable && source.has_handed_out(target.next()) {
            behind.insert(&target.name);
            let [ours, theirs] = [source, *target].map(|side| Some(side.last_value.to_string()));
            found.push(of_sequence(source, "sequence-behind", ours, theirs));
        }
    }
    for target in theirs.iter().filter(is_ours) {
        let Some(end) = ends.get(&target.name).filter(|_| target.can_select) else { continue };
        let is_told = behind.contains(&target.name);
        if !is_told && !target.has_handed_out(i128::from(*end)) {
            let column = target.owned_by.as_ref().map(|(_, column)| column.as_str());
            let holds = format!(
                "{} is handed out next, and {} holds {end}",
                target.next(),
                column.unwrap_or("its column")
            );
            found.push(of_sequence(target, "sequence-taken", None, Some(holds)));
        }
    }
}

fn of_sequence(
    sequence: &Sequence,
    kind: &'static str,
    source: Option<String>,
    target: Option<String>,
) -> SchemaFinding {
    let table = sequence.owned_by.as_ref().map(|(table, _)| table.clone());
    let object = sequence.name.plain();
    SchemaFinding { table, object, kind, severity: SchemaSeverity::Warning, source, target }
}

fn shape(sequence: &Sequence) -> String {
    let (least, greatest) = sequence.bounds;
    let cycle = if sequence.cycles { " CYCLE" } else { "" };
    format!("INCREMENT BY {} MINVALUE {least} MAXVALUE {greatest}{cycle}", sequence.increment)
}

/// Text that two libraries sort in two ways makes wrong indexes on one side, and other orders and ranges between the two.
fn of_collations(
    ours: &[CollationVersion],
    theirs: &[CollationVersion],
    found: &mut Vec<SchemaFinding>,
) {
    let about = |name: &str, (kind, severity), source, target| SchemaFinding {
        table: None,
        object: format!("collation {name}"),
        kind,
        severity,
        source,
        target,
    };
    for (which, all) in [(Which::Source, ours), (Which::Target, theirs)] {
        for version in all {
            let Some(recorded) = version.recorded.as_ref().filter(|was| **was != version.actual)
            else {
                continue;
            };
            let said = Some(format!("indexes made with {recorded}, now {}", version.actual));
            let (source, target) = if which == Which::Source { (said, None) } else { (None, said) };
            let what = ("collation-changed", SchemaSeverity::Warning);
            found.push(about(&version.name, what, source, target));
        }
    }
    for one in ours {
        let other = theirs.iter().find(|other| other.name == one.name);
        if let Some(other) = other.filter(|other| other.actual != one.actual) {
            let (source, target) = (Some(one.actual.clone()), Some(other.actual.clone()));
            let what = ("collation-version", SchemaSeverity::Note);
            found.push(about(&one.name, what, source, target));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(last_value: i64, is_called: bool, increment: i64) -> Sequence {
        Sequence {
            name: RelationName::new("public", "s"),
            last_value,
            is_called,
            increment,
            bounds: (i64::MIN, i64::MAX),
            cycles: false,
            owned_by: None,
            can_select: true,
        }
    }

    fn kinds(source: Sequence, target: Sequence, end: Option<i64>) -> Vec<&'static str> {
        let ends = end.map(|end| (target.name.clone(), end)).into_iter().collect();
        let mut found = Vec::new();
        of_sequences(&HashSet::new(), &[source], (&[target], &ends), &mut found);
        found.into_iter().map(|finding| finding.kind).collect()
    }

    #[test]
    fn a_sequence_is_held_against_the_other_by_what_it_hands_out_next() {
        let behind = vec!["sequence-behind"];
        assert_eq!(kinds(sequence(7, true, 1), sequence(7, true, 1), None), [""; 0]);
        assert_eq!(kinds(sequence(7, true, 1), sequence(8, true, 1), None), [""; 0]);
        assert_eq!(kinds(sequence(7, true, 1), sequence(6, true, 1), None), behind);
        // 7 was handed out on the source, and would be on the target.
        assert_eq!(kinds(sequence(7, true, 1), sequence(7, false, 1), None), behind);
        assert_eq!(kinds(sequence(7, true, 1), sequence(8, false, 1), None), [""; 0]);
        assert_eq!(kinds(sequence(-7, true, -1), sequence(-6, true, -1), None), behind);
        assert_eq!(kinds(sequence(-7, true, -1), sequence(-8, true, -1), None), [""; 0]);
        assert_eq!(kinds(sequence(i64::MAX, true, 1), sequence(1, true, 1), None), behind);
    }

    #[test]
    fn a_key_that_is_there_must_not_be_handed_out_again() {
        let taken = vec!["sequence-taken"];
        assert_eq!(kinds(sequence(7, true, 1), sequence(7, true, 1), Some(7)), [""; 0]);
        assert_eq!(kinds(sequence(7, true, 1), sequence(7, true, 1), Some(8)), taken);
        assert_eq!(kinds(sequence(7, false, 1), sequence(7, false, 1), Some(7)), taken);
        assert_eq!(kinds(sequence(-7, true, -1), sequence(-7, true, -1), Some(-7)), [""; 0]);
        assert_eq!(kinds(sequence(-7, true, -1), sequence(-7, true, -1), Some(-8)), taken);
        // Told once.
        let behind = kinds(sequence(9, true, 1), sequence(7, true, 1), Some(9));
        assert_eq!(behind, ["sequence-behind"]);
    }
}
