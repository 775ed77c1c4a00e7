//! A ring's shared words, read from outside: which claims a stopped victim has, and when a dead one's are gone.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use forebay::{Backing, Kind};
use forebay_layout::{
    MAX_CLASSES,
    header::{FIXED_WORDS, Header},
    pool::SLOT_WORD_STRIDE,
};
use forebay_os::{Dir, process};
use forebay_ring::{SlotState, SlotWord};

use crate::plan::Mix;

/// A claim, as the slot word names it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim {
    pub(crate) slot: u32,
    pub(crate) raw: u64,
    pub(crate) state: SlotState,
    pub(crate) attempts: u8,
    pub(crate) sequence: u64,
}

/// The objects of one instance of a ring.
#[derive(Debug)]
pub(crate) struct Watch {
    header: Header,
    ring: File,
    pool: Option<File>,
}

fn object(mix: &Mix, dir: &Path, producer: u32, part: &str) -> Result<PathBuf, String> {
    if mix.backing == Backing::Posix {
        let hash = Dir::open(Some(dir)).map_err(|e| e.to_string())?.hash();
        return Ok(format!("/dev/shm/forebay.{}.{hash:08x}.{}.{part}", process::uid(), mix.name).into());
    }
    let wanted = format!("memfd:forebay.{}.{part} ", mix.name);
    let fds = std::fs::read_dir(format!("/proc/{producer}/fd")).map_err(|e| e.to_string())?.flatten();
    fds.map(|fd| fd.path())
        .find(|path| std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains(&wanted)))
        .ok_or_else(|| format!("process {producer} has no {wanted}"))
}

fn word(file: &File, at: usize) -> Result<u64, String> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at as u64 * 8).map_err(|e| e.to_string())?;
    Ok(u64::from_le_bytes(bytes))
}

impl Watch {
    /// Opens the ring whose producer is process `producer` (which matters for memfd only).
    pub(crate) fn open(mix: &Mix, dir: &Path, producer: u32) -> Result<Self, String> {
        let path = object(mix, dir, producer, "ring")?;
        let ring = File::open(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let pool = (mix.kind == Kind::Queue)
            .then(|| File::open(object(mix, dir, producer, "pool")?).map_err(|e| e.to_string()))
            .transpose()?;
        let len = ring.metadata().map_err(|e| e.to_string())?.len();
        let mut fixed = [0; FIXED_WORDS];
        for (at, to) in fixed.iter_mut().enumerate() {
            *to = word(&ring, at)?;
        }
        let table = |at: usize| {
            let mut words = [0; 4 * MAX_CLASSES];
            for (i, to) in words.iter_mut().enumerate() {
                *to = word(&ring, at + i).ok()?;
            }
            Some(words)
        };
        let header = Header::decode(&fixed, len, table).map_err(|e| e.to_string())?;
        Ok(Self { header, ring, pool })
    }

    /// The word of one slot.
    pub(crate) fn slot_word(&self, slot: u32) -> Result<u64, String> {
        let pool = self.pool.as_ref().ok_or("no queue")?;
        word(pool, self.header.plan.slot_word + slot as usize * SLOT_WORD_STRIDE)
    }

    /// The words of all slots.
    pub(crate) fn slot_words(&self) -> Result<Vec<SlotWord>, String> {
        (0..self.header.plan.slots)
            .map(|slot| SlotWord::checked(self.slot_word(slot)?).map_err(|e| e.to_string()))
            .collect()
    }

    /// What member `index` has claimed. Stable while that member lives and is stopped.
    pub(crate) fn claims(&self, index: u8) -> Result<Vec<Claim>, String> {
        let mut found = Vec::new();
        for (slot, slot_word) in (0_u32..).zip(self.slot_words()?) {
            if slot_word.owner().is_some_and(|owner| owner.index == index) {
                let descriptor = self.header.plan.descriptor_word + slot as usize * self.header.plan.descriptor_words;
                found.push(Claim {
                    slot,
                    raw: slot_word.raw(),
                    state: slot_word.state(),
                    attempts: slot_word.attempts(),
                    sequence: word(&self.ring, descriptor)?,
                });
            }
        }
        Ok(found)
    }

    /// From which sequence on member `index` is owed messages, and which life of that index that is.
    pub(crate) fn joined(&self, index: u8) -> Result<(u64, u64), String> {
        let at = self.header.plan.join_word + 2 * usize::from(index);
        Ok((word(&self.ring, at)?, word(&self.ring, at + 1)?))
    }
}
