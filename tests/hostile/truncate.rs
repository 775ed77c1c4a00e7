//! A peer that cuts the memory of the others. On memfd it cannot; on posix it can, which `docs/trust.md` says.

use std::{
    fs,
    os::{
        fd::{AsFd, AsRawFd},
        unix::{fs::FileExt, process::ExitStatusExt},
    },
    path::PathBuf,
};

use forebay::{Backing, Kind};
use forebay_os::{Access, Mapping};
use forebay_testkit::{Place, WATCHDOG, ledger::publish};

use crate::{
    rig::{Book, Expect::Refused, Outcome},
    stage::{attach, consumer, here, next, producer},
};

/// Every descriptor of this process that leads to an anonymous object of `ring`.
fn objects(ring: &str) -> Vec<(String, PathBuf)> {
    let mark = format!("memfd:forebay.{ring}.");
    let mut found: Vec<_> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .filter_map(|fd| {
            let to = fs::read_link(fd.path()).ok()?.to_string_lossy().into_owned();
            let part = to.split_once(&mark)?.1.split(' ').next()?.to_owned();
            Some((part, fd.path()))
        })
        .collect();
    found.sort();
    found.dedup_by(|a, b| a.0 == b.0);
    found
}

#[allow(unsafe_code, reason = "punching holes has no safe wrapper here")]
fn punch(file: &fs::File) -> std::io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: a system call on a descriptor that is open for its length; it touches no memory of this process.
    let rc = unsafe { libc::fallocate(file.as_raw_fd(), mode, 0, 4096) };
    if rc == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
fn memfd_objects_cannot_be_cut_and_ring_and_data_cannot_be_written() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let place = Place::new();
        let ring = format!("cut-{kind}");
        let options = here(&place, &ring).kind(kind).backing(Backing::Memfd).max_consumers(2);
        let mut producer = options.create().unwrap();
        let mut reader = attach(&place, &ring).attach().unwrap();
        producer.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
        publish(&mut producer, 8).unwrap();
        let held = next(&mut reader);
        let mut book = Book::new(&format!("objects of a memfd {kind}, after attach"));
        let found = objects(&ring);
        assert_eq!(found.len(), if kind == Kind::Queue { 3 } else { 4 }, "{found:?}");
        let denied = |result: std::io::Result<()>| match result {
            Err(e) => Outcome::Refused(e.to_string()),
            Ok(()) => Outcome::Damage("it was done".to_owned()),
        };
        let no = Refused(&["not permitted", "denied", "busy"]);
        for (part, path) in &found {
            let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
            let len = file.metadata().unwrap().len();
            for to in [0, 1, 4096, len - 1, len + 4096] {
                book.lie(part, &format!("{to} bytes instead of {len}"), no, || denied(file.set_len(to)));
            }
            if part == "ring" || part == "data" {
                book.lie(part, "a hole", no, || denied(punch(&file)));
                book.lie(part, "other words", no, || denied(file.write_all_at(&[0xff; 8], 8192)));
                book.lie(part, "mapped to write", no, || {
                    denied(
                        Mapping::map(file.as_fd(), 4096, Access::ReadWrite)
                            .map(drop)
                            .map_err(|e| std::io::Error::other(e.to_string())),
                    )
                });
            } else {
                // Members write it; a hole reads as zeros, and is memory again when it is touched.
                let mut last = [0; 1];
                file.read_exact_at(&mut last, len - 1).unwrap();
            }
        }
        book.close();
        forebay_testkit::ledger::check_message(&held);
        drop(held);
        for _ in 0..20 {
            publish(&mut producer, 8).unwrap();
            next(&mut reader);
        }
        producer.discard();
    }
}

/// Not a promise but a fact that the pages of documentation state: who maps a posix ring dies if a peer cuts it.
#[test]
fn cutting_a_posix_ring_is_sigbus_in_who_reads_it_as_documented() {
    let place = Place::new();
    let mut feeder = producer(&place, "cut", "");
    let mut victim = consumer(&place, "cut", "");
    feeder.ask("publish 1 512", "published 1");
    let file = fs::OpenOptions::new().write(true).open(place.object("cut", "data")).unwrap();
    file.set_len(0).unwrap();
    victim.tell("take");
    let status = victim.finish();
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status:?}");
    // Nobody else is hurt who does not read what is gone.
    feeder.ask("stats", "stats");
    feeder.kill();
    place.sweep();
}
