//! One PostgreSQL server of its own: data directory, port, socket, log; started and stopped in any way.
//!
//! **Invariant:** the server and its directory are gone when the [`Cluster`] is dropped, and also when
//! the test process is killed: a watchdog shell holds the read end of a pipe whose write end only this
//! process has; when the pipe closes, it ends the server at once and removes the directory.
//!
//! ```text
//! create -> running -> stop_fast | stop_immediate | kill -> start -> running -> drop
//! ```
//!
//! Everything is synchronous: a test with an async runtime calls it before or in `spawn_blocking`.
//! Manual: "Shutting Down the Server" (fast = SIGINT, immediate = SIGQUIT).

mod builder;
mod port;
mod shared;
mod standby;
mod template;
mod tls;
mod version;

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::process;
use port::PortLease;

pub use builder::{Auth, Builder, Locale};
pub use shared::{Database, shared, shared_filled};
pub use template::PASSWORD;
pub use tls::Tls;
pub use version::{Installation, Version};
pub(crate) use version::{cache_home, client_program};

/// How long a server may take to start or to stop.
const DEADLINE: Duration = Duration::from_secs(60);

/// What the watchdog does once the test process is gone: `$1` is the cluster's directory.
const WATCHDOG: &str = r#"
trap '' HUP INT TERM
read -r _
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null && [ -d "$1/data" ]; then
  kill -QUIT "$pid"
  n=0
  while kill -0 "$pid" 2>/dev/null && [ $n -lt 50 ]; do sleep 0.1; n=$((n + 1)); done
  kill -KILL "$pid" 2>/dev/null
fi
rm -rf "$1"
"#;

/// A running (or stopped) server. Dropping it stops the server and removes its files.
#[derive(Debug)]
pub struct Cluster {
    builder: Builder,
    installation: Installation,
    directory: TempDir,
    lease: PortLease,
    server: Mutex<Option<Child>>,
    watchdog: Child,
}

impl Cluster {
    /// Says what the cluster shall be.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Starts a cluster with the default version and settings.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn start_default() -> Result<Self> {
        Self::builder().start()
    }

    fn create(builder: Builder) -> Result<Self> {
        let cluster = Self::prepare(builder, |installation, locale, data| {
            template::copy_template(installation, locale, data)
        })?;
        cluster.start()?;
        Ok(cluster)
    }

    /// A cluster of the default version and settings that `fill` has filled, once per machine: `name` says with what, and is
    /// another one whenever that changes.
    ///
    /// # Errors
    /// As [`Builder::start`]; what `fill` gives.
    pub fn start_filled(name: &str, fill: impl FnOnce(&Self) -> Result<()>) -> Result<Self> {
        let cluster = Self::prepare(Builder::default(), |installation, _, data| {
            template::copy_filled(installation, name, data, |template| {
                let cluster = Self::start_default()?;
                fill(&cluster)?;
                cluster.stop_fast()?;
                template::copy_directory(&cluster.data_dir(), template)
            })
        })?;
        cluster.start()?;
        Ok(cluster)
    }

    /// Makes everything but the running server; `fill` makes the data directory.
    fn prepare(
        builder: Builder,
        fill: impl FnOnce(&Installation, &Locale, &Path) -> Result<()>,
    ) -> Result<Self> {
        let installation = builder.version.installation()?;
        let directory = make_directory()?;
        let watchdog = start_watchdog(directory.path())?;
        let lease = PortLease::take()?;
        let cluster =
            Self { builder, installation, directory, lease, server: Mutex::new(None), watchdog };
        fill(&cluster.installation, &cluster.builder.locale, &cluster.data_dir())?;
        cluster.configure()?;
        Ok(cluster)
    }

    fn configure(&self) -> Result<()> {
        let data = self.data_dir();
        let socket = self.socket_dir();
        let conf = self.builder.postgresql_conf(self.port(), &socket.to_string_lossy());
        let path = data.join("postgresql.conf");
        let mut file = OpenOptions::new()
            .append(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        file.write_all(conf.as_bytes()).context("write postgresql.conf")?;
        fs::write(data.join("pg_hba.conf"), self.builder.pg_hba_conf())
            .context("write pg_hba.conf")?;
        if let Some(tls) = &self.builder.tls {
            self.write_server_file("server.crt", &tls.server_cert)?;
            self.write_server_file("server.key", &tls.server_key)?;
            if let Some(ca) = &tls.ca_cert {
                self.write_server_file("ca.crt", ca)?;
            }
        }
        Ok(())
    }

    /// Writes a file into the data directory that only the server's user can read.
    fn write_server_file(&self, name: &str, text: &str) -> Result<()> {
        let path = self.data_dir().join(name);
        fs::write(&path, text).with_context(|| format!("write {name}"))?;
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600))
            .with_context(|| format!("protect {name}"))?;
        give_to_server(&path)
    }

    /// Starts the stopped server again and waits until it takes connections.
    ///
    /// # Errors
    /// When it runs already or does not come up; with the end of its log.
    pub fn start(&self) -> Result<()> {
        let mut server = self.server();
        if server.is_some() {
            bail!("start the server on port {}: it is running", self.port());
        }
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = self.installation.command("postgres");
        command.arg("-D").arg(self.data_dir());
        // Its own process group: Ctrl-C on the tests goes to us, and we stop the server.
        command.process_group(0).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn().context("spawn postgres")?;
        let ready = process::poll(DEADLINE, || {
            if let Some(status) = child.try_wait()? {
                bail!("start PostgreSQL: {status}\n{}", self.log_tail());
            }
            Ok(self.is_ready(child.id()).then_some(()))
        })?;
        *server = Some(child);
        if ready.is_none() {
            bail!("start PostgreSQL: not ready after {DEADLINE:?}\n{}", self.log_tail());
        }
        Ok(())
    }

    /// Whether `postmaster.pid` is this server's and its last line says that it takes connections.
    fn is_ready(&self, pid: u32) -> bool {
        let text = fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.first().is_some_and(|line| line.trim() == pid.to_string())
            && lines.get(7).is_some_and(|line| line.trim() == "ready")
    }

    /// Stops as `pg_ctl stop -m fast` does: rolls back, writes a checkpoint. No-op when stopped.
    ///
    /// # Errors
    /// When the server does not end within a minute.
    pub fn stop_fast(&self) -> Result<()> {
        self.stop(Signal::INT)
    }

    /// Stops as `pg_ctl stop -m immediate` does: a crash that the next start recovers from.
    ///
    /// # Errors
    /// As [`Cluster::stop_fast`].
    pub fn stop_immediate(&self) -> Result<()> {
        self.stop(Signal::QUIT)
    }

    /// Kills the postmaster with SIGKILL; its backends notice and end.
    ///
    /// # Errors
    /// As [`Cluster::stop_fast`].
    pub fn kill(&self) -> Result<()> {
        self.stop(Signal::KILL)
    }

    fn stop(&self, signal: Signal) -> Result<()> {
        let mut server = self.server();
        let Some(child) = server.as_mut() else { return Ok(()) };
        signal_child(child, signal)?;
        if process::poll(DEADLINE, || Ok(child.try_wait()?))?.is_none() {
            bail!("stop PostgreSQL: still there after {DEADLINE:?}\n{}", self.log_tail());
        }
        *server = None;
        Ok(())
    }

    /// Stops fast and starts again, on the same port.
    ///
    /// # Errors
    /// As [`Cluster::stop_fast`] and [`Cluster::start`].
    pub fn restart(&self) -> Result<()> {
        self.stop_fast()?;
        self.start()
    }

    /// Whether the postmaster is alive.
    pub fn is_running(&self) -> bool {
        self.server().as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Adds lines to `postgresql.conf` and reloads (what needs a restart waits for one).
    ///
    /// # Errors
    /// When the file cannot be written or the server cannot be told.
    pub fn configure_setting(&self, name: &str, value: &str) -> Result<()> {
        let path = self.data_dir().join("postgresql.conf");
        let mut file =
            OpenOptions::new().append(true).open(&path).context("open postgresql.conf")?;
        writeln!(file, "{name} = '{}'", value.replace('\'', "''"))?;
        self.reload()
    }

    /// Replaces the TCP lines of `pg_hba.conf` and reloads.
    ///
    /// # Errors
    /// As [`Cluster::configure_setting`].
    pub fn set_hba(&self, lines: &str) -> Result<()> {
        let text = self.builder.clone().hba(lines).pg_hba_conf();
        fs::write(self.data_dir().join("pg_hba.conf"), text).context("write pg_hba.conf")?;
        self.reload()
    }

    fn reload(&self) -> Result<()> {
        let mut server = self.server();
        let Some(child) = server.as_mut() else { return Ok(()) };
        signal_child(child, Signal::HUP)
    }

    /// The major version.
    pub fn version(&self) -> Version {
        self.installation.version()
    }

    /// The TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.lease.port
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The directory of the unix socket.
    pub fn socket_dir(&self) -> PathBuf {
        self.directory.path().to_path_buf()
    }

    /// A directory of the cluster that is removed with it, for files of the test.
    pub fn scratch_dir(&self) -> PathBuf {
        self.directory.path().join("scratch")
    }

    /// The server's log.
    pub fn log_path(&self) -> PathBuf {
        self.directory.path().join("server.log")
    }

    /// All that the server has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    fn log_tail(&self) -> String {
        process::tail(&self.log(), 25)
    }

    /// The certificates, when TLS is on.
    pub fn tls(&self) -> Option<&Tls> {
        self.builder.tls.as_ref()
    }

    /// A URL over TCP as the superuser `postgres`, with the password if the method wants one.
    pub fn url(&self, database: &str) -> String {
        let password = self.builder.url_password();
        format!("postgres://postgres{password}@127.0.0.1:{}/{}", self.port(), encode(database))
    }

    /// A URL over TCP as another role.
    pub fn url_as(&self, role: &str, password: &str, database: &str) -> String {
        let (role, password, database) = (encode(role), encode(password), encode(database));
        format!("postgres://{role}:{password}@127.0.0.1:{}/{database}", self.port())
    }

    /// A URL over the unix socket as the superuser `postgres`; it is always trusted.
    pub fn socket_url(&self, database: &str) -> String {
        let socket = encode(&self.socket_dir().to_string_lossy());
        format!("postgres://postgres@{socket}:{}/{}", self.port(), encode(database))
    }

    /// A `psql` that talks to a database over the unix socket, without reading any start-up file.
    pub fn psql_command(&self, database: &str) -> Command {
        let mut command = self.client_command("psql");
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d"]).arg(conninfo(database));
        command
    }

    /// A client program (`pgbench`, `pg_dump`, ..) whose environment points to this cluster's socket.
    pub fn client_command(&self, program: &str) -> Command {
        let mut command = process::command(client_program(program));
        command.env("PGHOST", self.socket_dir()).env("PGPORT", self.port().to_string());
        command.env("PGUSER", "postgres").env("PGCLIENTENCODING", "UTF8");
        command
    }

    /// Runs SQL and gives what it printed, unaligned and without headers or the last line end.
    ///
    /// # Errors
    /// When any statement fails.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String> {
        let mut command = self.psql_command(database);
        let output = process::run_with_input(&mut command, sql.as_bytes())?;
        let text = String::from_utf8(output.stdout).context("read psql's output as UTF-8")?;
        Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
    }

    /// Runs SQL scripts given as text from a file of `testdata/`; as [`Cluster::psql`], without output.
    ///
    /// # Errors
    /// When any statement fails.
    pub fn run_script(&self, database: &str, sql: &str) -> Result<()> {
        self.psql(database, sql).map(drop)
    }

    /// Asks `sql` until it prints `expected`.
    ///
    /// # Errors
    /// When it fails, or does not within a minute.
    pub fn wait_for(&self, database: &str, sql: &str, expected: &str) -> Result<()> {
        let mut last = String::new();
        let found = process::poll(DEADLINE, || {
            last = self.psql(database, sql)?;
            Ok((last == expected).then_some(()))
        })?;
        match found {
            Some(()) => Ok(()),
            None => bail!("wait for `{sql}` to print {expected:?}: it printed {last:?}"),
        }
    }

    /// Makes an empty database.
    ///
    /// # Errors
    /// When it exists.
    pub fn create_database(&self, name: &str) -> Result<()> {
        self.create_database_with(name, "")
    }

    /// Makes a database with options, such as `TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'`.
    ///
    /// # Errors
    /// When it exists or the options are wrong.
    pub fn create_database_with(&self, name: &str, options: &str) -> Result<()> {
        let name = quote_ident(name);
        self.psql("postgres", &format!("CREATE DATABASE {name} {options}")).map(drop)
    }

    /// Drops a database, also when someone is connected to it.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn drop_database(&self, name: &str) -> Result<()> {
        let name = quote_ident(name);
        self.psql("postgres", &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).map(drop)
    }

    fn server(&self) -> MutexGuard<'_, Option<Child>> {
        // A panic of another test thread leaves the handle as it was.
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.stop_immediate().is_err() {
            self.kill().ok();
        }
        // The pipe closes: the watchdog removes the directory, as it would after a kill.
        drop(self.watchdog.stdin.take());
        self.watchdog.wait().ok();
    }
}

fn signal_child(child: &Child, signal: Signal) -> Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("take the pid")?;
    kill_process(pid, signal).with_context(|| format!("send a signal to postmaster {}", child.id()))
}

fn make_directory() -> Result<TempDir> {
    let name = format!("tidemark-{}-", std::process::id());
    let mut root = std::env::temp_dir();
    // A socket's path may have 107 bytes (unix(7)).
    if root.as_os_str().len() > 50 {
        root = PathBuf::from("/tmp");
    }
    let directory = tempfile::Builder::new().prefix(&name).tempdir_in(root)?;
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755))?;
    fs::create_dir(directory.path().join("scratch"))?;
    // Server-side COPY may write here, whoever the server runs as.
    fs::set_permissions(directory.path().join("scratch"), PermissionsExt::from_mode(0o777))?;
    give_to_server(directory.path())?;
    Ok(directory)
}

/// Makes the server's user the owner of a path, when we are root.
fn give_to_server(path: &Path) -> Result<()> {
    if process::is_root() {
        let (uid, gid) = process::UNPRIVILEGED;
        chown(path, Some(uid), Some(gid)).with_context(|| format!("chown {}", path.display()))?;
    }
    Ok(())
}

/// Makes a path readable for the server's user, for tests that hand files to it.
///
/// # Errors
/// When the owner cannot be changed.
pub fn user_for_files(path: &Path) -> Result<()> {
    give_to_server(path)
}

fn start_watchdog(directory: &Path) -> Result<Child> {
    let mut command = process::command("sh");
    command.arg("-c").arg(WATCHDOG).arg("tidemark-watchdog").arg(directory);
    command.process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("spawn the watchdog")
}

/// A database name as libpq's keyword form, so that no name is taken for a URL.
fn conninfo(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Quotes an SQL identifier.
pub(crate) fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Percent-encodes everything but letters, digits, `-`, `_` and `.`.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
