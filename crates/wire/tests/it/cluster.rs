//! A small real cluster for the tests of this crate: several ways to authenticate, certificates made on the spot.
//!
//! **Invariant:** one cluster per test process; the kernel ends it when the process ends, however that happens, and the
//! next run removes its directory. The server never runs as root.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tidemark_wire::ConnectSpec;

/// The password of every role that has one.
pub(crate) const PASSWORD: &str = "S3cr3t-%@";
const NOBODY: u32 = 65534;
const BIN: &str = "/usr/lib/postgresql/15/bin";

/// Who may come in how. `trust_user` needs nothing; the others are named after their method.
const HBA: &str = "
local all cleartext_user password
local all all trust
hostssl all cert_user 127.0.0.1/32 cert
host all scram_user 127.0.0.1/32 scram-sha-256
host all md5_user 127.0.0.1/32 md5
host all cleartext_user 127.0.0.1/32 password
hostssl all tls_only 127.0.0.1/32 trust
hostnossl all plain_only 127.0.0.1/32 trust
host all trust_user 127.0.0.1/32 trust
";

const ROLES: &str = "
set password_encryption = 'scram-sha-256';
create role scram_user login superuser password 'S3cr3t-%@';
create role cleartext_user login password 'S3cr3t-%@';
create role cert_user login;
create role tls_only login;
create role plain_only login;
create role trust_user login superuser replication;
set password_encryption = 'md5';
create role md5_user login password 'S3cr3t-%@';
";

pub(crate) struct Cluster {
    directory: TempDir,
    pub(crate) port: u16,
}

/// The cluster of this process.
pub(crate) fn cluster() -> &'static Cluster {
    static CLUSTER: LazyLock<Cluster> = LazyLock::new(Cluster::start);
    &CLUSTER
}

/// A command that does not run as root and does not outlive the thread that starts it.
fn as_nobody(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]);
    }
    command.args(["--pdeathsig=KILL", &format!("{BIN}/{program}")]);
    command
}

/// Removes what runs that are over have left.
fn remove_stale(prefix: &str) {
    for entry in std::fs::read_dir("/tmp").unwrap().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(prefix)?.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another process may be removing it too.
            drop(std::fs::remove_dir_all(entry.path()));
        }
    }
}

impl Cluster {
    fn start() -> Self {
        let prefix = "tidemark-wire-";
        remove_stale(prefix);
        let directory = tempfile::Builder::new()
            .prefix(&format!("{prefix}{}-", std::process::id()))
            .tempdir_in("/tmp")
            .unwrap();
        let root = directory.path();
        own(root);
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o755)).unwrap();
        let data = root.join("data");
        let initdb = as_nobody("initdb")
            .args(["-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(initdb.success());
        certificates(root);
        std::fs::write(data.join("pg_hba.conf"), HBA).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = as_nobody("postgres");
        server.arg("-D").arg(&data).args(settings(root, port));
        server.stderr(std::fs::File::create(root.join("log")).unwrap());
        // A thread of its own, because the server ends with the thread that started it, and a test's thread ends early.
        std::thread::spawn(move || server.spawn().unwrap().wait().unwrap());
        let this = Self { directory, port };
        this.wait();
        this.psql("postgres", ROLES);
        this
    }

    fn wait(&self) {
        for _ in 0..6000 {
            let ready = Command::new(format!("{BIN}/pg_isready"))
                .args(["-q", "-t", "1", "-h", self.socket_dir(), "-p", &self.port.to_string()])
                .status()
                .unwrap();
            if ready.success() {
                return;
            }
            // pg_isready comes back at once while there is no socket: give the processor to the server.
            std::thread::yield_now();
        }
        panic!("{}", std::fs::read_to_string(self.path("log")).unwrap());
    }

    pub(crate) fn socket_dir(&self) -> &str {
        self.directory.path().to_str().unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn psql(&self, database: &str, sql: &str) {
        let output = Command::new(format!("{BIN}/psql"))
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database])
            .args(["-h", self.socket_dir(), "-p", &self.port.to_string(), "-c", sql])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Over TCP as a user, with more options.
    pub(crate) fn tcp(&self, user: &str, more: &str) -> ConnectSpec {
        self.at("localhost", user, more)
    }

    /// The same by another host name.
    pub(crate) fn at(&self, host: &str, user: &str, more: &str) -> ConnectSpec {
        spec(&format!(
            "host={host} hostaddr=127.0.0.1 port={} user={user} dbname=postgres {more}",
            self.port
        ))
    }

    /// Over the unix socket as the superuser.
    pub(crate) fn unix(&self) -> ConnectSpec {
        spec(&format!(
            "host={} port={} user=trust_user dbname=postgres",
            self.socket_dir(),
            self.port
        ))
    }
}

/// A specification that depends on nothing but its text.
pub(crate) fn spec(text: &str) -> ConnectSpec {
    ConnectSpec::parse_with(text, &|_| None).unwrap()
}

fn own(path: &Path) {
    if rustix::process::geteuid().is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

fn settings(root: &Path, port: u16) -> Vec<String> {
    let file = |name: &str| root.join(name).display().to_string();
    [
        format!("port={port}"),
        "listen_addresses=127.0.0.1".to_owned(),
        format!("unix_socket_directories={}", root.display()),
        "fsync=off".to_owned(),
        "wal_level=logical".to_owned(),
        "ssl=on".to_owned(),
        format!("ssl_cert_file={}", file("server.crt")),
        format!("ssl_key_file={}", file("server.key")),
        format!("ssl_ca_file={}", file("ca.crt")),
    ]
    .into_iter()
    .flat_map(|setting| ["-c".to_owned(), setting])
    .collect()
}

/// An authority, a server certificate for "localhost", a client certificate, and what is wrong on purpose.
fn certificates(root: &Path) {
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let ours = authority("wire test authority");
    write(root, "ca.crt", &ours.pem());
    write(root, "other-ca.crt", &authority("another authority").pem());

    let leaf = |file: &str, params: CertificateParams| {
        let key = KeyPair::generate().unwrap();
        write(root, &format!("{file}.crt"), &params.signed_by(&key, &ours).unwrap().pem());
        write(root, &format!("{file}.key"), &key.serialize_pem());
    };
    leaf("server", CertificateParams::new(["localhost".to_owned()]).unwrap());
    let mut expired = CertificateParams::new(["localhost".to_owned()]).unwrap();
    expired.not_before = date_time_ymd(2001, 1, 1);
    expired.not_after = date_time_ymd(2002, 1, 1);
    leaf("expired", expired);
    let mut client = CertificateParams::default();
    client.distinguished_name = rcgen::DistinguishedName::new();
    client.distinguished_name.push(rcgen::DnType::CommonName, "cert_user");
    leaf("client", client);

    let mut own_authority = CertificateParams::new(["localhost".to_owned()]).unwrap();
    own_authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    write(root, "self.crt", &own_authority.self_signed(&key).unwrap().pem());
    write(root, "self.key", &key.serialize_pem());
}

fn write(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    std::fs::write(&path, text).unwrap();
    let key = Path::new(name).extension().is_some_and(|extension| extension == "key");
    std::fs::set_permissions(
        &path,
        std::fs::Permissions::from_mode(if key { 0o600 } else { 0o644 }),
    )
    .unwrap();
    if name.starts_with("server") {
        own(&path);
    }
}
