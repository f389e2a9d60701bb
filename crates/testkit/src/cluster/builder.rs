//! What a cluster is made of: version, settings, locale, authentication, TLS.
//!
//! **Invariant:** settings given later win; the defaults make a server that is quick to start and
//! small enough for several at once on two cores.

use std::fmt::Write as _;

use anyhow::Result;

use super::tls::Tls;
use super::version::Version;
use super::{Cluster, PASSWORD};

/// How TCP connections prove who they are; the unix socket is always trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// No proof.
    Trust,
    /// The password in clear.
    Password,
    /// An md5 hash (a role needs a password that was set under `password_encryption = md5`).
    Md5,
    /// SCRAM-SHA-256, also with channel binding over TLS.
    Scram,
    /// A TLS client certificate whose common name is the role.
    Cert,
}

impl Auth {
    fn method(self) -> &'static str {
        match self {
            Self::Trust => "trust",
            Self::Password => "password",
            Self::Md5 => "md5",
            Self::Scram => "scram-sha-256",
            Self::Cert => "cert",
        }
    }

    /// Whether a URL needs the password.
    pub(crate) fn needs_password(self) -> bool {
        matches!(self, Self::Password | Self::Md5 | Self::Scram)
    }
}

/// Encoding and locale of a cluster's own databases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locale {
    /// The encoding, such as `UTF8` or `SQL_ASCII`.
    pub encoding: String,
    /// The locale, such as `C.UTF-8` or `C`.
    pub name: String,
}

impl Default for Locale {
    fn default() -> Self {
        Self { encoding: "UTF8".into(), name: "C.UTF-8".into() }
    }
}

/// Settings of every cluster, before those of the builder.
const DEFAULTS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    ("wal_level", "logical"),
    ("shared_buffers", "64MB"),
    ("max_connections", "100"),
    ("max_wal_senders", "30"),
    ("max_replication_slots", "40"),
    ("max_prepared_transactions", "10"),
    ("wal_sender_timeout", "5s"),
    ("wal_keep_size", "128MB"),
    ("max_wal_size", "512MB"),
    ("min_wal_size", "64MB"),
    ("logical_decoding_work_mem", "64kB"),
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("full_page_writes", "off"),
    ("dynamic_shared_memory_type", "mmap"),
    ("password_encryption", "scram-sha-256"),
    ("log_line_prefix", "%m [%p] %a "),
    ("log_min_messages", "warning"),
    ("log_checkpoints", "off"),
    ("autovacuum_naptime", "10s"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("lc_messages", "C"),
];

/// Says what a [`Cluster`] shall be, then starts it.
#[derive(Debug, Clone)]
pub struct Builder {
    pub(crate) version: Version,
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) locale: Locale,
    pub(crate) auth: Auth,
    pub(crate) hba: Option<String>,
    pub(crate) tls: Option<Tls>,
}

impl Default for Builder {
    fn default() -> Self {
        let settings = DEFAULTS.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        Self {
            version: Version::from_env(),
            settings,
            locale: Locale::default(),
            auth: Auth::Trust,
            hba: None,
            tls: None,
        }
    }
}

impl Builder {
    /// The major version; by default that of `TIDEMARK_PG`, else 15.
    #[must_use]
    pub fn version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// One line of `postgresql.conf`; later ones win.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Real durability (`fsync`, `synchronous_commit`, `full_page_writes` on), for crash tests.
    #[must_use]
    pub fn durable(self) -> Self {
        self.setting("fsync", "on")
            .setting("synchronous_commit", "on")
            .setting("full_page_writes", "on")
    }

    /// Encoding and locale of `template1` and `postgres`.
    #[must_use]
    pub fn locale(mut self, encoding: &str, name: &str) -> Self {
        self.locale = Locale { encoding: encoding.into(), name: name.into() };
        self
    }

    /// How TCP connections prove who they are; with TLS they must also use it.
    #[must_use]
    pub fn auth(mut self, auth: Auth) -> Self {
        self.auth = auth;
        self
    }

    /// The TCP lines of `pg_hba.conf` in full, instead of those that [`Builder::auth`] makes.
    #[must_use]
    pub fn hba(mut self, lines: &str) -> Self {
        self.hba = Some(lines.into());
        self
    }

    /// Turns TLS on with this server certificate.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Starts the cluster and waits until it takes connections.
    ///
    /// # Errors
    /// When the version is not installed or the server does not start; with the end of its log.
    pub fn start(self) -> Result<Cluster> {
        Cluster::create(self)
    }

    pub(crate) fn postgresql_conf(&self, port: u16, socket_dir: &str) -> String {
        let mut text = String::from("\n# written by tidemark-testkit\n");
        let mut line = |name: &str, value: &str| {
            let value = value.replace('\'', "''");
            // Writing to a String cannot fail.
            writeln!(text, "{name} = '{value}'").ok();
        };
        line("port", &port.to_string());
        line("unix_socket_directories", socket_dir);
        for (name, value) in &self.settings {
            line(name, value);
        }
        if let Some(tls) = &self.tls {
            line("ssl", "on");
            line("ssl_cert_file", "server.crt");
            line("ssl_key_file", "server.key");
            if tls.ca_cert.is_some() {
                line("ssl_ca_file", "ca.crt");
            }
        }
        text
    }

    pub(crate) fn pg_hba_conf(&self) -> String {
        let local = "local all all trust\nlocal replication all trust\n";
        if let Some(lines) = &self.hba {
            return format!("{local}{lines}\n");
        }
        let kind = if self.tls.is_some() { "hostssl" } else { "host" };
        let method = self.auth.method();
        format!("{local}{kind} all all all {method}\n{kind} replication all all {method}\n")
    }

    pub(crate) fn url_password(&self) -> String {
        if self.auth.needs_password() { format!(":{PASSWORD}") } else { String::new() }
    }
}
