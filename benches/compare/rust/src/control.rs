//! The page by which sender and receiver keep in step, outside of what is measured. Python has the same in `control.py`.
//!
//! ```text
//!   word   0   messages that the receiver is done with    written by the receiver
//!   word  16   the sender is ready: 1                      written by the sender
//!   word  32   the receiver is ready: 1                    written by the receiver
//! ```
//! Words are 128 bytes apart, so that none shares a line, or the line that is fetched with it, with another.

use std::{
    fs::File,
    hint::spin_loop,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use memmap2::{MmapOptions, MmapRaw};

use crate::{Failure, drive::now};

/// Nobody waits longer for the other side: it has failed.
pub(crate) const PATIENCE_NS: u64 = 60_000_000_000;

/// The page, mapped.
#[derive(Debug)]
pub(crate) struct Control(MmapRaw);

#[derive(Debug, Clone, Copy)]
pub(crate) enum Word {
    Done = 0,
    SenderReady = 16,
    ReceiverReady = 32,
}

impl Control {
    pub(crate) fn open(dir: &Path) -> Result<Self, Failure> {
        let file = File::options().read(true).write(true).open(dir.join("control"))?;
        let map = MmapOptions::new().map_raw(&file)?;
        if map.len() < 4096 {
            return Err("the control page is too short".into());
        }
        Ok(Self(map))
    }

    fn word(&self, word: Word) -> &AtomicU64 {
        let at = self.0.as_mut_ptr().cast::<u64>().wrapping_add(word as usize);
        // SAFETY: the page is mapped for as long as `self` lives, the offset is inside its 4096 bytes and 8-aligned, and
        // whoever else has it writes whole words.
        unsafe { AtomicU64::from_ptr(at) }
    }

    pub(crate) fn set(&self, word: Word, value: u64) {
        self.word(word).store(value, Ordering::Release);
    }

    /// Waits, busy, until `word` is at least `value`.
    pub(crate) fn wait(&self, word: Word, value: u64) -> Result<(), Failure> {
        let word = self.word(word);
        let start = now();
        let mut looks = 0u32;
        while word.load(Ordering::Acquire) < value {
            spin_loop();
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(1 << 16) && now() - start > PATIENCE_NS {
                return Err("the other process does not answer".into());
            }
        }
        Ok(())
    }
}
