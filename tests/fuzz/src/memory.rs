//! The memory of a ring on the heap, in two ways of being unreliable: words that change under the reader's eyes, and
//! writers that die between two accesses.

use std::{
    cell::{Cell, OnceCell, RefCell},
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
};

use forebay_ring::{AtomicU64, Words};

/// The words of one object.
pub(crate) type Object = Rc<[AtomicU64]>;

/// An object of `bytes` zeros.
pub(crate) fn object(bytes: u64) -> Object {
    (0..bytes / 8).map(|_| AtomicU64::new(0)).collect()
}

/// A change that a peer makes once this many more words have been looked at.
struct Poke {
    after: u32,
    object: Object,
    word: usize,
    value: u64,
}

/// Changes that are still to come; the objects of one ring share them.
#[derive(Clone, Default)]
pub(crate) struct Peer(Rc<RefCell<Vec<Poke>>>);

impl Peer {
    /// Stores `value` after `after` more looks at any word of the ring.
    pub(crate) fn poke(&self, after: u32, object: &Object, word: usize, value: u64) {
        if after == 0 {
            object[word].store(value, Relaxed);
        } else {
            self.0.borrow_mut().push(Poke { after, object: Rc::clone(object), word, value });
        }
    }

    fn look(&self) {
        self.0.borrow_mut().retain_mut(|poke| {
            poke.after -= 1;
            if poke.after == 0 {
                poke.object[poke.word].store(poke.value, Relaxed);
            }
            poke.after > 0
        });
    }
}

/// An object whose words a peer changes.
#[derive(Clone)]
pub(crate) struct Shaky {
    pub(crate) object: Object,
    pub(crate) peer: Peer,
}

impl Words for Shaky {
    fn word(&self, index: usize) -> &AtomicU64 {
        self.peer.look();
        &self.object[index]
    }
}

/// How many accesses a process has left; it lives for ever until it is told otherwise.
#[derive(Debug, Clone, Default)]
pub(crate) struct Life(Rc<Cell<Option<u32>>>);

impl Life {
    /// It dies right before its access number `accesses`, from 0.
    pub(crate) fn ends_in(&self, accesses: u32) {
        self.0.set(Some(accesses));
    }

    /// It lives on for ever.
    pub(crate) fn go_on(&self) {
        self.0.set(None);
    }

    /// Nothing it does from now on reaches the memory.
    pub(crate) fn is_over(&self) -> bool {
        self.0.get() == Some(0)
    }

    fn access(&self) -> bool {
        match self.0.get() {
            None => true,
            Some(0) => false,
            Some(left) => {
                self.0.set(Some(left - 1));
                true
            }
        }
    }
}

/// An object as one process sees it. From its death on the process goes on with a copy that nobody else has: what it
/// does then never happened.
#[derive(Debug, Clone)]
pub(crate) struct Mortal {
    object: Object,
    grave: Rc<OnceCell<Object>>,
    life: Life,
}

impl Mortal {
    /// The view of the process with this life.
    pub(crate) fn new(object: &Object, life: &Life) -> Self {
        Self { object: Rc::clone(object), grave: Rc::default(), life: life.clone() }
    }
}

impl Words for Mortal {
    fn word(&self, index: usize) -> &AtomicU64 {
        if self.life.access() {
            return &self.object[index];
        }
        let copy = || self.object.iter().map(|word| AtomicU64::new(word.load(Relaxed))).collect();
        &self.grave.get_or_init(copy)[index]
    }
}
