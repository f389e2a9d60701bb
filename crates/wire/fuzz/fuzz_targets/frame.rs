//! Framing of COPY OUT: any bytes in any pieces give the same rows or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidemark_wire::frame::fuzz(bytes));
