//! Values of any length: text and bytea.
//!
//! **Invariant:** bytes are copied as they are (a declared trim or prefix aside); text is checked to be UTF-8 once per
//! column when it is taken, and never repaired. Offsets never pass 2 GiB.

use std::sync::Arc;

use arrow_array::{ArrayRef, BinaryArray, StringArray};
use arrow_buffer::{Buffer, OffsetBuffer, ScalarBuffer};

use super::{ColumnBuffer, Context, Validity, take_vec};
use crate::error::Fault;
use crate::numeric;
use crate::slot::Slot;

/// What the bytes on the wire are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Text.
    Text,
    /// Text whose trailing blanks mean nothing.
    Trimmed,
    /// A version byte and text.
    Jsonb,
    /// Bytes.
    Bytea,
    /// The digits of a numeric, to be printed.
    Numeric,
    /// One byte.
    Char,
}

/// Bytes behind the end that short values may be copied over.
const SLACK: usize = 32;

/// Text or bytes.
pub(crate) struct Bytes {
    form: Form,
    values: Vec<u8>,
    offsets: Vec<i32>,
    validity: Validity,
}

impl Bytes {
    pub(crate) fn new(form: Form) -> Self {
        Self { form, values: Vec::new(), offsets: vec![0], validity: Validity::default() }
    }

    fn copy(&mut self, data: &[u8], slots: &[Slot]) -> Result<(), Fault> {
        let total: u64 =
            slots.iter().map(|slot| if slot.is_null() { 0 } else { u64::from(slot.len) }).sum();
        let mut at = self.values.len();
        let end = at as u64 + total;
        // The offsets below are at most this.
        if i32::try_from(end).is_err() {
            return Err(Fault::TooLarge);
        }
        self.values.resize(end as usize + SLACK, 0);
        let target = self.values.as_mut_slice();
        self.offsets.extend(slots.iter().map(|slot| {
            if !slot.is_null() {
                copy_one(data, *slot, target, at);
                at += slot.len as usize;
            }
            at as i32
        }));
        self.values.truncate(end as usize);
        Ok(())
    }

    /// Appends values that are printed, not copied.
    fn print(
        &mut self,
        data: &[u8],
        slots: &[Slot],
        write: fn(&[u8], &mut Vec<u8>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        self.offsets.reserve(slots.len());
        for slot in slots {
            if !slot.is_null() {
                write(slot.bytes(data), &mut self.values)?;
            }
            let end = i32::try_from(self.values.len()).map_err(|_| Fault::TooLarge)?;
            self.offsets.push(end);
        }
        Ok(())
    }
}

/// Copies one value. Up to [`SLACK`] bytes always as a whole, because a copy of a constant length is a few instructions;
/// what is too much is overwritten by the next value or cut off at the end.
#[inline]
fn copy_one(data: &[u8], slot: Slot, target: &mut [u8], at: usize) {
    let start = slot.start as usize;
    let len = slot.len as usize;
    if len <= SLACK
        && let Some(source) = data.get(start..).and_then(<[u8]>::first_chunk::<SLACK>)
        && let Some(target) = target.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<SLACK>)
    {
        *target = *source;
    } else {
        target[at..at + len].copy_from_slice(slot.bytes(data));
    }
}

/// Takes trailing blanks off, eight at a time.
#[inline]
fn trim(data: &[u8], slot: &mut Slot) {
    if slot.is_null() {
        return;
    }
    let mut bytes = slot.bytes(data);
    while let Some((rest, tail)) = bytes.split_last_chunk::<8>() {
        let other = u64::from_le_bytes(*tail) ^ u64::from_le_bytes([b' '; 8]);
        if other != 0 {
            slot.len = (bytes.len() - other.leading_zeros() as usize / 8) as u32;
            return;
        }
        bytes = rest;
    }
    while let [rest @ .., b' '] = bytes {
        bytes = rest;
    }
    slot.len = bytes.len() as u32;
}

fn strip_jsonb_version(data: &[u8], slots: &mut [Slot]) -> Result<(), Fault> {
    for slot in slots.iter_mut().filter(|slot| !slot.is_null()) {
        if slot.bytes(data).first() != Some(&1) {
            return Err(Fault::Malformed("a jsonb of an unknown version"));
        }
        *slot = Slot { start: slot.start + 1, len: slot.len - 1 };
    }
    Ok(())
}

/// Prints "char" as PostgreSQL 16 and later do: nothing for zero, octal for what is not ASCII.
fn write_char(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    let [byte] = *bytes else {
        return Err(Fault::Malformed("a value of the wrong length"));
    };
    match byte {
        0 => {}
        1..=127 => out.push(byte),
        _ => out.extend([b'\\', b'0' + (byte >> 6), b'0' + (byte >> 3 & 7), b'0' + (byte & 7)]),
    }
    Ok(())
}

impl ColumnBuffer for Bytes {
    fn append(&mut self, data: &[u8], slots: &mut [Slot], _: &mut Context) -> Result<(), Fault> {
        match self.form {
            Form::Text | Form::Bytea => self.copy(data, slots)?,
            Form::Trimmed => {
                slots.iter_mut().for_each(|slot| trim(data, slot));
                self.copy(data, slots)?;
            }
            Form::Jsonb => {
                strip_jsonb_version(data, slots)?;
                self.copy(data, slots)?;
            }
            Form::Numeric => self.print(data, slots, numeric::write_text)?,
            Form::Char => self.print(data, slots, write_char)?,
        }
        self.validity.append(slots);
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.values.len() + std::mem::size_of_val(self.offsets.as_slice()) + self.validity.bytes()
    }

    fn finish(&mut self) -> Result<ArrayRef, Fault> {
        let values = Buffer::from_vec(take_vec(&mut self.values));
        let offsets = OffsetBuffer::new(ScalarBuffer::from(take_vec(&mut self.offsets)));
        self.offsets.push(0);
        let nulls = self.validity.take();
        if self.form == Form::Bytea {
            return Ok(Arc::new(BinaryArray::new(offsets, values, nulls)));
        }
        // Checks the whole run once, and that no value begins inside a character. The offsets are ours, so what it
        // refuses is the text.
        let array = StringArray::try_new(offsets, values, nulls).map_err(|_| Fault::NotUtf8)?;
        Ok(Arc::new(array))
    }
}

#[cfg(test)]
mod tests {
    use tidemark_model::Unrepresentable;

    use super::*;

    #[test]
    fn text_past_two_gibibytes_is_refused_before_anything_is_reserved() {
        let mut ctx = Context { policy: Unrepresentable::Null, replaced: 0 };
        for form in [Form::Text, Form::Bytea] {
            let mut bytes = Bytes::new(form);
            let mut slots = [Slot { start: 0, len: 1 << 30 }; 2];
            assert_eq!(bytes.append(&[], &mut slots, &mut ctx), Err(Fault::TooLarge));
            assert_eq!(bytes.values.capacity(), 0);
        }
    }

    #[test]
    fn blanks_are_trimmed_at_every_length() {
        for len in 0..20 {
            for blanks in 0..20 {
                let mut data = vec![b'x'; len];
                data.resize(len + blanks, b' ');
                let mut slot = Slot { start: 0, len: data.len() as u32 };
                trim(&data, &mut slot);
                assert_eq!(slot.len as usize, len, "{len} and {blanks} blanks");
            }
        }
    }
}
