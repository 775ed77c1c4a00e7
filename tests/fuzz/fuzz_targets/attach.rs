//! The engine around [`forebay_fuzz::attach`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::attach::run(data));
