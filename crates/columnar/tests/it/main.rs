//! Real PostgreSQL writes rows, we decode them, and PostgreSQL says whether they are what it holds.
//!
//! Each decoded value is written back as an SQL expression; the server evaluates it and its text is compared with the text of
//! the value in the table. So neither our decoder nor this test decides what a value looks like.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod catalog;
mod copy;
mod malformed;
mod matrix;
mod policy;
mod render;
mod text;
mod values;
