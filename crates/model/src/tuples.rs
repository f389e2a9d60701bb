//! Rows on their way, as PostgreSQL's COPY wrote them.
//!
//! **Invariant:** `data` holds whole rows and nothing else: no message headers, no COPY signature, no trailer. Row `i`
//! is `data[ends[i-1]..ends[i]]`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// How the rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TupleForm {
    /// COPY BINARY tuples: field count (i16), then for each field its length (i32, -1 for NULL) and bytes. Manual: COPY, "Binary Format".
    PgBinary,
    /// COPY text lines, each with its line feed.
    PgText,
}

/// A batch of rows of one relation, bounded in bytes.
#[derive(Debug, Clone)]
pub struct Tuples {
    /// How the rows are written.
    pub form: TupleForm,
    /// The rows, one behind the other.
    pub data: Bytes,
    /// Where each row ends in `data`; ascending, the last equals `data.len()`.
    pub ends: Vec<u32>,
}

impl Tuples {
    /// Number of rows.
    pub fn row_count(&self) -> usize {
        self.ends.len()
    }

    /// The rows as byte slices, in order.
    pub fn rows(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let end = end as usize;
            let row = &self.data[start..end];
            start = end;
            row
        })
    }
}
