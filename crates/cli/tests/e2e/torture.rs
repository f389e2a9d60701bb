//! A short fixed set of torture runs; `scripts/torture` runs campaigns.

use tidemark_testkit::torture::{Profile, Subject, Trial, run};

use crate::support::say;

fn survives(seed: u64, profile: Profile) {
    let subject = Subject::Tidemark { binary: env!("CARGO_BIN_EXE_tidemark").into(), plant: None };
    let outcome = run(&Trial {
        seconds: (12, 12),
        profile: Some(profile),
        ..Trial::new(seed, subject)
    })
    .unwrap();
    say(&outcome.json().to_string());
    if let Some(failure) = &outcome.failure {
        panic!("seed {seed}: {failure}\n{}", outcome.events.join("\n"));
    }
    let verdict = outcome.verdict.unwrap();
    assert!(verdict.rows > 5_000 && outcome.transactions > 300, "{verdict:?}");
    assert!(outcome.glances > 20, "the target was looked at {} times", outcome.glances);
    assert!(!outcome.faults.is_empty());
}

#[test]
fn a_storm_is_followed_through_faults_of_every_kind() {
    survives(2, Profile::Mixed);
}

#[test]
fn a_storm_is_followed_through_kill_after_kill() {
    survives(1, Profile::Kills);
}
