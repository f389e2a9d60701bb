//! Every refusal without a server; `tests/it/stream_refusals.rs` has them with one.

use super::*;

fn lsn(value: u64) -> Lsn {
    Lsn::new(value)
}

fn saved() -> Saved {
    Saved {
        system_identifier: 7,
        timeline: Some(2),
        database: "shop".into(),
        end_lsn: lsn(100),
        slot: "tidemark_shop".into(),
    }
}

fn identity() -> Identity {
    Identity {
        system_identifier: 7,
        timeline: 2,
        history: vec![(1, lsn(50))],
        database: "shop".into(),
        head: lsn(200),
    }
}

fn slot() -> SlotState {
    SlotState {
        name: "tidemark_shop".into(),
        plugin: Some("pgoutput".into()),
        database: Some("shop".into()),
        active_pid: None,
        confirmed_flush: Some(lsn(100)),
        restart_lsn: Some(lsn(10)),
        wal_status: Some("reserved".into()),
        invalidation_reason: None,
        is_conflicting: false,
        safe_wal_size: None,
        is_temporary: false,
        is_two_phase: false,
        is_failover: false,
    }
}

#[test]
fn what_fits_goes_on() {
    check_continuation(&saved(), &identity(), Some(&slot())).unwrap();
    // The slot went back, as after a crash of the source: the stored position decides.
    let back = SlotState { confirmed_flush: Some(lsn(60)), ..slot() };
    check_continuation(&saved(), &identity(), Some(&back)).unwrap();
    let at_the_head = Identity { head: lsn(100), ..identity() };
    check_continuation(&saved(), &at_the_head, Some(&slot())).unwrap();
    let never_followed = Saved { timeline: None, ..saved() };
    check_continuation(&never_followed, &identity(), Some(&slot())).unwrap();
    // A promotion after everything that we have.
    let promoted =
        Identity { timeline: 3, history: vec![(1, lsn(50)), (2, lsn(100))], ..identity() };
    check_continuation(&saved(), &promoted, Some(&slot())).unwrap();
}

#[test]
fn another_server_or_another_line_of_history_is_refused() {
    for (identity, expected) in [
        (Identity { system_identifier: 8, ..identity() }, "another cluster"),
        (Identity { timeline: 1, history: vec![], ..identity() }, "on timeline 1, saved was 2"),
        (Identity { timeline: 3, ..identity() }, "timeline 2 is not in the history"),
        (
            Identity { timeline: 3, history: vec![(2, lsn(99))], ..identity() },
            "up to 0/64, the source left timeline 2 at 0/63",
        ),
        (Identity { head: lsn(99), ..identity() }, "up to 0/64, the source's WAL ends at 0/63"),
    ] {
        let error = check_continuation(&saved(), &identity, Some(&slot())).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.disposition(), Disposition::SourceCannotContinue, "{error}");
        assert!(error.way_out().is_some(), "{error}");
    }
}

#[test]
fn another_database_is_a_mistake_of_the_address() {
    let other = Identity { database: "shop2".into(), ..identity() };
    let error = check_continuation(&saved(), &other, Some(&slot())).unwrap_err();
    assert_eq!(error.disposition(), Disposition::Usage);
}

#[test]
fn a_slot_that_does_not_give_everything_is_refused() {
    let because = |reason: &str| SlotState { invalidation_reason: Some(reason.into()), ..slot() };
    for (slot, expected) in [
        (None, "the slot is missing, saved position 0/64"),
        (Some(SlotState { plugin: None, database: None, ..slot() }), "physical"),
        (Some(SlotState { plugin: Some("wal2json".into()), ..slot() }), "wal2json"),
        (Some(SlotState { database: Some("other".into()), ..slot() }), "database \"other\""),
        (Some(SlotState { is_temporary: true, ..slot() }), "temporary"),
        (Some(SlotState { wal_status: Some("lost".into()), ..slot() }), "wal_removed"),
        (Some(SlotState { is_conflicting: true, ..slot() }), "conflict"),
        (Some(because("idle_timeout")), "invalidated (idle_timeout)"),
        (
            Some(SlotState { confirmed_flush: Some(lsn(101)), ..slot() }),
            "continues from 0/65, saved position 0/64",
        ),
        (Some(SlotState { confirmed_flush: None, ..slot() }), "never finished"),
    ] {
        let error = check_continuation(&saved(), &identity(), slot.as_ref()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.to_string().contains("tidemark_shop"), "{error}");
        assert_eq!(error.disposition(), Disposition::SourceCannotContinue, "{error}");
        assert!(error.way_out().unwrap().contains("snapshot"), "{error}");
    }
}
