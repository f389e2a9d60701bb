//! Help, usage errors, completions, streams.

use std::fs::OpenOptions;
use std::process::Stdio;

use crate::{Place, assert_says, run};

#[test]
fn help_names_every_command_and_ends_well() {
    let help = run(&["--help"]).ok();
    assert_says(
        &help,
        &[
            "demo",
            "check",
            "sync",
            "status",
            "cleanup",
            "config",
            "completions",
            "man",
            "Examples:",
        ],
    );
    assert!(!help.contains('\x1b'));
    for command in ["demo", "check", "sync", "status", "cleanup", "config", "completions", "man"] {
        assert_says(
            &run(&[command, "--help"]).ok(),
            &["Usage: tidemark", "Example", "--source <URL>"],
        );
    }
}

#[test]
fn the_version_is_printed() {
    assert_eq!(run(&["--version"]).ok(), format!("tidemark {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_arguments_end_with_two() {
    for args in [
        &["--no-such-flag"] as &[&str],
        &["no-such-command"],
        &["sync", "--target-not-empty", "perhaps"],
        &["sync", "--json", "--json"],
        &["check", "--log-format", "xml"],
        &["check", "-v", "-q"],
        &["completions", "tcl"],
        &["config"],
        &[],
    ] {
        assert!(!run(args).usage().is_empty(), "{args:?}");
    }
}

#[test]
fn following_comes_later_and_truncate_needs_a_second_word() {
    let ends = ["--source", "postgres://a@h/d", "--target", "postgres://b@h/e"];
    let with = |args: &[&'static str]| [args, &ends].concat();
    let both = with(&["sync", "--snapshot-only", "--until", "now"]);
    assert_says(&run(&both).usage(), &["--until", "--snapshot-only"]);
    let until = with(&["sync", "--until", "yesterday"]);
    assert_says(&run(&until).usage(), &["yesterday", "is not an LSN"]);
    let truncate = with(&["sync", "--snapshot-only", "--target-not-empty", "truncate"]);
    assert_says(&run(&truncate).usage(), &["empties", "--yes"]);
}

#[test]
fn cleanup_without_yes_says_what_it_would_drop() {
    let text = run(&[
        "cleanup",
        "--job",
        "my-shop",
        "--source",
        "postgres://a@h/d",
        "--target",
        "file:///lake",
    ])
    .usage();
    assert_says(&text, &["tidemark_my_shop", "--yes"]);
}

#[test]
fn source_and_target_are_asked_for() {
    for command in ["check", "cleanup"] {
        assert_says(&run(&[command]).usage(), &["no source", "--source", "config example"]);
        let text = run(&[command, "--source", "postgres://a@h/d"]).usage();
        assert_says(&text, &["no target", "--target"]);
    }
    assert_says(&run(&["status"]).usage(), &["--job NAME"]);
}

#[test]
fn completions_and_the_manual_page_are_printed() {
    for (shell, word) in
        [("bash", "complete"), ("zsh", "#compdef tidemark"), ("fish", "complete -c tidemark")]
    {
        assert_says(&run(&["completions", shell]).ok(), &[word, "snapshot-only"]);
    }
    assert_says(
        &run(&["man"]).ok(),
        &[".TH", "tidemark", "EXIT STATUS", "interrupted with work left"],
    );
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let place = Place::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = place
        .command(&["config", "schema"])
        .stdout(Stdio::from(writer))
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());
}

#[test]
fn a_full_disk_under_stdout_is_a_missing_resource() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output =
        Place::new().command(&["config", "example"]).stdout(Stdio::from(full)).output().unwrap();
    assert_eq!(output.status.code(), Some(8));
    assert_says(&String::from_utf8(output.stderr).unwrap(), &["write to stdout"]);
}

#[test]
fn colours_are_printed_on_demand_only() {
    assert!(run(&["--color", "always", "--help"]).ok().contains('\x1b'));
    assert!(!run(&["--color=never", "--help"]).ok().contains('\x1b'));
}

#[test]
fn an_error_as_json_is_one_line_with_the_exit_code() {
    let text = run(&["check", "--log-format", "json"]).usage();
    assert_eq!(text.lines().count(), 1);
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["level"], "ERROR");
    assert_eq!(line["fields"]["exit_code"], 2);
}

#[test]
fn a_log_filter_that_cannot_be_read_is_named() {
    let place = Place::new().set("TIDEMARK_LOG", "tidemark=loud=5");
    assert_says(&place.run(&["config", "example"]).usage(), &["TIDEMARK_LOG"]);
}
