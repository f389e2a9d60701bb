//! The buffers that columns are decoded into.
//!
//! **Invariant:** after every successful `append` all parts of a buffer hold the same number of rows. A buffer is chosen once
//! per column; its loops run over a whole block of slots and never ask for the type again.
//!
//! Validity is kept as a mere count until the first NULL is seen.

mod bytes;
mod decimal;
mod fixed;
mod nested;

use arrow_array::ArrayRef;
use arrow_array::types::{
    Date32Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type, Time64MicrosecondType,
    TimestampMicrosecondType, UInt32Type,
};
use arrow_buffer::{BooleanBuffer, BooleanBufferBuilder, NullBuffer};
use tidemark_model::Unrepresentable;

use crate::error::Fault;
use crate::shape::Shape;
use crate::slot::Slot;

/// What the loops of one column share.
pub(crate) struct Context {
    pub(crate) policy: Unrepresentable,
    /// Values replaced by NULL so far.
    pub(crate) replaced: u64,
}

impl Context {
    /// Applies the policy to a value without a form: it becomes NULL and is counted, or everything stops.
    pub(crate) fn replace(&mut self, slot: &mut Slot, what: &'static str) -> Result<(), Fault> {
        if self.policy != Unrepresentable::Null {
            return Err(Fault::Unrepresentable(what));
        }
        *slot = Slot::NULL;
        self.replaced += 1;
        Ok(())
    }
}

/// A column on its way.
pub(crate) trait ColumnBuffer: Send {
    /// Decodes one value per slot. Slots of values that the policy replaces become NULL. After an error the buffer is not
    /// whole and must be dropped.
    fn append(&mut self, data: &[u8], slots: &mut [Slot], ctx: &mut Context) -> Result<(), Fault>;

    /// Bytes held.
    fn bytes(&self) -> usize;

    /// Takes what is held; the buffer is empty afterwards.
    fn finish(&mut self) -> Result<ArrayRef, Fault>;
}

/// The buffer for a shape.
pub(crate) fn for_shape(shape: &Shape) -> Box<dyn ColumnBuffer> {
    use bytes::{Bytes, Form};
    use fixed::{Booleans, Intervals, Primitives, Uuids, read};

    match shape {
        Shape::Bool => Box::<Booleans>::default(),
        Shape::Int2 => Box::new(Primitives::<Int16Type, read::Int2>::new(shape)),
        Shape::Int4 => Box::new(Primitives::<Int32Type, read::Int4>::new(shape)),
        Shape::Int8 => Box::new(Primitives::<Int64Type, read::Int8>::new(shape)),
        Shape::Unsigned4 => Box::new(Primitives::<UInt32Type, read::Unsigned4>::new(shape)),
        Shape::Float4 => Box::new(Primitives::<Float32Type, read::Float4>::new(shape)),
        Shape::Float8 => Box::new(Primitives::<Float64Type, read::Float8>::new(shape)),
        Shape::Date => Box::new(Primitives::<Date32Type, read::Date>::new(shape)),
        Shape::Timestamp | Shape::Instant => {
            Box::new(Primitives::<TimestampMicrosecondType, read::Timestamp>::new(shape))
        }
        Shape::Time => Box::new(Primitives::<Time64MicrosecondType, read::Time>::new(shape)),
        Shape::Interval => Box::<Intervals>::default(),
        Shape::Uuid => Box::<Uuids>::default(),
        Shape::Decimal { precision, scale } => decimal::for_scale(*precision, *scale),
        Shape::Text => Box::new(Bytes::new(Form::Text)),
        Shape::TrimmedText => Box::new(Bytes::new(Form::Trimmed)),
        Shape::Jsonb => Box::new(Bytes::new(Form::Jsonb)),
        Shape::Bytea => Box::new(Bytes::new(Form::Bytea)),
        Shape::NumericText => Box::new(Bytes::new(Form::Numeric)),
        Shape::Char => Box::new(Bytes::new(Form::Char)),
        Shape::List(element, item) => Box::new(nested::Lists::arrays(element, item)),
        Shape::Struct(shapes, fields) => Box::new(nested::Structs::new(shapes, fields)),
        Shape::Range(bound, fields) => Box::new(nested::Ranges::new(bound, fields)),
        Shape::Multirange(bound, fields) => Box::new(nested::Lists::multiranges(bound, fields)),
    }
}

/// Which rows are not NULL.
#[derive(Debug, Default)]
pub(crate) struct Validity {
    len: usize,
    bits: Option<BooleanBufferBuilder>,
}

impl Validity {
    pub(crate) fn append(&mut self, slots: &[Slot]) {
        // Not `any`: without an early exit the compiler can compare many at once.
        let has_null = slots.iter().fold(false, |has_null, slot| has_null | slot.is_null());
        self.len += slots.len();
        if has_null && self.bits.is_none() {
            let mut bits = BooleanBufferBuilder::new(self.len.next_power_of_two());
            bits.append_n(self.len - slots.len(), true);
            self.bits = Some(bits);
        }
        if let Some(bits) = &mut self.bits {
            if has_null {
                let block = BooleanBuffer::collect_bool(slots.len(), |i| !slots[i].is_null());
                bits.append_buffer(&block);
            } else {
                bits.append_n(slots.len(), true);
            }
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        if self.bits.is_some() { self.len.div_ceil(8) } else { 0 }
    }

    pub(crate) fn take(&mut self) -> Option<NullBuffer> {
        self.len = 0;
        self.bits.take().map(|bits| NullBuffer::new(bits.build()))
    }
}

/// Takes a vector and leaves an empty one that is as large, because the next batch will be much like this one.
pub(crate) fn take_vec<T>(values: &mut Vec<T>) -> Vec<T> {
    let next = Vec::with_capacity(values.len());
    std::mem::replace(values, next)
}
