//! The book outside the transport: one shared file that victims write with plain word stores, so that what they noted
//! survives their SIGKILL. Every word has one writer at a time.
//!
//! ```text
//!   header   64 words                  what the supervisor tells everybody
//!   rings    64 words each             what the producers of a ring hand on to their successors
//!   lives    512 words each            one victim: who it is, its state, and what it was delivered, in order
//!   cells    4 words each              one message: indexed by (ring, cell); a cell is a sequence plus the base of the
//!                                      ring's present instance, so that no two messages ever share one
//! ```
//! The Python victims (`actor.py`) write the same words; [`layout`] tells them where.
#![allow(unsafe_code, reason = "the mapped file is one slice of words")]

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use memmap2::{MmapOptions, MmapRaw};

/// Rings of one round at most.
pub(crate) const RINGS: usize = 16;
/// Victims of one round at most.
pub(crate) const LIVES: usize = 64 * 1024;
/// Messages of one ring in one round at most; a producer that gets there publishes no more.
pub(crate) const CELLS: usize = 1 << 20;

const HEADER_WORDS: usize = 64;
const RING_WORDS: usize = 64;
const LIFE_WORDS: usize = 512;
const CELL_WORDS: usize = 4;
const LIVES_AT: usize = HEADER_WORDS + RINGS * RING_WORDS;
const CELLS_AT: usize = LIVES_AT + LIVES * LIFE_WORDS;
const WORDS: usize = CELLS_AT + RINGS * CELLS * CELL_WORDS;

/// Where a ring's words are.
pub(crate) mod ring {
    /// Cell of the ring's sequence 0: raised when a new instance of the ring is made.
    pub(crate) const BASE: usize = 0;
    /// The highest cell that a producer was about to publish.
    pub(crate) const INTENT: usize = 1;
    /// The highest cell whose publish returned, or whose publishing a successor was told of.
    pub(crate) const PUBLISHED: usize = 2;
    /// 0 running; 1: producers publish no more, drain, and close.
    pub(crate) const FINISH: usize = 3;
    /// Files and mappings of a producer that has no member, as the first one found them: files | mappings << 32.
    pub(crate) const BASELINE: usize = 4;
    /// 1 once a producer drained the ring, found nothing leaked, and closed it.
    pub(crate) const CLOSED: usize = 5;
    /// Instances of the ring that were made.
    pub(crate) const INSTANCES: usize = 6;
    /// Whether an instance is there: see [`super::there`].
    pub(crate) const THERE: usize = 7;
}

/// Where a ring stands, as its producers tell each other.
pub(crate) mod there {
    /// No instance of it exists, or one that nothing was published in.
    pub(crate) const NOT: u64 = 0;
    pub(crate) const YES: u64 = 1;
    /// It was drained, and is being removed.
    pub(crate) const GOING: u64 = 2;
}

/// Where a life's words are.
pub(crate) mod life {
    /// Its pid in the supervisor's namespace.
    pub(crate) const PID: usize = 0;
    /// Ring | role << 8 | flags << 16.
    pub(crate) const WHO: usize = 1;
    /// What it is doing.
    pub(crate) const STATE: usize = 2;
    /// When it was made, ns.
    pub(crate) const BORN: usize = 3;
    /// When its SIGKILL was sent, ns. Stored before, so that nothing that follows from the death is earlier.
    pub(crate) const KILL: usize = 4;
    /// See [`super::end`].
    pub(crate) const END: usize = 5;
    /// When it was reaped.
    pub(crate) const REAPED: usize = 6;
    /// Records that are whole.
    pub(crate) const RECORDS: usize = 7;
    /// Its member index + 1, once attached.
    pub(crate) const MEMBER: usize = 8;
    /// Broadcast: the highest cell that anybody was about to publish when it was admitted, + 1.
    pub(crate) const ADMITTED_AT: usize = 9;
    /// Broadcast: the first and the last cell received.
    pub(crate) const FIRST: usize = 10;
    pub(crate) const LAST: usize = 11;
    /// A forked child of it that is to be killed.
    pub(crate) const CHILD: usize = 12;
    /// The ring ended for it: 1 closed, 2 its producer died and everything was drained.
    pub(crate) const SAW_END: usize = 13;
    /// The state it died in.
    pub(crate) const DIED_IN: usize = 14;
    /// ns that attaching or creating took.
    pub(crate) const ENTRY_NS: usize = 15;
    /// Messages received, words checked.
    pub(crate) const RECEIVED: usize = 16;
    pub(crate) const CHECKED: usize = 17;
    /// Python: its wait status, | 1 << 32.
    pub(crate) const STATUS: usize = 18;
    /// When its own timer is to kill it.
    pub(crate) const TIMER: usize = 19;
    /// What went wrong: bytes, then 24 words of text.
    pub(crate) const FAILURE: usize = 24;
    pub(crate) const FAILURE_TEXT: usize = 25;
    pub(crate) const FAILURE_WORDS: usize = 38;
    /// Records start here.
    pub(crate) const FIRST_RECORD: usize = 64;
}

/// How a life ended.
pub(crate) mod end {
    pub(crate) const KILLED: u64 = 1;
    /// It left by itself, having settled everything it held.
    pub(crate) const LEFT: u64 = 2;
    /// It found something wrong, and said what.
    pub(crate) const FAILED: u64 = 3;
}

/// Words of a record: cell | attempts << 40 | slot << 48, time, stage, nonce.
pub(crate) const RECORD_WORDS: usize = 4;
/// Records a life has room for.
pub(crate) const RECORDS: usize = (LIFE_WORDS - life::FIRST_RECORD) / RECORD_WORDS;

/// What a victim did with a delivery, as bits.
pub(crate) mod stage {
    pub(crate) const ACKING: u64 = 1;
    pub(crate) const ACKED: u64 = 2;
    pub(crate) const NACKING: u64 = 4;
    pub(crate) const NACKED: u64 = 8;
    pub(crate) const CHECKED_AGAIN: u64 = 16;
    pub(crate) const RELEASED: u64 = 32;
}

/// Where a cell's words are.
pub(crate) mod cell {
    /// The nonce with which it was last about to be published.
    pub(crate) const INTENT: usize = 0;
    /// The nonce with which it was published: its publish returned, or a successor was told of it.
    pub(crate) const PUBLISHED: usize = 1;
    /// When.
    pub(crate) const TIME: usize = 2;
    /// The producer's life that was handed it as a dead letter last, + 1; how often it was << 24.
    pub(crate) const LETTER: usize = 3;
}

/// A delivery as its receiver noted it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    pub(crate) cell: u64,
    pub(crate) attempts: u64,
    pub(crate) slot: u64,
    pub(crate) time: u64,
    pub(crate) stage: u64,
    pub(crate) nonce: u64,
}

/// The mapped book.
#[derive(Debug)]
pub(crate) struct Ledger {
    map: MmapRaw,
    file: File,
}

impl Ledger {
    /// A new book in a file without a name in memory.
    pub(crate) fn new() -> io::Result<Self> {
        let file = File::from(forebay_os::object::memfd::create("soak-ledger", None).map_err(io::Error::other)?);
        file.set_len(WORDS as u64 * 8)?;
        let map = MmapOptions::new().len(WORDS * 8).map_raw(&file)?;
        Ok(Self { map, file })
    }

    /// Empties it for the next round. Nobody else may be using it.
    pub(crate) fn clear(&self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.set_len(WORDS as u64 * 8)
    }

    /// The file, for processes that are not forked from this one.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Writes what is in it to `path`, without the parts that were never written.
    pub(crate) fn save(&self, path: &Path, lives: usize, cells: &[u64]) -> io::Result<()> {
        let out = File::create(path)?;
        let copy = |from: usize, words: usize| -> io::Result<()> {
            let mut bytes = vec![0; words * 8];
            self.file.read_exact_at(&mut bytes, from as u64 * 8)?;
            out.write_all_at(&bytes, from as u64 * 8)
        };
        copy(0, LIVES_AT + lives * LIFE_WORDS)?;
        for (ring, &cells) in cells.iter().enumerate() {
            copy(CELLS_AT + ring * CELLS * CELL_WORDS, (cells as usize + 1).min(CELLS) * CELL_WORDS)?;
        }
        Ok(())
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < WORDS);
        let base = self.map.as_ptr().cast::<AtomicU64>();
        // SAFETY: the index is inside the mapping, which was made WORDS words long.
        let at = unsafe { base.add(index) };
        // SAFETY: mapped as long as `self`, aligned by its page, and only ever accessed as atomic words.
        unsafe { &*at }
    }

    // All loads and stores are Relaxed or stronger words of a file that outlives their writers: what a dead process stored
    // is there, in its order, for who learned of its death from the kernel. Release and Acquire cover living readers.
    fn get(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }

    fn set(&self, index: usize, value: u64) {
        self.word(index).store(value, Ordering::Release);
    }

    pub(crate) fn ring(&self, ring: usize, word: usize) -> u64 {
        self.get(HEADER_WORDS + ring * RING_WORDS + word)
    }

    pub(crate) fn set_ring(&self, ring: usize, word: usize, value: u64) {
        self.set(HEADER_WORDS + ring * RING_WORDS + word, value);
    }

    pub(crate) fn life(&self, life: usize, word: usize) -> u64 {
        self.get(LIVES_AT + life * LIFE_WORDS + word)
    }

    pub(crate) fn set_life(&self, life: usize, word: usize, value: u64) {
        self.set(LIVES_AT + life * LIFE_WORDS + word, value);
    }

    /// The earliest time at which `life` was killed; 0 if it was not.
    pub(crate) fn killed_at(&self, life: usize) -> u64 {
        let (sent, timer) = (self.life(life, life::KILL), self.life(life, life::TIMER));
        if sent == 0 || timer != 0 && timer < sent { timer } else { sent }
    }

    pub(crate) fn cell(&self, ring: usize, cell: u64, word: usize) -> u64 {
        assert!(cell < CELLS as u64);
        self.get(CELLS_AT + (ring * CELLS + cell as usize) * CELL_WORDS + word)
    }

    pub(crate) fn set_cell(&self, ring: usize, cell: u64, word: usize, value: u64) {
        assert!(cell < CELLS as u64, "message {cell} has no cell");
        self.set(CELLS_AT + (ring * CELLS + cell as usize) * CELL_WORDS + word, value);
    }

    fn record_at(life: usize, record: usize) -> usize {
        LIVES_AT + life * LIFE_WORDS + life::FIRST_RECORD + record * RECORD_WORDS
    }

    /// Notes a record of `life`; it counts once all of it is there.
    pub(crate) fn note(&self, life: usize, record: Record) -> usize {
        let number = self.life(life, life::RECORDS) as usize;
        assert!(number < RECORDS, "a victim leaves before its page is full");
        let at = Self::record_at(life, number);
        self.set(at, record.cell | record.attempts << 40 | record.slot << 48);
        self.set(at + 1, record.time);
        self.set(at + 2, record.stage);
        self.set(at + 3, record.nonce);
        self.set_life(life, life::RECORDS, number as u64 + 1);
        number
    }

    /// Adds to what a delivery went through.
    pub(crate) fn advance(&self, life: usize, record: usize, stage: u64) {
        let at = Self::record_at(life, record) + 2;
        self.set(at, self.get(at) | stage);
    }

    /// The records of `life`.
    pub(crate) fn records(&self, life: usize) -> impl Iterator<Item = Record> + '_ {
        let count = (self.life(life, life::RECORDS) as usize).min(RECORDS);
        (0..count).map(move |number| {
            let at = Self::record_at(life, number);
            let first = self.get(at);
            Record {
                cell: first & 0xff_ffff_ffff,
                attempts: first >> 40 & 0xff,
                slot: first >> 48 & 0xff,
                time: self.get(at + 1),
                stage: self.get(at + 2),
                nonce: self.get(at + 3),
            }
        })
    }

    /// Says what `life` found wrong; the first thing counts.
    pub(crate) fn fail(&self, life: usize, text: &str) {
        if self.life(life, life::FAILURE) != 0 {
            return;
        }
        let text = &text.as_bytes()[..text.len().min(life::FAILURE_WORDS * 8)];
        for (i, chunk) in text.chunks(8).enumerate() {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            self.set_life(life, life::FAILURE_TEXT + i, u64::from_le_bytes(bytes));
        }
        self.set_life(life, life::FAILURE, text.len() as u64);
    }

    /// What `life` found wrong.
    pub(crate) fn failure(&self, life: usize) -> Option<String> {
        let len = self.life(life, life::FAILURE) as usize;
        if len == 0 {
            return None;
        }
        let words = (0..len.div_ceil(8).min(life::FAILURE_WORDS)).map(|i| self.life(life, life::FAILURE_TEXT + i));
        let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        bytes.truncate(len);
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Where everything is, for `actor.py`.
pub(crate) fn layout() -> serde_json::Value {
    use crate::states::{Role, State};
    let mut states = serde_json::Map::new();
    for &state in State::ALL {
        let name = state.text().to_owned();
        if state.role() == Some(Role::Member) {
            states.insert(format!("member {name}"), (state as u64).into());
        }
        states.entry(name).or_insert((state as u64).into());
    }
    serde_json::json!({
        "states": states,
        "header_words": HEADER_WORDS, "ring_words": RING_WORDS, "life_words": LIFE_WORDS, "cell_words": CELL_WORDS,
        "lives_at": LIVES_AT, "cells_at": CELLS_AT, "cells": CELLS,
        "first_record": life::FIRST_RECORD, "record_words": RECORD_WORDS, "records_max": RECORDS,
        "ring_base": ring::BASE, "ring_intent": ring::INTENT, "ring_published": ring::PUBLISHED,
        "ring_finish": ring::FINISH, "ring_there": ring::THERE,
        "pid": life::PID, "state": life::STATE, "records": life::RECORDS, "member": life::MEMBER, "admitted_at": life::ADMITTED_AT,
        "first": life::FIRST, "last": life::LAST, "saw_end": life::SAW_END, "entry_ns": life::ENTRY_NS,
        "received": life::RECEIVED, "checked": life::CHECKED, "status": life::STATUS,
        "failure": life::FAILURE, "failure_text": life::FAILURE_TEXT, "failure_words": life::FAILURE_WORDS,
        "acking": stage::ACKING, "acked": stage::ACKED, "nacking": stage::NACKING, "nacked": stage::NACKED,
        "checked_again": stage::CHECKED_AGAIN, "released": stage::RELEASED,
        "cell_intent": cell::INTENT, "cell_published": cell::PUBLISHED, "cell_time": cell::TIME,
    })
}

/// Word `index` of the message whose correlation id is `id`: no word of one message is a word of another.
pub(crate) fn payload(id: u64, index: u64) -> u64 {
    let mixed = id.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index.wrapping_mul(0xbf58_476d_1ce4_e5b9));
    mixed ^ mixed >> 29
}

/// The correlation id of a message: its cell, and a number that no other try to publish has.
pub(crate) fn correlation(cell: u64, nonce: u64) -> u64 {
    cell | nonce << 32
}

/// Cell and nonce of a correlation id.
pub(crate) fn parts(id: u64) -> (u64, u64) {
    (id & 0xffff_ffff, id >> 32)
}
