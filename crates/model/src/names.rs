//! The names that a job gives to its objects on a server.
//!
//! **Invariant:** every name is a function of the job's (and wave's) name alone, so that a later run, `cleanup` and a person
//! find the same objects; `-` becomes `_`, which no job's name holds, so that two jobs never share an object. An origin
//! belongs to the whole cluster although a job belongs to one database: its name has that database's OID, too.

use crate::Oid;

/// The replication slot of a job.
pub fn slot_name(job: &str) -> String {
    object_name(job)
}

/// The publication of a job.
pub fn publication_name(job: &str) -> String {
    object_name(job)
}

/// The replication origin of a job in the database of this OID; no job's name has an `@`.
pub fn origin_name(job: &str, database: Oid) -> String {
    format!("{}@{database}", object_name(job))
}

/// What the name of the job that goes the other way ends with; as in the objects, which have `__back`.
const BACK: &str = "--back";

/// The job that goes the other way: from its target to its source.
pub fn other_way(job: &str) -> String {
    job.strip_suffix(BACK).map_or_else(|| format!("{job}{BACK}"), str::to_owned)
}

/// The job of a wave of a job: no job's own name has two dashes in a row that stand for something else.
pub fn wave_job(job: &str, wave: &str) -> String {
    format!("{job}--{wave}")
}

/// The wave of that name is the one of all tables that no other wave names.
pub const REST: &str = "rest";

/// Whether a wave of that name would have the objects of the job that goes the other way.
pub fn is_taken(wave: &str) -> bool {
    wave_job("", wave) == BACK
}

/// What keeps writes out of the tables of a wave, in the schema `tidemark` of the side that was left.
pub fn fence_function(job: &str) -> String {
    format!("fence_{}", job.replace('-', "_"))
}

/// The key of the advisory lock under which what is in our schema on a server is made and taken away.
pub const OUR_SCHEMA_LOCK: i64 = 7_490_117;

/// The key of the advisory lock under which the waves of a job make their parts of the schema, one after the other.
pub fn schema_lock_key(job: &str) -> i64 {
    advisory_lock_key(&wave_job(job, ""))
}

/// The most lanes that a PostgreSQL target may have (`stream.lanes`).
pub const LANES_MAX: usize = 32;

/// The replication origin of a lane beside the first one, which has the job's own; no other name has an `@` and a `.`.
pub fn origin_name_of_lane(job: &str, database: Oid, lane: usize) -> String {
    format!("{}.{lane}", origin_name(job, database))
}

/// Every origin of a job in a database: its own and those that its lanes may have.
pub fn origin_names(job: &str, database: Oid) -> Vec<String> {
    let lanes = (1..LANES_MAX).map(|lane| origin_name_of_lane(job, database, lane));
    std::iter::once(origin_name(job, database)).chain(lanes).collect()
}

/// The origin as the first version named it, without the database: its commits may still be in somebody's WAL.
pub fn origin_name_of_old(job: &str) -> String {
    object_name(job)
}

/// What the schemas of self-tests begin with; no such schema is ever moved or counted as the user's.
pub const SELFTEST_SCHEMAS: &str = "tidemark_selftest_";

/// The schema on the target in which a job's `verify selftest` works.
pub fn selftest_schema(job: &str) -> String {
    format!("{SELFTEST_SCHEMAS}{}", job.replace('-', "_"))
}

/// What our sessions call themselves, so that a DBA and a later run know them.
pub fn application_name(job: &str) -> String {
    object_name(job)
}

/// The key of the advisory lock that a running job holds on its target: FNV-1a over the job's object name, so that it is
/// the same on every machine and in every version.
pub fn advisory_lock_key(job: &str) -> i64 {
    let hash = object_name(job).bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    i64::from_ne_bytes(hash.to_ne_bytes())
}

fn object_name(job: &str) -> String {
    format!("tidemark_{}", job.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_become_underscores_and_the_names_agree() {
        assert_eq!(slot_name("my-shop"), "tidemark_my_shop");
        assert_eq!(publication_name("my-shop"), origin_name_of_old("my-shop"));
    }

    #[test]
    fn origins_of_one_job_in_two_databases_are_two() {
        assert_eq!(origin_name("my-shop", 16_384), "tidemark_my_shop@16384");
        assert_ne!(origin_name("shop", 16_384), origin_name("shop", 16_385));
        assert_ne!(origin_name("shop", 16_384), origin_name_of_old("shop-16384"));
    }

    #[test]
    fn the_way_back_of_the_way_back_is_the_way() {
        assert_eq!(slot_name(&other_way("my-shop")), "tidemark_my_shop__back");
        assert_eq!(other_way(&other_way("my-shop")), "my-shop");
    }

    #[test]
    fn a_wave_has_objects_of_its_own_in_both_directions() {
        let wave = wave_job("my-shop", "first-ten");
        assert_eq!(slot_name(&wave), "tidemark_my_shop__first_ten");
        assert_eq!(slot_name(&other_way(&wave)), "tidemark_my_shop__first_ten__back");
        assert_eq!(other_way(&other_way(&wave)), wave);
        assert!(is_taken("back") && !is_taken("pilot"));
        assert_ne!(schema_lock_key("shop"), advisory_lock_key("shop"));
        let longest = slot_name(&other_way(&wave_job(&"j".repeat(20), &"w".repeat(20))));
        assert!(longest.len() < 64, "{longest} would be cut");
    }

    #[test]
    fn each_lane_has_an_origin_of_its_own() {
        let names = origin_names("shop", 7);
        assert_eq!(
            (names[0].as_str(), names[1].as_str()),
            ("tidemark_shop@7", "tidemark_shop@7.1")
        );
        assert_eq!(names.iter().collect::<std::collections::HashSet<_>>().len(), LANES_MAX);
    }

    #[test]
    fn the_advisory_key_never_changes_between_versions() {
        assert_eq!(advisory_lock_key("shop"), 7_130_197_123_329_271_021);
        assert_ne!(advisory_lock_key("shop"), advisory_lock_key("shop2"));
    }
}
