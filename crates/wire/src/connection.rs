//! Our own client: simple queries, and the way into COPY OUT and CopyBoth.
//!
//! **Invariant:** a command is begun only when the one before it was read to ReadyForQuery; a future that was dropped in
//! the middle leaves the connection unusable, not out of step.
//!
//! PostgreSQL manual: protocol, "Simple Query" and "COPY Operations".

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;
use tidemark_model::TupleForm;
use tokio::io::AsyncWriteExt;

use crate::cancel::Cancel;
use crate::copy_both::CopyBoth;
use crate::copy_out::CopyOut;
use crate::error::{Fault, Result};
use crate::message::{Incoming, QUERY_MESSAGE_MAX, server_error, unexpected};
use crate::spec::ConnectSpec;
use crate::startup::{self, Session, on_database};

/// Bytes that all rows of a simple query may have together.
const QUERY_RESULT_MAX: usize = 256 * 1024 * 1024;

/// What a raw connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// SQL and COPY.
    Sql,
    /// A walsender of a database: replication commands, and SQL by simple query.
    Replication,
}

/// A row of text values.
pub type TextRow = Vec<Option<String>>;

/// A connection with our own framing.
#[derive(Debug)]
pub struct RawConnection {
    pub(crate) session: Session,
    /// A command was begun and its ReadyForQuery not seen.
    pub(crate) busy: bool,
}

impl ConnectSpec {
    /// Connects for COPY OUT, simple queries or replication.
    ///
    /// # Errors
    /// The server cannot be reached, is not trusted or does not let us in.
    pub async fn connect_raw(&self, mode: Mode) -> Result<RawConnection> {
        let session = Box::pin(startup::open(self, mode)).await?;
        Ok(RawConnection { session, busy: false })
    }
}

impl RawConnection {
    /// Process id of the server's backend.
    pub fn backend_pid(&self) -> i32 {
        self.session.pid
    }

    /// The server's version as `server_version_num` counts: 150018 is 15.18.
    pub fn server_version_num(&self) -> u32 {
        self.session.version
    }

    /// A parameter that the server reported when the connection was opened.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.session.parameters.get(name).map(String::as_str)
    }

    /// What cancels the running statement.
    pub fn cancel_token(&self) -> Cancel {
        self.session.cancel.clone()
    }

    /// Whether a command was left unfinished (a COPY that was dropped, a future that was cancelled); only closing is
    /// possible then.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// Runs statements and returns the rows of all of them, as text. Made for small answers.
    ///
    /// # Errors
    /// The server refused a statement, or the connection was lost.
    ///
    /// # Cancel safety
    /// None: afterwards the connection can only be closed.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<TextRow>> {
        let answer = async {
            self.send_query(sql).await?;
            self.read_rows().await
        };
        answer.await.map_err(|fault| self.fault(fault, "run a statement"))
    }

    /// Begins `COPY ... TO STDOUT`; `form` says what the statement asks for and is checked.
    ///
    /// # Errors
    /// The server refused the statement, answered with another form, or the connection was lost.
    pub async fn copy_out(&mut self, sql: &str, form: TupleForm) -> Result<CopyOut<'_>> {
        match self.begin_copy_out(sql, form).await {
            Ok(()) => Ok(CopyOut::new(self, form)),
            Err(fault) => Err(self.fault(fault, "begin COPY TO STDOUT")),
        }
    }

    /// Begins a command that is answered by CopyBoth: `START_REPLICATION`.
    ///
    /// # Errors
    /// The server refused the command, or the connection was lost.
    pub async fn copy_both(mut self, sql: &str) -> Result<CopyBoth> {
        match self.begin_copy_both(sql).await {
            Ok(()) => Ok(CopyBoth::new(self)),
            Err(fault) => Err(self.fault(fault, "start replication")),
        }
    }

    /// Says goodbye to the server. Dropping closes without a word.
    pub async fn close(mut self) {
        let mut buf = BytesMut::new();
        frontend::terminate(&mut buf);
        // The connection ends either way.
        if self.session.transport.write_all(&buf).await.is_ok() {
            drop(self.session.transport.shutdown().await);
        }
    }

    pub(crate) fn fault(&self, fault: Fault, what: &str) -> crate::Error {
        on_database(fault, what, &self.session.cancel)
    }

    async fn send_query(&mut self, sql: &str) -> Result<(), Fault> {
        if self.busy {
            return Err(Fault::Busy);
        }
        let mut buf = BytesMut::with_capacity(sql.len() + 6);
        frontend::query(sql, &mut buf).map_err(|_| {
            Fault::Client("the statement contains a zero byte or is too long".to_owned())
        })?;
        self.busy = true;
        self.session.transport.write_all(&buf).await?;
        self.session.transport.flush().await?;
        Ok(())
    }

    pub(crate) async fn next(&mut self) -> Result<Incoming, Fault> {
        let session = &mut self.session;
        session.inbox.next(&mut session.transport, QUERY_MESSAGE_MAX).await
    }

    async fn read_rows(&mut self) -> Result<Vec<TextRow>, Fault> {
        let mut rows = Vec::new();
        let mut bytes = 0_usize;
        let mut failed = None;
        loop {
            match self.next().await? {
                Incoming::Known(Message::DataRow(row)) => {
                    bytes += row.buffer().len();
                    if bytes > QUERY_RESULT_MAX {
                        return Err(Fault::protocol("the answer to a statement is too large"));
                    }
                    rows.push(text_row(&row)?);
                }
                Incoming::Known(Message::ErrorResponse(body)) => {
                    let error = server_error(&body);
                    if error.ends_session() {
                        return Err(Fault::Server(error));
                    }
                    failed = failed.or(Some(Fault::Server(error)));
                }
                Incoming::Known(Message::ReadyForQuery(_)) => {
                    self.busy = false;
                    return failed.map_or(Ok(rows), Err);
                }
                Incoming::Known(message) => self.note(&message)?,
                Incoming::CopyBoth => {
                    return Err(Fault::protocol("unexpected CopyBothResponse"));
                }
            }
        }
    }

    /// Takes what may come between the messages of an answer; everything else is out of place.
    pub(crate) fn note(&mut self, message: &Message) -> Result<(), Fault> {
        match message {
            Message::ParameterStatus(body) => {
                if let (Ok(name), Ok(value)) = (body.name(), body.value())
                    && self.session.parameters.len() < 1000
                {
                    self.session.parameters.insert(name.to_owned(), value.to_owned());
                }
                Ok(())
            }
            Message::RowDescription(_)
            | Message::CommandComplete(_)
            | Message::EmptyQueryResponse
            | Message::NoticeResponse(_)
            | Message::NotificationResponse(_) => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Reads to ReadyForQuery after an error and returns the error.
    pub(crate) async fn fail(&mut self, error: Fault) -> Fault {
        if matches!(&error, Fault::Server(server) if server.ends_session()) {
            return error;
        }
        loop {
            match self.next().await {
                Ok(Incoming::Known(Message::ReadyForQuery(_))) => {
                    self.busy = false;
                    return error;
                }
                Ok(_) => {}
                // Why the command failed says more than that the connection is gone too.
                Err(_) => return error,
            }
        }
    }

    async fn begin_copy_out(&mut self, sql: &str, form: TupleForm) -> Result<(), Fault> {
        self.send_query(sql).await?;
        loop {
            match self.next().await? {
                Incoming::Known(Message::CopyOutResponse(body)) => {
                    let expected = u8::from(form == TupleForm::PgBinary);
                    if body.format() != expected {
                        return Err(Fault::protocol("COPY answers in another form than asked for"));
                    }
                    return Ok(());
                }
                Incoming::Known(Message::ErrorResponse(body)) => {
                    return Err(self.fail(Fault::Server(server_error(&body))).await);
                }
                Incoming::Known(Message::ReadyForQuery(_)) => {
                    self.busy = false;
                    return Err(Fault::Client("the statement is not COPY TO STDOUT".to_owned()));
                }
                Incoming::Known(message) => self.note(&message)?,
                Incoming::CopyBoth => return Err(Fault::protocol("unexpected CopyBothResponse")),
            }
        }
    }

    async fn begin_copy_both(&mut self, sql: &str) -> Result<(), Fault> {
        self.send_query(sql).await?;
        loop {
            match self.next().await? {
                Incoming::CopyBoth => return Ok(()),
                Incoming::Known(Message::ErrorResponse(body)) => {
                    return Err(self.fail(Fault::Server(server_error(&body))).await);
                }
                Incoming::Known(message) => self.note(&message)?,
            }
        }
    }
}

fn text_row(row: &DataRowBody) -> Result<TextRow, Fault> {
    let malformed = || Fault::protocol("a malformed row");
    let buffer = row.buffer();
    row.ranges()
        .map(|range| {
            Ok(range.map(|range| {
                buffer.get(range).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
            }))
        })
        .collect::<Vec<_>>()
        .map_err(|_| malformed())?
        .into_iter()
        .map(|value| match value {
            None => Ok(None),
            Some(text) => text.map(Some).ok_or_else(malformed),
        })
        .collect()
}
