//! Getting in, being kept out, and what the session looks like then.

use tidemark_wire::{Disposition, Error, Mode};

use crate::cluster::{PASSWORD, cluster, spec};

/// Settings whose values a hostile database and role try to change.
const PINNED: &[(&str, &str)] = &[
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("xmloption", "content"),
    ("search_path", ""),
    ("row_security", "off"),
    ("quote_all_identifiers", "off"),
    ("standard_conforming_strings", "on"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("client_connection_check_interval", "10s"),
    // Not pinned: a read-only target must be noticed.
    ("default_transaction_read_only", "on"),
];

const HOSTILE: &str = "
alter database hostile set datestyle = 'German, DMY';
alter database hostile set intervalstyle = 'iso_8601';
alter database hostile set timezone = 'Asia/Kathmandu';
alter database hostile set extra_float_digits = -5;
alter database hostile set bytea_output = 'escape';
alter database hostile set xmloption = 'document';
alter database hostile set search_path = 'evil, public';
alter database hostile set client_encoding = 'LATIN1';
alter database hostile set statement_timeout = '1h';
alter database hostile set idle_session_timeout = '1h';
alter database hostile set default_transaction_read_only = on;
alter role hostile_user set row_security = on;
alter role hostile_user set quote_all_identifiers = on;
alter role hostile_user set standard_conforming_strings = off;
alter role hostile_user set lock_timeout = '1h';
alter role hostile_user set idle_in_transaction_session_timeout = '1h';
alter role hostile_user set client_connection_check_interval = '1h';
";

#[tokio::test]
async fn hostile_defaults_of_database_and_role_change_no_setting_on_any_kind_of_connection() {
    let cluster = cluster();
    cluster.psql("postgres", "create role hostile_user login superuser replication");
    cluster.psql("postgres", "create database hostile");
    cluster.psql("postgres", HOSTILE);
    let spec = spec(&format!(
        "host={} port={} user=hostile_user dbname=hostile options='-c geqo=off -c DateStyle=SQL'",
        cluster.socket_dir(),
        cluster.port
    ));
    let client = spec.connect().await.unwrap();
    let mut sql = spec.connect_raw(Mode::Sql).await.unwrap();
    let mut replication = spec.connect_raw(Mode::Replication).await.unwrap();
    for (name, expected) in PINNED.iter().chain(&[("geqo", "off")]) {
        let statement = format!("show {name}");
        let by_client: String = client.query_one(&statement, &[]).await.unwrap().get(0);
        let by_sql = sql.simple_query(&statement).await.unwrap();
        let by_replication = replication.simple_query(&statement).await.unwrap();
        assert_eq!(by_client.trim_matches('"'), *expected, "{name} by tokio_postgres");
        assert_eq!(by_sql, [[Some(by_client.clone())]], "{name} by our own client");
        assert_eq!(by_replication, [[Some(by_client)]], "{name} by a walsender");
    }
    client.close().await;
    sql.close().await;
    replication.close().await;
}

#[tokio::test]
async fn both_kinds_of_connection_tell_version_process_and_parameters() {
    let spec = cluster().unix();
    let client = spec.connect().await.unwrap();
    let mut raw = spec.connect_raw(Mode::Sql).await.unwrap();
    let row = client
        .query_one("select pg_backend_pid(), current_setting('server_version_num')::int", &[])
        .await
        .unwrap();
    assert_eq!(client.backend_pid(), row.get::<_, i32>(0));
    assert_eq!(i64::from(client.server_version_num()), i64::from(row.get::<_, i32>(1)));
    assert_eq!(client.server_version_num(), raw.server_version_num());
    assert_eq!(client.parameter("server_encoding"), Some("UTF8"));
    assert_eq!(raw.parameter("in_hot_standby"), Some("off"));
    let pid = raw.simple_query("select pg_backend_pid()").await.unwrap();
    assert_eq!(pid, [[Some(raw.backend_pid().to_string())]]);
}

#[tokio::test]
async fn every_way_of_saying_the_password_works_where_it_is_safe() {
    let cluster = cluster();
    for (user, more) in [
        ("scram_user", "sslmode=disable"),
        ("scram_user", "sslmode=require channel_binding=require"),
        ("scram_user", "sslmode=require channel_binding=disable"),
        ("md5_user", "sslmode=disable"),
        ("md5_user", "sslmode=require"),
        ("cleartext_user", "sslmode=require"),
    ] {
        let spec = cluster.tcp(user, &format!("{more} password='{PASSWORD}'"));
        let client = spec.connect().await.unwrap_or_else(|error| panic!("{user} {more}: {error}"));
        let name: String = client.query_one("select current_user::text", &[]).await.unwrap().get(0);
        assert_eq!(name, user);
        spec.connect_raw(Mode::Sql).await.unwrap().close().await;
    }
    let socket = spec(&format!(
        "host={} port={} user=cleartext_user dbname=postgres password='{PASSWORD}'",
        cluster.socket_dir(),
        cluster.port
    ));
    socket.connect().await.unwrap();
}

#[tokio::test]
async fn scram_plus_is_what_the_server_sees_when_both_sides_can() {
    let spec = cluster().tcp("scram_user", &format!("sslmode=require password='{PASSWORD}'"));
    let client = spec.connect().await.unwrap();
    let tls: bool = client
        .query_one("select ssl from pg_stat_ssl where pid = pg_backend_pid()", &[])
        .await
        .unwrap()
        .get(0);
    assert!(tls);
    for impossible in ["sslmode=disable", "sslmode=require"] {
        let user = if impossible == "sslmode=disable" { "scram_user" } else { "md5_user" };
        let more = format!("{impossible} channel_binding=require password='{PASSWORD}'");
        let error = cluster().tcp(user, &more).connect().await.unwrap_err();
        assert!(error.is_authentication(), "{error}");
    }
}

/// Everything that a person or a log could see of an error.
fn all_of(error: &Error) -> String {
    let mut text = format!("{error} {error:?} {error:#?} {:?}", error.hint());
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text.push_str(&format!("{inner} {inner:?}"));
        source = inner.source();
    }
    text
}

#[tokio::test]
async fn every_ordinary_mistake_has_its_name_its_way_out_and_no_password() {
    let cluster = cluster();
    let port = cluster.port;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let at = |user: &str, host: &str, port: u16, more: &str| {
        spec(&format!("host={host} port={port} user={user} password='S3cr3t-wrong' {more}"))
    };
    type Question = fn(&Error) -> bool;
    let cases: [(_, Question, Disposition, &str); 7] = [
        (
            at("scram_user", "127.0.0.1", port, "dbname=postgres"),
            Error::is_authentication,
            Disposition::Usage,
            "PGPASSWORD",
        ),
        (
            at("nobody_here", "127.0.0.1", port, "dbname=postgres"),
            Error::is_authentication,
            Disposition::Usage,
            "pg_hba.conf",
        ),
        (
            at("trust_user", "127.0.0.1", port, "dbname=nowhere"),
            Error::is_unknown_database,
            Disposition::Usage,
            "case-sensitive",
        ),
        (
            at("me", "no-such-host.invalid", port, ""),
            Error::is_unreachable,
            Disposition::Unreachable,
            "host name",
        ),
        (
            at("me", "127.0.0.1", free, ""),
            Error::is_unreachable,
            Disposition::Unreachable,
            "listen",
        ),
        (
            at("me", "/tmp/no-such-directory", port, ""),
            Error::is_unreachable,
            Disposition::Unreachable,
            "socket",
        ),
        (
            at("cleartext_user", "127.0.0.1", port, "dbname=postgres sslmode=disable"),
            Error::is_authentication,
            Disposition::Usage,
            "sslmode",
        ),
    ];
    for (spec, question, disposition, hint) in cases {
        for error in [
            spec.connect().await.unwrap_err(),
            spec.connect_raw(Mode::Replication).await.unwrap_err(),
        ] {
            assert!(question(&error), "{spec}: {error}");
            assert_eq!(error.disposition(), disposition, "{spec}: {error}");
            assert!(error.hint().unwrap_or_default().contains(hint), "{spec}: {:?}", error.hint());
            assert!(error.to_string().starts_with(&format!("connect to {spec}: ")), "{error}");
            assert!(!all_of(&error).contains("S3cr3t"), "{error:?}");
        }
    }
    let error = cluster.tcp("scram_user", "").connect().await.unwrap_err();
    assert!(error.to_string().contains("none was given"), "{error}");
}

#[tokio::test]
async fn a_statement_error_keeps_the_connection_and_shows_no_value() {
    let mut raw = cluster().unix().connect_raw(Mode::Sql).await.unwrap();
    let error = raw.simple_query("select 'S3cr3t'::int").await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("22P02"));
    assert!(!all_of(&error).contains("S3cr3t"), "{error:?}");
    let rows = raw.simple_query("select 1; select null; select 'ü'").await.unwrap();
    assert_eq!(rows, [[Some("1".to_owned())], [None], [Some("ü".to_owned())]]);

    let client = cluster().unix().connect().await.unwrap();
    let error = client.batch_execute("select 'S3cr3t'::int").await.unwrap_err();
    let error = Error::sql("run a test")(error);
    assert_eq!(error.sqlstate(), Some("22P02"));
    assert!(!all_of(&error).contains("S3cr3t"), "{error:?}");
}

#[tokio::test]
async fn a_terminated_backend_is_a_closed_connection_that_may_be_retried() {
    let spec = cluster().unix();
    let admin = spec.connect().await.unwrap();
    let mut raw = spec.connect_raw(Mode::Sql).await.unwrap();
    let pid = raw.backend_pid();
    admin.execute("select pg_terminate_backend($1, 10000)", &[&pid]).await.unwrap();
    let error = raw.simple_query("select 1").await.unwrap_err();
    assert!(error.is_closed(), "{error}");
    assert_eq!(error.disposition(), Disposition::Retry);
}

#[tokio::test]
async fn target_session_attrs_are_obeyed() {
    let cluster = cluster();
    cluster.tcp("trust_user", "target_session_attrs=read-write").connect().await.unwrap();
    cluster.tcp("trust_user", "target_session_attrs=primary").connect().await.unwrap();
    let standby = cluster.tcp("trust_user", "target_session_attrs=standby");
    let error = standby.connect().await.unwrap_err();
    assert!(error.to_string().contains("target_session_attrs"), "{error}");
}
