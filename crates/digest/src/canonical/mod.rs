//! Canonical form, version 1: the bytes that are hashed for a row.
//!
//! **Invariant:** the bytes depend on the values alone: not on OIDs, not on the order of columns in the table, not on the
//! server's version. Two different rows never have the same bytes (every cell ends where its own bytes say). A change of
//! anything below is a new [`CANONICAL_VERSION`](crate::CANONICAL_VERSION).
//!
//! There are two forms. **Raw** keeps the exact representation; **value** maps what PostgreSQL's `=` takes for equal
//! (as far as listed here) to the same bytes. Equal raw sums: identical. Only equal value sums: equivalent.
//!
//! ```text
//! row    = the cells of its columns, in the byte order of the column names
//! cell   = tag|0x80                              NULL of that type
//!        | tag varint(length) payload            flat types
//!        | tag body                              containers and parsed JSON, which end by themselves
//! varint = LEB128, unsigned; all other integers are big-endian
//!
//! tag  type                               payload (raw = value unless said)
//! 01   bool                               00 or 01
//! 02   int2 int4 int8 oid xid cid reg*    i64
//! 03   float4                             raw: f32 bits, one NaN (7fc00000). value: cell of float8
//! 04   float8                             f64 bits, one NaN (7ff8000000000000). value: -0 is 0
//! 05   numeric                            class (00 plus, 01 minus, 02 NaN, 03 infinity, 04 -infinity); finite ones go
//!                                         on: weight i32, raw only: dscale u16, base-10^4 digits u16 each, without
//!                                         zero digits at either end. Zero: class 00, weight 0, no digits
//! 06   money                              i64
//! 07   date                               days since 2000-01-01 as i64; infinity: 01; -infinity: ff (length 1)
//! 08   time                               microseconds, i64
//! 09   timetz                             microseconds i64, zone in seconds west of UTC i32
//! 0a   timestamp                          microseconds since 2000-01-01 as i64; infinities as date
//! 0b   timestamptz                        the same, in UTC
//! 0c   interval                           raw: months i32, days i32, microseconds i64. value: the span in microseconds
//!                                         as i128 with days of 24 hours and months of 30 days. Infinities as date
//! 0d   uuid                               16 bytes
//! 0e   bytea                              bytes
//! 0f   text varchar bpchar name "char"    bytes in the client encoding. value of bpchar: trailing blanks stripped.
//!      citext xml enum (its label),       A column that is selected as text is here, whatever its type
//!      every column cast to text
//! 11   bit varbit                         number of bits u32, then the bits as bytes
//! 12   json jsonb                         raw: the text. value: body of a JSON value, see below
//! 14   inet cidr                          04 or 06, number of bits, address bytes
//! 15   macaddr macaddr8                   raw: 6 or 8 bytes. value: 8 bytes, ff fe inserted in the middle of 6
//! 16   array                              body: dimensions varint, for each: length i32, lower bound i32; then the
//!                                         elements as cells
//! 17   range                              body: flags (01 empty, 02 lower inclusive, 04 upper inclusive, 08 lower
//!                                         unbounded, 10 upper unbounded), then the bounds that exist as cells
//! 18   multirange                         body: count varint, then ranges as cells
//! 19   composite                          body: count varint, then the attributes as cells in attribute order
//! 1a   every other type                   what its send function writes
//!
//! JSON value = 'n' | 't' | 'f'                             null, true, false
//!            | '#' sign(00|01) exponent(i64) varint(length) decimal digits
//!                                                          digits x 10^exponent, no zeros at either end; zero: no digits
//!            | '"' varint(length) bytes                    escapes decoded; a lone surrogate as its three bytes
//!            | '[' values ']'
//!            | '{' members '}'                             member = string, value; sorted by the strings' bytes,
//!                                                          duplicates in the order of the text
//! ```
//!
//! PostgreSQL manual, section 8 and "COPY", "Binary Format".

mod buffer;
mod encoder;
mod json;

pub use buffer::RowBuffer;
pub use encoder::{Encoder, Form, NumericSpecial};
pub(crate) use encoder::{Quick, SHORT};

/// The first byte of a cell.
pub mod tag {
    /// Set in the tag of a NULL.
    pub const NULL: u8 = 0x80;
    /// bool
    pub const BOOL: u8 = 0x01;
    /// int2, int4, int8, oid
    pub const INT: u8 = 0x02;
    /// float4, raw form only
    pub const FLOAT4: u8 = 0x03;
    /// float8, and float4 in the value form
    pub const FLOAT8: u8 = 0x04;
    /// numeric
    pub const NUMERIC: u8 = 0x05;
    /// money
    pub const MONEY: u8 = 0x06;
    /// date
    pub const DATE: u8 = 0x07;
    /// time
    pub const TIME: u8 = 0x08;
    /// timetz
    pub const TIMETZ: u8 = 0x09;
    /// timestamp
    pub const TIMESTAMP: u8 = 0x0a;
    /// timestamptz
    pub const TIMESTAMPTZ: u8 = 0x0b;
    /// interval
    pub const INTERVAL: u8 = 0x0c;
    /// uuid
    pub const UUID: u8 = 0x0d;
    /// bytea
    pub const BYTEA: u8 = 0x0e;
    /// Everything whose value is text.
    pub const TEXT: u8 = 0x0f;
    /// bit, varbit
    pub const BIT: u8 = 0x11;
    /// json, jsonb
    pub const JSON: u8 = 0x12;
    /// inet, cidr
    pub const INET: u8 = 0x14;
    /// macaddr, macaddr8
    pub const MAC: u8 = 0x15;
    /// arrays
    pub const ARRAY: u8 = 0x16;
    /// ranges
    pub const RANGE: u8 = 0x17;
    /// multiranges
    pub const MULTIRANGE: u8 = 0x18;
    /// composites
    pub const COMPOSITE: u8 = 0x19;
    /// Types without a form of their own here.
    pub const OPAQUE: u8 = 0x1a;
}
