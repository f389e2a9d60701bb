//! The status as Prometheus reads it.
//!
//! **Invariant:** names and labels are a contract: dashboards and alert rules of `docs/operations/` use them, and a test
//! compares. Units stand in the names; counters end in `_total`.

use std::fmt::Write as _;

use tidemark_pipeline::{Phase, Status};

/// Every metric: name, type, help.
pub const METRICS: &[(&str, &str, &str)] = &[
    ("tidemark_up", "gauge", "1 while the job's process runs"),
    ("tidemark_phase", "gauge", "1 for the phase that the job is in"),
    ("tidemark_position_bytes", "gauge", "WAL position of a step of the lag ladder"),
    (
        "tidemark_lag_bytes",
        "gauge",
        "WAL between the source's head and what is durable on the target",
    ),
    (
        "tidemark_lag_seconds",
        "gauge",
        "Age of the oldest source transaction that the target does not show",
    ),
    (
        "tidemark_source_silent_seconds",
        "gauge",
        "Since the source has answered last; the lag is as of then",
    ),
    (
        "tidemark_transactions_total",
        "counter",
        "Source transactions applied since the process began",
    ),
    ("tidemark_changes_total", "counter", "Row changes applied since the process began"),
    ("tidemark_retained_wal_bytes", "gauge", "WAL that the source keeps for the job's slot"),
    ("tidemark_spool_bytes", "gauge", "Disk that the spool takes"),
    ("tidemark_memory_bytes", "gauge", "Memory of rows on their way"),
    ("tidemark_snapshot_tables", "gauge", "Tables of the snapshot by state"),
    ("tidemark_snapshot_rows", "gauge", "Rows copied by the snapshot"),
    ("tidemark_hypercare_seconds", "gauge", "Since so long the application is on the target"),
    ("tidemark_verdict", "gauge", "1 for the verdict of the last verification since the cutover"),
    ("tidemark_verdict_age_seconds", "gauge", "Since that verification"),
    (
        "tidemark_sequence_free_ratio",
        "gauge",
        "Share of its values that the fullest sequence has left where the application writes",
    ),
    ("tidemark_last_error", "gauge", "1 if the last attempt ended with an error"),
];

/// The text format, version 0.0.4.
pub fn exposition(status: &Status) -> String {
    let mut page = Page { text: String::new(), job: &status.job };
    let lag = &status.lag;
    page.family("tidemark_up", &[("", status.is_running as u64 as f64)]);
    page.family("tidemark_phase", &[(&label("phase", &phase(status.phase)), 1.0)]);
    let steps = [
        ("head", lag.head_lsn),
        ("sent", lag.sent_lsn),
        ("received", lag.received_lsn),
        ("applied", lag.applied_lsn),
        ("durable", lag.durable_lsn),
    ];
    let steps: Vec<(String, f64)> = steps
        .iter()
        .filter_map(|(step, lsn)| Some((label("step", step), (*lsn)?.as_u64() as f64)))
        .collect();
    let borrowed: Vec<(&str, f64)> =
        steps.iter().map(|(label, value)| (label.as_str(), *value)).collect();
    page.family("tidemark_position_bytes", &borrowed);
    page.optional("tidemark_lag_bytes", lag.bytes.map(|bytes| bytes as f64));
    page.optional("tidemark_lag_seconds", lag.seconds);
    page.optional("tidemark_source_silent_seconds", lag.source_silent_seconds);
    page.family("tidemark_transactions_total", &[("", status.stream.transactions as f64)]);
    page.family("tidemark_changes_total", &[("", status.stream.changes as f64)]);
    page.family("tidemark_retained_wal_bytes", &[("", status.retained_wal_bytes as f64)]);
    page.family("tidemark_spool_bytes", &[("", status.spool_bytes as f64)]);
    page.family("tidemark_memory_bytes", &[("", status.memory_bytes as f64)]);
    let snapshot = &status.snapshot;
    page.family(
        "tidemark_snapshot_tables",
        &[
            (&label("state", "done"), snapshot.tables_done as f64),
            (&label("state", "all"), snapshot.tables_total as f64),
        ],
    );
    page.family("tidemark_snapshot_rows", &[("", snapshot.rows_done as f64)]);
    if let Some(hypercare) = &status.hypercare {
        page.family("tidemark_hypercare_seconds", &[("", hypercare.seconds)]);
        if let Some(verdict) = &hypercare.last_verdict {
            page.family("tidemark_verdict", &[(&label("verdict", verdict), 1.0)]);
        }
        page.optional("tidemark_verdict_age_seconds", hypercare.last_verdict_seconds);
        let free = hypercare.fullest_sequence.as_ref().map(|room| room.free);
        page.optional("tidemark_sequence_free_ratio", free);
    }
    page.family("tidemark_last_error", &[("", status.last_error.is_some() as u64 as f64)]);
    page.text
}

/// Of several jobs, each family once with the samples of all.
pub fn expositions(statuses: &[&Status]) -> String {
    let pages: Vec<String> = statuses.iter().map(|status| exposition(status)).collect();
    if let [page] = pages.as_slice() {
        return page.clone();
    }
    let mut text = String::new();
    for (name, _, _) in METRICS {
        let of_family = |line: &&str| {
            let metric = line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ");
            metric.split(['{', ' ']).next() == Some(name)
        };
        let lines = || pages.iter().flat_map(|page| page.lines()).filter(of_family);
        let head = lines().filter(|line| line.starts_with('#')).take(2);
        let samples = lines().filter(|line| !line.starts_with('#'));
        head.chain(samples).for_each(|line| {
            writeln!(text, "{line}").ok();
        });
    }
    text
}

struct Page<'a> {
    text: String,
    job: &'a str,
}

impl Page<'_> {
    fn optional(&mut self, name: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.family(name, &[("", value)]);
        }
    }

    fn family(&mut self, name: &str, samples: &[(&str, f64)]) {
        let Some((_, kind, help)) = METRICS.iter().find(|(known, ..)| *known == name) else {
            return;
        };
        // Writing to a String cannot fail.
        writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}").ok();
        for (label, value) in samples {
            writeln!(self.text, "{name}{{job=\"{}\"{label}}} {value}", self.job).ok();
        }
    }
}

/// A job's name and our own words need no escaping.
fn label(name: &str, value: &str) -> String {
    format!(",{name}=\"{value}\"")
}

fn phase(phase: Phase) -> String {
    let value = serde_json::to_value(phase).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use tidemark_pipeline::{Hypercare, Lag, SequenceRoom, Status};

    use super::*;

    #[test]
    fn every_metric_is_on_the_page_of_a_running_stream() {
        let lag = Lag {
            head_lsn: "0/20".parse().ok(),
            durable_lsn: "0/10".parse().ok(),
            bytes: Some(16),
            seconds: Some(0.5),
            source_silent_seconds: Some(0.25),
            ..Lag::default()
        };
        let hypercare = Hypercare {
            seconds: 5.0,
            last_verdict: Some("identical".to_owned()),
            last_verdict_seconds: Some(3.0),
            fullest_sequence: Some(SequenceRoom { name: "s".to_owned(), free: 0.25 }),
            ..Hypercare::default()
        };
        let status = Status {
            job: "shop".to_owned(),
            lag,
            hypercare: Some(hypercare),
            is_running: true,
            ..Status::default()
        };
        let page = exposition(&status);
        for (name, kind, _) in METRICS {
            assert!(page.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
            assert!(page.contains(&format!("\n{name}{{job=\"shop\"")), "{name}");
        }
        assert!(page.contains("tidemark_position_bytes{job=\"shop\",step=\"head\"} 32\n"));
        assert!(page.contains("tidemark_lag_seconds{job=\"shop\"} 0.5\n"));
        assert!(page.contains("tidemark_verdict{job=\"shop\",verdict=\"identical\"} 1\n"));
        assert!(page.contains("tidemark_sequence_free_ratio{job=\"shop\"} 0.25\n"));
    }

    #[test]
    fn rules_and_dashboard_name_only_metrics_that_exist() {
        let files = [
            include_str!("../../../docs/operations/alerts.yml"),
            include_str!("../../../docs/operations/grafana-dashboard.json"),
        ];
        for text in files {
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            for word in words.filter(|word| word.starts_with("tidemark_")) {
                assert!(METRICS.iter().any(|(name, ..)| *name == word), "{word}");
            }
        }
    }
}
