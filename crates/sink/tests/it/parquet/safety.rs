//! What must not happen to a lake and to what lies beside it.

use std::fs;
use std::process::Command;
use std::sync::Arc;

use tidemark_model::{RelationName, Severity, TablePlan, Unrepresentable};
use tidemark_sink::parquet::{ParquetOptions, Root};
use tidemark_sink::{Disposition, NotEmpty, Sink};

use super::lake::{LocalLake, collect, ids_in, sink_at};
use crate::conformance::{
    self, Target, accept, begin, column, plan, plan_of, result, spec, start, summary, tuples,
    tuples_of,
};

/// A sink on a lake that replaces what is there.
fn truncating(lake: &LocalLake) -> Arc<dyn Sink> {
    let options = ParquetOptions { not_empty: NotEmpty::Truncate, ..ParquetOptions::default() };
    sink_at(Root::local(lake.path()), options)
}

fn two_plans() -> [TablePlan; 2] {
    [
        plan(1, &RelationName::new("public", "orders")),
        plan(2, &RelationName::new("public", "items")),
    ]
}

#[tokio::test]
async fn foreign_files_are_refused_and_stay() {
    let lake = LocalLake::new();
    fs::create_dir_all(lake.path().join("public/orders/snapshot")).unwrap();
    fs::write(lake.path().join("public/orders/snapshot/r1-00000.parquet"), "not ours").unwrap();
    let before = lake.files();
    for sink in [lake.sink(), truncating(&lake)] {
        let error = sink.prepare(&start("r1", &two_plans())).await.unwrap_err();
        assert_eq!(error.disposition, Disposition::Usage);
        let findings = sink.check(&two_plans()).await.unwrap();
        assert!(
            findings
                .iter()
                .any(|f| f.code == "target-not-empty" && f.severity == Severity::Blocking)
        );
    }
    assert_eq!(lake.files(), before);
}

#[tokio::test]
async fn the_lake_of_another_job_is_refused_finished_or_not() {
    let lake = LocalLake::new();
    let sink = lake.sink();
    sink.prepare(&start("r1", &two_plans())).await.unwrap();
    conformance::write(&*sink, &spec("r1", &two_plans()[0], 0), 0..10).await.unwrap();
    sink.table_loaded(&two_plans()[0].relation.name).await.unwrap();
    let mut other = start("r2", &two_plans());
    "other".clone_into(&mut other.job);
    let before = lake.files();
    for sink in [lake.sink(), truncating(&lake)] {
        let error = sink.prepare(&other).await.unwrap_err();
        assert!(error.hint.unwrap().contains("\"shop\""));
    }
    assert_eq!(lake.files(), before);

    let lake = LocalLake::new();
    conformance::finish_run(&lake, "r1", &two_plans(), 0..10).await;
    let before = lake.files();
    for sink in [lake.sink(), truncating(&lake)] {
        assert!(sink.prepare(&other).await.is_err());
    }
    assert_eq!(lake.files(), before);
}

#[tokio::test]
async fn truncating_removes_what_the_lake_lists_and_nothing_else() {
    let lake = LocalLake::new();
    let plans = two_plans();
    conformance::finish_run(&lake, "r1", &plans, 0..10).await;
    let notes = lake.path().join("public/orders/snapshot/notes.txt");
    fs::write(&notes, "mine").unwrap();
    let sink = truncating(&lake);
    sink.prepare(&start("r2", &plans)).await.unwrap();
    assert!(lake.commit().is_none());
    conformance::write(&*sink, &spec("r2", &plans[0], 0), 20..25).await.unwrap();
    for plan in &plans {
        sink.table_loaded(&plan.relation.name).await.unwrap();
    }
    sink.finish(&summary(&[(&plans[0], 5), (&plans[1], 0)])).await.unwrap();
    assert_eq!(ids_in(&lake.files(), &plans[0].relation.name), Some((20..25).collect()));
    assert_eq!(fs::read_to_string(notes).unwrap(), "mine");
    assert!(!lake.files().keys().any(|name| name.contains("r1-")));
}

#[tokio::test]
async fn a_job_document_that_points_elsewhere_removes_nothing() {
    let lake = LocalLake::new();
    lake.sink().prepare(&start("r1", &two_plans())).await.unwrap();
    let victim = lake.path().parent().unwrap().join("snapshot");
    fs::create_dir_all(&victim).unwrap();
    fs::write(victim.join("r1-00000.parquet"), "precious").unwrap();
    let job = lake.path().join("_tidemark/job.json");
    let tampered =
        fs::read_to_string(&job).unwrap().replace("public/orders/snapshot", "../../snapshot");
    fs::write(&job, tampered).unwrap();
    assert!(lake.sink().prepare(&start("r2", &two_plans())).await.is_err());
    assert!(victim.join("r1-00000.parquet").exists());
}

#[tokio::test]
async fn a_run_that_died_before_its_first_document_does_not_block_the_next() {
    let lake = LocalLake::new();
    fs::create_dir_all(lake.path().join("_tidemark")).unwrap();
    fs::write(lake.path().join("_tidemark/.job.json.tmp-Ab12"), "{").unwrap();
    lake.sink().prepare(&start("r1", &two_plans())).await.unwrap();
}

#[tokio::test]
async fn hostile_names_stay_inside_the_root_and_never_collide() {
    let lake = LocalLake::new();
    let names = [
        ("../../x", "../../x"),
        ("public", "A"),
        ("public", "a"),
        ("public", "%41"),
        ("con", "con"),
        ("public", "."),
        ("public", ".."),
        ("public", "a/b"),
        ("_tidemark", "commits"),
        ("public", "=x*?["),
        ("public", "a\\b\n"),
    ];
    let mut plans: Vec<_> = (0..)
        .zip(names)
        .map(|(oid, (schema, name))| plan(oid, &RelationName::new(schema, name)))
        .collect();
    plans.push(plan(99, &RelationName::new("ü".repeat(31), "🐋".repeat(15))));
    let sink = lake.sink();
    sink.prepare(&start("r1", &plans)).await.unwrap();
    let mut rows = Vec::new();
    for (index, plan) in (0_i64..).zip(&plans) {
        conformance::write(&*sink, &spec("r1", plan, 0), index * 10..index * 10 + 3).await.unwrap();
        sink.table_loaded(&plan.relation.name).await.unwrap();
        rows.push((plan, 3));
    }
    sink.finish(&summary(&rows)).await.unwrap();
    let files = lake.files();
    for (index, plan) in (0_i64..).zip(&plans) {
        let expected = (index * 10..index * 10 + 3).collect();
        assert_eq!(ids_in(&files, &plan.relation.name), Some(expected), "{}", plan.relation.name);
    }
    let mut around = std::collections::BTreeMap::new();
    collect(lake.path().parent().unwrap(), "", &mut around);
    assert!(around.keys().all(|name| name.starts_with("lake/")), "{:?}", around.keys());
}

#[tokio::test]
async fn a_value_without_a_form_names_relation_and_column_and_leaves_nothing() {
    let lake = LocalLake::new();
    let name = RelationName::new("public", "events");
    let plans = [plan_of(1, &name, vec![column(1, "at", 1114, "timestamp", false)])];
    let sink = lake.sink();
    sink.prepare(&start("r1", &plans)).await.unwrap();
    let mut writer = begin(&*sink, &spec("r1", &plans[0], 0)).await;
    let infinity = tuples_of(&[vec![Some(i64::MAX.to_be_bytes().to_vec())]]);
    let error = match accept(&mut writer, infinity).await {
        Err(error) => error,
        Ok(()) => writer.commit(&result(&spec("r1", &plans[0], 0), 1)).await.unwrap_err(),
    };
    assert_eq!(error.disposition, Disposition::Value);
    assert_eq!(error.relation, Some(name));
    assert!(error.source.unwrap().to_string().contains("\"at\""));
    assert!(error.hint.is_some());
    assert!(!lake.files().keys().any(|name| name.contains("parquet")));
}

#[tokio::test]
async fn replaced_values_are_counted() {
    let lake = LocalLake::new();
    let name = RelationName::new("public", "events");
    let mut plan = plan_of(1, &name, vec![column(1, "at", 1114, "timestamp", true)]);
    plan.unrepresentable = Unrepresentable::Null;
    let sink = lake.sink();
    sink.prepare(&start("r1", std::slice::from_ref(&plan))).await.unwrap();
    let mut writer = begin(&*sink, &spec("r1", &plan, 0)).await;
    let rows =
        [vec![Some(i64::MAX.to_be_bytes().to_vec())], vec![Some(0_i64.to_be_bytes().to_vec())]];
    accept(&mut writer, tuples_of(&rows)).await.unwrap();
    let committed = writer.commit(&result(&spec("r1", &plan, 0), 2)).await.unwrap();
    assert_eq!(committed.replaced, [("at".to_owned(), 1)]);
}

#[tokio::test]
async fn a_chunk_beyond_its_share_of_memory_gets_a_file_of_its_own_and_small_ones_share() {
    let mut lake = LocalLake::new();
    lake.options.memory = 1;
    let plans = two_plans();
    let sink = lake.sink();
    sink.prepare(&start("r1", &plans)).await.unwrap();
    let noise = |id: i64| {
        let mut state = id.unsigned_abs().wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut bytes = Vec::with_capacity(3 << 20);
        while bytes.len() < 3 << 20 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend(state.to_le_bytes().map(|byte| byte % 94 + 33));
        }
        bytes
    };
    let wide = spec("r1", &plans[0], 0);
    let mut writer = begin(&*sink, &wide).await;
    for id in 0..6_i64 {
        accept(&mut writer, tuples_of(&[vec![Some(id.to_be_bytes().to_vec()), Some(noise(id))]]))
            .await
            .unwrap();
    }
    let open = lake.files().keys().filter(|name| name.contains(".parquet.tmp-")).count();
    assert_eq!(open, 1, "the rows are on the disk already, under a temporary name");
    writer.commit(&result(&wide, 6)).await.unwrap();
    for chunk in 1..4 {
        let from = i64::from(chunk) * 100;
        conformance::write(&*sink, &spec("r1", &plans[0], chunk), from..from + 10).await.unwrap();
    }
    for plan in &plans {
        sink.table_loaded(&plan.relation.name).await.unwrap();
    }
    sink.finish(&summary(&[(&plans[0], 36), (&plans[1], 0)])).await.unwrap();
    let files = &lake.commit().unwrap().tables[0].files;
    let rows: Vec<_> = files.iter().map(|file| (file.rows, file.row_groups)).collect();
    assert_eq!(rows.len(), 2, "{rows:?}");
    assert!(rows[0].0 == 6 && rows[0].1 > 1 && rows[1] == (30, 3), "{rows:?}");
}

#[tokio::test]
async fn a_file_is_closed_at_its_size_and_the_next_begins() {
    let mut lake = LocalLake::new();
    lake.options.file_bytes = 1;
    let plans = two_plans();
    let sink = lake.sink();
    sink.prepare(&start("r1", &plans)).await.unwrap();
    for chunk in 0..3 {
        let from = i64::from(chunk) * 10;
        conformance::write(&*sink, &spec("r1", &plans[0], chunk), from..from + 10).await.unwrap();
    }
    for plan in &plans {
        sink.table_loaded(&plan.relation.name).await.unwrap();
    }
    sink.finish(&summary(&[(&plans[0], 30), (&plans[1], 0)])).await.unwrap();
    assert_eq!(lake.commit().unwrap().tables[0].files.len(), 3);
    assert_eq!(ids_in(&lake.files(), &plans[0].relation.name), Some((0..30).collect()));
}

#[tokio::test]
async fn a_summary_that_disagrees_with_the_files_makes_no_commit() {
    let lake = LocalLake::new();
    let plans = two_plans();
    let sink = lake.sink();
    sink.prepare(&start("r1", &plans)).await.unwrap();
    conformance::write(&*sink, &spec("r1", &plans[0], 0), 0..10).await.unwrap();
    assert!(
        sink.finish(&summary(&[(&plans[0], 10), (&plans[1], 0)])).await.is_err(),
        "tables are open"
    );
    for plan in &plans {
        sink.table_loaded(&plan.relation.name).await.unwrap();
    }
    assert!(sink.finish(&summary(&[(&plans[0], 11), (&plans[1], 0)])).await.is_err());
    assert!(lake.commit().is_none());
    sink.finish(&summary(&[(&plans[0], 10), (&plans[1], 0)])).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_is_unavailable_and_shows_no_file() {
    let directory = tempfile::TempDir::new().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(directory.path())
        .status()
        .is_ok_and(|status| status.success());
    if !mounted {
        eprintln!("not allowed to mount a small tmpfs: a full disk is not tested");
        return;
    }
    let lake = directory.path().join("lake");
    let outcome = fill(&lake).await;
    let mut files = std::collections::BTreeMap::new();
    collect(&lake, "", &mut files);
    let unmounted = Command::new("umount").arg(directory.path()).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
    let error = outcome.unwrap_err();
    assert_eq!(error.disposition, Disposition::Unavailable, "{error:?}");
    assert!(error.hint.unwrap().contains("space"));
    assert!(!files.keys().any(|name| name.contains("parquet")), "{:?}", files.keys());
}

/// Writes more than a megabyte and stops at the first error.
async fn fill(lake: &std::path::Path) -> tidemark_sink::Result<()> {
    let plans = two_plans();
    let sink = sink_at(
        Root::local(lake),
        ParquetOptions {
            compression: tidemark_sink::parquet::Compression::None,
            ..ParquetOptions::default()
        },
    );
    sink.prepare(&start("r1", &plans)).await?;
    for chunk in 0..100 {
        let spec = spec("r1", &plans[0], chunk);
        let mut writer = begin(&*sink, &spec).await;
        let from = i64::from(chunk) * 20_000;
        accept(&mut writer, tuples(from..from + 20_000)).await?;
        writer.commit(&result(&spec, 20_000)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn check_says_what_stands_in_the_way_and_changes_nothing() {
    let lake = LocalLake::new();
    let clean = lake.sink().check(&two_plans()).await.unwrap();
    assert!(clean.iter().all(|finding| finding.severity == Severity::Note), "{clean:?}");
    assert!(!lake.path().exists());

    let file = lake.path().parent().unwrap().join("file");
    fs::write(&file, "").unwrap();
    let sink = sink_at(Root::local(file.join("lake")), ParquetOptions::default());
    let findings = sink.check(&two_plans()).await.unwrap();
    assert!(
        findings
            .iter()
            .any(|f| f.code == "target-not-writable" && f.severity == Severity::Blocking)
    );

    let mut huge = two_plans();
    huge[0].relation.heap_bytes = 1 << 60;
    let findings = lake.sink().check(&huge).await.unwrap();
    assert!(findings.iter().any(|f| f.code == "target-space" && f.severity == Severity::Warning));

    let mut text = plan_of(
        1,
        &RelationName::new("public", "n"),
        vec![column(1, "amount", 1700, "numeric", true)],
    );
    text.columns.push(column(2, "Amount", 23, "int4", true));
    let findings = lake.sink().check(&[text]).await.unwrap();
    assert!(findings.iter().any(|f| f.object.contains("amount") && f.severity == Severity::Note));
    assert!(findings.iter().any(|f| f.code == "column-case"));
}
