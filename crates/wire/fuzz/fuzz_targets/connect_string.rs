//! Connection strings: any text is a specification or an error, and a password shows nowhere.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| tidemark_wire::fuzz_connect_string(text));
