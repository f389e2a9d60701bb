//! Asking the server to stop what another session does.
//!
//! **Invariant:** the request goes to the very address of the session, over TLS if the session uses TLS: its key lets
//! anybody who reads it cancel too.
//!
//! PostgreSQL manual: protocol, "Canceling Requests in Progress".

use std::fmt;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::connection::Mode;
use crate::error::{Fault, Result};
use crate::socket::{Endpoint, Transport, within};
use crate::spec::ConnectSpec;
use crate::tls::{self, Asked};

/// What cancels the statement that a session is running.
#[derive(Clone)]
pub struct Cancel {
    spec: ConnectSpec,
    endpoint: Endpoint,
    tls: bool,
    pid: i32,
    key: i32,
}

impl Cancel {
    pub(crate) fn new(spec: ConnectSpec, endpoint: Endpoint, tls: bool) -> Self {
        Self { spec, endpoint, tls, pid: 0, key: 0 }
    }

    pub(crate) fn set_key(&mut self, pid: i32, key: i32) {
        self.pid = pid;
        self.key = key;
    }

    pub(crate) fn spec(&self) -> &ConnectSpec {
        &self.spec
    }

    /// Sends the request and waits until the server has taken it. Whether there was something to cancel is seen only on
    /// the session itself, whose statement fails with SQLSTATE 57014.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn cancel(&self) -> Result<()> {
        let limit = self.spec.connect_timeout.min(Duration::from_secs(10));
        within(limit, self.send()).await.map_err(|fault| {
            fault.during(format!("cancel the statement of backend {} of {}", self.pid, self.spec))
        })
    }

    async fn send(&self) -> Result<(), Fault> {
        let socket = self.endpoint.dial(&self.spec.keepalive, Mode::Sql).await?;
        let mut transport = if self.tls {
            match tls::encrypt(&self.spec, socket).await? {
                Asked::Encrypted(transport) => transport,
                Asked::Refused(_) => return Err(tls::refused()),
            }
        } else {
            Transport::Plain(socket)
        };
        let mut request = BytesMut::new();
        frontend::cancel_request(self.pid, self.key, &mut request);
        transport.write_all(&request).await?;
        transport.flush().await?;
        // The server says nothing and closes once it has passed the signal on; how it closes does not matter.
        let mut nothing = [0; 1];
        drop(transport.read(&mut nothing).await);
        Ok(())
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancel").field("pid", &self.pid).finish_non_exhaustive()
    }
}
