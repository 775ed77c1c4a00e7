//! Words on the heap that call back.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use forebay_layout::{
    Backing, DType, Kind, WhenFull,
    descriptor::TensorMeta,
    geometry::{Geometry, Plan, SlotClass},
};
use forebay_ring::{AtomicU64, Draft, Words};

/// What is to happen when a word is looked at; gone once it did.
type Hook = Rc<RefCell<Option<(usize, Box<dyn FnMut()>)>>>;

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

    /// Before this handle gives out `word` the next time, `then` runs, once.
    pub(crate) fn before(&self, word: usize, then: impl FnMut() + 'static) {
        *self.hook.borrow_mut() = Some((word, Box::new(then)));
    }

    pub(crate) fn fired(&self) -> bool {
        self.hook.borrow().is_none()
    }
}

impl Words for Hooked {
    fn word(&self, index: usize) -> &AtomicU64 {
        let due = self.hook.borrow().as_ref().is_some_and(|(word, _)| *word == index);
        if due {
            let (_, mut then) = self.hook.borrow_mut().take().unwrap();
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
    let draft = Draft { correlation_id: id, timestamp_ns: 0, payload_bytes: 64, fields: &field, names: &[], user: &[] };
    publish(&draft)
}
