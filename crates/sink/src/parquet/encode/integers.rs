//! Columns that Parquet stores as 32 or 64 bit integers: numbers, dates, times, decimals of up to 18 digits.
//!
//! **Invariant:** smallest and largest value are those of all values that are not NULL.

use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Decimal128Type};
use arrow_array::{Array, ArrayRef, PrimitiveArray};
use arrow_buffer::ArrowNativeType;
use parquet::basic::Encoding;
use parquet::errors::Result;
use parquet::file::statistics::Statistics;
use parquet::schema::types::ColumnDescPtr;

use super::column::Kind;
use super::delta::{self, Integer};
use super::{DICTIONARY_BYTES_MAX, DICTIONARY_VALUES_MAX};

/// Places of a new dictionary.
const PLACES: usize = 256;

/// Steps from a value's place after which a dictionary is given up: its values collide, by chance or on purpose.
const STEPS_MAX: usize = 128;

/// Appends the values of an array that are not NULL, as Parquet stores them.
type Load<T> = dyn Fn(&dyn Array, &mut Vec<T>) + Send;

/// Integers as Parquet stores them.
pub(super) struct Integers<T> {
    load: Box<Load<T>>,
    loaded: Vec<T>,
    page: Vec<T>,
    dictionary: Dictionary<T>,
    bounds: Option<(T, T)>,
}

impl<T: Integer> Integers<T> {
    fn new(load: impl Fn(&dyn Array, &mut Vec<T>) + Send + 'static) -> Self {
        Self {
            load: Box::new(load),
            loaded: Vec::new(),
            page: Vec::new(),
            dictionary: Dictionary::default(),
            bounds: None,
        }
    }

    /// Values that are stored as they are.
    pub(super) fn plain<P: ArrowPrimitiveType<Native = T>>() -> Self
    where
        T: ArrowNativeType,
    {
        Self::new(|array, into| match array.as_primitive::<P>() {
            dense if dense.null_count() == 0 => into.extend_from_slice(&dense.values()[..]),
            sparse => into.extend(sparse.iter().flatten()),
        })
    }

    /// Values that are stored in another width.
    pub(super) fn of<P: ArrowPrimitiveType>(
        convert: impl Fn(P::Native) -> T + Send + Copy + 'static,
    ) -> Self {
        Self::new(move |array, into| match array.as_primitive::<P>() {
            dense if dense.null_count() == 0 => {
                into.extend(dense.values().iter().map(|value| convert(*value)));
            }
            sparse => into.extend(present(sparse).map(convert)),
        })
    }

    /// Decimals by their unscaled value.
    pub(super) fn decimal(narrow: impl Fn(i128) -> T + Send + Copy + 'static) -> Self {
        Self::of::<Decimal128Type>(narrow)
    }

    fn note(&mut self, smallest: Option<T>, largest: Option<T>) {
        let (Some(smallest), Some(largest)) = (smallest, largest) else { return };
        self.bounds = Some(match self.bounds {
            None => (smallest, largest),
            Some((low, high)) => (low.min(smallest), high.max(largest)),
        });
    }
}

fn present<P: ArrowPrimitiveType>(array: &PrimitiveArray<P>) -> impl Iterator<Item = P::Native> {
    array.iter().flatten()
}

impl<T: Integer> Kind for Integers<T> {
    const ENCODING: Encoding = Encoding::DELTA_BINARY_PACKED;

    fn rows_that_fit(&self, _: &dyn Array, _: usize, rows: usize) -> usize {
        rows
    }

    fn load(&mut self, array: &ArrayRef) {
        self.loaded.clear();
        (self.load)(array.as_ref(), &mut self.loaded);
    }

    fn intern(&mut self, indices: &mut Vec<u16>) -> bool {
        let before = indices.len();
        let is_held = self.dictionary.intern(&self.loaded, indices);
        if !is_held {
            indices.truncate(before);
        }
        is_held
    }

    fn dictionary_len(&self) -> usize {
        self.dictionary.values.len()
    }

    fn take_dictionary(&mut self) -> Vec<u8> {
        let dictionary = std::mem::take(&mut self.dictionary);
        let values = dictionary.values.iter().copied();
        self.note(values.clone().min(), values.clone().max());
        let bytes = |value: T| value.wide().to_le_bytes().into_iter().take(size_of::<T>());
        values.flat_map(bytes).collect()
    }

    fn append(&mut self) {
        let values = self.loaded.iter().copied();
        self.note(values.clone().min(), values.max());
        self.page.extend_from_slice(&self.loaded);
    }

    fn take_page(&mut self, page: &mut Vec<u8>) {
        delta::encode(&self.page, page);
        self.page.clear();
    }

    fn take_unencoded(&mut self) -> Option<i64> {
        None
    }

    fn bytes(&self) -> usize {
        (self.page.len() + self.loaded.len() + self.dictionary.values.len()) * size_of::<T>()
            + self.dictionary.places.len() * size_of::<Place<T>>()
    }

    fn statistics(&self, _: &ColumnDescPtr, null_count: u64) -> Result<Statistics> {
        Ok(T::statistics(self.bounds, null_count))
    }
}

/// The place of a value, or a free one.
#[derive(Clone, Copy, Default)]
struct Place<T> {
    value: T,
    /// One more than the value's number; 0 is free.
    number: u32,
}

/// Distinct values in the order in which they came. At least half of the places are free.
struct Dictionary<T> {
    values: Vec<T>,
    places: Vec<Place<T>>,
}

impl<T> Default for Dictionary<T> {
    fn default() -> Self {
        Self { values: Vec::new(), places: Vec::new() }
    }
}

impl<T: Integer> Dictionary<T> {
    fn intern(&mut self, values: &[T], indices: &mut Vec<u16>) -> bool {
        indices.reserve(values.len());
        if self.places.is_empty() {
            self.places = vec![Place::default(); PLACES];
        }
        for value in values {
            let Some(number) = self.find(*value) else { return false };
            indices.push(number);
        }
        true
    }

    #[inline]
    fn find(&mut self, value: T) -> Option<u16> {
        let mut at = self.first_place(value);
        for _ in 0..STEPS_MAX {
            let Place { value: other, number } = self.places[at];
            if number == 0 {
                return self.insert(value, at);
            }
            if other == value {
                return Some((number - 1) as u16);
            }
            at = (at + 1) & (self.places.len() - 1);
        }
        None
    }

    /// The upper bits of a product depend on all bits of the value.
    #[inline]
    fn first_place(&self, value: T) -> usize {
        let bits = self.places.len().trailing_zeros();
        (value.bits().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (u64::BITS - bits)) as usize
    }

    #[cold]
    fn insert(&mut self, value: T, at: usize) -> Option<u16> {
        let number = self.values.len();
        if number == DICTIONARY_VALUES_MAX || (number + 1) * size_of::<T>() > DICTIONARY_BYTES_MAX {
            return None;
        }
        self.values.push(value);
        self.places[at] = Place { value, number: number as u32 + 1 };
        if self.values.len() * 2 > self.places.len() {
            self.grow();
        }
        Some(number as u16)
    }

    fn grow(&mut self) {
        self.places = vec![Place::default(); self.places.len() * 4];
        for (number, value) in (1..).zip(&self.values) {
            let mut at = self.first_place(*value);
            while self.places[at].number != 0 {
                at = (at + 1) & (self.places.len() - 1);
            }
            self.places[at] = Place { value: *value, number };
        }
    }
}
