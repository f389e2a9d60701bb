//! A real PgBouncer in front of source or target: found before anything is moved (`hazards.md` A120).
//!
//! **Invariant:** the pooler ends with the test, also when the test is killed: it is the child of a shell that reads a pipe
//! whose other end only this process has.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tidemark_testkit::{Database, shared};

use crate::support::{Job, filled, wait_until};

/// All that Tidemark starts a session with and PgBouncer does not know.
const IGNORED: &str = "IntervalStyle,extra_float_digits,bytea_output,lc_monetary,xmloption,search_path,row_security,\
    quote_all_identifiers,array_nulls,transform_null_equals,default_transaction_isolation,jit,statement_timeout,\
    lock_timeout,idle_in_transaction_session_timeout";

struct Pooler {
    shell: Child,
    port: u16,
    _directory: TempDir,
}

impl Pooler {
    /// In front of the cluster of a database; `more` are lines of its configuration.
    fn start(database: &Database, more: &str) -> Self {
        let directory = TempDir::new().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // Free a moment ago: PgBouncer says nothing of a port that it chose itself.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\n{more}\n",
            database.cluster().port()
        );
        let file = directory.path().join("pgbouncer.ini");
        fs::write(&file, text).unwrap();
        let mut shell = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", "sh"]);
            command
        } else {
            Command::new("sh")
        };
        // It does not run as root.
        shell.args(["-c", "/usr/sbin/pgbouncer -q \"$0\" & read -r _; kill $!"]).arg(&file);
        let shell = shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let pooler = Self { shell: shell.unwrap(), port, _directory: directory };
        wait_until("the pooler listens (scripts/setup installs pgbouncer)", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        pooler
    }

    fn url(&self, database: &Database) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{}", self.port, database.name())
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        self.shell.wait().ok();
    }
}

/// Both commands refuse it, and nothing has been made.
#[track_caller]
fn refused(from: &str, to: &str, target: &Database, parts: &[&str]) {
    let job = Job::new("pooled", from, to);
    let check = job.run(&["check", "--snapshot-only"]).expect(5);
    for part in parts {
        assert!(check.stdout.contains(part), "no {part:?} in\n{}", check.stdout);
    }
    let ran = job.sync(&[]).expect(5).says(parts);
    assert!(ran.error().contains("pooler"), "{}", ran.stderr);
    let there = "SELECT count(*) FROM pg_class WHERE relnamespace NOT IN \
        ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'pg_toast'::regnamespace)";
    assert_eq!(target.psql(there).unwrap(), "0");
}

#[test]
fn a_pooler_is_named_as_source_and_as_target_before_anything_moves() {
    let (source, target) = (filled(), shared().unwrap());
    // As it is installed, it refuses what it does not know.
    let strict = Pooler::start(&source, "pool_mode = transaction");
    let refuses = ["connection pooler", "refuses the settings", "give the server's own address as"];
    refused(
        &strict.url(&source),
        &target.url(),
        &target,
        &[&refuses[..], &["source.url"]].concat(),
    );
    refused(
        &source.url(),
        &strict.url(&target),
        &target,
        &[&refuses[..], &["target.url"]].concat(),
    );
    // Told to swallow it, it takes the pinned settings away.
    for mode in ["transaction", "session"] {
        let lenient = format!("pool_mode = {mode}\nignore_startup_parameters = {IGNORED}");
        let lenient = Pooler::start(&source, &lenient);
        let drops = ["connection pooler", "drops the settings", "source.url"];
        refused(&lenient.url(&source), &target.url(), &target, &drops);
    }
}

#[test]
fn a_pooler_in_transaction_mode_is_found_even_if_the_settings_are_there() {
    let (source, target) = (filled(), shared().unwrap());
    let database = source.name();
    for setting in ["extra_float_digits = 3", "search_path = ''", "row_security = off"] {
        source.psql(&format!("ALTER DATABASE {database} SET {setting}")).unwrap();
    }
    let pooled = |mode: &str| {
        let more = format!("pool_mode = {mode}\nignore_startup_parameters = {IGNORED}");
        Pooler::start(&source, &more)
    };
    let transaction = pooled("transaction");
    let mode = ["connection pooler in transaction mode", "snapshot cannot be held", "source.url"];
    refused(&transaction.url(&source), &target.url(), &target, &mode);
    // What pools whole sessions and keeps their settings is only told of.
    let session = pooled("session");
    let job = Job::new("pooled", &session.url(&source), &target.url());
    let check = job.run(&["check", "--snapshot-only"]).expect(0);
    assert!(check.stdout.contains("connection pooler seems"), "{}", check.stdout);
}
