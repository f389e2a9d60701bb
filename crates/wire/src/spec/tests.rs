//! Connection strings by libpq's rules.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// An environment for one test.
fn env<'a>(pairs: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<String> + 'a {
    |name| pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1.to_owned())
}

fn parse(text: &str) -> ConnectSpec {
    ConnectSpec::parse_with(text, &env(&[])).unwrap()
}

fn refusal(text: &str) -> String {
    let error = ConnectSpec::parse_with(text, &env(&[])).unwrap_err();
    assert_eq!(error.disposition(), crate::Disposition::Usage);
    error.to_string()
}

#[test]
fn urls_and_keyword_strings_mean_what_they_mean_to_libpq() {
    for (text, expected, password) in [
        ("postgres://me@h/d", "me@h:5432/d", None),
        ("postgresql://me:pw@h:1234/d", "me@h:1234/d", Some("pw")),
        ("postgres://m%40e:p%2Fw%3A@h/d%20b", "m@e@h:5432/d b", Some("p/w:")),
        ("postgres://me:a?b@h/d", "me@h:5432/d", Some("a?b")),
        ("postgres://me@[::1]:7/d", "me@[::1]:7/d", None),
        ("postgres://me@%2Ftmp%2Fs/d", "me@/tmp/s:5432/d", None),
        ("postgres://me@/d?host=/tmp/s&port=9", "me@/tmp/s:9/d", None),
        ("postgres://me@h/d?user=you&password=x", "you@h:5432/d", Some("x")),
        ("postgres://me@h", "me@h:5432/me", None),
        ("postgres://me@h/", "me@h:5432/me", None),
        ("host=h user=me dbname=d", "me@h:5432/d", None),
        (" host = h  user= 'm e' dbname = '' ", "m e@h:5432/m e", None),
        ("host=h user=me password='a \\' \\\\ b'", "me@h:5432/me", Some("a ' \\ b")),
        ("host=h user=me password=a\\ b", "me@h:5432/me", Some("a b")),
        ("host=one host=two user=me", "me@two:5432/me", None),
        ("hostaddr=10.0.0.1 user=me", "me@10.0.0.1:5432/me", None),
        ("host=/run/x user=me", "me@/run/x:5432/me", None),
    ] {
        let spec = parse(text);
        assert_eq!(spec.redacted(), expected, "{text}");
        assert_eq!(spec.password.as_ref().map(|secret| secret.reveal()), password, "{text}");
        assert_eq!(spec.password_in_text(), password.is_some(), "{text}");
    }
}

#[test]
fn what_is_wrong_is_refused_without_repeating_it() {
    for (text, part) in [
        ("postgres://me:S3cr/t@h/d", "unexpected '@'"),
        ("postgres://me:1/S3cr?t@h/d", "'='"),
        ("postgres://me:S3cr%zz@h/d", "hexadecimal"),
        ("postgres://me@h:S3cr/d", "\"port\" is not a valid number"),
        ("postgres://me@h:0/d", "port"),
        ("postgres://me@h:65536/d", "port"),
        ("postgres://me@a,b/d", "several hosts"),
        ("postgres://me@[::1/d", "']'"),
        ("postgres://me@h/d%00", "zero byte"),
        ("mysql://me:S3cr@h/d", "must begin with postgres://"),
        ("S3cr", "not a connection string"),
        ("host=h password=a S3cr", "no '=' after the name of option 3"),
        ("host=h password=a S3cr=b", "not known"),
        ("host=h password='S3cr", "quote"),
        ("host=h sslmod=x", "did you mean \"sslmode\""),
        ("host=h sslmode=S3cr", "must be one of disable, allow"),
        ("host=h sslcrl=x", "not supported"),
        ("host=h sslrootcert=system sslmode=require", "needs sslmode=verify-full"),
        ("host=h sslnegotiation=direct", "needs sslmode=require"),
        ("host=h connect_timeout=S3cr", "connect_timeout"),
        ("host=h service=no-such-service", "not defined"),
    ] {
        let message = refusal(text);
        assert!(message.contains(part), "{text}: {message}");
        assert!(!message.contains("S3cr"), "{text}: {message}");
    }
}

#[test]
fn gaps_are_filled_in_libpqs_order() {
    let directory = tempfile::tempdir().unwrap();
    let service = directory.path().join("pg_service.conf");
    let text = "# comment\n[other]\nhost=wrong\n[shop]\nhost=from-service\nport=1\nport=2\n[last]\nhost=no\n";
    std::fs::write(&service, text).unwrap();
    let variables = [
        ("PGSERVICE", "shop"),
        ("PGSERVICEFILE", service.to_str().unwrap()),
        ("PGHOST", "from-env"),
        ("PGUSER", "env-user"),
        ("PGDATABASE", "env-db"),
        ("PGPASSWORD", "env-pw"),
        ("PGSSLMODE", "require"),
        ("PGAPPNAME", "env-app"),
    ];
    let spec = ConnectSpec::parse_with("dbname=text-db", &env(&variables)).unwrap();
    assert_eq!(spec.redacted(), "env-user@from-service:1/text-db");
    assert_eq!(spec.ssl_mode(), SslMode::Require);
    assert_eq!(spec.password.as_ref().map(|secret| secret.reveal()), Some("env-pw"));
    assert!(!spec.password_in_text());
    let without = ConnectSpec::parse_with("", &env(&variables[2..])).unwrap();
    assert_eq!(without.redacted(), "env-user@from-env:5432/env-db");
}

#[test]
fn a_password_file_is_used_only_if_it_is_private() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pgpass");
    std::fs::write(&file, "h:5432:d:me:S3cret\nlocalhost:*:*:me:local\n").unwrap();
    let path = file.to_str().unwrap();
    let password = |text: &str| {
        let spec = ConnectSpec::parse_with(text, &env(&[("PGPASSFILE", path)])).unwrap();
        spec.password.map(|secret| secret.reveal().to_owned())
    };
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(password("host=h user=me dbname=d").as_deref(), Some("S3cret"));
    assert_eq!(password("host=/tmp user=me dbname=d").as_deref(), Some("local"));
    assert_eq!(password("host=h user=you dbname=d"), None);
    assert_eq!(password("host=h user=me dbname=d password=own").as_deref(), Some("own"));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(password("host=h user=me dbname=d"), None);
}

#[test]
fn sslmode_defaults_to_prefer_and_to_verify_full_with_a_root_certificate() {
    assert_eq!(parse("host=h user=me").ssl_mode(), SslMode::Prefer);
    assert_eq!(parse("host=h user=me sslrootcert=/ca.pem").ssl_mode(), SslMode::VerifyFull);
    assert_eq!(parse("host=h user=me sslrootcert=system").ssl_mode(), SslMode::VerifyFull);
    // As libpq: a root certificate makes `require` check the chain.
    let spec = parse("host=h user=me sslmode=require sslrootcert=/ca.pem");
    assert_eq!(spec.ssl_mode(), SslMode::VerifyCa);
    assert_eq!(parse("postgres://me@h/d?ssl=true").ssl_mode(), SslMode::Require);
}

#[test]
fn distant_servers_without_verification_are_called_unauthenticated() {
    for (text, expected) in [
        ("host=db.example user=me", true),
        ("host=db.example user=me sslmode=require", true),
        ("host=db.example user=me sslmode=verify-ca sslrootcert=/x", false),
        ("host=localhost user=me", false),
        ("host=127.0.0.1 user=me", false),
        ("host=localhost hostaddr=10.1.2.3 user=me", true),
        ("host=/tmp user=me", false),
    ] {
        assert_eq!(parse(text).tls_unauthenticated(), expected, "{text}");
    }
}

#[test]
fn the_password_shows_in_the_childs_environment_and_nowhere_else() {
    let spec = parse("postgres://me:S3cr3t-%40@h:99/d?sslmode=require&options=-c%20geqo%3Doff");
    assert!(!format!("{spec:?} {spec:#?} {spec} {}", spec.host_display()).contains("S3cr3t"));
    let vars = spec.libpq_env();
    let get = |name: &str| vars.iter().find(|pair| pair.0 == name).map(|pair| pair.1.as_str());
    assert_eq!(get("PGPASSWORD"), Some("S3cr3t-@"));
    assert_eq!(get("PGHOST"), Some("h"));
    assert_eq!(get("PGPORT"), Some("99"));
    assert_eq!(get("PGSSLMODE"), Some("require"));
    assert_eq!(get("PGOPTIONS"), Some("-c geqo=off"));
    for (name, _) in &vars {
        assert!(LIBPQ_VARIABLES.contains(&name.as_str()), "{name}");
    }
}

#[test]
fn the_seed_corpus_of_the_fuzz_target_runs_through_the_same_function() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/connect_string");
    let mut seen = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        fuzz_connect_string(&std::fs::read_to_string(entry.unwrap().path()).unwrap());
        seen += 1;
    }
    assert!(seen >= 5, "{seen} seeds");
}
