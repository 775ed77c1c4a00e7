//! Alone in its process, so that its memory can be measured.

#![cfg(feature = "text")]
mod common;

use std::io::{BufWriter, Write};
use std::thread;

use common::{pipe, start, watchdog};
use forebay_ingest::PipelineOptions;

const LINES: usize = 200_000;

#[allow(clippy::unwrap_used, reason = "a test helper fails by panicking")]
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn memory_does_not_grow_with_the_number_of_lines() {
    let _watchdog = watchdog();
    let (input, _reader, writer) = pipe();
    let feeder = thread::spawn(move || {
        let mut writer = BufWriter::new(writer);
        for line in 0..LINES {
            writeln!(writer, "{} {} {}", line % 1000, line % 777, line % 13).unwrap();
        }
    });
    let (mut rows, mut early) = (0, 0);
    for batch in start(&[input], PipelineOptions::default()) {
        rows += batch.unwrap().rows();
        if early == 0 && rows >= LINES / 10 {
            early = resident_kib();
        }
    }
    feeder.join().unwrap();
    assert_eq!(rows, LINES);
    let late = resident_kib();
    // A word a line that were kept would be 3 MiB.
    assert!(late < early + (2 << 10), "{early} KiB after a tenth of the lines, {late} KiB at the end");
}
