//! The engine around [`forebay_fuzz::service`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::service::run(data));
