//! Feeds the decoder with anything: it may refuse, it must not panic, and what it accepts must be a valid record batch.
#![no_main]

#[path = "../input.rs"]
mod input;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drop(input::decode(bytes));
});
