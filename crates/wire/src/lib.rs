//! The only crate that opens sockets: connections to PostgreSQL, TLS, authentication, COPY OUT, CopyBoth, cancel.
//!
//! **Invariant:** every connection, whoever uses it, goes through one start-up: one set of pinned settings, one TLS
//! policy, one authentication. No password reaches an error, a log line or a `Debug` output. No length that a server
//! names is believed before it is checked.
//!
//! ```text
//! ConnectSpec --- connect() ------> Client         tokio_postgres on our authenticated stream: SQL, COPY IN
//!            \--- connect_raw() --> RawConnection  our own framing: COPY OUT, simple queries, CopyBoth
//!                                     |- CopyOut   whole rows, large reads, no allocation per row
//!                                     \- CopyBoth  the replication stream
//! ```
//!
//! Other crates name `tokio_postgres` only through [`tokio_postgres`] here.

mod auth;
mod cancel;
mod channel_binding;
mod client;
mod connection;
mod copy_both;
mod copy_out;
mod error;
pub mod frame;
mod message;
mod server_error;
mod socket;
mod spec;
mod startup;
mod tls;

pub use cancel::Cancel;
pub use client::Client;
pub use connection::{Mode, RawConnection, TextRow};
pub use copy_both::{CopyBoth, CopyBothReader, CopyBothWriter, Messages};
pub use copy_out::CopyOut;
pub use error::{Disposition, Error, Result};
pub use server_error::ServerError;
#[doc(hidden)]
pub use spec::fuzz_connect_string;
pub use spec::{ChannelBinding, ConnectSpec, LIBPQ_VARIABLES, SslMode};
pub use tokio_postgres;
