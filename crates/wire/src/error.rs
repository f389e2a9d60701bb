//! What went wrong, in words for people and in questions for code.
//!
//! **Invariant:** an error names what was attempted and on which database; it never holds a password, a connection
//! string or a row value. What follows from an error is decided here, in [`Error::disposition`], and nowhere else.
//!
//! PostgreSQL manual: appendix A (error codes).

use std::io;

use crate::server_error::ServerError;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller should do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// The connection was lost or the server is busy with itself: the same may be tried again on a new connection.
    Retry,
    /// The connection string, a file that it names, the password or the database is wrong: exit code 2.
    Usage,
    /// Nothing answers there: exit code 8 after retries.
    Unreachable,
    /// The server refused the statement, or did not keep to the protocol.
    Server,
}

/// An error of a connection, with what was attempted.
#[derive(Debug, thiserror::Error)]
#[error("{attempt}: {fault}")]
pub struct Error {
    attempt: String,
    #[source]
    fault: Box<Fault>,
}

/// The reason, before it is known what was attempted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("{0}")]
    Usage(String),
    #[error("the host name is not known")]
    UnknownHost(#[source] io::Error),
    #[error("{0}")]
    Unreachable(io::Error),
    #[error("no answer within {0} s")]
    TimedOut(u64),
    #[error("TLS: {0}")]
    Tls(String, &'static str),
    #[error("authentication: {0}")]
    Authentication(String, &'static str),
    #[error("the connection was closed by the other side")]
    Closed,
    #[error("the connection was lost: {0}")]
    Lost(io::Error),
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
    #[error("{0}")]
    Server(Box<ServerError>),
    #[error("the connection is in the middle of another command")]
    Busy,
    #[error("{0}")]
    Client(String),
}

impl Fault {
    pub(crate) fn during(self, attempt: impl Into<String>) -> Error {
        Error { attempt: attempt.into(), fault: Box::new(self) }
    }

    pub(crate) fn protocol(what: impl Into<String>) -> Self {
        Self::Protocol(what.into())
    }

    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::Usage(what.into())
    }
}

/// An I/O error on an open connection.
impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Closed } else { Self::Lost(error) }
    }
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(db) = error.as_db_error() {
            return Self::Server(Box::new(ServerError::from(db)));
        }
        if error.is_closed() {
            return Self::Closed;
        }
        let text = error.to_string();
        match error.into_source().map(|source| source.downcast::<io::Error>()) {
            Some(Ok(io)) => Self::from(*io),
            // Only the library's own sentence: its sources may quote a value.
            _ => Self::Client(text.split(':').next().unwrap_or_default().to_owned()),
        }
    }
}

impl Error {
    /// Turns an error of `tokio_postgres` into ours: `.map_err(Error::sql("create schema \"x\""))`.
    pub fn sql(attempt: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |error| Fault::from(error).during(attempt)
    }

    /// What was attempted, on which object.
    pub fn attempt(&self) -> &str {
        &self.attempt
    }

    /// The server's answer, if the server answered with an error.
    pub fn server(&self) -> Option<&ServerError> {
        match &*self.fault {
            Fault::Server(error) => Some(error),
            _ => None,
        }
    }

    /// The five-character code of the server's error.
    pub fn sqlstate(&self) -> Option<&str> {
        self.server().map(ServerError::sqlstate)
    }

    /// Whether the connection is gone: cut, or ended by the server (shutdown, `pg_terminate_backend`).
    pub fn is_closed(&self) -> bool {
        match &*self.fault {
            Fault::Closed | Fault::Lost(_) => true,
            Fault::Server(error) => error.ends_session(),
            _ => false,
        }
    }

    /// Whether the server did not let this user in, or we did not trust its way of asking.
    pub fn is_authentication(&self) -> bool {
        match &*self.fault {
            Fault::Authentication(..) => true,
            Fault::Server(error) => error.sqlstate().starts_with("28"),
            _ => false,
        }
    }

    /// Whether the database does not exist.
    pub fn is_unknown_database(&self) -> bool {
        self.sqlstate() == Some("3D000")
    }

    /// Whether nothing answered there.
    pub fn is_unreachable(&self) -> bool {
        matches!(&*self.fault, Fault::UnknownHost(_) | Fault::Unreachable(_) | Fault::TimedOut(_))
    }

    /// Whether TLS could not be agreed upon or the certificate was not accepted.
    pub fn is_tls(&self) -> bool {
        matches!(&*self.fault, Fault::Tls(..))
    }

    /// Whether the other side did not keep to the protocol.
    pub fn is_protocol(&self) -> bool {
        matches!(&*self.fault, Fault::Protocol(_))
    }

    /// What the caller should do.
    pub fn disposition(&self) -> Disposition {
        match &*self.fault {
            Fault::Usage(_) | Fault::Tls(..) | Fault::Authentication(..) => Disposition::Usage,
            Fault::UnknownHost(_) | Fault::Unreachable(_) | Fault::TimedOut(_) => {
                Disposition::Unreachable
            }
            Fault::Closed | Fault::Lost(_) => Disposition::Retry,
            Fault::Protocol(_) | Fault::Busy | Fault::Client(_) => Disposition::Server,
            Fault::Server(error) => disposition_of(error.sqlstate()),
        }
    }

    /// The way out, for people; `None` where the message says it all.
    pub fn hint(&self) -> Option<String> {
        let text = match &*self.fault {
            Fault::UnknownHost(_) => "check the host name in the connection string",
            Fault::Unreachable(error) => return unreachable_hint(error),
            Fault::TimedOut(_) => {
                "a firewall may drop the packets; connect_timeout (seconds) in the connection string changes the limit"
            }
            Fault::Tls(_, hint) | Fault::Authentication(_, hint) if !hint.is_empty() => hint,
            Fault::Server(error) => return server_hint(error),
            _ => return None,
        };
        Some(text.to_owned())
    }
}

/// What follows from a server error.
fn disposition_of(sqlstate: &str) -> Disposition {
    match sqlstate {
        "57P01" | "57P02" | "57P03" | "57P05" | "53300" | "25P03" | "25P04" => Disposition::Retry,
        "3D000" | "28000" | "28P01" => Disposition::Usage,
        code if code.starts_with("08") && code != "08P01" => Disposition::Retry,
        _ => Disposition::Server,
    }
}

fn unreachable_hint(error: &io::Error) -> Option<String> {
    let text = match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "nothing listens there: is the server running, is the port right, does listen_addresses include this address?"
        }
        io::ErrorKind::NotFound => {
            "there is no such socket: is the server running, is unix_socket_directories that directory?"
        }
        io::ErrorKind::PermissionDenied => "this user may not open the socket",
        _ => return None,
    };
    Some(text.to_owned())
}

fn server_hint(error: &ServerError) -> Option<String> {
    let text = match error.sqlstate() {
        "28P01" => {
            "wrong user or password: set it in PGPASSWORD, in a .pgpass file or in the connection string"
        }
        "28000" => {
            "pg_hba.conf has no entry that lets this user in from here, or the role may not log in"
        }
        "3D000" => "the database does not exist: check the name, it is case-sensitive",
        "53300" => "the server has no free connection: raise max_connections or use fewer of them",
        "57P03" => "the server is starting up, shutting down or recovering: try again soon",
        _ => return error.hint().map(str::to_owned),
    };
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_of_code_has_its_disposition() {
        for (code, expected) in [
            ("57P01", Disposition::Retry),
            ("57P03", Disposition::Retry),
            ("53300", Disposition::Retry),
            ("08006", Disposition::Retry),
            ("08P01", Disposition::Server),
            ("28P01", Disposition::Usage),
            ("3D000", Disposition::Usage),
            ("42P01", Disposition::Server),
            ("57014", Disposition::Server),
            ("23505", Disposition::Server),
        ] {
            assert_eq!(disposition_of(code), expected, "{code}");
        }
    }

    #[test]
    fn a_cut_connection_is_closed_and_may_be_retried() {
        let cut = Fault::from(io::Error::from(io::ErrorKind::UnexpectedEof)).during("read");
        assert!(cut.is_closed());
        assert_eq!(cut.disposition(), Disposition::Retry);
        assert_eq!(cut.to_string(), "read: the connection was closed by the other side");
    }
}
