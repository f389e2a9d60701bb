//! Numerics with a declared precision as Decimal128.
//!
//! **Invariant:** what is stored is the value times ten to the scale, exactly.
//!
//! The loop is compiled four times, for each remainder of the scale by four, so that its divisions are by constants.

use std::sync::Arc;

use arrow_array::{ArrayRef, Decimal128Array};
use arrow_buffer::ScalarBuffer;
use arrow_schema::DataType;

use super::{ColumnBuffer, Context, Validity, take_vec};
use crate::error::Fault;
use crate::numeric::Scaling;
use crate::slot::Slot;

/// The buffer for numeric(precision, scale).
pub(crate) fn for_scale(precision: u8, scale: u8) -> Box<dyn ColumnBuffer> {
    match scale % 4 {
        0 => Box::new(Decimals::<0>::new(precision, scale)),
        1 => Box::new(Decimals::<1>::new(precision, scale)),
        2 => Box::new(Decimals::<2>::new(precision, scale)),
        _ => Box::new(Decimals::<3>::new(precision, scale)),
    }
}

struct Decimals<const REST: u32> {
    values: Vec<i128>,
    validity: Validity,
    scaling: Scaling,
    data_type: DataType,
}

impl<const REST: u32> Decimals<REST> {
    fn new(precision: u8, scale: u8) -> Self {
        Self {
            values: Vec::new(),
            validity: Validity::default(),
            scaling: Scaling::new(precision, scale),
            // A scale of 0..=38.
            data_type: DataType::Decimal128(precision, scale as i8),
        }
    }

    /// The way for NULL and for everything that the fast path does not take.
    fn read(&self, data: &[u8], slot: &mut Slot, ctx: &mut Context) -> Result<i128, Fault> {
        if slot.is_null() {
            return Ok(0);
        }
        match self.scaling.exact(slot.bytes(data), REST) {
            Err(Fault::Unrepresentable(what)) => ctx.replace(slot, what).map(|()| 0),
            other => other,
        }
    }
}

impl<const REST: u32> ColumnBuffer for Decimals<REST> {
    fn append(&mut self, data: &[u8], slots: &mut [Slot], ctx: &mut Context) -> Result<(), Fault> {
        self.values.reserve(slots.len());
        for slot in slots.iter_mut() {
            // A NULL slot has a length that no numeric has, so the fast path refuses it.
            let value = match self.scaling.small::<REST>(data, *slot) {
                Some(value) => i128::from(value),
                None => self.read(data, slot, ctx)?,
            };
            self.values.push(value);
        }
        self.validity.append(slots);
        Ok(())
    }

    fn bytes(&self) -> usize {
        std::mem::size_of_val(self.values.as_slice()) + self.validity.bytes()
    }

    fn finish(&mut self) -> Result<ArrayRef, Fault> {
        let values = ScalarBuffer::from(take_vec(&mut self.values));
        let array = Decimal128Array::new(values, self.validity.take());
        Ok(Arc::new(array.with_data_type(self.data_type.clone())))
    }
}
