//! The engine around [`forebay_fuzz::images::jpeg`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::images::jpeg(data));
