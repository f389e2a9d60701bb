//! From a specification to a session that waits for its first query.
//!
//! **Invariant:** every session has the same pinned settings, sent in the start-up packet, where they win over what is set
//! for the role, the database and in `PGOPTIONS`. `default_transaction_read_only` is not among them: a read-only target
//! must be noticed.
//!
//! ```text
//! resolve -> dial -> [SSLRequest -> handshake] -> StartupMessage -> authentication -> parameters -> ReadyForQuery -> SET
//! ```
//!
//! `prefer` and `allow` try the other way once, on a new connection, as libpq does; no other mode does.
//!
//! PostgreSQL manual: protocol, "Start-up".

use std::collections::HashMap;

use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::io::AsyncWriteExt;

use crate::auth::Exchange;
use crate::cancel::Cancel;
use crate::connection::Mode;
use crate::error::{Error, Fault, Result};
use crate::message::{Inbox, Incoming, STARTUP_MESSAGE_MAX, server_error, unexpected};
use crate::socket::{Endpoint, Transport, within};
use crate::spec::{ConnectSpec, SslMode, TargetSession};
use crate::tls::{self, Asked};

/// Settings that the form of values, the names in statements and the life of a session depend on.
pub(crate) const PINNED: &[(&str, &str)] = &[
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("xmloption", "content"),
    ("search_path", ""),
    ("row_security", "off"),
    ("quote_all_identifiers", "off"),
    ("standard_conforming_strings", "on"),
    ("array_nulls", "on"),
    ("transform_null_equals", "off"),
    ("default_transaction_isolation", "read committed"),
    // The catalog queries' estimates reach the cost where the server compiles a query, which takes far longer than running it.
    ("jit", "off"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
];

/// The same for settings that older servers would refuse: first version, name, value.
const PINNED_SINCE: &[(u32, &str, &str)] = &[
    (140_000, "idle_session_timeout", "0"),
    (140_000, "client_connection_check_interval", "10s"),
    (170_000, "transaction_timeout", "0"),
];

/// A session that is ready for a query.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) transport: Transport,
    pub(crate) inbox: Inbox,
    pub(crate) parameters: HashMap<String, String>,
    pub(crate) version: u32,
    pub(crate) pid: i32,
    pub(crate) key: i32,
    pub(crate) cancel: Cancel,
}

/// Opens a session.
pub(crate) async fn open(spec: &ConnectSpec, mode: Mode) -> Result<Session> {
    let attempt = || format!("connect to {spec}");
    let limit = spec.connect_timeout;
    let endpoints =
        within(limit, Endpoint::resolve(spec)).await.map_err(|fault| fault.during(attempt()))?;
    let mut last = None;
    for endpoint in &endpoints {
        match within(limit, open_at(spec, mode, endpoint)).await {
            Ok(session) => return Ok(session),
            Err(fault) => {
                let error = fault.during(attempt());
                // Another address of the same name may answer; another opinion of the same server is not asked for.
                if !error.is_unreachable() {
                    return Err(error);
                }
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| Fault::protocol("no address").during(attempt())))
}

async fn open_at(spec: &ConnectSpec, mode: Mode, endpoint: &Endpoint) -> Result<Session, Fault> {
    if endpoint.is_unix() {
        return plain(spec, mode, endpoint).await;
    }
    match spec.tls.mode {
        SslMode::Disable => plain(spec, mode, endpoint).await,
        SslMode::Allow => match plain(spec, mode, endpoint).await {
            Err(fault) if other_way_may_help(&fault) => {
                encrypted(spec, mode, endpoint).await.map_err(|second| first_of(fault, second))
            }
            result => result,
        },
        SslMode::Prefer => match encrypted(spec, mode, endpoint).await {
            Err(fault) if other_way_may_help(&fault) => {
                plain(spec, mode, endpoint).await.map_err(|second| first_of(fault, second))
            }
            result => result,
        },
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
            encrypted(spec, mode, endpoint).await
        }
    }
}

/// Whether `prefer` and `allow` go on: the handshake failed, or pg_hba.conf has no line for this kind of connection.
fn other_way_may_help(fault: &Fault) -> bool {
    match fault {
        Fault::Tls(..) => true,
        Fault::Server(error) => error.sqlstate() == "28000",
        _ => false,
    }
}

/// The more telling of two failures: what a server said rather than that there is no TLS.
fn first_of(first: Fault, second: Fault) -> Fault {
    if matches!(second, Fault::Tls(..)) { first } else { second }
}

async fn plain(spec: &ConnectSpec, mode: Mode, endpoint: &Endpoint) -> Result<Session, Fault> {
    let socket = endpoint.dial(&spec.keepalive, mode).await?;
    start(spec, mode, endpoint, Transport::Plain(socket)).await
}

async fn encrypted(spec: &ConnectSpec, mode: Mode, endpoint: &Endpoint) -> Result<Session, Fault> {
    let socket = endpoint.dial(&spec.keepalive, mode).await?;
    match tls::encrypt(spec, socket).await? {
        Asked::Encrypted(transport) => start(spec, mode, endpoint, transport).await,
        Asked::Refused(socket) if spec.tls.mode == SslMode::Prefer => {
            start(spec, mode, endpoint, Transport::Plain(socket)).await
        }
        Asked::Refused(_) => Err(tls::refused()),
    }
}

async fn start(
    spec: &ConnectSpec,
    mode: Mode,
    endpoint: &Endpoint,
    mut transport: Transport,
) -> Result<Session, Fault> {
    let packet = startup_packet(spec, mode)?;
    transport.write_all(&packet).await?;
    transport.flush().await?;
    let mut inbox = Inbox::default();
    Exchange { spec, transport: &mut transport, inbox: &mut inbox }.run().await?;
    let cancel = Cancel::new(spec.clone(), endpoint.clone(), transport.is_tls());
    let mut session = Session {
        transport,
        inbox,
        parameters: HashMap::new(),
        version: 0,
        pid: 0,
        key: 0,
        cancel,
    };
    session.read_parameters().await?;
    session.pin_by_version().await?;
    session.check_target(spec.target_session)?;
    Ok(session)
}

fn startup_packet(spec: &ConnectSpec, mode: Mode) -> Result<BytesMut, Fault> {
    let mut parameters = vec![
        ("user", spec.user.as_str()),
        ("database", spec.database.as_str()),
        ("application_name", spec.application_name.as_str()),
    ];
    if let Some(options) = &spec.options {
        parameters.push(("options", options));
    }
    if mode == Mode::Replication {
        parameters.push(("replication", "database"));
    }
    parameters.extend_from_slice(PINNED);
    let mut packet = BytesMut::new();
    frontend::startup_message(parameters, &mut packet)
        .map_err(|_| Fault::usage("a connection option contains a zero byte"))?;
    Ok(packet)
}

impl Session {
    async fn next(&mut self) -> Result<Message, Fault> {
        match self.inbox.next(&mut self.transport, STARTUP_MESSAGE_MAX).await? {
            Incoming::Known(Message::ErrorResponse(body)) => {
                Err(Fault::Server(server_error(&body)))
            }
            Incoming::Known(message) => Ok(message),
            Incoming::CopyBoth => Err(Fault::protocol("unexpected CopyBothResponse")),
        }
    }

    async fn read_parameters(&mut self) -> Result<(), Fault> {
        loop {
            match self.next().await? {
                Message::ParameterStatus(body) => {
                    let malformed = |_| Fault::protocol("a malformed ParameterStatus");
                    let name = body.name().map_err(malformed)?.to_owned();
                    self.parameters.insert(name, body.value().map_err(malformed)?.to_owned());
                    if self.parameters.len() > 1000 {
                        return Err(Fault::protocol("more than 1000 parameters"));
                    }
                }
                Message::BackendKeyData(body) => {
                    self.pid = body.process_id();
                    self.key = body.secret_key();
                    self.cancel.set_key(self.pid, self.key);
                }
                Message::NoticeResponse(_) => {}
                Message::ReadyForQuery(_) => break,
                other => return Err(unexpected(&other)),
            }
        }
        let version = self.parameters.get("server_version").map_or("", String::as_str);
        self.version = version_num(version)
            .ok_or_else(|| Fault::protocol("the server does not say its version"))?;
        Ok(())
    }

    async fn pin_by_version(&mut self) -> Result<(), Fault> {
        let statement: String = PINNED_SINCE
            .iter()
            .filter(|(since, _, _)| self.version >= *since)
            .map(|(_, name, value)| format!("SET {name} = '{value}';"))
            .collect();
        if statement.is_empty() {
            return Ok(());
        }
        let mut buf = BytesMut::new();
        frontend::query(&statement, &mut buf)?;
        self.transport.write_all(&buf).await?;
        self.transport.flush().await?;
        let mut failed = None;
        loop {
            match self.next().await {
                Ok(Message::ReadyForQuery(_)) => return failed.map_or(Ok(()), Err),
                Ok(Message::CommandComplete(_) | Message::NoticeResponse(_)) => {}
                Ok(Message::ParameterStatus(_)) => {}
                Ok(other) => return Err(unexpected(&other)),
                Err(Fault::Server(error)) if !error.ends_session() && failed.is_none() => {
                    // A platform without the check of the client's socket refuses the setting.
                    if error.sqlstate() != "22023" {
                        failed = Some(Fault::Server(error));
                    }
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    fn check_target(&self, wanted: TargetSession) -> Result<(), Fault> {
        let on = |name: &str| self.parameters.get(name).map(|value| value == "on");
        let standby = on("in_hot_standby");
        let read_only = standby
            .zip(on("default_transaction_read_only"))
            .map(|(standby, read_only)| standby || read_only);
        let holds = match wanted {
            TargetSession::Any => return Ok(()),
            TargetSession::ReadWrite => read_only.map(|read_only| !read_only),
            TargetSession::ReadOnly => read_only,
            TargetSession::Primary => standby.map(|standby| !standby),
            TargetSession::Standby => standby,
        };
        match holds {
            Some(true) => Ok(()),
            Some(false) => {
                Err(Fault::usage("the server is not what target_session_attrs asks for"))
            }
            None => Err(Fault::usage("target_session_attrs needs PostgreSQL 14 or later")),
        }
    }
}

/// `15.8 (Debian 15.8-1)` as 150008, `18beta2` as 180000, `9.6.24` as 90624.
fn version_num(text: &str) -> Option<u32> {
    let digits = |text: &str| -> Option<u32> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..end].parse().ok().filter(|number| *number < 10_000)
    };
    let mut parts = text.split('.');
    let major = digits(parts.next()?)?;
    let minor = parts.next().and_then(digits).unwrap_or(0);
    if major >= 10 {
        return Some(major * 10_000 + minor);
    }
    Some(major * 10_000 + minor * 100 + parts.next().and_then(digits).unwrap_or(0))
}

/// An error of a session that is already open, with the database it is about.
pub(crate) fn on_database(fault: Fault, what: &str, cancel: &Cancel) -> Error {
    fault.during(format!("{what} on {}", cancel.spec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_the_server_counts_them() {
        for (text, expected) in [
            ("15.18 (Debian 15.18-0+deb12u1)", Some(150_018)),
            ("18beta2", Some(180_000)),
            ("9.6.24", Some(90_624)),
            ("14.0", Some(140_000)),
            ("", None),
            ("x", None),
            ("99999999999", None),
        ] {
            assert_eq!(version_num(text), expected, "{text}");
        }
    }
}
