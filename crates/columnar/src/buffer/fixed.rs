//! Values of a fixed width.
//!
//! **Invariant:** a value is stored only if it has a form in the Arrow type; shifts between epochs are checked, never wrapped.
//!
//! PostgreSQL counts dates and timestamps from 2000-01-01, Arrow from 1970-01-01. Manual, section 8.5.

use std::marker::PhantomData;
use std::sync::Arc;

use arrow_array::types::ArrowPrimitiveType;
use arrow_array::{ArrayRef, BooleanArray, FixedSizeBinaryArray, PrimitiveArray, StructArray};
use arrow_array::{Int32Array, Int64Array};
use arrow_buffer::{BooleanBuffer, BooleanBufferBuilder, Buffer, ScalarBuffer};
use arrow_schema::DataType;

use super::{ColumnBuffer, Context, Validity, take_vec};
use crate::error::Fault;
use crate::shape::{Shape, interval_fields};
use crate::slot::Slot;

/// How the bytes of one type become a number.
pub(crate) trait Read: Send {
    /// Bytes on the wire.
    const WIDTH: u32;
    /// The number that Arrow stores.
    type Native: Copy + Default;

    /// Reads the value at `start`, or names the kind of value that has no form.
    fn read(data: &[u8], start: usize) -> Result<Self::Native, &'static str>;
}

#[inline]
fn array<const N: usize>(data: &[u8], start: usize) -> [u8; N] {
    // Slots lie inside their rows, so the default is never taken; it keeps the loop free of panics.
    data.get(start..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

/// One type per form, so that every loop is compiled for its own.
pub(crate) mod read {
    use super::{Read, array};

    /// Days from 1970-01-01 to 2000-01-01.
    const EPOCH_DAYS: i32 = 10_957;
    const DAY_MICROS: i64 = 86_400_000_000;

    macro_rules! plain {
        ($name:ident, $native:ty, $width:literal) => {
            pub(crate) enum $name {}

            impl Read for $name {
                const WIDTH: u32 = $width;
                type Native = $native;

                #[inline]
                fn read(data: &[u8], start: usize) -> Result<$native, &'static str> {
                    Ok(<$native>::from_be_bytes(array::<$width>(data, start)))
                }
            }
        };
    }

    plain!(Int2, i16, 2);
    plain!(Int4, i32, 4);
    plain!(Int8, i64, 8);
    plain!(Unsigned4, u32, 4);
    plain!(Float4, f32, 4);
    plain!(Float8, f64, 8);

    pub(crate) enum Date {}

    impl Read for Date {
        const WIDTH: u32 = 4;
        type Native = i32;

        #[inline]
        fn read(data: &[u8], start: usize) -> Result<i32, &'static str> {
            let days = i32::from_be_bytes(array(data, start));
            match days.checked_add(EPOCH_DAYS) {
                Some(shifted) if days != i32::MIN => Ok(shifted),
                _ => Err(date_without_form(days)),
            }
        }
    }

    #[cold]
    fn date_without_form(days: i32) -> &'static str {
        match days {
            i32::MAX => "infinity",
            i32::MIN => "-infinity",
            _ => "a date out of range",
        }
    }

    pub(crate) enum Timestamp {}

    impl Read for Timestamp {
        const WIDTH: u32 = 8;
        type Native = i64;

        #[inline]
        fn read(data: &[u8], start: usize) -> Result<i64, &'static str> {
            let micros = i64::from_be_bytes(array(data, start));
            match micros.checked_add(EPOCH_DAYS as i64 * DAY_MICROS) {
                Some(shifted) if micros != i64::MIN => Ok(shifted),
                _ => Err(timestamp_without_form(micros)),
            }
        }
    }

    #[cold]
    fn timestamp_without_form(micros: i64) -> &'static str {
        match micros {
            i64::MAX => "infinity",
            i64::MIN => "-infinity",
            _ => "a timestamp after the year 294246",
        }
    }

    pub(crate) enum Time {}

    impl Read for Time {
        const WIDTH: u32 = 8;
        type Native = i64;

        #[inline]
        fn read(data: &[u8], start: usize) -> Result<i64, &'static str> {
            let micros = i64::from_be_bytes(array(data, start));
            if (0..DAY_MICROS).contains(&micros) { Ok(micros) } else { Err("the time 24:00:00") }
        }
    }
}

/// Whether all slots are values of this width. Says no if one is NULL.
fn all_have_width(slots: &[Slot], width: u32) -> bool {
    // Not `all`: without an early exit the compiler can compare many at once.
    slots.iter().fold(0, |differs, slot| differs | (slot.len ^ width)) == 0
}

fn check_width(slots: &[Slot], width: u32) -> Result<(), Fault> {
    if slots.iter().all(|slot| slot.len == width || slot.is_null()) {
        return Ok(());
    }
    Err(Fault::Malformed("a value of the wrong length"))
}

/// Numbers.
pub(crate) struct Primitives<T: ArrowPrimitiveType, R> {
    values: Vec<T::Native>,
    validity: Validity,
    data_type: DataType,
    read: PhantomData<R>,
}

impl<T: ArrowPrimitiveType, R: Read<Native = T::Native>> Primitives<T, R> {
    pub(crate) fn new(shape: &Shape) -> Self {
        Self {
            values: Vec::new(),
            validity: Validity::default(),
            data_type: shape.data_type(),
            read: PhantomData,
        }
    }

    /// Decodes a block in which nothing is NULL; whether every value had a form.
    fn append_dense(&mut self, data: &[u8], slots: &[Slot]) -> bool {
        let mut all_fit = true;
        self.values.extend(slots.iter().map(|slot| {
            let value = R::read(data, slot.start as usize);
            all_fit &= value.is_ok();
            value.unwrap_or_default()
        }));
        all_fit
    }

    fn append_sparse(
        &mut self,
        data: &[u8],
        slots: &mut [Slot],
        ctx: &mut Context,
    ) -> Result<(), Fault> {
        check_width(slots, R::WIDTH)?;
        self.values.reserve(slots.len());
        for slot in slots {
            let mut value = R::Native::default();
            if !slot.is_null() {
                match R::read(data, slot.start as usize) {
                    Ok(read) => value = read,
                    Err(what) => ctx.replace(slot, what)?,
                }
            }
            self.values.push(value);
        }
        Ok(())
    }
}

impl<T: ArrowPrimitiveType, R: Read<Native = T::Native>> ColumnBuffer for Primitives<T, R> {
    fn append(&mut self, data: &[u8], slots: &mut [Slot], ctx: &mut Context) -> Result<(), Fault> {
        let row_count = self.values.len();
        if !all_have_width(slots, R::WIDTH) || !self.append_dense(data, slots) {
            self.values.truncate(row_count);
            self.append_sparse(data, slots, ctx)?;
        }
        self.validity.append(slots);
        Ok(())
    }

    fn bytes(&self) -> usize {
        std::mem::size_of_val(self.values.as_slice()) + self.validity.bytes()
    }

    fn finish(&mut self) -> Result<ArrayRef, Fault> {
        let values = ScalarBuffer::from(take_vec(&mut self.values));
        let array = PrimitiveArray::<T>::new(values, self.validity.take());
        Ok(Arc::new(array.with_data_type(self.data_type.clone())))
    }
}

/// bool.
#[derive(Default)]
pub(crate) struct Booleans {
    values: Bits,
    validity: Validity,
}

/// A growing run of bits.
pub(crate) struct Bits(BooleanBufferBuilder);

impl Default for Bits {
    fn default() -> Self {
        Self(BooleanBufferBuilder::new(0))
    }
}

impl Bits {
    pub(crate) fn append(&mut self, count: usize, bit: impl FnMut(usize) -> bool) {
        self.0.append_buffer(&BooleanBuffer::collect_bool(count, bit));
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.len().div_ceil(8)
    }

    pub(crate) fn take(&mut self) -> BooleanBuffer {
        self.0.finish()
    }
}

impl ColumnBuffer for Booleans {
    fn append(&mut self, data: &[u8], slots: &mut [Slot], _: &mut Context) -> Result<(), Fault> {
        check_width(slots, 1)?;
        self.values.append(slots.len(), |index| {
            let slot = slots[index];
            !slot.is_null() && array::<1>(data, slot.start as usize) != [0]
        });
        self.validity.append(slots);
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.values.bytes() + self.validity.bytes()
    }

    fn finish(&mut self) -> Result<ArrayRef, Fault> {
        Ok(Arc::new(BooleanArray::new(self.values.take(), self.validity.take())))
    }
}

/// uuid.
#[derive(Default)]
pub(crate) struct Uuids {
    values: Vec<u8>,
    validity: Validity,
}

impl ColumnBuffer for Uuids {
    fn append(&mut self, data: &[u8], slots: &mut [Slot], _: &mut Context) -> Result<(), Fault> {
        check_width(slots, 16)?;
        self.values.reserve(slots.len() * 16);
        for slot in slots.iter() {
            let value =
                if slot.is_null() { [0; 16] } else { array::<16>(data, slot.start as usize) };
            self.values.extend_from_slice(&value);
        }
        self.validity.append(slots);
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.values.len() + self.validity.bytes()
    }

    fn finish(&mut self) -> Result<ArrayRef, Fault> {
        let values = Buffer::from_vec(take_vec(&mut self.values));
        Ok(Arc::new(FixedSizeBinaryArray::new(16, values, self.validity.take())))
    }
}

/// interval, as its three numbers.
#[derive(Default)]
pub(crate) struct Intervals {
    months: Vec<i32>,
    days: Vec<i32>,
    micros: Vec<i64>,
    validity: Validity,
}

/// How PostgreSQL 17 and later spell an infinite interval.
fn infinite_interval(months: i32, days: i32, micros: i64) -> Option<&'static str> {
    match (months, days, micros) {
        (i32::MAX, i32::MAX, i64::MAX) => Some("infinity"),
        (i32::MIN, i32::MIN, i64::MIN) => Some("-infinity"),
        _ => None,
    }
}

impl ColumnBuffer for Intervals {
    fn append(&mut self, data: &[u8], slots: &mut [Slot], ctx: &mut Context) -> Result<(), Fault> {
        check_width(slots, 16)?;
        for slot in slots.iter_mut() {
            let (mut months, mut days, mut micros) = (0, 0, 0);
            if !slot.is_null() {
                let start = slot.start as usize;
                micros = i64::from_be_bytes(array(data, start));
                days = i32::from_be_bytes(array(data, start + 8));
                months = i32::from_be_bytes(array(data, start + 12));
            }
            if let Some(what) = infinite_interval(months, days, micros) {
                ctx.replace(slot, what)?;
                (months, days, micros) = (0, 0, 0);
            }
            self.months.push(months);
            self.days.push(days);
            self.micros.push(micros);
        }
        self.validity.append(slots);
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.months.len() * 16 + self.validity.bytes()
    }

    fn finish(&mut self) -> Result<ArrayRef, Fault> {
        let parts: Vec<ArrayRef> = vec![
            Arc::new(Int32Array::from(take_vec(&mut self.months))),
            Arc::new(Int32Array::from(take_vec(&mut self.days))),
            Arc::new(Int64Array::from(take_vec(&mut self.micros))),
        ];
        Ok(Arc::new(StructArray::new(interval_fields(), parts, self.validity.take())))
    }
}
