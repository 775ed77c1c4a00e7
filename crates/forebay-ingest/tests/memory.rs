//! Alone in its process, so that its memory can be measured.

#![cfg(feature = "text")]
mod common;

use std::io::Write;
use std::thread;

use common::{all, pipe, start, watchdog};
use forebay_ingest::{ItemError, OnError, PipelineOptions};

#[test]
fn a_line_of_100_megabytes_is_skipped_in_bounded_memory() {
    let _watchdog = watchdog();
    let (input, _reader, mut writer) = pipe();
    let feeder = thread::spawn(move || {
        writer.write_all(b"1\n").unwrap();
        for _ in 0..100 {
            writer.write_all(&vec![b'x'; 1_000_000]).unwrap();
        }
        writer.write_all(b"\n2\n").unwrap();
    });
    let mut pipeline = start(&[input], PipelineOptions { on_error: OnError::Skip, ..PipelineOptions::default() });
    assert_eq!(all(&mut pipeline).0, [1, 2]);
    feeder.join().unwrap();
    let skipped = pipeline.report().skipped.first();
    assert_eq!((skipped.len(), skipped[0].line), (1, 2));
    assert_eq!(skipped[0].reason, ItemError::TooLong { found_bytes: 100_000_000, limit_bytes: 1 << 20 });
    let peak = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = peak.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 90 << 10, "held {peak_kib} KiB at the peak");
}
