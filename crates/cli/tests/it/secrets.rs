//! No secret is printed, whatever is asked and whatever goes wrong (`hazards.md` S8).

use crate::Place;

const SECRET: &str = "S3cr3t-%40";

/// Every place where a password can stand.
fn connection_strings() -> Vec<String> {
    vec![
        format!("postgres://app:{SECRET}@db1/shop"),
        format!("postgres://app@db1/shop?password={SECRET}"),
        format!("host=db1 dbname=shop password={SECRET}"),
        format!("host=db1 dbname=shop password = '{SECRET} x'"),
        format!("postgres://app:a/b{SECRET}@c@db1/shop"),
    ]
}

fn assert_hidden(place: &Place, args: &[&str]) {
    let ran = place.run(args);
    for text in [&ran.stdout, &ran.stderr] {
        assert!(!text.contains("S3cr3t"), "{args:?} shows it: {text}");
    }
    // Something must have been printed, or this test would prove nothing.
    assert!(!ran.stdout.is_empty() || !ran.stderr.is_empty(), "{args:?}");
}

#[test]
fn a_password_in_a_flag_is_never_printed() {
    let place = Place::new();
    for url in connection_strings() {
        let url = url.as_str();
        let misspelt = format!("--sorce={url}");
        for args in [
            &["config", "check", "--source", url, "--target", url] as &[&str],
            &["config", "check", "-vv", "--source", url, "--target", url],
            &["config", "check", "--source", url, "--target", "ftp://x:S3cr3t@h/"],
            &["config", "check", "--source", "ftp://x:S3cr3t@h/", "--target", url],
            &["check", "-vv", "--log-format", "json", "--source", url],
            &["check", "--sorce", url],
            &["check", &misspelt],
            &["check", url],
            &[url],
            &["sync", "--target-not-empty", url],
            &["cleanup", "--job", url, "--source", url, "--target", url],
        ] {
            assert_hidden(&place, args);
        }
    }
}

#[test]
fn a_password_in_the_file_is_never_printed() {
    for url in connection_strings() {
        for file in [
            format!("[source]\nurl = \"{url}\"\n[target]\nurl = \"{url}\"\n"),
            format!("[source]\nurl = \"{url}\n"),
            format!("[source]\nurl = [\"{url}\"]\n"),
            format!("[source]\nurl = \"{url}\"\n[snapshot]\nreaders = \"{url}\"\n"),
            format!("[source]\nurl = \"{url}\"\n[target]\nurl = \"{url}\"\ncolor = 1\n"),
            format!("[source]\nurl = \"{url}\\n\"\n[target]\nurl = \"{url}\"\n"),
            format!("source = \"{url}\"\n"),
            format!("{url}\n"),
        ] {
            let place = Place::new().file("tidemark.toml", &file);
            assert_hidden(&place, &["config", "check", "-vv"]);
        }
    }
}

#[test]
fn a_password_out_of_the_environment_or_a_file_is_never_printed() {
    let file = "[source]\nurl = \"postgres://app:${PW}@db1/shop\"\n[target]\nurl = \"host=db2 dbname=d password='${file:pw}'\"\n";
    let place = Place::new().file("tidemark.toml", file).file("pw", "S3cr3t x\n").set("PW", SECRET);
    let ran = place.run(&["config", "check"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("postgres://app:***@db1/shop"), "{}", ran.stdout);
    assert!(ran.stdout.contains("password=***"), "{}", ran.stdout);
    assert_hidden(&place, &["config", "check", "-vv"]);
}

#[test]
fn the_log_speaks_when_asked_and_hides_the_password() {
    let ends = ["--source", "postgres://app:S3cr3t@db1/shop", "--target", "file:///lake"];
    let place = Place::new();
    let ran = place.run(&[&["config", "check", "-v"], &ends as &[&str]].concat());
    assert!(ran.stderr.contains("configuration loaded"), "{}", ran.stderr);
    assert!(ran.stderr.contains("postgres://app:***@db1/shop"), "{}", ran.stderr);

    let json = ["config", "check", "-v", "--log-format", "json"];
    let ran = place.run(&[&json, &ends as &[&str]].concat());
    let line: serde_json::Value = serde_json::from_str(ran.stderr.trim_end()).unwrap();
    assert_eq!(line["fields"]["job"], "shop");
    assert_eq!(line["fields"]["source"], "postgres://app:***@db1/shop");
}
