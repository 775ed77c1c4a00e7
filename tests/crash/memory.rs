//! The ring's memory as the tracer sees it: mapped a second time, compared after each step, copied to the heap.

use std::{
    ffi::CString,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use forebay_layout::{Kind, header::Header};
use forebay_os::{Access, Mapping};
use forebay_ring::Words;
use forebay_testkit::audit;

/// All objects of a ring of words, mapped read-only, and its slots.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) header: Header,
    objects: Vec<(String, Mapping, usize)>,
    data: Mapping,
    words: usize,
}

fn map(path: &Path) -> Mapping {
    let file = std::fs::File::open(path).unwrap();
    let len = file.metadata().unwrap().len() as usize;
    Mapping::map(file.as_fd(), len, Access::ReadOnly).unwrap()
}

impl Memory {
    /// The ring whose objects' names start with `prefix`.
    pub(crate) fn open(prefix: &str) -> Self {
        let object = |part: &str| PathBuf::from(format!("{prefix}{part}"));
        let header = audit::header(&object("ring"));
        let mut parts = vec!["ring".to_owned()];
        match header.geometry.kind {
            Kind::Queue => parts.push("pool".to_owned()),
            Kind::Broadcast => parts.extend((0..header.geometry.max_consumers).map(|index| format!("m{index}"))),
        }
        let (mut objects, mut words) = (Vec::new(), 0);
        for part in parts {
            let mapping = map(&object(&part));
            let len = mapping.len() / 8;
            objects.push((part, mapping, words));
            words += len;
        }
        Self { header, objects, data: map(&object("data")), words }
    }

    /// What it says now.
    pub(crate) fn picture(&self) -> Vec<u64> {
        let mut picture = vec![0; self.words];
        for (_, mapping, at) in &self.objects {
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
        for (_, mapping, at) in &self.objects {
            let len = mapping.len() / 8;
            let known = &mut picture[*at..*at + len];
            let base = mapping.base().cast::<u64>();
            // SAFETY: `len` words on both sides; the actors stand still.
            let same = unsafe { libc::memcmp(base.as_ptr().cast(), known.as_ptr().cast(), len * 8) } == 0;
            if same {
                continue;
            }
            for (i, known) in known.iter_mut().enumerate() {
                // SAFETY: inside the mapping.
                let word = unsafe { base.add(i) };
                // SAFETY: aligned and mapped; volatile, because another process writes it.
                let now = unsafe { word.as_ptr().read_volatile() };
                if *known != now {
                    *known = now;
                    changes.push(((at + i) as u32, now));
                }
            }
        }
        changes
    }

    /// The objects of words, by the part of their names that says which, as `picture` has them.
    pub(crate) fn parts<'p>(&'p self, picture: &'p [u64]) -> impl Iterator<Item = (&'p str, &'p [u64])> {
        self.objects.iter().map(|(part, mapping, at)| (part.as_str(), &picture[*at..*at + mapping.len() / 8]))
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
        Copy { words: Arc::new(words), starts: self.objects.iter().map(|(.., at)| *at).collect() }
    }
}

/// Objects of a ring that come and go, compared while they are there. Used by a signal handler: it maps by itself, and
/// never twice.
#[derive(Debug)]
pub(crate) struct Watch(Vec<Watched>);

#[derive(Debug)]
struct Watched {
    path: CString,
    known: Vec<u64>,
    mapped: *const u64,
}

impl Watch {
    /// The objects that a ring may have, by the start of their names.
    pub(crate) fn new(prefix: &str) -> Self {
        let members = (0..4).map(|index| format!("m{index}"));
        let parts = ["ring", "data", "pool"].map(str::to_owned).into_iter().chain(members);
        let watched = |part: String| Watched {
            path: CString::new(format!("{prefix}{part}")).unwrap_or_default(),
            known: Vec::new(),
            mapped: std::ptr::null(),
        };
        Self(parts.map(watched).collect())
    }

    /// Maps what is new.
    pub(crate) fn look_again(&mut self) {
        for object in self.0.iter_mut().filter(|object| object.mapped.is_null()) {
            // SAFETY: a path that ends with a zero.
            let fd = unsafe { libc::open(object.path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
            if fd < 0 {
                continue;
            }
            // SAFETY: our own descriptor.
            let len = unsafe { libc::lseek(fd, 0, libc::SEEK_END) }.max(0) as usize;
            if len > 0 {
                let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED);
                // SAFETY: a new mapping changes no other memory. It is never unmapped.
                let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, 0) };
                if at != libc::MAP_FAILED {
                    object.mapped = at.cast();
                    object.known = vec![0; len / 8];
                }
            }
            // SAFETY: our own descriptor.
            unsafe { libc::close(fd) };
        }
    }

    /// Whether a word changed since the last time.
    pub(crate) fn changed(&mut self) -> bool {
        let mut changed = false;
        for object in self.0.iter_mut().filter(|object| !object.mapped.is_null()) {
            let len = object.known.len();
            let known = &mut object.known;
            // SAFETY: as many words on both sides.
            let same = unsafe { libc::memcmp(object.mapped.cast(), known.as_ptr().cast(), len * 8) } == 0;
            if !same {
                // SAFETY: as above.
                unsafe { std::ptr::copy_nonoverlapping(object.mapped, known.as_mut_ptr(), len) };
                changed = true;
            }
        }
        changed
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
