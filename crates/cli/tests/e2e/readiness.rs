//! What `check` says of both sides together, and that what it names as the way out is one.

use serde_json::Value;
use tidemark_testkit::{Cluster, shared};

use crate::follow::Pair;
use crate::support::Job;

const EXISTS: &str = "schema = \"exists\"\n";
/// As `check` begins what has to be said on the target.
const ON_TARGET: &str = "on the target: ";

struct Found(Vec<Value>);

impl Found {
    fn by(job: &Job, more: &[&str]) -> Self {
        let ran = job.run(&[&["check", "--json"], more].concat());
        let found = serde_json::from_str(&ran.stdout);
        Self(found.unwrap_or_else(|_| panic!("exit {}: {}", ran.code, ran.stderr)))
    }

    fn has(&self, code: &str) -> bool {
        self.0.iter().any(|finding| finding["code"] == code)
    }

    #[track_caller]
    fn the(&self, code: &str, severity: &str) -> &Value {
        let found = self.0.iter().find(|finding| finding["code"] == code);
        let found = found.unwrap_or_else(|| panic!("no {code} in {:?}", self.0));
        assert_eq!(found["severity"], severity, "{found}");
        found
    }

    #[track_caller]
    fn fix(&self, code: &str, severity: &str) -> &str {
        self.the(code, severity)["fix"].as_str().unwrap()
    }
}

#[test]
fn what_in_the_targets_definitions_may_refuse_rows_is_told_and_mended_by_its_fix() {
    let (source, target) = (shared().unwrap(), shared().unwrap());
    source
        .psql("CREATE TABLE t (id int PRIMARY KEY, a int, note text); CREATE TABLE plain (id int PRIMARY KEY); \
               CREATE UNIQUE INDEX ON t (lower(note)); INSERT INTO t VALUES (1, 2, 'x')")
        .unwrap();
    target
        .psql("CREATE UNLOGGED TABLE t (id int PRIMARY KEY, a int, note text, CONSTRAINT few CHECK (a < 2)); \
               CREATE UNIQUE INDEX ON t (lower(note)); CREATE UNIQUE INDEX one_a ON t (a); \
               CREATE TABLE plain (id int); \
               CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
               CREATE TRIGGER eats BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION nothing(); \
               ALTER TABLE t ENABLE ALWAYS TRIGGER eats")
        .unwrap();
    let job = Job::new("refusals", &source.url(), &target.url()).configured(EXISTS);
    let found = Found::by(&job, &[]);
    let codes = [
        "target-unique-extra",
        "target-check-extra",
        "target-unlogged",
        "target-key-missing",
        "target-trigger-fires",
    ];
    for code in codes {
        let fix = found.fix(code, "warning");
        target.psql(fix.strip_prefix(ON_TARGET).unwrap()).unwrap();
    }
    assert!(found.the("target-unique-extra", "warning")["message"].to_string().contains("one_a"));
    let after = Found::by(&job, &[]);
    for code in codes {
        assert!(!after.has(code), "{code}: {:?}", after.0);
    }
    let deferrable = "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id) DEFERRABLE";
    target.psql(deferrable).unwrap();
    Found::by(&job, &[]).the("target-deferrable-key", "warning");
}

#[test]
fn a_trigger_that_comes_with_the_schema_and_fires_on_replicas_is_told() {
    let (source, target) = (shared().unwrap(), shared().unwrap());
    source
        .psql("CREATE TABLE t (id int PRIMARY KEY); \
               CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
               CREATE TRIGGER plain BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION nothing(); \
               CREATE TRIGGER copies BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION nothing(); \
               ALTER TABLE t ENABLE REPLICA TRIGGER copies")
        .unwrap();
    let job = Job::new("comes", &source.url(), &target.url());
    let found = Found::by(&job, &["--snapshot-only"]);
    let finding = found.the("target-trigger-fires", "warning").to_string();
    assert!(finding.contains("copies") && !finding.contains("plain"), "{finding}");
    // Where triggers fire as for anybody else, it is the other one.
    let job = Job::new("comes", &source.url(), &target.url()).configured("triggers = \"as-is\"\n");
    let found = Found::by(&job, &["--snapshot-only"]);
    let finding = found.the("target-trigger-fires", "note").to_string();
    assert!(finding.contains("plain") && !finding.contains("copies"), "{finding}");
}

#[test]
fn row_security_and_somebody_elses_record_on_the_target_block_a_plain_role() {
    let (source, target) = (shared().unwrap(), Cluster::start_default().unwrap());
    source.psql("CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    target.create_database("shop").unwrap();
    target
        .psql("shop", "CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t ENABLE ROW LEVEL SECURITY; \
               CREATE ROLE \"re corder\"; CREATE SCHEMA tidemark AUTHORIZATION \"re corder\"; \
               CREATE ROLE loader LOGIN; GRANT CREATE ON DATABASE shop TO loader; GRANT ALL ON t TO loader")
        .unwrap();
    let job = Job::new("plainly", &source.url(), &target.url_as("loader", "x", "shop"));
    let job = job.configured(EXISTS);
    let found = Found::by(&job, &["--snapshot-only"]);
    target.psql("shop", found.fix("target-record-right", "blocking")).unwrap();
    let found = Found::by(&job, &["--snapshot-only"]);
    let row_security = found.fix("target-row-security", "blocking");
    target.psql("shop", row_security.strip_prefix(ON_TARGET).unwrap()).unwrap();
    found.the("target-owner", "note");
    let after = Found::by(&job, &["--snapshot-only"]);
    assert!(
        !after.has("target-record-right") && !after.has("target-row-security"),
        "{:?}",
        after.0
    );
}

#[test]
fn extensions_are_compared_by_version_and_by_who_may_create_them() {
    let (source, target) = (Cluster::start_default().unwrap(), Cluster::start_default().unwrap());
    for cluster in [&source, &target] {
        cluster.create_database("shop").unwrap();
    }
    source
        .psql("shop", "CREATE EXTENSION citext; CREATE EXTENSION pageinspect; CREATE TABLE t (id citext PRIMARY KEY)")
        .unwrap();
    target
        .psql(
            "shop",
            "CREATE EXTENSION citext VERSION '1.4'; CREATE ROLE loader LOGIN; \
               GRANT CREATE ON DATABASE shop TO loader; GRANT ALL ON SCHEMA public TO loader",
        )
        .unwrap();
    let job = |url: &str| Job::new("parts", &source.url("shop"), url);
    let plain = job(&target.url_as("loader", "x", "shop"));
    let found = Found::by(&plain, &["--snapshot-only"]);
    assert!(found.the("target-extension-older", "warning").to_string().contains("citext"));
    let (_, update) = found.fix("target-extension-older", "warning").split_once(": ").unwrap();
    let (_, create) = found.fix("target-extension-right", "blocking").split_once(": ").unwrap();
    assert_eq!(create, "CREATE EXTENSION \"pageinspect\"");
    for statement in [update, create] {
        target.psql("shop", statement).unwrap();
    }
    let after = Found::by(&plain, &["--snapshot-only"]);
    for code in ["target-extension-older", "target-extension-right", "target-extension"] {
        assert!(!after.has(code), "{code}: {:?}", after.0);
    }
    // One that no server has.
    let columns = "oid, extname, extowner, extnamespace, extrelocatable, extversion";
    source
        .psql("shop", &format!("INSERT INTO pg_extension ({columns}) VALUES (99999, 'nowhere', 10, 11, true, '1.0')"))
        .unwrap();
    let found = Found::by(&job(&target.url("shop")), &["--snapshot-only"]);
    assert!(found.the("target-extension", "blocking").to_string().contains("nowhere"));
}

#[test]
fn an_outdated_collation_is_told_until_it_is_refreshed() {
    let (source, target) = (shared().unwrap(), shared().unwrap());
    source
        .psql("CREATE COLLATION german (provider = icu, locale = 'de'); CREATE TABLE t (a text COLLATE german PRIMARY KEY); \
               UPDATE pg_collation SET collversion = '1.1' WHERE collname = 'german'")
        .unwrap();
    let job = Job::new("sorts", &source.url(), &target.url());
    let found = Found::by(&job, &["--snapshot-only"]);
    let (_, refresh) = found.fix("collation-version", "warning").split_once("then ").unwrap();
    source.psql(refresh).unwrap();
    assert!(!Found::by(&job, &["--snapshot-only"]).has("collation-version"));
}

#[test]
fn one_database_is_no_pair_and_a_spool_needs_its_room() {
    let source = shared().unwrap();
    source.psql("CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let limits = "schema = \"exists\"\n[limits]\nspool = \"900TiB\"\n";
    let job = Job::new("alone", &source.url(), &source.url()).configured(limits);
    let found = Found::by(&job, &[]);
    found.the("same-database", "blocking");
    assert!(found.fix("state-space", "warning").starts_with("limits.spool = \""));
    assert!(!Found::by(&job, &["--snapshot-only"]).has("state-space"));
    job.run(&["sync", "--until", "now"]).expect(5);
}

#[test]
fn a_target_of_few_connections_or_with_standbys_to_wait_for_is_told() {
    let source = shared().unwrap();
    source.psql("CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let target = Cluster::builder()
        .setting("max_connections", "6")
        .setting("synchronous_standby_names", "away")
        .setting("synchronous_commit", "off")
        .start()
        .unwrap();
    target.create_database("shop").unwrap();
    target.psql("postgres", "ALTER ROLE postgres SET synchronous_commit = on").unwrap();
    let job = Job::new("narrow", &source.url(), &target.url("shop"));
    let found = Found::by(&job, &["--snapshot-only"]);
    found.the("target-connections", "blocking");
    assert!(found.the("target-synchronous", "note").to_string().contains("away"));
}

#[test]
fn a_role_that_may_not_connect_is_told_the_grant_for_either_side() {
    let cluster = Cluster::start_default().unwrap();
    for database in ["from", "to"] {
        cluster.create_database(database).unwrap();
        let sql = format!("REVOKE CONNECT ON DATABASE \"{database}\" FROM PUBLIC");
        cluster.psql("postgres", &sql).unwrap();
    }
    cluster.psql("from", "CREATE TABLE t (id int PRIMARY KEY); CREATE ROLE walker LOGIN; GRANT SELECT ON t TO walker").unwrap();
    let url = |database: &str| cluster.url_as("walker", "x", database);
    let job = Job::new("doors", &url("from"), &url("to"));
    for (side, database) in [("source", "from"), ("target", "to")] {
        let found = Found::by(&job, &["--snapshot-only"]);
        assert_eq!(found.the("connect-right", "blocking")["object"], side);
        job.sync(&[]).expect(5).says(&["GRANT CONNECT", database]);
        cluster.psql("postgres", found.fix("connect-right", "blocking")).unwrap();
    }
    assert!(!Found::by(&job, &["--snapshot-only"]).has("connect-right"));
}

#[test]
fn the_jobs_own_slot_between_two_runs_is_nobodys_leftover() {
    let pair = Pair::new("between");
    let job = pair.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.source.psql("SELECT pg_create_physical_replication_slot('left_between', true)").unwrap();
    let found = Found::by(&job, &[]);
    pair.source.psql("SELECT pg_drop_replication_slot('left_between')").unwrap();
    let left: Vec<&Value> =
        found.0.iter().filter(|finding| finding["code"] == "slot-left").collect();
    let objects: Vec<String> = left.iter().map(|finding| finding["object"].to_string()).collect();
    assert!(objects.iter().any(|object| object.contains("left_between")), "{objects:?}");
    assert!(!objects.iter().any(|object| object.contains("tidemark_between")), "{objects:?}");
}
