//! The engine around [`forebay_fuzz::text`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::text::run(data));
