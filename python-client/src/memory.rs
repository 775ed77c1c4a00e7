//! What keeps the bytes of a Python tensor alive: a lease, a loan, or memory of its own. No Python in here, so that the
//! last owner may let go on any thread, without the interpreter.

use std::{
    ptr::NonNull,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicPtr, Ordering},
    },
};

use std::ops::{Deref, DerefMut};

use forebay::{DType, DetachedLoan, Mapped, TensorError, TensorMeta, service::DetachedAnswer};

use crate::array_api::Place;

/// The owner of a tensor's bytes. Cloning is cheap; the bytes stay where they are until the last clone is dropped.
#[derive(Debug, Clone)]
pub(crate) enum Memory {
    /// Part of a received message.
    Leased(forebay::Tensor),
    /// Part of a slot on loan.
    Loaned(Arc<Loaned>),
    /// A private copy.
    Owned(Arc<Owned>),
    /// Some rows of a received tensor.
    Rows(Arc<Rows>),
}

impl Memory {
    pub(crate) fn meta(&self) -> &TensorMeta {
        match self {
            Self::Leased(tensor) => tensor.meta(),
            Self::Loaned(loaned) => &loaned.meta,
            Self::Owned(owned) => &owned.meta,
            Self::Rows(rows) => &rows.meta,
        }
    }

    pub(crate) fn dtype(&self) -> DType {
        self.meta().dtype
    }

    pub(crate) fn ptr(&self) -> NonNull<u8> {
        match self {
            Self::Leased(tensor) => tensor.as_ptr(),
            Self::Loaned(loaned) => loaned.at.get(),
            Self::Owned(owned) => owned.at.get(),
            Self::Rows(rows) => rows.at.get(),
        }
    }

    pub(crate) fn is_writable(&self) -> bool {
        match self {
            Self::Leased(tensor) => tensor.is_writable(),
            Self::Loaned(_) | Self::Owned(_) => true,
            Self::Rows(rows) => rows.of.is_writable(),
        }
    }

    pub(crate) fn place(&self) -> Place<'_> {
        Place { at: self.ptr(), meta: self.meta(), writable: self.is_writable() }
    }

    /// Why no (further) array may be made of it.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Leased(tensor) => tensor.is_foreign().then_some(Refusal::Forked),
            Self::Loaned(loaned) if loaned.loan.mapped.is_foreign() => Some(Refusal::Forked),
            Self::Loaned(loaned) => loaned.loan.is_over().then_some(Refusal::LoanEnded),
            Self::Owned(_) => None,
            Self::Rows(rows) => rows.of.is_foreign().then_some(Refusal::Forked),
        }
    }
}

/// Some rows of a received tensor: whole, one after the other, in place.
#[derive(Debug)]
pub(crate) struct Rows {
    of: forebay::Tensor,
    at: Address,
    meta: TensorMeta,
}

impl Rows {
    /// Rows `from` to `to` of a tensor; `None` if it has no such rows.
    pub(crate) fn of(tensor: forebay::Tensor, from: usize, to: usize) -> Option<Memory> {
        let whole = tensor.meta();
        let &rows = whole.shape().first()?;
        if from > to || to as u64 > rows {
            return None;
        }
        let bytes = usize::try_from(whole.nbytes.checked_div(rows).unwrap_or(0)).ok()?;
        let mut shape = whole.shape().to_vec();
        shape[0] = (to - from) as u64;
        let meta = TensorMeta::new(whole.dtype, &shape, whole.offset)?;
        // Inside the tensor, as was just looked at; it is `of` that keeps it there.
        let at = Address::new(tensor.as_ptr());
        at.advance(from * bytes);
        Some(Memory::Rows(Arc::new(Self { of: tensor, at, meta })))
    }
}

/// Why no array may be made of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// This is a forked child; the memory is not mapped here.
    Forked,
    /// The loan was published: the slot is not ours to write.
    LoanEnded,
}

/// The address of bytes that something else keeps alive. `AtomicPtr` because that is `Send`, `Sync` and keeps the
/// pointer's provenance; nobody changes it.
#[derive(Debug)]
struct Address(AtomicPtr<u8>);

impl Address {
    fn new(at: NonNull<u8>) -> Self {
        Self(AtomicPtr::new(at.as_ptr()))
    }

    /// Moves it, before it is shared.
    fn advance(&self, bytes: usize) {
        let at = self.0.load(Ordering::Relaxed);
        self.0.store(at.wrapping_add(bytes), Ordering::Relaxed);
    }

    fn get(&self) -> NonNull<u8> {
        // ORDER none, Relaxed: set once, before the value is shared.
        NonNull::new(self.0.load(Ordering::Relaxed)).expect("made of a NonNull")
    }
}

/// A slot to write, of whatever will publish it.
#[derive(Debug)]
pub(crate) enum Draft {
    Message(DetachedLoan),
    Answer(DetachedAnswer),
}

impl Deref for Draft {
    type Target = DetachedLoan;

    fn deref(&self) -> &DetachedLoan {
        match self {
            Self::Message(loan) => loan,
            Self::Answer(answer) => answer,
        }
    }
}

impl DerefMut for Draft {
    fn deref_mut(&mut self) -> &mut DetachedLoan {
        match self {
            Self::Message(loan) => loan,
            Self::Answer(answer) => answer,
        }
    }
}

/// A loan shared by its Python object and every view of it: an abandoned slot goes back when the last view is dropped.
#[derive(Debug)]
pub(crate) struct SharedLoan {
    mapped: Mapped,
    loan: Mutex<Option<Draft>>,
}

impl SharedLoan {
    pub(crate) fn new(loan: Draft) -> Arc<Self> {
        Arc::new(Self { mapped: loan.keep_mapped(), loan: Mutex::new(Some(loan)) })
    }

    /// The loan, once, if `ready` has nothing against it: to publish it. `None` if it was taken before.
    pub(crate) fn take<E>(&self, ready: impl FnOnce(&mut Draft) -> Result<(), E>) -> Option<Result<Draft, E>> {
        let mut loan = self.loan.lock().unwrap_or_else(PoisonError::into_inner);
        match ready(loan.as_mut()?) {
            Ok(()) => loan.take().map(Ok),
            Err(e) => Some(Err(e)),
        }
    }

    /// Calls `f` with the loan, unless it was published.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut DetachedLoan) -> R) -> Option<R> {
        self.loan.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(|loan| f(loan))
    }

    pub(crate) fn is_over(&self) -> bool {
        self.loan.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    pub(crate) fn is_foreign(&self) -> bool {
        self.mapped.is_foreign()
    }

    /// The tensor of this name; `None` if the loan was published.
    pub(crate) fn tensor(self: &Arc<Self>, name: &str) -> Option<Result<Memory, TensorError>> {
        let found = self.with(|loan| {
            let index = loan.index_of(name)?;
            let place = loan.tensor_ptr(index).zip(loan.fields().get(index).copied());
            Ok(place.expect("an index that was just found"))
        })?;
        Some(
            found.map(|(at, meta)| {
                Memory::Loaned(Arc::new(Loaned { loan: Arc::clone(self), at: Address::new(at), meta }))
            }),
        )
    }
}

/// One tensor of a loan.
#[derive(Debug)]
pub(crate) struct Loaned {
    loan: Arc<SharedLoan>,
    at: Address,
    meta: TensorMeta,
}

/// There is no memory for a copy.
#[derive(Debug)]
pub(crate) struct NoRoom {
    bytes: usize,
}

impl From<NoRoom> for pyo3::PyErr {
    fn from(e: NoRoom) -> Self {
        pyo3::exceptions::PyMemoryError::new_err(format!("no memory for a copy of {} bytes", e.bytes))
    }
}

/// Private memory, 64-byte aligned like a slot's.
#[derive(Debug)]
pub(crate) struct Owned {
    at: Address,
    meta: TensorMeta,
    /// Not touched after construction: `at` points into it.
    _bytes: Vec<u8>,
}

impl Owned {
    /// A copy of `bytes`, which are as many as `meta` says; an error if there is no room for it.
    pub(crate) fn copy_of(meta: &TensorMeta, bytes: &[u8]) -> Result<Memory, NoRoom> {
        let align = usize::try_from(forebay::ALIGN).unwrap_or(64);
        let mut own = Vec::new();
        own.try_reserve_exact(bytes.len() + align).map_err(|_| NoRoom { bytes: bytes.len() })?;
        own.resize(bytes.len() + align, 0);
        let start = own.as_ptr().align_offset(align);
        let room = &mut own[start..start + bytes.len()];
        room.copy_from_slice(bytes);
        let at = Address::new(NonNull::from(room).cast());
        Ok(Memory::Owned(Arc::new(Self { at, meta: *meta, _bytes: own })))
    }
}
