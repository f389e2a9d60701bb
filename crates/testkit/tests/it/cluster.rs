//! Starting, stopping, crashing, copying and cleaning up of real servers.

use std::time::{Duration, Instant};

use tidemark_testkit::{Auth, Cluster, Tls, Version, shared};

#[test]
fn a_cluster_starts_from_the_template_in_seconds() {
    drop(Cluster::start_default().unwrap());
    let before = Instant::now();
    let cluster = Cluster::start_default().unwrap();
    let took = before.elapsed();
    println!("start from the template took {took:?}");
    assert!(took < Duration::from_secs(20), "start took {took:?}");
    assert_eq!(cluster.psql("postgres", "SHOW wal_level").unwrap(), "logical");
    let version = cluster.psql("postgres", "SHOW server_version_num").unwrap();
    assert!(version.starts_with(&cluster.version().major().to_string()), "{version}");
}

#[test]
fn the_server_does_not_run_as_root() {
    let cluster = Cluster::start_default().unwrap();
    let line = std::fs::read_to_string(cluster.data_dir().join("postmaster.pid")).unwrap();
    let pid = line.lines().next().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let uid = status.lines().find(|l| l.starts_with("Uid:")).unwrap();
    assert_ne!(uid.split_whitespace().nth(1), Some("0"), "{uid}");
}

#[test]
fn settings_of_the_builder_win() {
    let cluster = Cluster::builder().setting("max_connections", "17").durable().start().unwrap();
    assert_eq!(cluster.psql("postgres", "SHOW max_connections").unwrap(), "17");
    assert_eq!(cluster.psql("postgres", "SHOW fsync").unwrap(), "on");
    cluster.configure_setting("work_mem", "7MB").unwrap();
    cluster.wait_for("postgres", "SHOW work_mem", "7MB").unwrap();
}

#[test]
fn a_wrong_setting_shows_the_end_of_the_log() {
    let error = Cluster::builder().setting("no_such_setting", "1").start().unwrap_err();
    assert!(format!("{error:#}").contains("no_such_setting"), "{error:#}");
}

#[test]
fn committed_rows_survive_every_way_of_stopping() {
    let cluster = Cluster::builder().durable().start().unwrap();
    cluster.psql("postgres", "CREATE TABLE t (i int)").unwrap();
    let stops: [fn(&Cluster) -> anyhow::Result<()>; 3] =
        [Cluster::stop_fast, Cluster::stop_immediate, Cluster::kill];
    for (index, stop) in stops.into_iter().enumerate() {
        cluster.psql("postgres", &format!("INSERT INTO t VALUES ({index})")).unwrap();
        stop(&cluster).unwrap();
        assert!(!cluster.is_running());
        assert!(cluster.psql("postgres", "SELECT 1").is_err(), "a stopped server answers");
        cluster.start().unwrap();
        let count = cluster.psql("postgres", "SELECT count(*) FROM t").unwrap();
        assert_eq!(count, (index + 1).to_string());
    }
}

#[test]
fn a_standby_follows_and_can_be_promoted() {
    let primary = Cluster::start_default().unwrap();
    primary.psql("postgres", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS i").unwrap();
    let standby = primary.standby().unwrap();
    primary.psql("postgres", "INSERT INTO t VALUES (1001)").unwrap();
    standby.wait_for_replay(&primary).unwrap();
    assert_eq!(standby.psql("postgres", "SELECT count(*) FROM t").unwrap(), "1001");
    assert!(standby.psql("postgres", "DELETE FROM t").is_err(), "a standby takes writes");
    standby.promote().unwrap();
    standby.psql("postgres", "DELETE FROM t").unwrap();
    assert_eq!(primary.psql("postgres", "SELECT count(*) FROM t").unwrap(), "1001");
}

#[test]
fn password_methods_refuse_the_wrong_password() {
    let cluster = Cluster::builder().auth(Auth::Scram).start().unwrap();
    let ask = |url: &str| {
        let mut psql = cluster.client_command("psql");
        psql.args(["-XAtqw", "-c", "SELECT 1", "-d", url]).output().unwrap().status.success()
    };
    assert!(ask(&cluster.url("postgres")));
    assert!(ask(&cluster.socket_url("postgres")));
    assert!(!ask(&cluster.url_as("postgres", "wrong", "postgres")));
}

#[test]
fn tls_is_checked_against_the_authority_of_the_test() {
    let tls = Tls::generate(&["localhost", "127.0.0.1"]).unwrap();
    let cluster = Cluster::builder().tls(tls.clone()).auth(Auth::Scram).start().unwrap();
    let ask = |ca: &str, mode: &str| {
        let path = cluster.scratch_dir().join("root.crt");
        std::fs::write(&path, ca).unwrap();
        let url =
            format!("{}?sslmode={mode}&sslrootcert={}", cluster.url("postgres"), path.display());
        let mut psql = cluster.client_command("psql");
        psql.args(["-XAtqw", "-c", "SELECT 1", "-d", &url]).output().unwrap().status.success()
    };
    assert!(ask(tls.ca_cert.as_deref().unwrap(), "verify-full"));
    let other = Tls::generate(&["localhost"]).unwrap();
    assert!(!ask(other.ca_cert.as_deref().unwrap(), "verify-full"));
    assert!(!ask(tls.ca_cert.as_deref().unwrap(), "disable"), "hostssl took plain TCP");
}

#[test]
fn shared_databases_are_fresh_each_time() {
    let one = shared().unwrap();
    one.psql("CREATE TABLE t (i int)").unwrap();
    let two = shared().unwrap();
    assert_ne!(one.name(), two.name());
    assert_eq!(two.psql("SELECT to_regclass('t') IS NULL").unwrap(), "t");
}

#[test]
fn databases_may_have_any_name_and_encoding() {
    let cluster = Cluster::start_default().unwrap();
    let name = r#"we"ird 'db' \x"#;
    cluster.create_database(name).unwrap();
    assert_eq!(cluster.psql(name, "SELECT current_database()").unwrap(), name);
    cluster
        .create_database_with("raw", "TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
        .unwrap();
    assert_eq!(cluster.psql("raw", "SHOW server_encoding").unwrap(), "SQL_ASCII");
    cluster.drop_database(name).unwrap();
}

#[test]
fn nothing_is_left_when_a_cluster_is_dropped() {
    let cluster = Cluster::start_default().unwrap();
    let directory = cluster.socket_dir();
    let pid = std::fs::read_to_string(cluster.data_dir().join("postmaster.pid")).unwrap();
    let process = format!("/proc/{}", pid.lines().next().unwrap());
    assert!(std::path::Path::new(&process).exists());
    drop(cluster);
    assert!(!directory.exists());
    assert!(!std::path::Path::new(&process).exists());
}

#[test]
fn nothing_is_left_when_the_test_process_is_killed() {
    // This test runs itself again as a child that starts a cluster and is then killed.
    if std::env::var_os("TESTKIT_VICTIM").is_some() {
        let cluster = Cluster::start_default().unwrap();
        println!("\nvictim {}", cluster.socket_dir().display());
        loop {
            std::thread::park();
        }
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "cluster::nothing_is_left_when_the_test_process_is_killed",
        ])
        .env("TESTKIT_VICTIM", "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let directory = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("victim ").map(str::to_owned))
        .expect("the victim names its directory");
    let directory = std::path::PathBuf::from(directory);
    let pid = std::fs::read_to_string(directory.join("data/postmaster.pid")).unwrap();
    let process = format!("/proc/{}", pid.lines().next().unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while directory.exists() || std::path::Path::new(&process).exists() {
        assert!(Instant::now() < end, "{} or {process} is still there", directory.display());
        std::thread::yield_now();
    }
}

#[test]
fn another_version_runs_beside_the_default() {
    let other = if Version::from_env() == Version::V18 { Version::V15 } else { Version::V18 };
    let cluster = Cluster::builder().version(other).start().unwrap();
    let default = Cluster::start_default().unwrap();
    let ask = |cluster: &Cluster| cluster.psql("postgres", "SHOW server_version_num").unwrap();
    assert_ne!(ask(&cluster)[..2], ask(&default)[..2]);
}

#[test]
fn a_new_enough_pg_dump_is_found_for_the_default_version() {
    let version = Version::from_env();
    let directory = version.client_dir().expect("scripts/setup installs pg_dump");
    let mut command = std::process::Command::new(directory.join("pg_dump"));
    let output = command.arg("--version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let major: u32 = text
        .split_whitespace()
        .find_map(|word| word.split('.').next()?.parse().ok())
        .expect("pg_dump prints its version");
    assert!(major >= version.major(), "{text}");
}
