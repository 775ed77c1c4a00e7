//! What devices still do with the slots of one attachment, and leases that last until they are through.
//!
//! ```text
//!            copy to a device                       a view is given away, record_stream
//!                   │                                              │
//!                   │                                     ┌────────▼───────┐  all handles of the program are gone,
//!                   │                                     │ watched, a slot│  (or its stream captures: later)
//!                   │                                     └────────┬───────┘
//!          ┌────────▼───────────────────────────────┐    event per stream
//!          │ in flight: a lease and its events      │◀────────────┘
//!          └────────┬───────────────────────────────┘
//!              every event is done: the lease is dropped, and ends as any other
//! ```
//!
//! # Who does it
//! Whoever ends a handle to a lease only counts, sets a mark and wakes a sleeping thread: no call of CUDA, no allocation, no
//! lock. Events are recorded and asked by whoever receives next (`poll`), and by this attachment's own thread (`reaper.rs`),
//! which sleeps while there is nothing to ask.
//!
//! # Invariants
//! I1 keep      Whatever is watched or in flight has a lease, so the slot's word stays this member's.
//! I2 alone     A lease's handles are counted in one word, the program's apart from those held here. Once the program has
//!              none it cannot make one, and nobody adds a stream.
//! I3 order     What is registered is unregistered by the reaper, after the attachment was dropped, which every lease keeps:
//!              never while a copy is in flight. It keeps the mapping until then.
//! I4 locks     No lock is held while a lease is dropped; `watched` is held for moments only, and never across CUDA.

use std::{
    mem,
    ptr::NonNull,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
};

use arrayvec::ArrayVec;
use forebay_os::{Access, Mapping, futex};

use super::{
    CudaError, Stream,
    api::{Api, Capture, CaptureMode, Event, OnDevice},
    reaper,
};
use crate::lease::{Keep, Lease};

/// The process ends: the runtime may be gone at any moment, and is asked nothing any more.
pub(super) static PROCESS_ENDS: AtomicBool = AtomicBool::new(false);

/// An attachment's side that deals with devices.
#[derive(Debug)]
pub(crate) struct Side(Arc<Shared>);

impl Drop for Side {
    fn drop(&mut self) {
        // The attachment is gone, and so is every lease (I3). Whoever drops it may be any thread: the reaper does the rest.
        self.0.gone.store(true, Ordering::SeqCst);
        self.0.ring();
    }
}

impl Side {
    /// For an attachment of so many slots; starts its reaper.
    pub(crate) fn new(slots: usize, device: Option<i32>) -> Result<Self, CudaError> {
        let api = Api::find()?;
        let device = match device {
            Some(device) => device,
            None => api.current_device()?,
        };
        // Says so now if there is no such device.
        api.registers_read_only(device)?;
        let shared = Arc::new(Shared {
            api,
            device,
            registered: Mutex::new(None),
            is_pinned: AtomicBool::new(false),
            watched: Mutex::default(),
            is_watched: (0..slots).map(|_| AtomicBool::new(false)).collect(),
            dying: AtomicBool::new(false),
            flights: Mutex::default(),
            flying: AtomicUsize::new(0),
            trouble: Mutex::new(None),
            bell: AtomicU32::new(0),
            asleep: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        });
        reaper::start(Arc::clone(&shared))?;
        Ok(Self(shared))
    }

    /// As [`Shared`].
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }
}

/// What the attachment's side and its reaper share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(super) api: &'static Api,
    /// The device that events of the default are recorded for.
    device: i32,
    registered: Mutex<Option<Registered>>,
    is_pinned: AtomicBool,
    watched: Mutex<Vec<Watch>>,
    /// Whether a slot is watched, for who has no lock.
    is_watched: Box<[AtomicBool]>,
    /// A watched slot has no handle of the program any more, or may have none.
    dying: AtomicBool,
    flights: Mutex<Flights>,
    /// How many are in flight, for who has no lock.
    flying: AtomicUsize,
    /// The first error that was met while following copies.
    trouble: Mutex<Option<CudaError>>,
    pub(super) bell: AtomicU32,
    pub(super) asleep: AtomicBool,
    pub(super) gone: AtomicBool,
}

/// Memory that CUDA knows of, kept mapped.
#[derive(Debug)]
struct Registered {
    mapping: Arc<Mapping>,
}

/// A slot that streams may read although nobody said when they are through.
#[derive(Debug)]
struct Watch {
    keep: Keep,
    streams: Vec<Stream>,
}

/// A lease and what must be done before it ends.
#[derive(Debug)]
struct Flight {
    /// Dropped when it lands, not before.
    _keep: Keep,
    marks: ArrayVec<(Stream, Event), 8>,
}

#[derive(Debug, Default)]
struct Flights {
    list: Vec<Flight>,
    /// Watches whose stream captured when they were to be followed.
    late: Vec<Watch>,
    /// Events to use again.
    events: Vec<Event>,
}

impl Flights {
    fn event(&mut self, api: &Api, device: i32) -> Result<Event, CudaError> {
        match self.events.iter().rposition(|event| event.device == device) {
            Some(at) => Ok(self.events.swap_remove(at)),
            None => api.new_event(device),
        }
    }

    fn len(&self) -> usize {
        self.list.len() + self.late.len()
    }
}

/// One tensor's way to a device: where it is, how long it is, where it goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leg {
    pub(super) from: NonNull<u8>,
    pub(super) len: usize,
    pub(super) to: usize,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// The device it was made for.
    pub(super) fn device(&self) -> i32 {
        self.device
    }

    pub(super) fn is_pinned(&self) -> bool {
        // ORDER none, Relaxed: whether copies are faster; nothing depends on it.
        self.is_pinned.load(Ordering::Relaxed)
    }

    /// Leases that devices keep.
    pub(super) fn in_flight(&self) -> usize {
        self.flying.load(Ordering::Relaxed)
    }

    /// The first error that was met while following copies, once.
    pub(super) fn take_trouble(&self) -> Option<CudaError> {
        lock(&self.trouble).take()
    }

    /// Registers the mapping with CUDA. Once is enough.
    pub(super) fn register(&self, mapping: &Arc<Mapping>, ring: &str) -> Result<(), CudaError> {
        let mut registered = lock(&self.registered);
        if registered.is_some() {
            return Ok(());
        }
        let _aside = self.api.aside(CaptureMode::Relaxed);
        let read_only = mapping.access() == Access::ReadOnly;
        if read_only && !self.api.registers_read_only(self.device)? {
            return Err(CudaError::ReadOnlyMap { ring: ring.to_owned(), device: self.device });
        }
        let _on = self.api.on(self.device)?;
        #[allow(unsafe_code, reason = "what the call asks for is shown here")]
        // SAFETY: `Registered` keeps the mapping until it was unregistered; it is writable unless `read_only`.
        unsafe {
            self.api.register(mapping.base(), mapping.len(), read_only)?;
        }
        *registered = Some(Registered { mapping: Arc::clone(mapping) });
        self.is_pinned.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Unregisters what was registered, and lets it be unmapped. Only the reaper does, at the end (I3).
    pub(super) fn unregister(&self) {
        if PROCESS_ENDS.load(Ordering::SeqCst) {
            return;
        }
        let Some(Registered { mapping }) = lock(&self.registered).take() else { return };
        let unregister = || {
            let _on = self.api.on(self.device)?;
            #[allow(unsafe_code, reason = "what the call asks for is shown here")]
            // SAFETY: `register` registered it, it is still mapped, and by I3 nothing is in flight.
            unsafe {
                self.api.unregister(mapping.base())
            }
        };
        // At the end of a process the runtime refuses; then the driver does it.
        let done: Result<(), CudaError> = unregister();
        if let Err(e) = done {
            self.note(e);
        }
    }

    /// Makes the device this thread's.
    pub(super) fn settle(&self) {
        if let Err(e) = self.api.on_for_good(self.device) {
            self.note(e);
        }
    }

    fn note(&self, e: CudaError) {
        lock(&self.trouble).get_or_insert(e);
    }

    /// Copies parts of a leased slot to the device of `stream`. The slot stays leased until they have arrived.
    ///
    /// # Safety
    /// Each leg begins in the slot of `lease` and ends at the address of as many bytes in that device's memory, which are
    /// the caller's alone.
    #[allow(unsafe_code, reason = "where the copies go is the caller's to know")]
    pub(super) unsafe fn copy(self: &Arc<Self>, lease: &Lease, legs: &[Leg], stream: Stream) -> Result<(), CudaError> {
        let _aside = self.api.aside(CaptureMode::Relaxed);
        let _on = self.api.on(stream.device())?;
        if self.api.capture(stream)? == Capture::Under {
            return Err(CudaError::Capturing);
        }
        let event = lock(&self.flights).event(self.api, stream.device())?;
        let keep = Keep::new(lease);
        let begin = |leg: &Leg| {
            #[allow(unsafe_code, reason = "what the call asks for is shown here")]
            // SAFETY: S1: the flight made below keeps the slot until the stream is past the copy, or it was waited for; a
            // leased slot stays as it is. S2: the caller's promise.
            unsafe {
                self.api.copy(leg.to, leg.from, leg.len, stream)
            }
        };
        let begun = legs.iter().filter(|leg| leg.len > 0).try_for_each(begin);
        if let Err(e) = self.api.record(&event, stream) {
            // Nobody will say when those that were begun are through: now is the time to wait. If even that fails the
            // device does nothing any more.
            let _ = self.api.wait_for(stream);
            return begun.and(Err(e));
        }
        let mut flights = lock(&self.flights);
        let marks = ArrayVec::from_iter([(stream, event)]);
        flights.list.push(Flight { _keep: keep, marks });
        self.flying.store(flights.len(), Ordering::Relaxed);
        drop(flights);
        self.ring();
        begun
    }

    /// The slot stays leased until the stream is past what it was given when the program's last handle ended.
    pub(super) fn watch(self: &Arc<Self>, lease: &Lease, stream: Stream) {
        let mut watched = lock(&self.watched);
        match watched.iter_mut().find(|watch| watch.keep.slot() == lease.slot()) {
            Some(watch) if watch.streams.contains(&stream) => {}
            Some(watch) => watch.streams.push(stream),
            None => {
                watched.push(Watch { keep: Keep::new(lease), streams: vec![stream] });
                // ORDER SeqCst: before the caller's handle ends, which looks at it.
                self.is_watched[lease.slot() as usize].store(true, Ordering::SeqCst);
            }
        }
    }

    /// The program has no handle to the slot any more, and there are some here.
    #[inline]
    pub(crate) fn program_is_through(&self, slot: u32) {
        if self.is_watched[slot as usize].load(Ordering::SeqCst) {
            // ORDER SeqCst: before the bell.
            self.dying.store(true, Ordering::SeqCst);
            self.ring();
        }
    }

    /// Wakes the reaper, if it sleeps for good. Any thread may.
    pub(super) fn ring(&self) {
        // ORDER SeqCst (also in `reaper.rs`): either the reaper sees what was done before the bell, or it is seen asleep.
        self.bell.fetch_add(1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            futex::wake(&self.bell, 1);
        }
    }

    /// Ends the leases that no device reads any more. Does not wait: if another thread is at it, it is done.
    #[inline]
    pub(crate) fn poll(self: &Arc<Self>) {
        // ORDER none, Relaxed: what is missed now is seen by the reaper.
        if self.flying.load(Ordering::Relaxed) == 0 && !self.dying.load(Ordering::Relaxed) {
            return;
        }
        if let Ok(flights) = self.flights.try_lock() {
            let _aside = self.api.aside(CaptureMode::Relaxed);
            self.sweep(flights);
        }
    }

    /// As [`poll`](Self::poll), for the reaper: waits for whoever is at it. How many are left.
    pub(super) fn reap(self: &Arc<Self>) -> usize {
        self.sweep(lock(&self.flights))
    }

    fn sweep(self: &Arc<Self>, mut flights: MutexGuard<'_, Flights>) -> usize {
        if PROCESS_ENDS.load(Ordering::SeqCst) {
            return 0;
        }
        let mut landed = Vec::new();
        let flights_now = &mut *flights;
        if flights_now.len() > 0 || self.dying.load(Ordering::SeqCst) {
            match self.api.on(self.device) {
                Ok(mut on) => {
                    self.follow(flights_now, &mut on, &mut landed);
                    self.land(flights_now, &mut on, &mut landed);
                }
                // No device any more: it reads nothing.
                Err(e) => self.give_up(flights_now, e, &mut landed),
            }
        }
        let left = flights.len();
        self.flying.store(left, Ordering::Relaxed);
        drop(flights);
        // Ends leases, and perhaps the attachment (I4).
        drop(landed);
        left
    }

    /// Watches that the program is through with become flights.
    fn follow(self: &Arc<Self>, flights: &mut Flights, on: &mut OnDevice<'_>, landed: &mut Vec<Keep>) {
        let mut dead = mem::take(&mut flights.late);
        if self.dying.swap(false, Ordering::SeqCst) {
            dead.append(&mut self.unwatch());
        }
        for watch in dead {
            let under = |stream: &Stream| matches!(self.api.capture(*stream), Ok(Capture::Under));
            if watch.streams.iter().any(under) {
                // An event would become part of the graph. When it is recorded, this is done.
                flights.late.push(watch);
                continue;
            }
            let Watch { keep, streams } = watch;
            let mut marks = ArrayVec::new();
            for stream in streams {
                let marked = on.switch(stream.device()).and_then(|()| {
                    let event = flights.event(self.api, stream.device())?;
                    self.api.record(&event, stream).map(|()| event)
                });
                match marked.map(|event| marks.try_push((stream, event))) {
                    Ok(Ok(())) => {}
                    // More streams than there is room for: their work is waited for, which is rare and right.
                    Ok(Err(full)) => drop(self.api.wait_for(full.element().0)),
                    // A stream that is no stream (any more) reads nothing.
                    Err(e) => self.note(e),
                }
            }
            if marks.is_empty() {
                landed.push(keep);
            } else {
                flights.list.push(Flight { _keep: keep, marks });
            }
        }
    }

    /// Flights whose events are done land.
    fn land(&self, flights: &mut Flights, on: &mut OnDevice<'_>, landed: &mut Vec<Keep>) {
        // Work on a stream is done in order: behind one that flies, all do.
        let mut busy: ArrayVec<Stream, 8> = ArrayVec::new();
        let mut at = 0;
        while let Some(flight) = flights.list.get_mut(at) {
            while let Some((stream, event)) = flight.marks.last() {
                if busy.contains(stream) {
                    break;
                }
                match on.switch(stream.device()).and_then(|()| self.api.is_done(event)) {
                    Ok(true) => {}
                    Ok(false) => {
                        let _ = busy.try_push(*stream);
                        break;
                    }
                    // The device failed: it does nothing any more that it was given before.
                    Err(e) => self.note(e),
                }
                flights.events.extend(flight.marks.pop().map(|(_, event)| event));
            }
            if flight.marks.is_empty() {
                // In order, so that a stream's flights stay in the order of their copies.
                landed.push(flights.list.remove(at)._keep);
            } else {
                at += 1;
            }
        }
    }

    /// Takes the watches whose slots the program has no handle to any more.
    fn unwatch(&self) -> Vec<Watch> {
        let mut dead = Vec::new();
        let mut watched = lock(&self.watched);
        let mut at = 0;
        while let Some(watch) = watched.get(at) {
            // I2: and so it stays.
            if watch.keep.is_alone() {
                let watch = watched.swap_remove(at);
                self.is_watched[watch.keep.slot() as usize].store(false, Ordering::SeqCst);
                dead.push(watch);
            } else {
                at += 1;
            }
        }
        dead
    }

    fn give_up(&self, flights: &mut Flights, e: CudaError, landed: &mut Vec<Keep>) {
        self.note(e);
        self.dying.store(false, Ordering::SeqCst);
        landed.extend(flights.list.drain(..).map(|flight| flight._keep));
        landed.extend(flights.late.drain(..).map(|watch| watch.keep));
        landed.extend(self.unwatch().into_iter().map(|watch| watch.keep));
    }
}
