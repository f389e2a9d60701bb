//! `cutover` and `fallback`: an application that writes all the while, and where its rows are afterwards.
//!
//! **Invariant:** what was committed is what the application's own ledger says: every row once, on the side that it is on in the
//! end, and on the other one, too, once the stream is through.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::process::Signal;
use serde_json::Value;
use tidemark_testkit::Database;

use crate::crash::Blocker;
use crate::follow::{Pair, follows, passes};
use crate::support::{Job, Running, wait_until};

/// A job whose switch hook tells the application where to write.
struct Migration {
    pair: Pair,
    job: Job,
}

impl Migration {
    fn new(name: &'static str, more: &str) -> Self {
        let pair = Pair::new(name);
        let job = pair.job();
        let hook = job.path().join("switch.sh");
        let script = "#!/bin/sh\necho \"$TIDEMARK_WAY $TIDEMARK_JOB at $TIDEMARK_LSN\"\necho \"$TIDEMARK_WAY\" > way.new && mv way.new way\n";
        fs::write(&hook, script).unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        let text = format!(
            "[snapshot]\nreaders = 2\nchunk_bytes = \"1MiB\"\n[cutover]\nswitch_hook = [{:?}]\n{more}",
            hook.display().to_string()
        );
        Self { pair, job: job.configured(&text) }
    }

    fn application(&self) -> Application {
        Application::start(&self.pair, self.job.path())
    }

    /// A process that follows.
    fn followed(&self) -> Running {
        let mut running = self.job.start(&["sync"]);
        follows(&mut running, &self.pair.target, self.pair.name());
        running
    }

    /// Every row that was committed is on this side; its key keeps it from being there twice.
    #[track_caller]
    fn has_all(&self, side: &Database, committed: &BTreeSet<String>) {
        has_all(side, committed);
    }
}

/// Every row that was committed is on this side; its key keeps it from being there twice.
#[track_caller]
pub(crate) fn has_all(side: &Database, committed: &BTreeSet<String>) {
    let rows = "SELECT string_agg(id::text, ' ') FROM pet WHERE tags = '{application}'";
    let found = side.psql(rows).unwrap();
    let found: BTreeSet<&str> = found.split_whitespace().collect();
    let lost: Vec<_> = committed.iter().filter(|id| !found.contains(id.as_str())).collect();
    assert!(lost.is_empty(), "lost {lost:?} of {}", committed.len());
}

impl Drop for Migration {
    fn drop(&mut self) {
        unfence(&self.pair);
    }
}

/// A database that is read-only by default cannot be dropped by whoever does not say otherwise.
fn unfence(pair: &Pair) {
    for side in [&pair.source, &pair.target] {
        let name = side.name();
        let reset = format!(
            "SET default_transaction_read_only = off; ALTER DATABASE {name} RESET default_transaction_read_only; \
            SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE database = current_database() AND active_pid IS NOT NULL; \
            SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database() AND NOT active"
        );
        side.psql(&reset).ok();
    }
}

/// Inserts one row after the other where it was told to, and notes what was committed.
pub(crate) struct Application {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<BTreeSet<String>>>,
    written: PathBuf,
}

impl Application {
    pub(crate) fn start(pair: &Pair, directory: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (way, written) = (directory.join("way"), directory.join("written"));
        let (stopped, place) = (Arc::clone(&stop), written.clone());
        let sides = [&pair.source, &pair.target].map(|side| {
            let (cluster, name) = (side.cluster(), side.name().to_owned());
            move |sql: &str| cluster.psql(&name, sql)
        });
        let thread = std::thread::spawn(move || {
            let mut committed = BTreeSet::new();
            while !stopped.load(Ordering::Relaxed) {
                let is_over = fs::read_to_string(&way).is_ok_and(|way| way.trim() == "cutover");
                let sql = "INSERT INTO pet (mood, tags, legs) VALUES ('glad', '{application}', 4) RETURNING id";
                match sides[usize::from(is_over)](sql) {
                    Ok(id) => {
                        assert!(committed.insert(id.clone()), "number {id} was handed out twice")
                    }
                    // The fence, or the end of its session: it tries again, as applications do.
                    Err(error) => assert!(!error.to_string().contains("duplicate key"), "{error}"),
                }
                fs::write(&place, committed.len().to_string()).unwrap();
            }
            committed
        });
        Self { stop, thread: Some(thread), written }
    }

    fn count(&self) -> u64 {
        fs::read_to_string(&self.written).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// Waits until it has written some more.
    pub(crate) fn goes_on(&self) {
        let before = self.count();
        wait_until("the application writes", || self.count() > before + 3);
    }

    pub(crate) fn stop(mut self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

pub(crate) fn told(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text:?}"))
}

#[test]
fn an_application_goes_over_and_back_and_over_again_and_loses_nothing() {
    let migration = Migration::new("over", "");
    let (job, pair) = (&migration.job, &migration.pair);
    let running = migration.followed();
    let application = migration.application();
    application.goes_on();
    let tried = told(&job.run(&["cutover", "--dry-run", "--json"]).expect(0).stdout);
    assert_eq!((&tried["is_done"], &tried["verdict"]), (&false.into(), &"identical".into()));
    assert!(tried["forecast_ms"].as_u64().is_some(), "{tried}");
    application.goes_on();
    for way in ["cutover", "fallback", "cutover"] {
        let ended = told(&job.run(&[way, "--json"]).expect(0).stdout);
        assert_eq!(
            (&ended["is_done"], &ended["is_followed"]),
            (&true.into(), &true.into()),
            "{ended}"
        );
        assert!(ended["write_block_ms"].as_u64().is_some(), "{ended}");
        application.goes_on();
        job.run(&["verify"]).expect(0);
        is_watched(job, way);
        // Once more the same way is refused.
        job.run(&[way]).expect(2).says(&["on the other side already"]);
    }
    let committed = application.stop();
    job.run(&["verify"]).expect(0);
    migration.has_all(&pair.target, &committed);
    migration.has_all(&pair.source, &committed);
    let slots = "SELECT string_agg(slot_name, ' ') FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(pair.source.psql(slots).unwrap(), "");
    assert_eq!(pair.target.psql(slots).unwrap(), "tidemark_over__back");
    running.signal(Signal::TERM);
    running.end().expect(0);
    job.run(&["complete", "--yes"]).expect(0);
    assert_eq!(pair.target.psql(slots).unwrap(), "");
    job.run(&["fallback"]).expect(2).says(&["the migration is complete"]);
    job.run(&["sync", "--until", "now"]).expect(2).says(&["the migration is complete"]);
    job.run(&["delta"]).expect(2).says(&["is on the target"]);
    tells_its_story(job);
}

/// What is shown of the side that was left, as long as there is a way back.
fn is_watched(job: &Job, way: &str) {
    let status = || told(&job.run(&["status", "--json"]).expect(0).stdout);
    if way == "fallback" {
        wait_until("the process that follows has turned", || status()["phase"] == "follow");
        assert_eq!(status().get("hypercare"), None);
        return;
    }
    // The process that follows has just turned.
    wait_until("the sequences were looked at", || {
        !status()["hypercare"]["fullest_sequence"].is_null()
    });
    let (status, hypercare) = (status(), &status()["hypercare"]);
    assert_eq!(
        (&status["phase"], &hypercare["last_verdict"]),
        (&"hypercare".into(), &"identical".into())
    );
    assert!(hypercare["reverse_lag_seconds"].is_number(), "{status}");
    assert!(
        hypercare["last_verdict_seconds"].as_f64().unwrap()
            < hypercare["seconds"].as_f64().unwrap(),
        "{status}"
    );
    assert!(hypercare["fullest_sequence"]["free"].as_f64().unwrap() > 0.9, "{status}");
    let text = job.run(&["status"]).expect(0).stdout;
    for part in ["tidemark fallback goes back", "identical", "% left of"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// The report of all that was done, without any server.
fn tells_its_story(job: &Job) {
    let kept = job.path().join("state").join("report");
    let (json, html) = ("migration.json", "migration.html");
    let text = fs::read_to_string(kept.join(json)).unwrap();
    let report = tidemark_report::check_migration_json(&text).unwrap();
    let ways: Vec<&str> = report.attempts.iter().map(|attempt| attempt.way.as_str()).collect();
    assert_eq!(ways, ["cutover", "fallback", "cutover"]);
    for attempt in &report.attempts {
        assert_eq!(attempt.outcome, tidemark_report::Settled::Done);
        assert!(attempt.write_block_ms.is_some() && attempt.lsn.is_some(), "{attempt:?}");
        let steps: Vec<&str> = attempt.steps.iter().map(|step| step.step.as_str()).collect();
        assert_eq!(steps, STEPS);
    }
    // Each way has two proofs of its own, and was verified once afterwards; the last way twice.
    assert_eq!(report.verifications.len(), 3 * 3 + 1);
    assert!(report.completed_at.is_some() && report.target.is_some());
    // Of the copy, and not of the stream that a fallback has begun.
    let (copied, first) = (report.copied_to.as_ref().unwrap(), &report.attempts[0].began_at);
    assert!(report.copied_from.as_ref().unwrap() <= copied && copied < first, "{report:?}");
    assert!(fs::read_to_string(kept.join(html)).unwrap().contains("Complete"));
    let other = job.path().join("filed");
    let ran = job.run(&["report", "--directory", other.to_str().unwrap(), "--json"]).expect(0);
    assert_eq!(told(&ran.stdout)["stage"], "complete");
    assert!(other.join(html).exists() && other.join(json).exists());
}

pub(crate) const STEPS: [&str; 11] = [
    "check",
    "prove",
    "fence",
    "drain",
    "sequences",
    "verify",
    "reverse",
    "open",
    "switch",
    "turn",
    "retire",
];

/// kill -9 at every step, when it has done its work and nobody knows; each time another process goes on.
fn is_killed_at_every_step(migration: &Migration, application: &Application, way: &str) {
    let job = &migration.job;
    application.goes_on();
    let mut args = vec![way];
    for step in STEPS {
        let failpoint = format!("{way}:{step}:acted");
        job.run_with(("TIDEMARK_FAILPOINT", &failpoint), &args).expect(128 + 9);
        args = vec![way, "--resume"];
    }
    job.run(&[way]).expect(2).says(&["is under way", "--resume"]);
    job.run(&args).expect(0);
    application.goes_on();
    job.run(&["verify"]).expect(0);
}

#[test]
fn a_cutover_that_is_killed_at_every_step_goes_on_to_the_same_end() {
    let migration = Migration::new("killed", "");
    let (job, pair) = (&migration.job, &migration.pair);
    job.run(&["sync", "--until", "now"]).expect(0);
    let application = migration.application();
    is_killed_at_every_step(&migration, &application, "cutover");
    let committed = application.stop();
    job.run(&["sync", "--until", "now"]).expect(0);
    migration.has_all(&pair.source, &committed);
    migration.has_all(&pair.target, &committed);
}

#[test]
fn a_fallback_that_is_killed_at_every_step_goes_on_to_the_same_end() {
    let migration = Migration::new("killedback", "");
    let (job, pair) = (&migration.job, &migration.pair);
    job.run(&["sync", "--until", "now"]).expect(0);
    let application = migration.application();
    job.run(&["cutover"]).expect(0).says(&[]);
    is_killed_at_every_step(&migration, &application, "fallback");
    let committed = application.stop();
    job.run(&["sync", "--until", "now"]).expect(0);
    migration.has_all(&pair.source, &committed);
    migration.has_all(&pair.target, &committed);
}

/// Where writes are kept out: before, and in the end.
fn is_read_only(side: &Database) -> bool {
    side.psql("CREATE TEMP TABLE probe (a int)").is_err()
        && side.psql("SHOW default_transaction_read_only").unwrap() == "on"
}

#[test]
fn what_is_taken_back_leaves_the_source_writable_and_the_stream_going() {
    let migration = Migration::new("aborted", "");
    let (job, pair) = (&migration.job, &migration.pair);
    let mut running = migration.followed();
    for step in ["fence", "drain", "sequences", "verify", "reverse"] {
        let failpoint = format!("cutover:{step}:acted");
        job.run_with(("TIDEMARK_FAILPOINT", &failpoint), &["cutover"]).expect(128 + 9);
        assert!(is_read_only(&pair.source), "{step}");
        job.run(&["cutover", "--abort"]).expect(0);
        assert!(!is_read_only(&pair.source), "{step}");
        passes(&mut running, &pair.source, &pair.target);
    }
    let slots = "SELECT string_agg(slot_name, ' ') FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(pair.target.psql(slots).unwrap(), "");
    job.run(&["cutover", "--abort"]).expect(2).says(&["none is under way"]);
    // One that died while it was taken back may have opened the source already: it is not gone on with.
    let failpoint = ("TIDEMARK_FAILPOINT", "cutover:drain:acted");
    job.run_with(failpoint, &["cutover"]).expect(128 + 9);
    let failpoint = ("TIDEMARK_FAILPOINT", "cutover:abort:begun");
    job.run_with(failpoint, &["cutover", "--abort"]).expect(128 + 9);
    job.run(&["cutover", "--resume"]).expect(2).says(&["is being taken back", "--abort"]);
    job.run(&["cleanup", "--yes"]).expect(2).says(&["is under way"]);
    job.run(&["delta"]).expect(2).says(&["about to go there"]);
    job.run(&["cutover", "--abort"]).expect(0);
    assert!(!is_read_only(&pair.source));
    // Beyond the point of no return there is only forward.
    let failpoint = ("TIDEMARK_FAILPOINT", "cutover:open:begun");
    job.run_with(failpoint, &["cutover"]).expect(128 + 9);
    job.run(&["cutover", "--abort"]).expect(2).says(&["is open already", "--resume"]);
    job.run(&["cutover", "--resume"]).expect(0);
    assert!(is_read_only(&pair.source) && !is_read_only(&pair.target));
}

#[test]
fn a_difference_or_a_writer_behind_the_fence_stops_the_cutover_and_writes_go_on() {
    let migration = Migration::new("stopped", "");
    let (job, pair) = (&migration.job, &migration.pair);
    let mut running = migration.followed();
    let application = migration.application();
    application.goes_on();
    pair.target.psql("UPDATE pet SET legs = legs + 1 WHERE id = 5").unwrap();
    let ran = job.run(&["cutover", "--json"]).expect(1);
    assert_eq!(
        (&told(&ran.stdout)["is_done"], &told(&ran.stdout)["verdict"]),
        (&false.into(), &"different".into())
    );
    pair.target.psql("UPDATE pet SET legs = legs - 1 WHERE id = 5").unwrap();
    application.goes_on();
    // Whoever overrides the default writes on, and comes back when its session is ended.
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (stop, cluster, name) =
            (Arc::clone(&stop), pair.source.cluster(), pair.source.name().to_owned());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let sql = "SET default_transaction_read_only = off; INSERT INTO pet (mood, legs) SELECT 'sad', 1 FROM generate_series(1, 5)";
                cluster.psql(&name, sql).ok();
            }
        })
    };
    let ran = job.run(&["cutover"]).expect(7);
    assert!(ran.stderr.contains("came through the fence"), "{}", ran.stderr);
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    assert!(!is_read_only(&pair.source));
    application.goes_on();
    passes(&mut running, &pair.source, &pair.target);
    let committed = application.stop();
    migration.has_all(&pair.source, &committed);
}

#[test]
fn writes_are_blocked_no_longer_than_is_allowed() {
    let migration = Migration::new("toolong", "max_write_block = \"1s\"\n");
    let (job, pair) = (&migration.job, &migration.pair);
    let mut running = migration.followed();
    // The publication of the stream back waits for this lock, and no slot does.
    let mut blocker = Blocker::start(&pair.target, "LOCK pet IN SHARE MODE");
    let ran = job.run(&["cutover"]).expect(8);
    assert!(ran.stderr.contains("max_write_block"), "{}", ran.stderr);
    assert!(!is_read_only(&pair.source));
    blocker.end();
    passes(&mut running, &pair.source, &pair.target);
}

/// Who goes on with a cutover and runs the job itself has the source fenced before the stream is there.
#[test]
fn a_resumed_cutover_waits_for_the_stream_no_longer_than_writes_may_be_blocked() {
    let migration = Migration::new("waitsback", "max_write_block = \"4s\"\n");
    let (job, pair) = (&migration.job, &migration.pair);
    job.run(&["sync", "--until", "now"]).expect(0);
    let failpoint = ("TIDEMARK_FAILPOINT", "cutover:drain:acted");
    job.run_with(failpoint, &["cutover"]).expect(128 + 9);
    assert!(is_read_only(&pair.source));
    let mut blocker =
        Blocker::start(&pair.target, "LOCK tidemark.progress IN ACCESS EXCLUSIVE MODE");
    let ran = job.run(&["cutover", "--resume"]).expect(8);
    assert!(ran.stderr.contains("does not follow yet"), "{}", ran.stderr);
    assert!(!is_read_only(&pair.source));
    blocker.end();
    job.run(&["cutover"]).expect(0);
}

#[test]
fn sequences_go_on_behind_what_was_handed_out() {
    let migration = Migration::new("sequences", "sequence_margin = 50\n");
    let (job, pair) = (&migration.job, &migration.pair);
    pair.source
        .psql(
            "CREATE SEQUENCE down INCREMENT -3; SELECT nextval('down') FROM generate_series(1, 5); \
        CREATE SEQUENCE narrow MAXVALUE 20; SELECT setval('narrow', 15); CREATE SEQUENCE fresh; \
        CREATE SEQUENCE pending; SELECT setval('pending', 500, false); CREATE SEQUENCE ahead; SELECT setval('ahead', 7)",
        )
        .unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.target.psql("SELECT setval('ahead', 5000)").unwrap();
    pair.source.psql("SELECT setval('pet_id_seq', 9000)").unwrap();
    job.run(&["cutover"]).expect(0);
    let next = |name: &str| pair.target.psql(&format!("SELECT nextval('{name}')")).unwrap();
    assert_eq!(next("pet_id_seq"), "9051");
    assert_eq!(next("down"), (-13 - 150 - 3).to_string());
    assert_eq!(next("pending"), "550");
    assert_eq!((next("fresh"), next("ahead")), ("1".to_owned(), "5001".to_owned()));
    assert!(pair.target.psql("SELECT nextval('narrow')").is_err(), "at its end, never beyond it");
}

#[test]
fn a_fence_of_the_users_own_is_put_up_and_taken_away() {
    let migration = Migration::new("hooked", "");
    let (pair, directory) = (&migration.pair, migration.job.path().to_owned());
    let script = |name: &str, line: &str| {
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    };
    let more = format!(
        "[cutover]\nfence = \"hook\"\nfence_hook = [{:?}, \"up\"]\nopen_hook = [{:?}]\nswitch_hook = [{:?}]\n",
        script("fence.sh", "echo \"fence $1 $TIDEMARK_WAY $TIDEMARK_JOB $TIDEMARK_SIDE\" >> said"),
        script("open.sh", "echo \"$TIDEMARK_STEP $TIDEMARK_SIDE $TIDEMARK_LSN\" >> said"),
        script("fails.sh", "test -e mended || { echo not yet; exit 3; }")
    );
    let job = pair.job().configured(&more);
    job.run(&["sync", "--until", "now"]).expect(0);
    // The hooks run where the command runs.
    let ran = job.run(&["cutover"]).expect(8);
    assert!(ran.stderr.contains("not yet") && ran.stderr.contains("--resume"), "{}", ran.stderr);
    fs::write(job.path().join("mended"), "").unwrap();
    job.run(&["cutover", "--resume"]).expect(0);
    let said = fs::read_to_string(job.path().join("said")).unwrap();
    assert!(
        said.starts_with("fence up cutover hooked source\nopen target ")
            && said.lines().count() == 2,
        "{said}"
    );
    assert!(!is_read_only(&pair.source), "the fence is not ours");
}

/// Answers one request after the other, each with the next of these, and gives their bodies.
fn deployment(answers: &'static [&'static str]) -> (String, JoinHandle<Vec<Value>>) {
    use std::io::{Read as _, Write as _};

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/switch?token=S3cr3t", listener.local_addr().unwrap());
    let serve = move |answer: &&str| {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut part = [0; 4096];
        // The body is one JSON object, which ends it.
        while !request.ends_with(b"}") {
            let read = stream.read(&mut part).unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&request));
            request.extend_from_slice(&part[..read]);
        }
        let text = String::from_utf8(request).unwrap();
        assert!(text.starts_with("POST /switch?token=S3cr3t "), "{text}");
        let end =
            format!("HTTP/1.1 {answer}\r\ncontent-length: 4\r\nconnection: close\r\n\r\nfine");
        stream.write_all(end.as_bytes()).unwrap();
        told(text.split_once("\r\n\r\n").unwrap().1)
    };
    (url, std::thread::spawn(move || answers.iter().map(serve).collect()))
}

#[test]
fn a_deployment_is_told_by_a_post_until_it_says_that_it_is_done() {
    let pair = Pair::new("posted");
    let (url, requests) = deployment(&["503 Service Unavailable", "302 Found", "200 OK"]);
    let job = pair.job().configured(&format!("[cutover]\nswitch_url = {url:?}\n"));
    job.run(&["sync", "--until", "now"]).expect(0);
    for (way, says) in [(&["cutover"][..], "503"), (&["cutover", "--resume"], "302")] {
        let ran = job.run(way).expect(8);
        assert!(ran.stderr.contains(says) && ran.stderr.contains("--resume"), "{}", ran.stderr);
        assert!(!ran.stderr.contains("S3cr3t"), "{}", ran.stderr);
    }
    job.run(&["cutover", "--resume"]).expect(0);
    let requests = requests.join().unwrap();
    assert!(requests.iter().all(|request| *request == requests[0]), "{requests:?}");
    let field = |name: &str| requests[0][name].as_str().unwrap().to_owned();
    assert_eq!(
        (field("job"), field("way"), field("side")),
        ("posted".into(), "cutover".into(), "target".into())
    );
    assert!(field("lsn").contains('/'), "{requests:?}");
    unfence(&pair);
}

#[test]
fn a_fence_that_somebody_else_puts_up_is_told_by_a_post() {
    let pair = Pair::new("fencedbypost");
    let (url, requests) = deployment(&["200 OK", "503 Service Unavailable", "200 OK"]);
    let more = format!("[cutover]\nfence = \"hook\"\nfence_url = {url:?}\nopen_url = {url:?}\n");
    let job = pair.job().configured(&more);
    job.run(&["sync", "--until", "now"]).expect(0);
    // It is up, and the other side is not opened yet.
    job.run(&["cutover"]).expect(8).says(&["503"]);
    job.run(&["cutover", "--resume"]).expect(0);
    let requests = requests.join().unwrap();
    let told: Vec<String> = requests
        .iter()
        .map(|told| {
            format!("{} {}", told["step"].as_str().unwrap(), told["side"].as_str().unwrap())
        })
        .collect();
    assert_eq!(told, ["fence source", "open target", "open target"]);
    assert!(!is_read_only(&pair.source), "the fence is not ours");
}

/// An executable script of a job.
fn script(job: &Job, name: &str, text: &str) -> String {
    let path = job.path().join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn a_hook_that_hangs_is_ended_with_all_that_it_has_started() {
    let pair = Pair::new("hangs");
    let job = pair.job();
    let hangs = script(&job, "hangs.sh", "sleep 600 & echo $! > child; wait");
    let job =
        job.configured(&format!("[cutover]\nhook_timeout = \"1s\"\nswitch_hook = [{hangs:?}]\n"));
    job.run(&["sync", "--until", "now"]).expect(0);
    job.run(&["cutover"]).expect(8).says(&[
        "hangs.sh was not done after 1 s",
        "hook_timeout",
        "--resume",
    ]);
    let child = fs::read_to_string(job.path().join("child")).unwrap();
    let state = format!("/proc/{}/stat", child.trim());
    wait_until("what it has started is ended", || {
        fs::read_to_string(&state).map_or(true, |stat| stat.contains(") Z "))
    });
    unfence(&pair);
}

#[test]
fn a_hook_that_cannot_be_run_is_found_before_the_fence() {
    let pair = Pair::new("nohook");
    let job = pair.job();
    let plain = job.path().join("plain.sh");
    fs::write(&plain, "#!/bin/sh\n").unwrap();
    let cutover = |job: Job, hook: &str| {
        let job = job.configured(&format!("[cutover]\nswitch_hook = [{hook:?}]\n"));
        job.run(&["sync", "--until", "now"]).expect(0);
        job.run(&["cutover"]).expect(5).says(&[hook, "cannot be run"]);
        job
    };
    let job = cutover(job, &plain.display().to_string());
    cutover(job, "no-such-program-of-tidemark");
    assert!(!is_read_only(&pair.source));
}

/// Whoever took the fence away may have died before it ended the sessions that began behind it.
#[test]
fn sessions_behind_a_fence_that_is_away_by_now_are_ended() {
    let migration = Migration::new("behind", "");
    let (job, pair) = (&migration.job, &migration.pair);
    job.run(&["sync", "--until", "now"]).expect(0);
    job.run_with(("TIDEMARK_FAILPOINT", "cutover:fence:done"), &["cutover"]).expect(128 + 9);
    let _behind = Blocker::start(&pair.source, "SELECT 1");
    let name = pair.source.name();
    let reset = format!(
        "SET default_transaction_read_only = off; ALTER DATABASE {name} RESET default_transaction_read_only"
    );
    pair.source.psql(&reset).unwrap();
    job.run(&["cutover", "--abort"]).expect(0);
    let there = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'blocker' AND datname = current_database()";
    assert_eq!(pair.source.psql(there).unwrap(), "0");
}

/// A writer that comes after the last look has its rows on both sides, once.
#[test]
fn what_comes_through_the_fence_at_the_last_moment_goes_round_in_no_circle() {
    let migration = Migration::new("late", "");
    let (job, pair) = (&migration.job, &migration.pair);
    let mut running = migration.followed();
    let failpoint = ("TIDEMARK_FAILPOINT", "cutover:reverse:done");
    job.run_with(failpoint, &["cutover"]).expect(128 + 9);
    pair.source
        .psql("SET default_transaction_read_only = off; INSERT INTO pet (mood, tags) VALUES ('sad', '{late}')")
        .unwrap();
    let late =
        |side: &Database| side.psql("SELECT count(*) FROM pet WHERE tags = '{late}'").unwrap();
    wait_until("the old stream has it", || late(&pair.target) == "1");
    job.run(&["cutover", "--resume"]).expect(0);
    passes(&mut running, &pair.target, &pair.source);
    assert_eq!((late(&pair.source), late(&pair.target)), ("1".to_owned(), "1".to_owned()));
    job.run(&["verify"]).expect(0);
}

/// Nothing but its origin tells the stream back that such a row came from the side that it goes to. It is told also where the
/// origin is gone by then: the server reads its catalogs as they were when the row was written.
#[test]
fn what_comes_after_the_last_look_into_a_table_without_a_key_is_there_once() {
    let pair = Pair::new("lastrow");
    let mut job = pair.job();
    let hook = job.path().join("late.sh");
    let psql = pair.source.cluster().psql_command(pair.source.name());
    let mut script = "#!/bin/sh\n".to_owned();
    for (name, value) in psql.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        script.push_str(&format!("export {}='{}'\n", name.display(), value.display()));
    }
    let words = std::iter::once(psql.get_program()).chain(psql.get_args());
    words.for_each(|word| script.push_str(&format!("'{}' ", word.display())));
    script.push_str("-c \"SET default_transaction_read_only = off\" -c \"INSERT INTO keyless VALUES ('2024-01-01', 'late')\"\n");
    fs::write(&hook, script).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    job = job.configured(&format!("[cutover]\nswitch_hook = [{:?}]\n", hook.display().to_string()));
    job.run(&["sync", "--until", "now"]).expect(0);
    // Nobody has followed the stream back yet when the old one is removed.
    job.run_with(("TIDEMARK_FAILPOINT", "cutover:turn:done"), &["cutover"]).expect(128 + 9);
    job.run(&["cutover", "--resume"]).expect(0);
    job.run(&["sync", "--until", "now"]).expect(0);
    let rows = "SELECT count(*) FROM keyless k WHERE k::text LIKE '%late%'";
    for side in [&pair.source, &pair.target] {
        assert_eq!(side.psql(rows).unwrap(), "1", "{}", side.name());
    }
    unfence(&pair);
}

/// After the target was lost, say: what it had must not undo what the application writes since.
#[test]
fn nothing_comes_back_to_a_source_that_was_opened_by_hand() {
    let migration = Migration::new("opened", "");
    let (job, pair) = (&migration.job, &migration.pair);
    job.run(&["sync", "--until", "now"]).expect(0);
    job.run(&["cutover"]).expect(0);
    pair.target.psql("UPDATE pet SET legs = 40 WHERE id = 7").unwrap();
    let open = format!(
        "SET default_transaction_read_only = off; ALTER DATABASE {} RESET default_transaction_read_only",
        pair.source.name()
    );
    pair.source.psql(&open).unwrap();
    pair.source.psql("UPDATE pet SET legs = 70 WHERE id = 7").unwrap();
    let anew = ["sync", "--until", "now", "--target-not-empty", "reconcile", "--yes"];
    for args in [&anew[..3], &anew, &["fallback"]] {
        job.run(args).expect(2).says(&["the fence of the source is away", "--state-dir"]);
    }
    assert_eq!(pair.source.psql("SELECT legs FROM pet WHERE id = 7").unwrap(), "70");
    // With what it has on the servers the migration ends, too.
    job.run(&["cleanup"]).expect(2).says(&["there is no way back then"]);
    let cleaned = job.run(&["cleanup", "--yes"]).expect(0).stdout;
    assert!(cleaned.contains("no way back any more"), "{cleaned}");
    for args in [&anew[..3], &anew] {
        job.run(args).expect(2).says(&["the migration is complete"]);
    }
}

#[test]
fn a_target_that_the_application_could_not_write_to_is_not_gone_to() {
    let migration = Migration::new("closed", "");
    let (job, pair) = (&migration.job, &migration.pair);
    job.run(&["sync", "--until", "now"]).expect(0);
    let close =
        format!("ALTER DATABASE {} SET default_transaction_read_only = on", pair.target.name());
    pair.target.psql(&close).unwrap();
    let url = format!("{}?options=-c%20default_transaction_read_only%3Doff", pair.target.url());
    let through =
        Job::new(pair.name(), &pair.source.url(), &url).state_at(&job.path().join("state"));
    through.run(&["cutover"]).expect(5).says(&["open the target", "RESET"]);
    assert!(!is_read_only(&pair.source));
}

/// A role of the cluster, which goes with what it was granted.
struct Role<'a>(&'a Database, &'static str);

impl Drop for Role<'_> {
    fn drop(&mut self) {
        self.0
            .psql(&format!(
                "SET default_transaction_read_only = off; DROP OWNED BY {0}; DROP ROLE {0}",
                self.1
            ))
            .ok();
    }
}

#[test]
fn who_may_write_on_one_side_only_is_named_before_the_fence() {
    let migration = Migration::new("rights", "");
    let (job, pair) = (&migration.job, &migration.pair);
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.source.psql("CREATE ROLE rights_app LOGIN").unwrap();
    let _role = Role(&pair.source, "rights_app");
    let grant = "GRANT SELECT, INSERT, UPDATE ON pet, orders TO rights_app";
    pair.source.psql(grant).unwrap();
    let lacks =
        "role \"rights_app\" may write to public.orders, public.pet, and there it may not as much";
    job.run(&["cutover", "--dry-run"]).expect(0).says(&[lacks, "there: the target"]);
    pair.target.psql(&grant.replace("INSERT, UPDATE", "INSERT")).unwrap();
    job.run(&["cutover", "--dry-run"]).expect(0).says(&[lacks]);
    pair.target.psql(grant).unwrap();
    let ran = job.run(&["cutover", "--dry-run"]).expect(0);
    assert!(!ran.stderr.contains("rights_app"), "{}", ran.stderr);
    pair.target.psql("DROP OWNED BY rights_app").unwrap();
}

#[test]
fn a_stream_that_is_too_far_behind_is_not_taken_over() {
    let migration = Migration::new("behind", "max_lag = \"500ms\"\n");
    let (job, pair) = (&migration.job, &migration.pair);
    let mut running = migration.followed();
    let mut blocker = Blocker::start(&pair.target, "LOCK pet IN SHARE MODE");
    pair.source.psql("UPDATE pet SET legs = legs + 1").unwrap();
    let lag = || job.status().and_then(|status| status["lag"]["seconds"].as_f64());
    wait_until("the target is behind", || lag().is_some_and(|seconds| seconds > 1.0));
    job.run(&["cutover"]).expect(8).says(&["s behind", "cutover.max_lag"]);
    assert!(!is_read_only(&pair.source));
    blocker.end();
    passes(&mut running, &pair.source, &pair.target);
}

#[test]
fn a_job_that_does_not_follow_is_not_taken_over() {
    let migration = Migration::new("early", "");
    let job = &migration.job;
    let ran = job.run(&["cutover"]);
    assert!(ran.code == 2 && !ran.stderr.is_empty(), "{ran:?}");
    let filtered = "[[table]]\nname = \"public.pet\"\nwhere = \"id > 5\"\n";
    let part = migration.pair.job().configured(filtered);
    part.run(&["cutover"]).expect(2).says(&["has only a part"]);
    job.run(&["sync", "--snapshot-only"]).expect(0);
    job.run(&["cutover"]).expect(2).says(&["does not follow yet", "tidemark sync"]);
    assert!(!is_read_only(&migration.pair.source));
}
