//! The engine around [`forebay_fuzz::table`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::table::run(data));
