//! The verdict of a run, and the sentences that say it.

use tidemark_report::*;

use crate::samples;

/// A change to a report, with its name.
type Change = (&'static str, fn(&mut VerifyReport));

fn changed(change: impl FnOnce(&mut VerifyReport)) -> VerifyReport {
    let mut report = samples::identical();
    change(&mut report);
    report.judge();
    report
}

fn end(report: &VerifyReport) -> (Verdict, u8) {
    (report.verdict, report.outcome().exit_code())
}

#[test]
fn a_run_that_read_everything_and_found_nothing_is_identical() {
    let report = samples::identical();
    assert_eq!(end(&report), (Verdict::Identical, 0));
    assert_eq!(report.proof, Some(Proof::Full));
    assert_eq!(report.lsn, Some(samples::lsn()));
    assert_eq!(report.contradictions(), []);
}

#[test]
fn whatever_was_not_compared_makes_the_run_incomplete() {
    let changes: [Change; 7] = [
        ("no tables", |report| report.tables.clear()),
        ("a table", |report| report.tables.push(TableReport::skipped("public", "t", "RLS"))),
        ("an object", |report| report.skipped = samples::incomplete().skipped),
        ("a new table", |report| report.tables.push(TableReport::new("public", "t"))),
        ("no point", |report| report.point = Point::None { reason: "no rights".to_owned() }),
        ("no barrier", |report| report.point = Point::Barrier { barriers: Vec::new() }),
        ("a key in flight", |report| {
            let keys_set_aside = KeysSetAside { equal: 9, different: 0, unsettled: 1 };
            let barrier = Barrier { keys_set_aside, ..samples::barrier(8) };
            report.point = Point::Barrier { barriers: vec![samples::barrier(8), barrier] };
        }),
    ];
    for (name, change) in changes {
        let report = changed(change);
        assert_eq!(end(&report), (Verdict::Incomplete, 3), "{name}");
        assert_eq!(report.shortfall(), Some(Shortfall::NotProven), "{name}");
        let claim = report.claim().join(" ");
        assert!(!claim.starts_with("Source and target hold"), "{name}: {claim}");
        assert!(claim.contains("proven"), "{name}: {claim}");
    }
}

#[test]
fn a_difference_comes_before_what_was_skipped() {
    let changes: [Change; 3] = [
        ("a row", |report| report.tables[0].missing = Some(1)),
        ("a definition", |report| report.schema_findings = samples::different().schema_findings),
        ("a key in flight", |report| {
            let keys_set_aside = KeysSetAside { equal: 0, different: 1, unsettled: 0 };
            let barrier = Barrier { keys_set_aside, ..samples::barrier(8) };
            report.point = Point::Barrier { barriers: vec![barrier] };
        }),
    ];
    for (name, change) in changes {
        let report = changed(|report| {
            change(report);
            report.tables.push(TableReport::skipped("public", "gone", "RLS"));
        });
        assert_eq!(end(&report), (Verdict::Different, 1), "{name}");
        let claim = report.claim().join(" ");
        assert!(claim.contains("1 of 9 tables could not be proven"), "{name}: {claim}");
    }
}

#[test]
fn warnings_and_notes_about_definitions_leave_the_verdict_alone() {
    let report = changed(|report| {
        report.schema_findings = samples::different().schema_findings;
        report.schema_findings.retain(|finding| finding.severity != SchemaSeverity::Different);
        assert_eq!(report.schema_findings.len(), 2);
    });
    assert_eq!(end(&report), (Verdict::Identical, 0));
}

#[test]
fn deviations_end_with_4_unless_the_policy_allows_each_kind() {
    let with = |allow: &[Allowance], lossy| {
        changed(|report| {
            report.tables[0].equivalent = Some(2);
            report.tables[1].lossy = Some(lossy);
            report.policy.allow = allow.to_vec();
        })
    };
    assert_eq!(end(&with(&[], 0)), (Verdict::Equivalent, 4));
    assert_eq!(end(&with(&[Allowance::Equivalent], 0)), (Verdict::Equivalent, 0));
    assert_eq!(end(&with(&[Allowance::Equivalent], 1)), (Verdict::Equivalent, 4));
    assert_eq!(end(&with(&[Allowance::Lossy], 1)), (Verdict::Equivalent, 4));
    assert_eq!(end(&with(&[Allowance::Lossy, Allowance::Equivalent], 1)), (Verdict::Equivalent, 0));
}

#[test]
fn a_level_that_reads_no_rows_never_says_identical_but_ends_well_when_it_agrees() {
    for level in [Level::Schema, Level::Count] {
        let lower = |report: &mut VerifyReport| {
            report.level = level;
            for table in &mut report.tables {
                (table.level, table.proof) = (Some(level), None);
                (table.source_digest, table.target_digest, table.heat_map) = (None, None, None);
            }
        };
        let report = changed(lower);
        assert_eq!(end(&report), (Verdict::Incomplete, 0), "{level:?}");
        assert!(report.claim()[0].starts_with("Only "), "{:?}", report.claim());
        assert!(!report.claim().join(" ").contains("the same data"), "{:?}", report.claim());
        let skipped = changed(|report| {
            lower(report);
            report.tables.push(TableReport::skipped("public", "gone", "RLS"));
        });
        assert_eq!(end(&skipped), (Verdict::Incomplete, 3), "{level:?}");
    }
    let counts = changed(|report| {
        report.level = Level::Count;
        report.tables[0].target_rows = Some(1);
    });
    assert_eq!(end(&counts), (Verdict::Different, 1));
}

#[test]
fn an_incremental_proof_names_its_oldest_leaf_and_what_it_assumes() {
    let report = samples::incomplete();
    assert_eq!(report.proof, Some(Proof::Incremental));
    assert_eq!(report.oldest_leaf_lsn, "12/7A001128".parse().ok());
    let claim = report.claim().join(" ");
    assert!(claim.contains("12/7A001128") && claim.contains("assumes that nothing but"), "{claim}");
    assert_eq!(samples::identical().assumption, None);
}

#[test]
fn tables_with_positions_of_their_own_leave_the_run_without_one() {
    let report = changed(|report| report.tables[0].lsn = "16/B4000000".parse().ok());
    assert_eq!((report.verdict, report.lsn), (Verdict::Identical, None));
    assert!(report.claim()[0].contains("each table at its own LSN"), "{:?}", report.claim());
}

#[test]
fn the_claim_says_in_one_sentence_what_was_proven() {
    let first = |report: &VerifyReport| report.claim().swap_remove(0);
    assert_eq!(
        first(&samples::identical()),
        "Source and target hold the same data at LSN 16/B374D848: 8 tables, 8,661,245 rows."
    );
    assert_eq!(
        first(&samples::different()),
        "Source and target do not hold the same data at LSN 16/B374D848: 3 of 9 tables differ and 1 definition differs."
    );
    let rest = "The rest holds the same data at LSN 16/B374D848: 5 other tables, 960,030 rows.";
    assert!(samples::different().claim().iter().any(|sentence| sentence == rest));
    assert_eq!(
        first(&samples::incomplete()),
        "It is not proven that source and target hold the same data: 5 of 500 tables and 1 other object could not be proven."
    );
    assert_eq!(
        first(&samples::equivalent()),
        "Source and target hold equal data at LSN 16/B374D848, but not in the same representation: 1 of 8 tables, 180 rows with equal values written in another way."
    );
    assert_eq!(
        first(&changed(|report| report.tables.clear())),
        "No table was compared, so nothing is proven."
    );
}

#[test]
fn of_a_table_that_one_side_lacks_the_claim_says_that_its_rows_are_not_proven() {
    let report = changed(|report| {
        let mut alone = TableReport::skipped("public", "alone", "only the source has it");
        alone.differing_definitions = 1;
        report.tables.push(alone);
    });
    assert_eq!(report.verdict, Verdict::Different);
    let rows = "Beside that, the rows of 1 table that differs could not be proven.";
    assert!(report.claim().iter().any(|sentence| sentence == rows), "{:?}", report.claim());
}

#[test]
fn a_quiesced_pair_has_no_common_position_and_says_so() {
    let snapshot = samples::barrier(8).source_snapshot;
    let report = changed(|report| {
        report.point = Point::Quiesced {
            source_lsn: Some(samples::lsn()),
            target_lsn: None,
            source_snapshot: snapshot.clone(),
            target_snapshot: snapshot,
            leaves_read_twice: 1,
        };
        report.tables.iter_mut().for_each(|table| table.lsn = None);
    });
    assert_eq!((end(&report), report.lsn), ((Verdict::Identical, 0), None));
    assert!(
        report.claim()[0].contains("while nothing writes to either side"),
        "{:?}",
        report.claim()
    );
}
