//! Messages of pgoutput: whatever the bytes, a change that fits its relation or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    tidemark_source::fuzz_stream::messages(bytes);
});
