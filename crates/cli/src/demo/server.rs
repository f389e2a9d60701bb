//! Two throwaway PostgreSQL servers in one temporary directory.
//!
//! **Invariant:** servers and directory are gone when [`Place`] is dropped, and also when this process is killed: a
//! watchdog shell holds the read end of a pipe whose write end only this process has. The servers listen on 127.0.0.1
//! only and want a random password, which is in no argument and, once initdb has read it, in no file.
//!
//! PostgreSQL does not run as root: a root process starts it as the user `postgres`, or `nobody` where there is none.
//!
//! Manual: `initdb`, "Shutting Down the Server" (immediate = SIGQUIT).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tidemark_wire::ConnectSpec;

use crate::exit::{ExitCode, Failure};

/// The superuser of both servers.
pub(super) const USER: &str = "demo";
/// The database on both servers.
pub(super) const DATABASE: &str = "shop";
/// Below the directory: a file for each of our commands that runs, its name is the process's number.
pub(super) const RUNNING: &str = "running";
/// How long a server may take to answer for the first time.
const START_WITHIN: Duration = Duration::from_secs(30);
/// Between two tries to connect.
const TRY_EVERY: Duration = Duration::from_millis(50);
/// A port that was free may be taken when the server comes to use it.
const STARTS: u32 = 3;

/// Ends what is left when this process is gone without having done it: `$1` is the directory.
const WATCHDOG: &str = r#"
trap '' HUP INT TERM QUIT
read -r _
for file in "$1"/running/*; do
  [ -f "$file" ] && kill -KILL "${file##*/}" 2>/dev/null
done
for file in "$1"/*/data/postmaster.pid; do
  [ -f "$file" ] && kill -QUIT "$(head -n 1 "$file")" 2>/dev/null
done
n=0
while ls "$1"/*/data/postmaster.pid >/dev/null 2>&1 && [ $n -lt 20 ]; do
  sleep 0.1; n=$((n + 1))
done
rm -rf "$1"
"#;

/// PostgreSQL's server programs.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    directory: PathBuf,
    /// As `postgres --version` says it.
    pub(super) version: String,
}

impl Programs {
    /// Looks where `TIDEMARK_PG_BIN` says, else where Debian puts them (the newest), else on `PATH`.
    pub(super) fn find() -> Result<Self, Failure> {
        let named = std::env::var_os("TIDEMARK_PG_BIN").map(PathBuf::from);
        let is_named = named.is_some();
        let places = named.map_or_else(places, |directory| vec![directory]);
        let has_all =
            |place: &&PathBuf| ["initdb", "postgres"].iter().all(|name| place.join(name).is_file());
        let Some(directory) = places.iter().find(has_all).cloned() else {
            let attempt = match is_named {
                true => "find PostgreSQL's server programs in the directory of TIDEMARK_PG_BIN",
                false => "find PostgreSQL's server programs (initdb, postgres)",
            };
            return Err(Failure::usage(attempt).hint(
                "apt-get install postgresql (Debian, Ubuntu), or set TIDEMARK_PG_BIN to their directory",
            ));
        };
        let output = Command::new(directory.join("postgres")).arg("--version").output();
        let text = output.map_err(|error| failed("ask postgres for its version", &error))?.stdout;
        let text = String::from_utf8_lossy(&text);
        let version = text.split_whitespace().nth(2).unwrap_or("of unknown version").to_owned();
        Ok(Self { directory, version })
    }
}

fn places() -> Vec<PathBuf> {
    let mut debian: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let major = entry.file_name().to_str()?.parse().ok()?;
            Some((major, entry.path().join("bin")))
        })
        .collect();
    debian.sort_by_key(|(major, _)| std::cmp::Reverse(*major));
    let path = std::env::var_os("PATH").unwrap_or_default();
    debian.into_iter().map(|(_, place)| place).chain(std::env::split_paths(&path)).collect()
}

/// The temporary directory with everything in it.
#[derive(Debug)]
pub(super) struct Place {
    servers: Vec<Child>,
    directory: Option<TempDir>,
    watchdog: Option<Child>,
    account: Option<Account>,
    programs: Programs,
    password: String,
}

/// The user that servers run as when we are root.
#[derive(Debug, Clone, Copy)]
struct Account {
    uid: u32,
    gid: u32,
}

/// One of the two servers.
#[derive(Debug, Clone)]
pub(super) struct Server {
    /// How its database is reached.
    pub(super) spec: ConnectSpec,
    /// Its port on 127.0.0.1.
    pub(super) port: u16,
}

impl Place {
    /// Makes the directory.
    pub(super) fn make(programs: Programs) -> Result<Self, Failure> {
        let account = match rustix::process::geteuid().is_root() {
            true => Some(unprivileged_account()?),
            false => None,
        };
        let directory = tempfile::Builder::new()
            .prefix("tidemark-demo-")
            .tempdir()
            .map_err(|error| failed("make a temporary directory", &error))?;
        // The servers' user must reach its own directories below.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711))
            .map_err(|error| failed("open the temporary directory for the server", &error))?;
        fs::create_dir(directory.path().join(RUNNING))
            .map_err(|error| failed("make the directory of what runs", &error))?;
        let watchdog = Command::new("/bin/sh")
            .args(["-c", WATCHDOG, "tidemark-demo-watchdog"])
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| failed("start the watchdog", &error))?;
        Ok(Self {
            servers: Vec::new(),
            directory: Some(directory),
            watchdog: Some(watchdog),
            account,
            programs,
            password: random_password()?,
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        self.directory.as_ref().map_or(Path::new(""), TempDir::path)
    }

    /// What `PGPASSWORD` must be to look around.
    pub(super) fn password(&self) -> &str {
        &self.password
    }

    /// Makes a cluster with these settings, starts it, and makes the database.
    pub(super) async fn start(&mut self, name: &str, settings: &str) -> Result<Server, Failure> {
        let home = self.path().join(name);
        fs::create_dir(&home).map_err(|error| failed("make a server's directory", &error))?;
        self.give(&home)?;
        self.init(&home).await?;
        for _ in 1..STARTS {
            match self.launch(&home, settings).await {
                Err(failure) if log_of(&home).contains("could not bind") => {
                    tracing::debug!(?failure, "the port was taken meanwhile");
                }
                ended => return ended,
            }
        }
        self.launch(&home, settings).await
    }

    async fn init(&self, home: &Path) -> Result<(), Failure> {
        let file = home.join("password");
        fs::write(&file, &self.password)
            .map_err(|error| failed("hand over the password", &error))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))
            .map_err(|error| failed("protect the password", &error))?;
        self.give(&file)?;
        let mut command = self.command("initdb", home);
        command.args(["--username", USER, "--auth=scram-sha-256", "--pwfile=password"]).args([
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--pgdata=data",
        ]);
        let mut command = tokio::process::Command::from(command);
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
        let output = output.map_err(|error| failed("run initdb", &error))?;
        fs::remove_file(&file).map_err(|error| failed("remove the password's file", &error))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(server_failed("run initdb", output.status, &said));
        }
        Ok(())
    }

    async fn launch(&mut self, home: &Path, settings: &str) -> Result<Server, Failure> {
        let port = free_port().map_err(|error| failed("find a free port", &error))?;
        let mut file = OpenOptions::new()
            .append(true)
            .open(home.join("data/postgresql.conf"))
            .map_err(|error| failed("open a server's configuration", &error))?;
        let text = format!(
            "\nlisten_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\n{settings}\n"
        );
        file.write_all(text.as_bytes())
            .map_err(|error| failed("write a server's configuration", &error))?;
        let log = File::create(home.join("server.log"))
            .map_err(|error| failed("make a server's log", &error))?;
        let mut command = self.command("postgres", home);
        // Ctrl-C on the terminal is for us; we end the servers.
        command.args(["-D", "data"]).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        // The full path shows in the process list whose server it is.
        command.arg("-c").arg(format!("hba_file={}", home.join("data/pg_hba.conf").display()));
        let child = command.stderr(log).spawn();
        let mut child = child.map_err(|error| failed("start a server", &error))?;
        let ready = wait_ready(&mut child, home, port, &self.password).await;
        self.servers.push(child);
        ready?;
        let maintenance = spec_of(port, "postgres", &self.password)?;
        let client = maintenance.connect().await.map_err(|error| query_failed(&error))?;
        let create = format!("CREATE DATABASE {DATABASE}");
        client.batch_execute(&create).await.map_err(|error| query_failed(&error))?;
        Ok(Server { spec: spec_of(port, DATABASE, &self.password)?, port })
    }

    fn command(&self, name: &str, home: &Path) -> Command {
        let mut command = Command::new(self.programs.directory.join(name));
        command.current_dir(home).env("LC_ALL", "C");
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PG") {
                command.env_remove(variable);
            }
        }
        if let Some(account) = self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command
    }

    fn give(&self, path: &Path) -> Result<(), Failure> {
        let Some(account) = self.account else { return Ok(()) };
        chown(path, Some(account.uid), Some(account.gid))
            .map_err(|error| failed("hand a directory over to the server's user", &error))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for server in &mut self.servers {
            if let Some(pid) = Pid::from_raw(i32::try_from(server.id()).unwrap_or_default())
                && matches!(server.try_wait(), Ok(None))
            {
                kill_process(pid, Signal::QUIT).ok();
            }
        }
        // An immediate stop ends by itself within seconds.
        for server in &mut self.servers {
            server.wait().ok();
        }
        if let Some(directory) = self.directory.take() {
            directory.close().ok();
        }
        // Its pipe closes; it finds nothing to do and ends.
        if let Some(mut watchdog) = self.watchdog.take() {
            drop(watchdog.stdin.take());
            watchdog.wait().ok();
        }
    }
}

async fn wait_ready(
    child: &mut Child,
    home: &Path,
    port: u16,
    password: &str,
) -> Result<(), Failure> {
    let spec = spec_of(port, "postgres", password)?;
    let started = Instant::now();
    loop {
        match child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => return Err(server_failed("start a server", status, &log_of(home))),
            Err(error) => return Err(failed("watch a server start", &error)),
        }
        match spec.connect().await {
            Ok(_) => return Ok(()),
            Err(error) if started.elapsed() > START_WITHIN => return Err(query_failed(&error)),
            Err(_) => tokio::time::sleep(TRY_EVERY).await,
        }
    }
}

/// Nothing of the caller's environment may change who is reached.
fn spec_of(port: u16, database: &str, password: &str) -> Result<ConnectSpec, Failure> {
    let text = format!("host=127.0.0.1 port={port} user={USER} dbname={database} sslmode=disable");
    let environment = |name: &str| (name == "PGPASSWORD").then(|| password.to_owned());
    ConnectSpec::parse_with(&text, &environment)
        .map_err(|error| Failure::internal("name a server of our own").because(&error))
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn random_password() -> Result<String, Failure> {
    let mut bytes = [0_u8; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| failed("draw a password", &error))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn unprivileged_account() -> Result<Account, Failure> {
    let users = fs::read_to_string("/etc/passwd")
        .map_err(|error| failed("look for a user that servers can run as", &error))?;
    let account = |name: &str| account_in(&users, name);
    account("postgres").or_else(|| account("nobody")).ok_or_else(|| {
        Failure::usage("find a user that PostgreSQL can run as: it refuses to run as root")
            .hint("run the demo as an ordinary user")
    })
}

fn account_in(users: &str, name: &str) -> Option<Account> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        let mut numbers = fields.skip(1).map(str::parse);
        Some(Account { uid: numbers.next()?.ok()?, gid: numbers.next()?.ok()? })
    })
}

fn log_of(home: &Path) -> String {
    fs::read_to_string(home.join("server.log")).unwrap_or_default()
}

fn failed(attempt: &str, error: &io::Error) -> Failure {
    Failure::new(ExitCode::Unavailable, attempt).because(error)
}

/// A server of ours does not do what it must.
pub(super) fn query_failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(ExitCode::Unavailable, "use a server of the demonstration").because(error)
}

fn server_failed(attempt: &str, status: ExitStatus, said: &str) -> Failure {
    let mut tail: Vec<&str> = said.lines().rev().take(3).collect();
    tail.reverse();
    Failure::new(ExitCode::Unavailable, attempt)
        .cause(format!("{status}: {}", tail.join("; ")))
        .hint("set TMPDIR to a directory that every user can reach, with 2 GB of space")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        let users = "root:x:0:0::/root:/bin/sh\npostgres2:x:7:8::/:/bin/sh\npostgres:x:101:104::/:/bin/sh\n";
        let account = account_in(users, "postgres").unwrap();
        assert_eq!((account.uid, account.gid), (101, 104));
        assert!(account_in(users, "nobody").is_none());
    }
}
