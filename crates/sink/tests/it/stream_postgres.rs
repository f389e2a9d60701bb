//! Following a source into a PostgreSQL target: real changes of a real source, applied to a real target.

mod failures;
mod lanes;
mod pair;
mod random;
mod tables;
