//! What must be as it was: slot words, descriptors, mappings. Everything is read from outside, from the objects' bytes
//! and from /proc, so that a library that forgets something cannot forget to say so.

use std::{fs, os::unix::fs::FileExt, path::Path};

use forebay_layout::{
    Kind, MAX_CLASSES,
    header::{FIXED_WORDS, Header},
    pool::SLOT_WORD_STRIDE,
};
use forebay_ring::{SlotState, SlotWord};

use crate::Place;

fn words<const N: usize>(file: &fs::File, at: usize) -> [u64; N] {
    let mut bytes = vec![0; N * 8];
    file.read_exact_at(&mut bytes, at as u64 * 8).unwrap();
    let mut words = [0; N];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(chunk.try_into().unwrap());
    }
    words
}

/// The header of a ring object.
///
/// # Panics
/// It is none.
#[must_use]
pub fn header(ring: &Path) -> Header {
    let file = fs::File::open(ring).unwrap();
    let len = file.metadata().unwrap().len();
    Header::decode(&words::<FIXED_WORDS>(&file, 0), len, |at| Some(words::<{ 4 * MAX_CLASSES }>(&file, at))).unwrap()
}

/// The slot words of a queue, from the files of its ring and pool object.
///
/// # Panics
/// They are not a queue's.
#[must_use]
pub fn slot_words(ring: &Path, pool: &Path) -> Vec<SlotWord> {
    let header = header(ring);
    assert_eq!(header.geometry.kind, Kind::Queue);
    let file = fs::File::open(pool).unwrap();
    (0..header.plan.slots as usize)
        .map(|slot| SlotWord::checked(words::<1>(&file, header.plan.slot_word + slot * SLOT_WORD_STRIDE)[0]).unwrap())
        .collect()
}

/// The slot words of a posix queue in `place`.
#[must_use]
pub fn posix_slots(place: &Place, ring: &str) -> Vec<SlotWord> {
    slot_words(&place.object(ring, "ring"), &place.object(ring, "pool"))
}

/// The slot words of a memfd queue whose producer is process `pid`.
#[must_use]
pub fn memfd_slots(pid: u32, ring: &str) -> Vec<SlotWord> {
    let find = |part: &str| {
        let wanted = format!("memfd:forebay.{ring}.{part}");
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let mut found =
            fds.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().contains(&wanted)));
        found.next().unwrap_or_else(|| panic!("process {pid} has no {wanted}")).path()
    };
    slot_words(&find("ring"), &find("pool"))
}

/// Asserts that no slot is claimed, acked, full, dead or half written.
///
/// # Panics
/// One is; all words are shown.
pub fn assert_all_free(slots: &[SlotWord]) {
    let idle = |word: &SlotWord| matches!(word.state(), SlotState::Free | SlotState::Done);
    assert!(slots.iter().all(idle), "leaked slots: {slots:?}");
}

/// Descriptors of this process that lead to something of forebay's: sockets, memfds, epolls, eventfds, timers, objects.
#[must_use]
pub fn descriptors() -> Vec<String> {
    let fds = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let mut found: Vec<String> =
        fds.filter_map(|fd| fs::read_link(fd.path()).ok()).map(|to| to.to_string_lossy().into_owned()).collect();
    // Numbers of sockets and pipes differ from one to the next; how many there are is what counts.
    for name in &mut found {
        if let Some(end) = name.find(":[") {
            name.truncate(end);
        }
    }
    // The directory that is being read.
    found.retain(|name| !name.contains("/proc/"));
    found.sort();
    found
}

/// Mappings of this process that belong to rings: objects in /dev/shm, memfds, lock files.
#[must_use]
pub fn mappings() -> Vec<String> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut found: Vec<String> = maps
        .lines()
        .filter(|line| ["/dev/shm/forebay.", "memfd:forebay", ".lock"].iter().any(|mark| line.contains(mark)))
        .map(str::to_owned)
        .collect();
    found.sort();
    found
}
