//! Words on the heap that call back.

use std::{cell::RefCell, collections::VecDeque, rc::Rc, sync::Arc};

use forebay_layout::{
    Backing, DType, Kind, WhenFull,
    descriptor::TensorMeta,
    geometry::{Geometry, Plan, SlotClass},
};
use forebay_ring::{AtomicU64, Draft, Words};

/// What is to happen when a word is looked at, one after the other; gone once it did.
type Hook = Rc<RefCell<VecDeque<(usize, Box<dyn FnOnce()>)>>>;

/// One object of a ring.
#[derive(Clone)]
pub(crate) struct Hooked {
    words: Arc<Vec<AtomicU64>>,
    hook: Hook,
}

impl Hooked {
    pub(crate) fn bytes(bytes: u64) -> Self {
        let words: Vec<_> = (0..bytes / 8).map(|_| AtomicU64::new(0)).collect();
        Self { words: words.into(), hook: Rc::default() }
    }

    /// A handle to the same words that never calls back, for the other side.
    pub(crate) fn quiet(&self) -> Self {
        Self { words: Arc::clone(&self.words), hook: Rc::default() }
    }

    /// Before this handle gives out `word` the next time, `then` runs, once; not before what was asked for earlier did.
    pub(crate) fn before(&self, word: usize, then: impl FnOnce() + 'static) {
        self.hook.borrow_mut().push_back((word, Box::new(then)));
    }

    pub(crate) fn fired(&self) -> bool {
        self.hook.borrow().is_empty()
    }
}

impl Words for Hooked {
    fn word(&self, index: usize) -> &AtomicU64 {
        let due = self.hook.borrow().front().is_some_and(|(word, _)| *word == index);
        if due {
            let (_, then) = self.hook.borrow_mut().pop_front().unwrap();
            then();
        }
        &self.words[index]
    }
}

/// A ring of `slots` slots for up to two members.
pub(crate) fn geometry(kind: Kind, slots: u32, when_full: WhenFull) -> Geometry {
    Geometry {
        kind,
        backing: Backing::Posix,
        when_full,
        writable: false,
        max_consumers: 2,
        max_attempts: 3,
        quota: 0,
        max_fields: 1,
        schema_bytes: 0,
        classes: [SlotClass { slots, slot_bytes: 64 }].into_iter().collect(),
    }
}

pub(crate) fn plan(geometry: &Geometry) -> Plan {
    geometry.plan().unwrap()
}

/// A message of one tensor whose correlation id is `id`.
pub(crate) fn with_draft<R>(id: u64, publish: impl FnOnce(&Draft<'_>) -> R) -> R {
    let field = [TensorMeta::new(DType::U8, &[8], 0).unwrap()];
    let draft = Draft { correlation_id: id, payload_bytes: 64, fields: &field, ..Draft::default() };
    publish(&draft)
}
