//! The engine around [`forebay_fuzz::control`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::control::run(data));
