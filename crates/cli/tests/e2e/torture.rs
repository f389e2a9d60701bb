//! A short fixed set of torture runs; `scripts/torture` runs campaigns.

use std::path::PathBuf;

use tidemark_testkit::torture::{Configuration, Outcome, Profile, Subject, Trial, run};

use crate::support::say;

fn binary() -> PathBuf {
    env!("CARGO_BIN_EXE_tidemark").into()
}

/// A trial without failure, of about so many seconds.
fn ran(seed: u64, (profile, seconds): (Profile, u64), subject: Subject) -> Outcome {
    let outcome = run(&Trial {
        seconds: (seconds, seconds),
        profile: Some(profile),
        // A copy in small chunks takes its time; campaigns have that.
        configuration: Configuration::default(),
        ..Trial::new(seed, subject)
    })
    .unwrap();
    say(&outcome.json().to_string());
    if let Some(failure) = &outcome.failure {
        panic!("seed {seed}: {failure}\n{}", outcome.events.join("\n"));
    }
    outcome
}

fn survives(seed: u64, profile: Profile, subject: Subject) {
    let is_lake = matches!(subject, Subject::Lake { .. });
    let outcome = ran(seed, (profile, 12), subject);
    let verdict = outcome.verdict.unwrap();
    assert!(verdict.rows > 5_000 && outcome.transactions > 300, "{verdict:?}");
    // A lake is read at the end only.
    assert!(is_lake || outcome.glances > 20, "the target was looked at {} times", outcome.glances);
    assert!(!outcome.faults.is_empty());
}

/// Four verdicts at least, each second one with something to find, in however much time they need.
fn is_verified(seed: u64, subject: Subject) {
    let outcome = ran(seed, (Profile::Verify, 1), subject);
    let verified = outcome.verified.unwrap();
    assert!(verified.verdicts >= 4 && verified.rows > 100_000, "{verified:?}");
    assert!(verified.planted >= 2, "{verified:?}");
    assert_eq!((verified.found, verified.false_alarms), (verified.planted, 0), "{verified:?}");
    assert!(outcome.verdict.unwrap().rows > 5_000);
}

#[test]
fn a_storm_is_verified_while_it_goes_on_and_what_was_planted_is_found() {
    is_verified(2, Subject::Tidemark { binary: binary(), plant: None });
}

#[test]
fn a_storm_into_a_lake_is_verified_while_it_goes_on_and_what_was_planted_is_found() {
    is_verified(3, Subject::Lake { binary: binary(), plant: None });
}

#[test]
fn a_storm_is_followed_through_faults_of_every_kind() {
    survives(2, Profile::Mixed, Subject::Tidemark { binary: binary(), plant: None });
}

#[test]
fn a_storm_is_followed_through_kill_after_kill() {
    survives(1, Profile::Kills, Subject::Tidemark { binary: binary(), plant: None });
}

#[test]
fn a_storm_is_followed_into_a_lake_through_kill_after_kill() {
    survives(3, Profile::Kills, Subject::Lake { binary: binary(), plant: None });
}
