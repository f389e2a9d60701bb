//! The replication connection: its options, its two halves, its end.
//!
//! **Invariant:** the stream begins where it was asked to, at or after `confirmed_flush_lsn`; the caller has compared the two
//! before ([`check_continuation`](super::check_continuation)). A slot that somebody else reads is waited for
//! (`zombie.rs`), never taken from a live reader.
//!
//! ```text
//! version   proto_version   streaming   binary   messages   origin
//! 14        2               on          true     true       -
//! 15        3               on          true     true       -
//! 16 on     4               on          true     true       any
//! ```
//! 13 has neither binary values nor messages nor streaming and is refused. `streaming` is never `parallel`: that is for a
//! reader that applies before the commit.
//!
//! PostgreSQL manual, sections 55.4 (`START_REPLICATION`) and 55.5.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tidemark_model::Lsn;
use tidemark_model::sql::Ident;
use tidemark_wire::{ConnectSpec, CopyBoth, CopyBothReader, CopyBothWriter, Mode};

use super::frames::Frames;
use super::slot::timeline_over;
use super::zombie;
use crate::{Disposition, Error, Result, sql};

/// How long the server may take to end the stream.
const FAREWELL: Duration = Duration::from_secs(5);

/// What is asked of the server, and how patiently.
#[derive(Debug, Clone)]
pub struct StreamOptions {
    /// The slot.
    pub slot: String,
    /// The publications, at least one.
    pub publications: Vec<String>,
    /// Values in their binary form where the type has one.
    pub binary: bool,
    /// Large transactions while they are in progress.
    pub streaming: bool,
    /// Transactions that end at or before it are not wanted. They may come all the same.
    pub start: Lsn,
    /// What our sessions are called: `names::application_name(job)`. Only a session of this name and of our own role is
    /// ever ended.
    pub application_name: String,
    /// The backend of this process's connection before this one, if it was cut: it may be ended at once.
    pub previous_pid: Option<i32>,
    /// How long a slot that is in use is waited for. Beyond the server's `wal_sender_timeout` (60 s by default) it ends a
    /// dead session by itself.
    pub patience: Duration,
    /// A session of ours that has not answered its server for so long is dead. Seen only with `pg_read_all_stats`
    /// (`pg_monitor`); a live run answers at least every ten seconds.
    pub silence: Duration,
}

impl StreamOptions {
    /// Binary, streaming, from where the slot is; two minutes of patience, 15 s of silence.
    pub fn new(
        slot: impl Into<String>,
        publication: impl Into<String>,
        application_name: impl Into<String>,
    ) -> Self {
        Self {
            slot: slot.into(),
            publications: vec![publication.into()],
            binary: true,
            streaming: true,
            start: Lsn::ZERO,
            application_name: application_name.into(),
            previous_pid: None,
            patience: Duration::from_secs(120),
            silence: Duration::from_secs(15),
        }
    }
}

/// A stream that has begun.
#[derive(Debug)]
pub struct ReplicationStream {
    stream: CopyBoth,
    slot: String,
    pid: i32,
    version: u32,
    timeline: u32,
}

impl ReplicationStream {
    /// Connects and begins. Waits for a slot that is in use, and ends a dead session of our own that holds it.
    ///
    /// # Errors
    /// The slot stays in use ([`Disposition::Blocked`], names the process); it is missing or invalid
    /// ([`Disposition::SourceCannotContinue`]); rights are missing; the connection failed.
    ///
    /// # Cancel safety
    /// A dropped future closes the connection; the slot is free again once the server has noticed.
    pub async fn start(spec: &ConnectSpec, options: &StreamOptions) -> Result<Self> {
        let spec = spec.clone().with_application_name(&options.application_name);
        let mut wait = zombie::Wait::new(options, Instant::now());
        loop {
            match begin(&spec, options).await {
                Ok(stream) => return Ok(stream),
                Err(error) if error.has_state(&["55006"]) => {
                    wait.once(&spec, options, error).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The server's process for this stream.
    pub fn backend_pid(&self) -> i32 {
        self.pid
    }

    /// `server_version_num`.
    pub fn server_version_num(&self) -> u32 {
        self.version
    }

    /// The timeline that the server was on when the stream began.
    pub fn timeline(&self) -> u32 {
        self.timeline
    }

    /// The two halves, for two tasks.
    pub fn split(self) -> (ReplicationReader, ReplicationWriter) {
        let (reader, writer) = self.stream.split();
        let reader =
            ReplicationReader { reader, slot: self.slot.clone(), pid: self.pid, is_over: false };
        (reader, ReplicationWriter { writer, slot: self.slot })
    }
}

async fn begin(spec: &ConnectSpec, options: &StreamOptions) -> Result<ReplicationStream> {
    let on = Ident(&options.slot);
    let mut raw = sql::connect_raw(spec, Mode::Replication).await.map_err(explain_connection)?;
    let (pid, version) = (raw.backend_pid(), raw.server_version_num());
    let command = command(version, options)?;
    // Of this very connection: an address may lead to another server from one connection to the next.
    let timeline = timeline_over(&mut raw).await?;
    let stream = raw
        .copy_both(&command)
        .await
        .map_err(|cause| explain(Error::wire("start the stream", cause).on(on)))?;
    Ok(ReplicationStream { stream, slot: options.slot.clone(), pid, version, timeline })
}

fn command(version: u32, options: &StreamOptions) -> Result<String> {
    let mut text =
        format!("START_REPLICATION SLOT {} LOGICAL {} (", Ident(&options.slot), options.start);
    for (index, (name, value)) in plugin_options(version, options)?.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        // This grammar knows no E'' strings, and no backslash either. Writing to a String cannot fail.
        write!(text, "{comma}{name} '{}'", value.replace('\'', "''")).ok();
    }
    text.push(')');
    Ok(text)
}

/// What pgoutput of this version is to be told.
fn plugin_options(version: u32, options: &StreamOptions) -> Result<Vec<(&'static str, String)>> {
    let protocol = match version {
        ..140_000 => {
            return Err(Error::new(Disposition::Refused, "stream from PostgreSQL 13").hint(
                "its pgoutput has no messages, no binary form and no streaming: use --snapshot-only, or 14 and later",
            ));
        }
        140_000..150_000 => "2",
        150_000..160_000 => "3",
        _ => "4",
    };
    let mut all = vec![
        ("proto_version", protocol.to_owned()),
        ("publication_names", quoted_names(&options.publications)),
        ("messages", "true".to_owned()),
    ];
    if options.binary {
        all.push(("binary", "true".to_owned()));
    }
    if options.streaming {
        all.push(("streaming", "on".to_owned()));
    }
    if version >= 160_000 {
        all.push(("origin", "any".to_owned()));
    }
    Ok(all)
}

/// A list of identifiers, as `publication_names` wants it.
pub(super) fn quoted_names(publications: &[String]) -> String {
    let names: Vec<String> = publications.iter().map(|name| Ident(name).to_string()).collect();
    names.join(",")
}

pub(super) fn explain_connection(error: Error) -> Error {
    if error.has_state(&["08P01", "0A000", "28000"]) {
        return error.disposed(Disposition::Refused).hint(
            "a replication connection was refused: the address may be a connection pooler's (use the server's own), \
             or pg_hba.conf or the role's REPLICATION right is missing",
        );
    }
    error
}

/// What the server's refusals mean for a stream, at its start and on the way.
pub(super) fn explain(error: Error) -> Error {
    let gone =
        |error: Error, hint: &str| error.disposed(Disposition::SourceCannotContinue).hint(hint);
    let is_of_publication = server_message(&error).contains("publication");
    let is_alloc = server_message(&error).contains("invalid memory alloc request size");
    match error.sqlstate() {
        Some("42704") if is_of_publication => gone(
            error,
            "the publication is missing, or was when the changes were written: making it again does not help with \
             those; run tidemark cleanup, then sync takes a new snapshot",
        ),
        Some("42704") => gone(error, super::slot::NEW_SNAPSHOT),
        Some("55000") => {
            gone(error, "the slot cannot be read any more; run tidemark cleanup, then sync takes a new snapshot")
        }
        Some("58P01") => gone(
            error,
            "WAL that the stream needs is gone; run tidemark cleanup, then sync takes a new snapshot",
        ),
        Some("42501") => error.hint("grant it: ALTER ROLE .. REPLICATION"),
        Some("XX000") if is_alloc => error.hint(
            "a known defect of the server (PostgreSQL bug #18938, fixed in 14.19, 15.14, 16.10 and 17.6): update it; \
             the position is kept",
        ),
        _ => error,
    }
}

/// What the server said. Where it says that in another language, only a hint is less exact.
fn server_message(error: &Error) -> &str {
    let cause = std::error::Error::source(error);
    let cause = cause.and_then(|cause| cause.downcast_ref::<tidemark_wire::Error>());
    cause.and_then(tidemark_wire::Error::server).map_or("", |server| server.message())
}

/// The reading half.
#[derive(Debug)]
pub struct ReplicationReader {
    reader: CopyBothReader,
    slot: String,
    pid: i32,
    /// The server has ended the stream.
    is_over: bool,
}

impl ReplicationReader {
    /// All messages that have arrived, waiting for the first. `None` when the server has ended the stream in order: it
    /// shuts down.
    ///
    /// # Errors
    /// The server ended the stream with an error, or the connection was lost ([`Disposition::Retry`]).
    ///
    /// # Cancel safety
    /// A dropped future loses nothing; call again.
    pub async fn next(&mut self) -> Result<Option<Frames>> {
        let messages = self.reader.next().await.map_err(|cause| {
            explain(Error::wire("read the stream", cause).on(Ident(&self.slot)))
        })?;
        let Some(messages) = messages else {
            self.is_over = true;
            return Ok(None);
        };
        Ok(Some(Frames::of_stream(messages)))
    }

    /// The server's process for this stream.
    pub fn backend_pid(&self) -> i32 {
        self.pid
    }

    /// Ends the stream and the connection in order. What was on its way is dropped; what was acknowledged is kept. A server
    /// that is in the middle of a large transaction is not waited for: it notices that the connection is closed.
    ///
    /// # Errors
    /// The connection was lost before the server confirmed the end.
    pub async fn finish(self, writer: ReplicationWriter) -> Result<()> {
        if self.is_over {
            return Ok(());
        }
        let ended = tokio::time::timeout(FAREWELL, self.reader.finish(writer.writer)).await;
        let Ok(ended) = ended else {
            tracing::debug!("the server did not end the stream in time, closing the connection");
            return Ok(());
        };
        let raw =
            ended.map_err(|cause| Error::wire("end the stream", cause).on(Ident(&self.slot)))?;
        raw.close().await;
        Ok(())
    }
}

/// The writing half.
#[derive(Debug)]
pub struct ReplicationWriter {
    writer: CopyBothWriter,
    slot: String,
}

impl ReplicationWriter {
    /// Says how far we are. The server may throw away what is before `durable`.
    ///
    /// # Errors
    /// The connection was lost.
    ///
    /// # Cancel safety
    /// None: a message may be half sent.
    pub async fn status(
        &mut self,
        received: Lsn,
        durable: Lsn,
        applied: Lsn,
        reply: bool,
    ) -> Result<()> {
        let sent = self.writer.status(received, durable, applied, reply).await;
        sent.map_err(|cause| Error::wire("send a status update", cause).on(Ident(&self.slot)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> StreamOptions {
        StreamOptions::new("s", "it's \"p\"", "tidemark_job")
    }

    #[test]
    fn each_version_is_asked_in_its_own_words() {
        for (version, expected) in [
            (
                140_020,
                r#"START_REPLICATION SLOT "s" LOGICAL 0/0 (proto_version '2', publication_names '"it''s ""p"""', messages 'true', binary 'true', streaming 'on')"#,
            ),
            (
                150_015,
                r#"START_REPLICATION SLOT "s" LOGICAL 0/0 (proto_version '3', publication_names '"it''s ""p"""', messages 'true', binary 'true', streaming 'on')"#,
            ),
            (
                180_001,
                r#"START_REPLICATION SLOT "s" LOGICAL 0/0 (proto_version '4', publication_names '"it''s ""p"""', messages 'true', binary 'true', streaming 'on', origin 'any')"#,
            ),
        ] {
            assert_eq!(command(version, &options()).unwrap(), expected);
        }
        let mut plain = options();
        (plain.binary, plain.streaming, plain.start) = (false, false, Lsn::new(16));
        plain.publications = vec!["a".into(), "b".into()];
        assert_eq!(
            command(150_000, &plain).unwrap(),
            r#"START_REPLICATION SLOT "s" LOGICAL 0/10 (proto_version '3', publication_names '"a","b"', messages 'true')"#
        );
    }

    #[test]
    fn thirteen_is_refused_with_the_reason() {
        let error = command(130_023, &options()).unwrap_err();
        assert_eq!(error.disposition(), Disposition::Refused);
        assert!(error.way_out().unwrap().contains("14 and later"));
    }
}
