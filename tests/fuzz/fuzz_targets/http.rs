//! The engine around [`forebay_fuzz::http`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::http::run(data));
