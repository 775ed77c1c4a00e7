//! The ring's memory as the tracer sees it: mapped a second time, compared after each step, copied to the heap.

use std::{
    os::fd::AsFd,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use forebay_layout::{Kind, header::Header};
use forebay_os::{Access, Mapping};
use forebay_ring::Words;
use forebay_testkit::{Place, audit};

use crate::setup::RING;

/// Words that are compared at once.
const BLOCK: usize = 256;

/// All objects of a ring of words, mapped read-only, and its slots.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) header: Header,
    objects: Vec<(Mapping, usize)>,
    data: Mapping,
    words: usize,
}

fn map(path: &Path) -> Mapping {
    let file = std::fs::File::open(path).unwrap();
    let len = file.metadata().unwrap().len() as usize;
    Mapping::map(file.as_fd(), len, Access::ReadOnly).unwrap()
}

impl Memory {
    /// The ring in `place`.
    pub(crate) fn open(place: &Place) -> Self {
        let header = audit::header(&place.object(RING, "ring"));
        let mut parts = vec!["ring".to_owned()];
        match header.geometry.kind {
            Kind::Queue => parts.push("pool".to_owned()),
            Kind::Broadcast => parts.extend((0..header.geometry.max_consumers).map(|index| format!("m{index}"))),
        }
        let (mut objects, mut words) = (Vec::new(), 0);
        for part in parts {
            let mapping = map(&place.object(RING, &part));
            let len = mapping.len() / 8;
            objects.push((mapping, words));
            words += len;
        }
        Self { header, objects, data: map(&place.object(RING, "data")), words }
    }

    /// What it says now.
    pub(crate) fn picture(&self) -> Vec<u64> {
        let mut picture = vec![0; self.words];
        for (mapping, at) in &self.objects {
            let len = mapping.len() / 8;
            let to = &mut picture[*at..*at + len];
            // SAFETY: `len` words are mapped there, and the actors stand still while we read.
            unsafe { std::ptr::copy_nonoverlapping(mapping.base().cast::<u64>().as_ptr(), to.as_mut_ptr(), len) };
        }
        picture
    }

    /// Brings `picture` up to date; the words that were not, with what they say now.
    pub(crate) fn changes(&self, picture: &mut [u64]) -> Vec<(u32, u64)> {
        let mut changes = Vec::new();
        for (mapping, at) in &self.objects {
            let len = mapping.len() / 8;
            let known = &mut picture[*at..*at + len];
            let base = mapping.base().cast::<u64>();
            // SAFETY: `len` words on both sides; the actors stand still.
            let same = unsafe { libc::memcmp(base.as_ptr().cast(), known.as_ptr().cast(), len * 8) } == 0;
            if same {
                continue;
            }
            for block in (0..len).step_by(BLOCK) {
                let size = BLOCK.min(len - block);
                for i in block..block + size {
                    // SAFETY: inside the mapping.
                    let word = unsafe { base.add(i) };
                    // SAFETY: aligned and mapped; volatile, because another process writes it.
                    let now = unsafe { word.as_ptr().read_volatile() };
                    if known[i] != now {
                        known[i] = now;
                        changes.push(((at + i) as u32, now));
                    }
                }
            }
        }
        changes
    }

    /// Words of the slots, from byte `offset` on.
    pub(crate) fn payload(&self, offset: u64, len: u64) -> Vec<u64> {
        assert!(offset + len <= self.data.len() as u64, "a tensor lies outside the data object");
        (0..len / 8)
            .map(|i| {
                // SAFETY: inside the mapping by the assertion.
                let at = unsafe { self.data.base().add((offset + 8 * i) as usize) };
                // SAFETY: mapped; tensors are aligned; the actors stand still.
                unsafe { at.cast::<u64>().as_ptr().read_volatile() }
            })
            .collect()
    }

    /// A copy of `picture` to work on. Cheap if `old` is one of the same ring.
    pub(crate) fn copy(&self, picture: &[u64], old: Option<Copy>) -> Copy {
        let old = old.and_then(|old| Arc::try_unwrap(old.words).ok());
        let words = match old {
            Some(words) => {
                for (word, &value) in words.iter().zip(picture) {
                    word.store(value, Relaxed);
                }
                words
            }
            None => picture.iter().map(|&word| AtomicU64::new(word)).collect(),
        };
        Copy { words: Arc::new(words), starts: self.objects.iter().map(|(_, at)| *at).collect() }
    }
}

/// The words of a whole ring on the heap.
#[derive(Debug)]
pub(crate) struct Copy {
    words: Arc<Vec<AtomicU64>>,
    starts: Arc<[usize]>,
}

/// One object of a copy.
#[derive(Debug, Clone)]
pub(crate) struct Heap {
    words: Arc<Vec<AtomicU64>>,
    start: usize,
}

impl Copy {
    /// Object `index`: 0 the ring, 1 the pool, or 1 + i member i's.
    pub(crate) fn object(&self, index: usize) -> Heap {
        Heap { words: Arc::clone(&self.words), start: self.starts[index] }
    }
}

impl Words for Heap {
    fn word(&self, index: usize) -> &forebay_ring::AtomicU64 {
        &self.words[self.start + index]
    }
}
