//! How to reach one database: parsing of connection strings and the sources that fill the gaps.
//!
//! **Invariant:** a [`ConnectSpec`] is complete: nothing is read from the environment or from files after it was parsed
//! (certificates and keys excepted). Neither `Debug` nor any message shows the password.
//!
//! Precedence, as in libpq: the text, the service file, `PG*` variables, the password file, defaults. Two defaults are
//! our own: `connect_timeout` is 10 s, and a `sslrootcert` without a `sslmode` means `verify-full`.

mod keyword;
mod options;
mod passfile;
mod service;
#[cfg(test)]
mod tests;
mod url;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidemark_model::Secret;

use crate::error::{Fault, Result};
use options::Options;

pub use options::LIBPQ_VARIABLES;

/// Where Debian's servers put their socket; elsewhere it is `/tmp`.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// How much TLS is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Only if the server does not let us in without.
    Allow,
    /// If the server can.
    Prefer,
    /// Always, without knowing who is at the other end.
    Require,
    /// Always, with a certificate that a trusted authority signed.
    VerifyCa,
    /// The same, and the certificate is for this host.
    VerifyFull,
}

impl SslMode {
    const NAMES: [(&'static str, Self); 6] = [
        ("disable", Self::Disable),
        ("allow", Self::Allow),
        ("prefer", Self::Prefer),
        ("require", Self::Require),
        ("verify-ca", Self::VerifyCa),
        ("verify-full", Self::VerifyFull),
    ];

    /// The word in a connection string.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|entry| entry.1 == self).map_or("", |entry| entry.0)
    }
}

/// Whether authentication must be bound to the TLS channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// When both sides can.
    Prefer,
    /// Always.
    Require,
}

impl ChannelBinding {
    const NAMES: [(&'static str, Self); 3] =
        [("disable", Self::Disable), ("prefer", Self::Prefer), ("require", Self::Require)];

    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|entry| entry.1 == self).map_or("", |entry| entry.0)
    }
}

/// Which certificates are trusted to sign a server's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootCert {
    /// The operating system's.
    System,
    /// Those in a PEM file.
    File(PathBuf),
}

/// Where the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    Tcp { name: Option<String>, address: Option<IpAddr> },
    Unix(PathBuf),
}

#[derive(Debug, Clone)]
pub(crate) struct TlsOptions {
    pub(crate) mode: SslMode,
    pub(crate) direct: bool,
    pub(crate) root: Option<RootCert>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) sni: bool,
    pub(crate) only_tls13: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Keepalive {
    pub(crate) on: bool,
    pub(crate) idle: Duration,
    pub(crate) interval: Duration,
    pub(crate) count: u32,
    pub(crate) user_timeout: Option<Duration>,
}

/// What kind of server a connection must have reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TargetSession {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
}

impl TargetSession {
    const NAMES: [(&'static str, Self); 6] = [
        ("any", Self::Any),
        ("prefer-standby", Self::Any),
        ("read-write", Self::ReadWrite),
        ("read-only", Self::ReadOnly),
        ("primary", Self::Primary),
        ("standby", Self::Standby),
    ];
}

/// Everything about how to reach one database.
#[derive(Clone)]
pub struct ConnectSpec {
    pub(crate) host: Host,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) password: Option<Secret>,
    pub(crate) application_name: String,
    pub(crate) options: Option<String>,
    pub(crate) connect_timeout: Duration,
    pub(crate) tls: TlsOptions,
    pub(crate) channel_binding: ChannelBinding,
    pub(crate) target_session: TargetSession,
    pub(crate) keepalive: Keepalive,
    password_in_text: bool,
}

impl ConnectSpec {
    /// Parses a URL or a keyword string and fills the gaps from the process's environment and the usual files.
    ///
    /// # Errors
    /// The text, a variable or a file that they name is not right; the error does not repeat values.
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_with(text, &|name| std::env::var(name).ok())
    }

    /// The same with a given environment.
    ///
    /// # Errors
    /// As [`ConnectSpec::parse`].
    pub fn parse_with(text: &str, env: &impl Fn(&str) -> Option<String>) -> Result<Self> {
        Self::build(text, env).map_err(|fault| fault.during("read the connection string"))
    }

    fn build(text: &str, env: &impl Fn(&str) -> Option<String>) -> Result<Self, Fault> {
        let text = text.trim();
        let mut options = match url::strip_scheme(text) {
            Some(rest) => url::parse(rest)?,
            None if text.contains("://") && !text.contains('=') => {
                return Err(Fault::usage("the URL must begin with postgres:// or postgresql://"));
            }
            None => keyword::parse(text)?,
        };
        let password_in_text = options.has("password");
        if let Some(name) = options.get("service").map(str::to_owned).or_else(|| env("PGSERVICE")) {
            let file = options.get("servicefile").map(str::to_owned);
            let file = file.or_else(|| env("PGSERVICEFILE"));
            options.fill(&service::load(&name, file.as_deref(), env)?);
        }
        options.fill_from_env(env)?;
        Self::from_options(&options, env, password_in_text)
    }

    fn from_options(
        options: &Options,
        env: &impl Fn(&str) -> Option<String>,
        password_in_text: bool,
    ) -> Result<Self, Fault> {
        let port = options.number("port")?.unwrap_or(5432);
        if port == 0 {
            return Err(Fault::usage("option \"port\" is not a valid number"));
        }
        let host = host(options)?;
        let user = match options.get("user") {
            Some(user) => user.to_owned(),
            None => operating_system_user(env)?,
        };
        let database = options.get("dbname").unwrap_or(&user).to_owned();
        let home = env("HOME").map(PathBuf::from);
        let mut spec = Self {
            tls: tls(options, home.as_deref(), &host)?,
            host,
            port,
            user,
            database,
            password: options.get("password").map(Secret::new),
            application_name: options.get("application_name").unwrap_or("tidemark").to_owned(),
            options: options.get("options").map(str::to_owned),
            connect_timeout: Duration::from_secs(options.number("connect_timeout")?.unwrap_or(10)),
            channel_binding: named(options, "channel_binding", &ChannelBinding::NAMES)?
                .unwrap_or(ChannelBinding::Prefer),
            target_session: named(options, "target_session_attrs", &TargetSession::NAMES)?
                .unwrap_or(TargetSession::Any),
            keepalive: keepalive(options)?,
            password_in_text,
        };
        if options.get("gssencmode") == Some("require") {
            return Err(Fault::usage("GSSAPI encryption is not supported: use TLS"));
        }
        if spec.password.is_none() {
            let file = options.get("passfile").map(PathBuf::from);
            let file = file.or_else(|| home.map(|home| home.join(".pgpass")));
            spec.password = file.and_then(|file| spec.password_from(&file));
        }
        Ok(spec)
    }

    fn password_from(&self, file: &Path) -> Option<Secret> {
        let host = match &self.host {
            Host::Unix(directory)
                if SOCKET_DIRECTORIES.iter().any(|known| directory == Path::new(known)) =>
            {
                "localhost".to_owned()
            }
            host => host.to_string(),
        };
        let wanted = passfile::Wanted {
            host: &host,
            port: self.port,
            database: &self.database,
            user: &self.user,
        };
        passfile::lookup(file, &wanted)
    }

    /// The database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The user.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The host and port, or the socket's directory and port, for people.
    pub fn host_display(&self) -> String {
        match &self.host {
            Host::Tcp { .. } if self.host.to_string().contains(':') => {
                format!("[{}]:{}", self.host, self.port)
            }
            host => format!("{host}:{}", self.port),
        }
    }

    /// Who, where and which database, without the password.
    pub fn redacted(&self) -> String {
        format!("{}@{}/{}", self.user, self.host_display(), self.database)
    }

    /// Whether the password stood in the connection string itself, where other people may see it.
    pub fn password_in_text(&self) -> bool {
        self.password_in_text
    }

    /// Whether somebody between us and a distant server could read or answer in its place.
    pub fn tls_unauthenticated(&self) -> bool {
        let local = match &self.host {
            Host::Unix(_) => true,
            Host::Tcp { name, address } => match (address, name.as_deref()) {
                (Some(address), _) => address.is_loopback(),
                (None, None | Some("localhost")) => true,
                (None, Some(name)) => {
                    name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
                }
            },
        };
        !local && self.tls.mode < SslMode::VerifyCa
    }

    /// The `sslmode` in effect.
    pub fn ssl_mode(&self) -> SslMode {
        self.tls.mode
    }

    /// The same server, another database.
    #[must_use]
    pub fn with_database(mut self, database: &str) -> Self {
        database.clone_into(&mut self.database);
        self
    }

    /// The same with another `application_name`.
    #[must_use]
    pub fn with_application_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.application_name);
        self
    }

    /// The same with a setting that its sessions begin with, whatever is set for the role or the database. Neither name nor
    /// value may hold a space.
    #[must_use]
    pub fn with_setting(mut self, name: &str, value: &str) -> Self {
        let options = self.options.get_or_insert_default();
        options.push_str(&format!(" -c {name}={value}"));
        self
    }

    /// What a libpq program (`pg_dump`, `pg_restore`) needs in its environment to reach the same database. Remove
    /// [`LIBPQ_VARIABLES`] from the child's environment first.
    pub fn libpq_env(&self) -> Vec<(String, String)> {
        let mut env = vec![
            ("PGPORT", self.port.to_string()),
            ("PGDATABASE", self.database.clone()),
            ("PGUSER", self.user.clone()),
            ("PGAPPNAME", self.application_name.clone()),
            ("PGCONNECT_TIMEOUT", self.connect_timeout.as_secs().to_string()),
            ("PGSSLMODE", self.tls.mode.name().to_owned()),
            ("PGSSLSNI", u8::from(self.tls.sni).to_string()),
            ("PGCHANNELBINDING", self.channel_binding.name().to_owned()),
            ("PGGSSENCMODE", "disable".to_owned()),
            ("PGCLIENTENCODING", "UTF8".to_owned()),
            // What is found is found by us: a file that appears later must not change who logs in.
            ("PGPASSFILE", "/dev/null".to_owned()),
        ];
        let path = |path: &Path| path.to_string_lossy().into_owned();
        match &self.host {
            Host::Unix(directory) => env.push(("PGHOST", path(directory))),
            Host::Tcp { name, address } => {
                env.extend(name.clone().map(|name| ("PGHOST", name)));
                env.extend(address.map(|address| ("PGHOSTADDR", address.to_string())));
            }
        }
        match &self.tls.root {
            Some(RootCert::System) => env.push(("PGSSLROOTCERT", "system".to_owned())),
            Some(RootCert::File(file)) => env.push(("PGSSLROOTCERT", path(file))),
            None => {}
        }
        env.extend(self.tls.cert.as_deref().map(|file| ("PGSSLCERT", path(file))));
        env.extend(self.tls.key.as_deref().map(|file| ("PGSSLKEY", path(file))));
        env.extend(self.tls.direct.then(|| ("PGSSLNEGOTIATION", "direct".to_owned())));
        env.extend(self.tls.only_tls13.then(|| ("PGSSLMINPROTOCOLVERSION", "TLSv1.3".to_owned())));
        env.extend(self.options.clone().map(|options| ("PGOPTIONS", options)));
        env.extend(self.password.as_ref().map(|secret| ("PGPASSWORD", secret.reveal().to_owned())));
        env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

impl fmt::Display for ConnectSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

impl fmt::Debug for ConnectSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectSpec")
            .field("at", &self.redacted())
            .field("password", &self.password)
            .field("sslmode", &self.tls.mode.name())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(directory) => write!(f, "{}", directory.display()),
            Self::Tcp { name: Some(name), .. } => f.write_str(name),
            Self::Tcp { name: None, address: Some(address) } => write!(f, "{address}"),
            Self::Tcp { name: None, address: None } => f.write_str("localhost"),
        }
    }
}

fn host(options: &Options) -> Result<Host, Fault> {
    let address = options
        .get("hostaddr")
        .map(|text| {
            text.parse::<IpAddr>()
                .map_err(|_| Fault::usage("option \"hostaddr\" is not an IP address"))
        })
        .transpose()?;
    match options.get("host") {
        Some(path) if path.starts_with('/') && address.is_none() => {
            Ok(Host::Unix(PathBuf::from(path)))
        }
        Some(path) if path.starts_with('@') => {
            Err(Fault::usage("sockets in the abstract namespace are not supported"))
        }
        Some(list) if list.contains(',') => {
            Err(Fault::usage("option \"host\" lists several hosts: name the one server to use"))
        }
        None if address.is_none() => Ok(Host::Unix(default_socket_directory())),
        name => Ok(Host::Tcp { name: name.map(str::to_owned), address }),
    }
}

fn default_socket_directory() -> PathBuf {
    let [debian, upstream] = SOCKET_DIRECTORIES.map(PathBuf::from);
    if debian.is_dir() { debian } else { upstream }
}

fn named<T: Copy>(options: &Options, name: &str, names: &[(&str, T)]) -> Result<Option<T>, Fault> {
    let Some(text) = options.get(name) else { return Ok(None) };
    match names.iter().find(|entry| entry.0 == text) {
        Some(entry) => Ok(Some(entry.1)),
        None => {
            let known: Vec<&str> = names.iter().map(|entry| entry.0).collect();
            Err(Fault::usage(format!("option \"{name}\" must be one of {}", known.join(", "))))
        }
    }
}

fn tls(options: &Options, home: Option<&Path>, host: &Host) -> Result<TlsOptions, Fault> {
    let in_home = |name: &str| {
        home.map(|home| home.join(".postgresql").join(name)).filter(|path| path.exists())
    };
    let given_root = options.get("sslrootcert");
    let asked = named(options, "sslmode", &SslMode::NAMES)?;
    let mut mode = asked.unwrap_or(if given_root.is_some() && matches!(host, Host::Tcp { .. }) {
        SslMode::VerifyFull
    } else {
        SslMode::Prefer
    });
    let root = match given_root {
        Some("system") => Some(RootCert::System),
        Some(file) => Some(RootCert::File(PathBuf::from(file))),
        None => in_home("root.crt").map(RootCert::File),
    };
    if root == Some(RootCert::System) && asked.is_some_and(|mode| mode < SslMode::VerifyFull) {
        return Err(Fault::usage(
            "sslrootcert=system needs sslmode=verify-full: anybody can get a certificate from a public authority",
        ));
    }
    // As libpq: a certificate authority makes "require" verify the chain.
    if mode == SslMode::Require && root.is_some() {
        mode = SslMode::VerifyCa;
    }
    let direct = match options.get("sslnegotiation") {
        None | Some("postgres") => false,
        Some("direct") if mode >= SslMode::Require => true,
        Some("direct") => {
            return Err(Fault::usage("sslnegotiation=direct needs sslmode=require or stronger"));
        }
        Some(_) => {
            return Err(Fault::usage("option \"sslnegotiation\" must be one of postgres, direct"));
        }
    };
    let only_tls13 = match options.get("ssl_min_protocol_version") {
        None | Some("TLSv1" | "TLSv1.1" | "TLSv1.2") => false,
        Some("TLSv1.3") => true,
        Some(_) => {
            return Err(Fault::usage(
                "option \"ssl_min_protocol_version\" must be TLSv1.2 or TLSv1.3",
            ));
        }
    };
    let cert = options.get("sslcert").map(PathBuf::from).or_else(|| in_home("postgresql.crt"));
    let key = options.get("sslkey").map(PathBuf::from).or_else(|| in_home("postgresql.key"));
    let sni = options.get("sslsni") != Some("0");
    Ok(TlsOptions { mode, direct, root, cert, key, sni, only_tls13 })
}

fn keepalive(options: &Options) -> Result<Keepalive, Fault> {
    let seconds = |name: &str, default: u64| -> Result<Duration, Fault> {
        let given = options.number::<u64>(name)?.filter(|seconds| *seconds > 0);
        Ok(Duration::from_secs(given.unwrap_or(default).min(32_767)))
    };
    Ok(Keepalive {
        on: options.get("keepalives") != Some("0"),
        idle: seconds("keepalives_idle", 30)?,
        interval: seconds("keepalives_interval", 10)?,
        count: options
            .number::<u32>("keepalives_count")?
            .filter(|n| (1..=127).contains(n))
            .unwrap_or(6),
        user_timeout: options
            .number::<u32>("tcp_user_timeout")?
            .filter(|milliseconds| *milliseconds > 0)
            .map(|milliseconds| Duration::from_millis(u64::from(milliseconds))),
    })
}

/// The name of the user that runs us, which is libpq's default.
fn operating_system_user(env: &impl Fn(&str) -> Option<String>) -> Result<String, Fault> {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    users
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1) == Some(uid.as_str())).then(|| name.to_owned())
        })
        .or_else(|| env("USER"))
        .ok_or_else(|| Fault::usage("no user is given and this process's user has no name"))
}

/// What the fuzz target runs: any text is a specification or an error. Panics where a password shows.
#[doc(hidden)]
pub fn fuzz_connect_string(text: &str) {
    let Ok(spec) = ConnectSpec::parse_with(text, &|_| None) else { return };
    let Some(secret) = spec.password.as_ref().map(Secret::reveal) else { return };
    // A password that is also a part of what is shown anyway, quotes and names of fields included, is not one that we show.
    let anyway = format!(
        "ConnectSpec {{ at: {:?}, password: Some(***), sslmode: {:?}, .. }}",
        spec.redacted(),
        spec.tls.mode.name()
    );
    if !anyway.contains(secret) {
        assert!(!format!("{spec:?}").contains(secret), "the password shows");
    }
}
