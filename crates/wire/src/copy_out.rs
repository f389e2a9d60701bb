//! COPY TO STDOUT: rows in large batches.
//!
//! **Invariant:** `next` says `None` only after CopyDone, CommandComplete and ReadyForQuery were read and the count of the
//! server equals the rows that were handed out; a connection that is cut before is an error (`hazards.md` A119). What is
//! buffered was reserved before, apart from the beginning of a row that is larger than expected (at most one read).
//!
//! A reader never waits for memory while it holds some: rows that are there are handed over before a larger reservation
//! is asked for. Otherwise two readers with huge rows could wait for each other for ever.
//!
//! PostgreSQL manual: protocol, "COPY Operations".

use bytes::{Bytes, BytesMut};
use postgres_protocol::message::backend::Message;
use tidemark_model::{Budget, Reservation, TupleForm, Tuples};

use crate::connection::RawConnection;
use crate::error::{Fault, Result};
use crate::frame::{Framer, MESSAGE_MAX, Step};
use crate::message::server_error;

/// Smallest buffer; smaller targets are raised to it.
const BATCH_MIN: usize = 16 * 1024;

/// Buffers that were handed out are used again up to this size, and so many of them: fresh memory costs a page fault for
/// every 4 KiB, some 5 % of the CPU of a copy.
const KEPT_BYTES: usize = 2 * 1024 * 1024;
const KEPT_BUFFERS: usize = 4;

/// A batch is handed over rather than read on with less room than this.
const ROOM_MIN: usize = 32 * 1024;

/// A running COPY TO STDOUT.
#[derive(Debug)]
pub struct CopyOut<'a> {
    connection: &'a mut RawConnection,
    form: TupleForm,
    framer: Framer,
    buf: Vec<u8>,
    /// Buffers that were handed out; one that nobody else holds any more is used again.
    lent: Vec<Bytes>,
    reserved: Option<Reservation>,
    /// The count in CommandComplete.
    rows: Option<u64>,
    copy_done: bool,
    ready: bool,
}

impl<'a> CopyOut<'a> {
    pub(crate) fn new(connection: &'a mut RawConnection, form: TupleForm) -> Self {
        let inbox = std::mem::take(&mut connection.session.inbox.buf);
        Self {
            framer: Framer::new(form),
            buf: Vec::from(inbox),
            lent: Vec::new(),
            connection,
            form,
            reserved: None,
            rows: None,
            copy_done: false,
            ready: false,
        }
    }

    /// The next batch: about `target_bytes` of whole rows, at least one row, and the memory that it occupies. `None` after
    /// the last one, once the server has confirmed how many there were.
    ///
    /// # Errors
    /// The server ended the COPY with an error, or the connection was lost. The connection stays usable after an error of
    /// the server unless [`Error::is_closed`](crate::Error::is_closed).
    ///
    /// # Cancel safety
    /// A dropped future loses nothing; call again.
    pub async fn next(
        &mut self,
        target_bytes: usize,
        budget: &Budget,
    ) -> Result<Option<(Tuples, Reservation)>> {
        let target = target_bytes.clamp(BATCH_MIN, MESSAGE_MAX);
        match self.fill(target, budget).await {
            Ok(batch) => Ok(batch),
            Err(fault) => {
                self.reserved = None;
                Err(self.connection.fault(fault, "read COPY TO STDOUT"))
            }
        }
    }

    /// The number of rows that the server named, after the end.
    pub fn rows(&self) -> Option<u64> {
        self.rows.filter(|_| self.ready)
    }

    /// Cancels the COPY and reads on until the connection is usable again (in a failed transaction, if there was one).
    ///
    /// # Errors
    /// The server could not be reached to cancel, or the connection was lost.
    pub async fn abort(mut self) -> Result<()> {
        if self.ready {
            return Ok(());
        }
        self.connection.cancel_token().cancel().await?;
        let budget = Budget::new(MESSAGE_MAX as u64);
        loop {
            match self.next(BATCH_MIN, &budget).await {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(error) if error.sqlstate().is_some() && !error.is_closed() => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    async fn fill(
        &mut self,
        target: usize,
        budget: &Budget,
    ) -> Result<Option<(Tuples, Reservation)>, Fault> {
        while !self.ready {
            if self.reserved.is_none() {
                // Before framing, because what is framed may be handed over at once.
                self.reserved = Some(budget.reserve(target as u64).await);
            }
            match self.framer.step(&mut self.buf)? {
                Step::Message(message) => self.control(message).await?,
                Step::More { pending } => {
                    if self.framer.has_rows() && self.is_full(target, pending) {
                        return Ok(self.take(budget));
                    }
                    self.make_room(target, pending, budget).await;
                    if self.connection.session.transport.read_vec(&mut self.buf).await? == 0 {
                        return Err(Fault::Closed);
                    }
                }
            }
        }
        Ok(self.take(budget))
    }

    /// Whether there is no room for the next row, or too little for a read that pays.
    fn is_full(&self, target: usize, pending: usize) -> bool {
        let capacity = self.buf.capacity().max(target);
        self.framer.rows_end() + pending > capacity
            || capacity - self.buf.len() < ROOM_MIN.min(target / 4)
    }

    /// Makes room for the next message, reserving more first if it is larger than what is reserved. The buffer grows with
    /// what arrives, so that an announced length alone costs nothing.
    async fn make_room(&mut self, target: usize, pending: usize, budget: &Budget) {
        let wanted = target.max(self.framer.rows_end() + pending);
        if self.reserved.as_ref().is_none_or(|held| held.bytes() < wanted as u64) {
            self.reserved = None;
            self.reserved = Some(budget.reserve(wanted as u64).await);
        }
        if self.buf.len() == self.buf.capacity() || self.buf.capacity() < target {
            let grown = (self.buf.capacity() * 2).clamp(target, wanted);
            self.buf.reserve_exact(grown.max(self.buf.len() + 1) - self.buf.len());
        }
    }

    /// Takes the rows that are there, with their reservation.
    fn take(&mut self, budget: &Budget) -> Option<(Tuples, Reservation)> {
        let end = self.framer.rows_end();
        let ends = self.framer.take_ends();
        let reserved = self.reserved.take();
        if ends.is_empty() {
            return None;
        }
        let reserved = reserved?;
        let mut tail = self.returned_buffer();
        tail.extend_from_slice(&self.buf[end..]);
        let mut rows = std::mem::replace(&mut self.buf, tail);
        rows.truncate(end);
        // A short batch gives back what it does not need.
        let smaller = if end < rows.capacity() / 2 { budget.try_reserve(end as u64) } else { None };
        let (data, reserved) = match smaller {
            Some(smaller) => (Bytes::copy_from_slice(&rows), smaller),
            None => (self.lend(rows), reserved),
        };
        Some((Tuples { form: self.form, data, ends }, reserved))
    }

    fn lend(&mut self, rows: Vec<u8>) -> Bytes {
        let keep = rows.capacity() <= KEPT_BYTES && self.lent.len() < KEPT_BUFFERS;
        let data = Bytes::from(rows);
        if keep {
            self.lent.push(data.clone());
        }
        data
    }

    /// A buffer that came back, or an empty one without memory.
    fn returned_buffer(&mut self) -> Vec<u8> {
        let Some(index) = self.lent.iter().position(Bytes::is_unique) else { return Vec::new() };
        let mut data = self.lent.swap_remove(index);
        data.truncate(0);
        Vec::from(data)
    }

    /// Everything that is not a row.
    async fn control(&mut self, mut message: BytesMut) -> Result<(), Fault> {
        let malformed = || Fault::protocol("a malformed message in COPY TO STDOUT");
        let message = Message::parse(&mut message).ok().flatten().ok_or_else(malformed)?;
        match &message {
            Message::CopyDone if !self.copy_done => {
                self.framer.end()?;
                self.copy_done = true;
            }
            Message::CommandComplete(body) if self.copy_done && self.rows.is_none() => {
                let count = body.tag().ok().and_then(|tag| tag.strip_prefix("COPY ")?.parse().ok());
                let count: u64 = count.ok_or_else(malformed)?;
                if count != self.framer.row_count() {
                    return Err(Fault::protocol(format!(
                        "COPY counts {count} rows and sent {}",
                        self.framer.row_count()
                    )));
                }
                self.rows = Some(count);
            }
            Message::ReadyForQuery(_) if self.rows.is_some() => {
                self.leave();
                self.connection.busy = false;
                self.ready = true;
            }
            Message::ErrorResponse(body) => {
                self.leave();
                return Err(self.connection.fail(Fault::Server(server_error(body))).await);
            }
            Message::ParameterStatus(_)
            | Message::NoticeResponse(_)
            | Message::NotificationResponse(_) => self.connection.note(&message)?,
            other => return Err(crate::message::unexpected(other)),
        }
        Ok(())
    }

    /// Gives what was read beyond the COPY back to the connection.
    fn leave(&mut self) {
        let rest = self.buf.split_off(self.framer.rows_end());
        self.connection.session.inbox.buf = BytesMut::from(&rest[..]);
    }
}
