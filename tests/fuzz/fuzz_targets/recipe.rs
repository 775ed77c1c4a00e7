//! The engine around [`forebay_fuzz::images::recipe`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::images::recipe(data));
