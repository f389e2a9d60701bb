//! The roles of `docs/guides/least-privilege.md`: every statement of that page, performed, needed and enough.
//!
//! **Invariant:** the statements are read from the guide; a test that would pass with other ones proves nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;

use tidemark_testkit::{Cluster, Version};

use crate::support::{Job, Ran, wait_until};

const TABLES: &str = "
CREATE ROLE app_owner;
REVOKE ALL ON DATABASE shop FROM PUBLIC;
GRANT TEMPORARY ON DATABASE shop TO PUBLIC;
CREATE SCHEMA app AUTHORIZATION app_owner;
SET ROLE app_owner;
CREATE TABLE app.customer (id serial PRIMARY KEY, name text NOT NULL);
CREATE TABLE app.invoice (id bigint PRIMARY KEY, customer integer REFERENCES app.customer, total numeric(10, 2));";
const ROWS: &str = "
INSERT INTO app.customer (name) SELECT 'c' || i FROM generate_series(1, 50) i;
INSERT INTO app.invoice SELECT i, 1 + i % 50, i / 3.0 FROM generate_series(1, 500) i;";
const EXISTS: &str = "schema = \"exists\"\n";

/// The statements of one block of the guide.
fn guide(block: &str) -> Vec<String> {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/guides/least-privilege.md");
    let text = std::fs::read_to_string(path).unwrap();
    let fence = format!("```sql {block}\n");
    let (_, from) = text.split_once(&fence).unwrap_or_else(|| panic!("no block {block}"));
    let (sql, _) = from.split_once("```").unwrap();
    sql.lines().map(str::to_owned).collect()
}

/// Two servers, because roles belong to all of one.
struct Rig {
    source: Cluster,
    target: Cluster,
}

impl Rig {
    fn start(target_sql: &str) -> Self {
        let (source, target) =
            (Cluster::start_default().unwrap(), Cluster::start_default().unwrap());
        for cluster in [&source, &target] {
            cluster.create_database("shop").unwrap();
        }
        source.psql("shop", &format!("{TABLES}{ROWS}")).unwrap();
        target.psql("shop", target_sql).unwrap();
        Self { source, target }
    }

    fn job(&self, more: &str) -> Job {
        let source = self.source.url_as("mover", "x", "shop");
        let target = self.target.url_as("loader", "x", "shop");
        Job::new("roles", &source, &target).configured(more)
    }

    /// Performs the block's statements, each of which has to mend something that `check` finds before.
    fn grant(&self, cluster: &Cluster, job: &Job, check: &[&str], block: &str) {
        for statement in guide(block) {
            let before = rights(job, check);
            cluster.psql("shop", &statement).unwrap();
            // Nobody can ask for more before the role is there.
            if statement.starts_with("CREATE ROLE") {
                continue;
            }
            let after = rights(job, check);
            let mended: Vec<&String> = before.difference(&after).collect();
            assert!(
                !mended.is_empty(),
                "{statement} mends nothing of {before:?}, leaves {after:?}"
            );
        }
    }

    fn perform(&self, cluster: &Cluster, blocks: &[&str]) {
        for statement in blocks.iter().flat_map(|block| guide(block)) {
            cluster.psql("shop", &statement).unwrap();
        }
    }
}

/// What `check` says of rights: code, object and message.
fn rights(job: &Job, check: &[&str]) -> BTreeSet<String> {
    let ran = job.run(&[&["check", "--json"], check].concat());
    let Ok(serde_json::Value::Array(findings)) = serde_json::from_str(&ran.stdout) else {
        return BTreeSet::from([format!("exit {}", ran.code)]);
    };
    let is_right = |code: &str| {
        code.ends_with("-right")
            || ["owner", "target-create", "target-triggers", "target-origin"].contains(&code)
    };
    let told = findings.iter().map(|finding| {
        let part = |name: &str| finding[name].as_str().unwrap().to_owned();
        (part("code"), format!("{} {}: {}", part("code"), part("object"), part("message")))
    });
    told.filter(|(code, _)| is_right(code)).map(|(_, text)| text).collect()
}

/// No right is missing but those that let us see others.
fn assert_enough(job: &Job, check: &[&str]) {
    let left: Vec<String> =
        rights(job, check).into_iter().filter(|text| !text.starts_with("activity-right")).collect();
    assert!(left.is_empty(), "{left:?}");
    job.run(&[&["check"], check].concat()).expect(0);
}

fn same(rig: &Rig) {
    let rows = "SELECT md5(string_agg(c::text, ',' ORDER BY id)) FROM app.customer c \
        UNION ALL SELECT md5(string_agg(i::text, ',' ORDER BY id)) FROM app.invoice i \
        UNION ALL SELECT last_value::text FROM app.customer_id_seq";
    assert_eq!(rig.source.psql("shop", rows).unwrap(), rig.target.psql("shop", rows).unwrap());
}

const BASE: &str = "REVOKE ALL ON DATABASE shop FROM PUBLIC;";
const COPY: &[&str] = &["--snapshot-only"];

#[test]
fn a_copy_needs_the_statements_of_the_guide_and_no_other() {
    let rig = Rig::start(BASE);
    let job = rig.job("");
    rig.perform(&rig.target, &["target-create"]);
    rig.grant(&rig.source, &job, COPY, "source-copy");
    assert_enough(&job, COPY);
    job.sync(&[]).expect(0);
    same(&rig);
    job.run(&["verify", "--quiesced"]).expect(0);
    job.run(&["cleanup", "--yes"]).expect(0);
    rig.perform(&rig.source, &["after"]);
}

#[test]
fn each_right_on_an_empty_target_is_needed() {
    let rig = Rig::start(BASE);
    let job = rig.job("");
    rig.perform(&rig.source, &["source-copy"]);
    rig.grant(&rig.target, &job, COPY, "target-create");
    assert_enough(&job, COPY);
    job.sync(&[]).expect(0);
    same(&rig);
}

/// With the rights of a superuser for 14, where nobody else may switch triggers off.
fn follows(rig: &Rig, job: &Job) {
    assert_enough(job, &[]);
    job.run(&["sync", "--until", "now"]).expect(0);
    let change = "INSERT INTO app.customer (name) VALUES ('new'); UPDATE app.invoice SET total = 7 WHERE id < 9; \
        DELETE FROM app.invoice WHERE id = 20";
    rig.source.psql("shop", change).unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    let rows = "SELECT md5(string_agg(i::text, ',' ORDER BY id)) FROM app.invoice i";
    assert_eq!(rig.source.psql("shop", rows).unwrap(), rig.target.psql("shop", rows).unwrap());
    job.run(&["verify"]).expect(0);
    job.run(&["cleanup", "--yes"]).expect(0);
}

/// On 14 only a superuser may switch triggers off.
fn replica(rig: &Rig, job: &Job) {
    if Version::from_env() >= Version::V15 {
        rig.grant(&rig.target, job, &[], "target-replica");
    } else {
        rig.target.psql("shop", "ALTER ROLE loader SUPERUSER").unwrap();
    }
}

#[test]
fn following_needs_the_statements_of_the_guide_and_no_other() {
    let rig = Rig::start(BASE);
    let job = rig.job("");
    rig.perform(&rig.source, &["source-copy"]);
    rig.perform(&rig.target, &["target-create"]);
    rig.grant(&rig.target, &job, &[], "target-origin");
    replica(&rig, &job);
    rig.grant(&rig.source, &job, &[], "source-follow");
    rig.grant(&rig.source, &job, &[], "source-see");
    follows(&rig, &job);
}

#[test]
fn a_publication_of_the_owners_lets_a_role_follow_that_may_only_read() {
    let rig = Rig::start(&format!("{TABLES} RESET ROLE; {BASE}"));
    let job = rig.job(EXISTS).of_source("publication = \"by_dba\"");
    rig.perform(&rig.source, &["source-copy", "source-given"]);
    rig.grant(&rig.target, &job, &[], "target-exists");
    rig.grant(&rig.target, &job, &[], "target-origin");
    replica(&rig, &job);
    follows(&rig, &job);
    let writes = "SELECT bool_or(has_table_privilege('mover', c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')) \
        FROM pg_class c WHERE relnamespace = 'app'::regnamespace AND relkind = 'r'";
    assert_eq!(rig.source.psql("shop", writes).unwrap(), "f");
}

#[test]
fn verifying_and_repairing_two_databases_need_what_the_guide_says() {
    let rig = Rig::start(&format!("{TABLES}{ROWS} RESET ROLE; {BASE}"));
    let job = rig.job(EXISTS);
    rig.perform(&rig.source, &["source-copy"]);
    rig.perform(&rig.target, &["target-verify"]);
    job.run(&["verify", "--quiesced"]).expect(0);
    rig.target
        .psql(
            "shop",
            "UPDATE app.invoice SET total = -1 WHERE id = 7; DELETE FROM app.invoice WHERE id = 8",
        )
        .unwrap();
    let report = |name: &str| -> Ran { job.run(&["verify", "--quiesced", "--report", name]) };
    report("first").expect(1);
    job.run(&["repair", "first"]).expect(0);
    job.run(&["repair", "first", "--apply"]).expect(7);
    let statements = guide("target-repair");
    let may_grant_set = Version::from_env() >= Version::V15;
    for statement in statements.iter().filter(|text| may_grant_set || !text.contains("PARAMETER")) {
        rig.target.psql("shop", statement).unwrap();
    }
    if !may_grant_set {
        rig.target.psql("shop", "ALTER ROLE loader SUPERUSER").unwrap();
    }
    job.run(&["repair", "first", "--apply"]).expect(0);
    report("second").expect(0);
    same(&rig);
}

/// A session of an application that has nothing to do.
struct Idle(std::process::Child);

impl Idle {
    fn start(cluster: &Cluster) -> Self {
        let mut command = cluster.psql_command("shop");
        command.args(["-U", "app_user", "-c", "SELECT pg_sleep(600)"]);
        let null = std::process::Stdio::null;
        let child = command.stdout(null()).stderr(null()).spawn().unwrap();
        let there = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app_user'";
        wait_until("the application is connected", || cluster.psql("shop", there).unwrap() != "0");
        Self(child)
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn going_over_and_back_needs_the_statements_of_the_guide_and_no_other() {
    if Version::from_env() < Version::V15 {
        // Nobody but a superuser may write past triggers there.
        return;
    }
    let rig = Rig::start(BASE);
    let job = rig.job("");
    for cluster in [&rig.source, &rig.target] {
        cluster
            .psql("shop", "CREATE ROLE app_user LOGIN; GRANT CONNECT ON DATABASE shop TO app_user")
            .unwrap();
    }
    rig.perform(&rig.source, &["source-copy", "source-follow"]);
    rig.perform(&rig.target, &["target-create", "target-origin", "target-replica"]);
    job.run(&["sync", "--until", "now"]).expect(0);
    let mut refused = BTreeSet::new();
    let mut grant = |way: &str, left: &Cluster, statements: &[(&Cluster, &String)]| {
        let _application = Idle::start(left);
        for (cluster, statement) in statements {
            let ran = job.run(&[way, "--dry-run"]);
            assert_eq!(ran.code, 5, "{statement} mends nothing: {}", ran.stderr);
            refused.insert(ran.stderr);
            cluster.psql("shop", statement).unwrap();
        }
        job.run(&[way]).expect(0);
    };
    let (of_source, of_target) = (guide("cutover-source"), guide("cutover-target"));
    let [replication, owner, sessions] = of_target.as_slice() else { panic!("{of_target:?}") };
    rig.target.psql("shop", replication).unwrap();
    // What the fence of the way back needs is wanted before the way there.
    let [own_source, end_sessions, back @ ..] = of_source.as_slice() else {
        panic!("{of_source:?}")
    };
    let mut over =
        vec![(&rig.source, own_source), (&rig.source, end_sessions), (&rig.target, owner)];
    over.extend(back.iter().map(|statement| (&rig.source, statement)));
    grant("cutover", &rig.source, &over);
    rig.target.psql("shop", "INSERT INTO app.customer (name) VALUES ('there')").unwrap();
    grant("fallback", &rig.target, &[(&rig.target, sessions)]);
    let there = "SELECT count(*) FROM app.customer WHERE name = 'there'";
    assert_eq!(rig.source.psql("shop", there).unwrap(), "1");
    rig.target
        .psql("shop", "SET default_transaction_read_only = off; ALTER ROLE loader NOREPLICATION")
        .unwrap();
    refused.insert(job.run(&["cutover", "--dry-run"]).expect(5).stderr);
    assert_eq!(refused.len(), 6, "each is told in its own words: {refused:#?}");
}
