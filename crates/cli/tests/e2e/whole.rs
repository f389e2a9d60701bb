//! Undisturbed runs: the copy is what the source was, whatever is in it and whoever writes meanwhile.

use tidemark_testkit::workload::{self, Writer, WriterOptions, check_ledger};
use tidemark_testkit::{Cluster, oracle, shared};

use crate::support::{Job, assert_same, assert_source_clean, filled, side};

#[test]
fn a_zoo_and_tpch_are_copied_to_a_second_cluster_while_a_writer_writes() {
    let source = filled();
    let target = Cluster::start_default().unwrap();
    target.create_database("copy").unwrap();
    workload::load_zoo(source.cluster(), source.name()).unwrap();
    let options = WriterOptions { clients: 1, ..WriterOptions::default() };
    let writer = Writer::start(source.cluster(), source.name(), &options).unwrap();
    let job = Job::new("zoo", &source.url(), &target.url("copy"));
    let ran = job.sync(&["--json"]).expect(0);
    let report = writer.stop().unwrap();
    assert!(report.committed > 0, "the writer wrote");
    let copied = check_ledger(&target, "copy").unwrap();
    let there = check_ledger(source.cluster(), source.name()).unwrap();
    assert!(copied <= there, "{copied} of {there} transactions");
    let found = oracle::schema_diff(side(&source), (&target, "copy")).unwrap();
    assert!(found.is_empty(), "{found:?}");
    let quiet = |name: &str| !name.starts_with("load.");
    let found = oracle::data_diff_of(side(&source), (&target, "copy"), quiet).unwrap();
    assert!(found.is_empty(), "{found:?}");
    let summary: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    for table in summary["tables"].as_array().unwrap() {
        assert_eq!(table["rows_out"], table["rows_in"], "{table}");
    }
    assert_source_clean(side(&source));
}

#[test]
fn hostile_names_are_names_and_a_default_of_the_source_never_runs() {
    let (source, target) = (shared().unwrap(), shared().unwrap());
    workload::load_hostile_names(source.cluster(), source.name()).unwrap();
    source
        .psql("CREATE TABLE slow (id integer, t text DEFAULT pg_sleep(100)::text, u text DEFAULT 'x'); INSERT INTO slow VALUES (1, 'a', 'b'), (2, NULL, NULL)")
        .unwrap();
    let began = std::time::Instant::now();
    Job::new("hostile", &source.url(), &target.url()).sync(&[]).expect(0);
    assert!(began.elapsed().as_secs() < 90, "a default ran");
    assert_same(side(&source), side(&target));
}

#[test]
fn a_table_has_its_filter_and_its_columns_and_the_rest_is_included_or_excluded() {
    let (source, target) = (filled(), shared().unwrap());
    let types = "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'region'::regclass AND attname = 'r_name'";
    let name = source.psql(types).unwrap();
    let key = source.psql(&types.replace("r_name", "r_regionkey")).unwrap();
    target.psql(&format!("CREATE TABLE region (r_name {name}, r_regionkey {key})")).unwrap();
    let more = "schema = \"exists\"\n[select]\ninclude = [\"public.re*\", \"public.n*\"]\nexclude = [\"public.nation\"]\n\
        [[table]]\nname = \"public.region\"\nwhere = \"r_regionkey > 2\"\ncolumns = [\"r_regionkey\", \"r_name\"]\n";
    Job::new("some", &source.url(), &target.url()).configured(more).sync(&[]).expect(0);
    let rows =
        "SELECT string_agg(r_regionkey || trim(r_name), ' ' ORDER BY r_regionkey) FROM region";
    let expected = source.psql(&format!("{rows} WHERE r_regionkey > 2")).unwrap();
    assert_eq!(target.psql(rows).unwrap(), expected);
    assert!(!expected.is_empty());
}
