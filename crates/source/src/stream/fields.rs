//! Takes the fields of a message off its front.
//!
//! **Invariant:** nothing is read or allocated by a length that was not checked against what is there: a message that lies is
//! [`Malformed`], whatever its bytes (`hazards.md` C46).
//!
//! PostgreSQL manual, section 55.6 (message data types).

use std::borrow::Cow;

use bytes::{Buf, Bytes};
use tidemark_model::Lsn;

use crate::{Disposition, Error};

/// A message of the stream is not what the protocol allows. Names the kind of message and where known the relation, never
/// a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a malformed message in the replication stream: {0}")]
pub struct Malformed(pub(super) Cow<'static, str>);

impl Malformed {
    pub(super) fn new(what: impl Into<Cow<'static, str>>) -> Self {
        Self(what.into())
    }
}

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Self {
        Self::new(Disposition::Internal, malformed.to_string())
    }
}

/// What is left of a message.
pub(super) struct Fields {
    rest: Bytes,
    /// For errors: which message this is.
    of: &'static str,
}

impl Fields {
    pub(super) fn new(rest: Bytes, of: &'static str) -> Self {
        Self { rest, of }
    }

    pub(super) fn malformed(&self, what: &str) -> Malformed {
        Malformed::new(format!("{}: {what}", self.of))
    }

    fn need(&self, bytes: usize) -> Result<(), Malformed> {
        if self.rest.len() < bytes {
            return Err(self.malformed("it ends too soon"));
        }
        Ok(())
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        self.need(1)?;
        Ok(self.rest.get_u8())
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.need(2)?;
        Ok(self.rest.get_u16())
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.need(4)?;
        Ok(self.rest.get_u32())
    }

    pub(super) fn i32(&mut self) -> Result<i32, Malformed> {
        self.need(4)?;
        Ok(self.rest.get_i32())
    }

    pub(super) fn i64(&mut self) -> Result<i64, Malformed> {
        self.need(8)?;
        Ok(self.rest.get_i64())
    }

    pub(super) fn lsn(&mut self) -> Result<Lsn, Malformed> {
        self.need(8)?;
        Ok(Lsn::new(self.rest.get_u64()))
    }

    /// Text up to a zero byte.
    pub(super) fn text(&mut self) -> Result<String, Malformed> {
        let end = self.rest.iter().position(|&byte| byte == 0);
        let end = end.ok_or_else(|| self.malformed("a name without an end"))?;
        let text = self.rest.split_to(end);
        self.rest.advance(1);
        match std::str::from_utf8(&text) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.malformed("a name that is not UTF-8")),
        }
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<Bytes, Malformed> {
        self.need(count)?;
        Ok(self.rest.split_to(count))
    }

    pub(super) fn rest(&mut self) -> &mut Bytes {
        &mut self.rest
    }

    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.malformed("bytes after its end")) }
    }
}
