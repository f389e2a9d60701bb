//! Canonical rows, keyed sums, leaves, locators: what two copies of a table must agree on.
//!
//! A row becomes bytes ([`canonical`]), the bytes become a keyed 128-bit hash ([`DigestKey`]), the hashes of a table or of
//! a leaf are added up without regard to order ([`tidemark_model::RowSum`]). [`RowHasher`] does all of it for the rows
//! that COPY wrote, and feeds a [`Locator`] in the same pass where the differing rows are to be named.
//!
//! **Invariant:** equal sums over at least one row mean equal multisets of rows, up to a chance of about 2^-96 against
//! somebody who does not know the key. Nothing here depends on the order of rows, on OIDs, or on a cluster's collations.
//!
//! **Not here:** the mover's converters. This crate depends on neither `wire` nor `columnar`: a verifier that shares the
//! mover's converters agrees with its mistakes. A reader of Parquet calls [`canonical::Encoder`] directly.

mod error;
mod hasher;
mod key;
mod lake;
mod leaf;
mod locate;
mod program;
mod stable;

pub mod canonical;

pub use error::Error;
pub use hasher::{DigestColumn, Forms, NamedRow, RawScheme, RowHasher, has_value_form};
pub use key::DigestKey;
pub use lake::{lake_cell, without_declaration};
pub use leaf::{LeafBounds, LeafCut, shape_of};
pub use locate::{
    Difference, Differences, KeyCode, KeyPlan, KeyValue, LocatedForm, LocatedKey, Locator, Side,
};
pub use stable::is_tuple_stable;

/// The version of the canonical form; stored beside every digest that is kept.
pub const CANONICAL_VERSION: u32 = 1;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
