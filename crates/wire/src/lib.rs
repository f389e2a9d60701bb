//! The only crate that opens sockets: connections to PostgreSQL, TLS, authentication, COPY OUT, CopyBoth.
