//! The torture rig against PostgreSQL's own subscription: silent about a follower that is right, loud about every wrong.

use std::time::Duration;

use tidemark_testkit::torture::{Outcome, Profile, Sabotage, Subject, Trial, run};

#[expect(clippy::print_stdout, reason = "the test harness keeps it for a failed test")]
fn followed(seed: u64, profile: Profile, seconds: u64, sabotage: Sabotage) -> Outcome {
    let outcome = run(&Trial {
        seconds: (seconds, seconds),
        profile: Some(profile),
        sabotage,
        ..Trial::new(seed, Subject::Subscription)
    })
    .unwrap();
    println!("{}", outcome.json());
    outcome
}

#[test]
fn postgres_own_subscription_passes_under_faults() {
    for (seed, profile) in [(31, Profile::Mixed), (32, Profile::Servers)] {
        let outcome = followed(seed, profile, 8, Sabotage::None);
        assert_eq!(outcome.failure, None, "{:#?}", outcome.events);
        let verdict = outcome.verdict.unwrap();
        assert!(verdict.rows > 5_000 && outcome.transactions > 500, "{outcome:?}");
        assert_eq!((verdict.lost, verdict.duplicated, verdict.wrong), (0, 0, 0));
        assert!(outcome.glances > 50, "{}", outcome.glances);
        assert!(!outcome.faults.is_empty());
        assert!(outcome.peak_wal_bytes > 0);
    }
}

#[test]
fn rows_that_are_lost_doubled_or_changed_are_counted_as_such() {
    let one_of = |table: &str, where_: &str| {
        format!("ctid = (SELECT min(ctid) FROM storm.{table} WHERE {where_})")
    };
    let sabotages = [
        (format!("DELETE FROM storm.document WHERE {}", one_of("document", "id < 0")), (1, 0, 0)),
        (format!("DELETE FROM storm.bag WHERE {}", one_of("bag", "n IS NULL")), (1, 0, 0)),
        (
            format!(
                "INSERT INTO storm.bag SELECT * FROM storm.bag WHERE {}",
                one_of("bag", "true")
            ),
            (0, 1, 0),
        ),
        (
            format!(
                "UPDATE storm.document SET body = NULL WHERE {}",
                one_of("document", "body <> ''")
            ),
            (0, 0, 1),
        ),
    ];
    let script: Vec<String> = sabotages.iter().map(|(sql, _)| format!("{sql};")).collect();
    let outcome = followed(33, Profile::Calm, 1, Sabotage::AtEnd(script.concat()));
    let failure = outcome.failure.unwrap();
    assert_eq!(failure.seen_by, "difference", "{failure}");
    let verdict = outcome.verdict.unwrap();
    // In one table a changed row and a missing one are two rows of the source that the target does not have.
    assert_eq!((verdict.lost, verdict.duplicated, verdict.wrong), (2, 1, 1), "{failure}");
}

#[test]
fn half_a_transaction_is_seen_while_it_is_visible() {
    // An account that nobody else writes to, for as long as several looks take.
    let sql = "DO $$ BEGIN INSERT INTO storm.account VALUES (0, 7); COMMIT; PERFORM pg_sleep(1); \
        DELETE FROM storm.account WHERE id = 0; COMMIT; END $$"
        .to_owned();
    let outcome = followed(34, Profile::Calm, 1, Sabotage::Midway(sql));
    let failure = outcome.failure.unwrap();
    assert_eq!(failure.seen_by, "promise", "{failure}");
    assert!(failure.detail.contains("the bank holds"), "{failure}");
}

#[test]
fn a_follower_that_stops_early_is_stuck() {
    let outcome = run(&Trial {
        seconds: (1, 1),
        profile: Some(Profile::Calm),
        sabotage: Sabotage::Midway("ALTER SUBSCRIPTION tidemark_rig DISABLE".to_owned()),
        patience: Duration::from_secs(15),
        ..Trial::new(35, Subject::Subscription)
    })
    .unwrap();
    let failure = outcome.failure.unwrap();
    assert_eq!(failure.seen_by, "stuck", "{failure}");
}
