//! Reports as a whole: what is written, what is read again, and what people see.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod checksum;
mod diff;
mod html;
mod junit;
mod run;
mod samples;
mod schema;
