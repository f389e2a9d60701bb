//! Arrays, composites, ranges and multiranges.
//!
//! **Invariant:** a count from the wire reserves nothing before it is known to fit into the bytes that are there.
//!
//! A block of such values is split into the slots of their parts, which the parts' own buffers then decode. An array is a list
//! only if it has one dimension that begins at 1; which others a column holds is not declared, so they fall under the policy.
//!
//! The forms: `array_send`, `record_send`, `range_send`, `multirange_send`; manual, sections 8.15 to 8.17.

use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, ListArray, StructArray};
use arrow_buffer::{OffsetBuffer, ScalarBuffer};
use arrow_schema::{FieldRef, Fields};

use super::fixed::Bits;
use super::{ColumnBuffer, Context, Validity, for_shape, take_vec};
use crate::error::Fault;
use crate::shape::{Shape, multirange_item};
use crate::slot::{Reader, Slot};

/// MAXDIM.
const DIMENSIONS_MAX: i32 = 6;

/// Splits one value into the slots of its elements.
type SplitElements = fn(&[u8], &mut Slot, &mut Vec<Slot>, &mut Context) -> Result<(), Fault>;

/// Arrays, or multiranges.
pub(crate) struct Lists {
    offsets: Vec<i32>,
    validity: Validity,
    item: FieldRef,
    elements: Box<dyn ColumnBuffer>,
    slots: Vec<Slot>,
    split: SplitElements,
}

impl Lists {
    pub(crate) fn arrays(element: &Shape, item: &FieldRef) -> Self {
        Self::new(for_shape(element), Arc::clone(item), split_array)
    }

    pub(crate) fn multiranges(bound: &Shape, fields: &Fields) -> Self {
        Self::new(Box::new(Ranges::new(bound, fields)), multirange_item(fields), split_multirange)
    }

    fn new(elements: Box<dyn ColumnBuffer>, item: FieldRef, split: SplitElements) -> Self {
        Self {
            offsets: vec![0],
            validity: Validity::default(),
            item,
            elements,
            slots: Vec::new(),
            split,
        }
    }
}

impl ColumnBuffer for Lists {
    fn append(&mut self, data: &[u8], slots: &mut [Slot], ctx: &mut Context) -> Result<(), Fault> {
        self.slots.clear();
        let before = self.offsets.last().copied().unwrap_or_default();
        for slot in slots.iter_mut().map(|slot| &mut *slot) {
            if !slot.is_null() {
                (self.split)(data, slot, &mut self.slots, ctx)?;
            }
            let count = i32::try_from(self.slots.len()).map_err(|_| Fault::TooLarge)?;
            self.offsets.push(before.checked_add(count).ok_or(Fault::TooLarge)?);
        }
        self.validity.append(slots);
        self.elements.append(data, &mut self.slots, ctx)
    }

    fn bytes(&self) -> usize {
        std::mem::size_of_val(self.offsets.as_slice())
            + self.validity.bytes()
            + self.elements.bytes()
    }

    fn finish(&mut self) -> Result<ArrayRef, Fault> {
        let offsets = OffsetBuffer::new(ScalarBuffer::from(take_vec(&mut self.offsets)));
        self.offsets.push(0);
        let elements = self.elements.finish()?;
        let nulls = self.validity.take();
        let array = ListArray::try_new(Arc::clone(&self.item), offsets, elements, nulls)
            .map_err(|_| Fault::Malformed("NULL where none can be"))?;
        Ok(Arc::new(array))
    }
}

fn split_array(
    data: &[u8],
    slot: &mut Slot,
    elements: &mut Vec<Slot>,
    ctx: &mut Context,
) -> Result<(), Fault> {
    let mut reader = slot.reader(data);
    let dimensions = reader.int()?;
    let _has_nulls = reader.int()?;
    let _element_oid = reader.int()?;
    match dimensions {
        0 => return reader.finish(),
        1 => {}
        2..=DIMENSIONS_MAX => return ctx.replace(slot, "an array of more than one dimension"),
        _ => return Err(Fault::Malformed("an array of impossible dimensions")),
    }
    let count = reader.int()?;
    let lower_bound = reader.int()?;
    if lower_bound != 1 {
        return ctx.replace(slot, "an array that does not begin at 1");
    }
    split_parts(reader, count, elements)
}

fn split_multirange(
    data: &[u8],
    slot: &mut Slot,
    ranges: &mut Vec<Slot>,
    _: &mut Context,
) -> Result<(), Fault> {
    let mut reader = slot.reader(data);
    let count = reader.int()?;
    split_parts(reader, count, ranges)
}

/// Reads `count` parts, each with its length, up to the end of the value.
fn split_parts(mut reader: Reader<'_>, count: i32, parts: &mut Vec<Slot>) -> Result<(), Fault> {
    let count = usize::try_from(count).map_err(|_| Fault::Malformed("a negative count"))?;
    if count > reader.remaining() / 4 {
        return Err(Fault::Malformed("more elements than bytes"));
    }
    parts.reserve(count);
    for _ in 0..count {
        parts.push(reader.slot()?);
    }
    reader.finish()
}

/// Composites.
pub(crate) struct Structs {
    fields: Fields,
    validity: Validity,
    parts: Vec<Box<dyn ColumnBuffer>>,
    slots: Vec<Vec<Slot>>,
}

impl Structs {
    pub(crate) fn new(shapes: &[Shape], fields: &Fields) -> Self {
        Self {
            fields: fields.clone(),
            validity: Validity::default(),
            parts: shapes.iter().map(for_shape).collect(),
            slots: vec![Vec::new(); shapes.len()],
        }
    }

    fn split(&mut self, data: &[u8], slot: Slot) -> Result<(), Fault> {
        if slot.is_null() {
            self.slots.iter_mut().for_each(|slots| slots.push(Slot::NULL));
            return Ok(());
        }
        let mut reader = slot.reader(data);
        if usize::try_from(reader.int()?) != Ok(self.slots.len()) {
            return Err(Fault::Malformed("a composite with another number of attributes"));
        }
        for slots in &mut self.slots {
            let _type_oid = reader.int()?;
            slots.push(reader.slot()?);
        }
        reader.finish()
    }
}

impl ColumnBuffer for Structs {
    fn append(&mut self, data: &[u8], slots: &mut [Slot], ctx: &mut Context) -> Result<(), Fault> {
        self.slots.iter_mut().for_each(Vec::clear);
        for slot in slots.iter() {
            self.split(data, *slot)?;
        }
        for (part, slots) in self.parts.iter_mut().zip(&mut self.slots) {
            part.append(data, slots, ctx)?;
        }
        self.validity.append(slots);
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.validity.bytes() + self.parts.iter().map(|part| part.bytes()).sum::<usize>()
    }

    fn finish(&mut self) -> Result<ArrayRef, Fault> {
        let parts: Vec<ArrayRef> =
            self.parts.iter_mut().map(|part| part.finish()).collect::<Result<_, _>>()?;
        Ok(Arc::new(StructArray::new(self.fields.clone(), parts, self.validity.take())))
    }
}

/// The flags of `range_send`.
mod flag {
    pub(super) const EMPTY: u8 = 0x01;
    pub(super) const LOWER_INC: u8 = 0x02;
    pub(super) const UPPER_INC: u8 = 0x04;
    pub(super) const LOWER_INF: u8 = 0x08;
    pub(super) const UPPER_INF: u8 = 0x10;
    pub(super) const ALL: u8 = 0x1F;
    /// In the order of the fields.
    pub(super) const FIELDS: [u8; 5] = [LOWER_INC, UPPER_INC, LOWER_INF, UPPER_INF, EMPTY];
}

/// Ranges.
pub(crate) struct Ranges {
    fields: Fields,
    validity: Validity,
    bounds: [Box<dyn ColumnBuffer>; 2],
    slots: [Vec<Slot>; 2],
    block_flags: Vec<u8>,
    flags: [Bits; 5],
}

impl Ranges {
    pub(crate) fn new(bound: &Shape, fields: &Fields) -> Self {
        Self {
            fields: fields.clone(),
            validity: Validity::default(),
            bounds: [for_shape(bound), for_shape(bound)],
            slots: [Vec::new(), Vec::new()],
            block_flags: Vec::new(),
            flags: Default::default(),
        }
    }

    fn split(&mut self, data: &[u8], slot: Slot) -> Result<(), Fault> {
        let mut bounds = [Slot::NULL; 2];
        let mut flags = 0;
        if !slot.is_null() {
            let mut reader = slot.reader(data);
            flags = reader.byte()?;
            if flags & !flag::ALL != 0 {
                return Err(Fault::Malformed("a range with unknown flags"));
            }
            for (bound, infinite) in bounds.iter_mut().zip([flag::LOWER_INF, flag::UPPER_INF]) {
                if flags & (flag::EMPTY | infinite) == 0 {
                    *bound = reader.slot()?;
                    if bound.is_null() {
                        return Err(Fault::Malformed("a range with a NULL bound"));
                    }
                }
            }
            reader.finish()?;
        }
        self.block_flags.push(flags);
        self.slots.iter_mut().zip(bounds).for_each(|(slots, bound)| slots.push(bound));
        Ok(())
    }
}

impl ColumnBuffer for Ranges {
    fn append(&mut self, data: &[u8], slots: &mut [Slot], ctx: &mut Context) -> Result<(), Fault> {
        self.slots.iter_mut().for_each(Vec::clear);
        self.block_flags.clear();
        for slot in slots.iter() {
            self.split(data, *slot)?;
        }
        for (bound, slots) in self.bounds.iter_mut().zip(&mut self.slots) {
            bound.append(data, slots, ctx)?;
        }
        for (bits, flag) in self.flags.iter_mut().zip(flag::FIELDS) {
            bits.append(slots.len(), |index| self.block_flags[index] & flag != 0);
        }
        self.validity.append(slots);
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.validity.bytes()
            + self.bounds.iter().map(|bound| bound.bytes()).sum::<usize>()
            + self.flags.iter().map(Bits::bytes).sum::<usize>()
    }

    fn finish(&mut self) -> Result<ArrayRef, Fault> {
        let mut parts = Vec::with_capacity(self.fields.len());
        for bound in &mut self.bounds {
            parts.push(bound.finish()?);
        }
        for bits in &mut self.flags {
            let array: ArrayRef = Arc::new(BooleanArray::new(bits.take(), None));
            parts.push(array);
        }
        Ok(Arc::new(StructArray::new(self.fields.clone(), parts, self.validity.take())))
    }
}
