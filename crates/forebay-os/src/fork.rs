//! What a forked child finds: a stale token, walls where mappings were, inert descriptors.
//!
//! A child of fork without exec inherits every handle but must not act on any: it would release
//! its parent's leases and speak on its parent's sockets. Three means, from strong to weak:
//!
//! - **Token.** A private page that the kernel itself wipes in the child (MADV_WIPEONFORK, so that
//!   raw `clone` is covered as well) holds a number. Every entry point and every deleter compares
//!   its own copy with it: [`ForkToken::is_stale`].
//! - **Walls.** Mappings are DONTFORK; in the child the holes they leave are covered with PROT_NONE,
//!   because otherwise its next allocation lands there and a stale view reads its heap.
//! - **Descriptors.** Control sockets that a child kept open would hide the parent's death. In the
//!   child each is replaced by an inert event counter; closing the bare number would let the child's
//!   own drop close somebody else's later.
//!
//! # Invariants
//! F1 one lock    Everything that changes the registry, and everything between "a descriptor that
//!                must not be inherited exists" and "it does no more", happens inside [`critical`].
//! F2 quiet child The child's handler touches the registry, mmap, eventfd, dup3 and close: no
//!                allocation, no lock but the one that the preparing thread already holds.
//! F3 no memory   Nothing is allocated inside the registry either: an allocator's own fork handlers
//!                might run before ours and wait for us with its lock held.
//! F4 no waiting  Nothing here is initialised under a lock of its own: a fork in the middle would
//!                leave the child waiting for a thread that it does not have (seen with OnceLock).
//! F5 own life    Lock and registry carry the life that they are of. What an earlier life left, in a
//!                child whose fork ran no handlers, is taken over or forgotten, never believed.
#![allow(unsafe_code, reason = "pthread_atfork, mmap over holes, and descriptors by number")]

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::futex;
use crate::own::OwnFd;
use crate::process;
use crate::{OsError, Result};

/// Mappings that one process can have at a time; about 4 per ring and member.
const HOLES_MAX: usize = 4096;
/// Control descriptors that one process can have at a time.
const FDS_MAX: usize = 4096;

// ---------------------------------------------------------------------------------------------
// Token
// ---------------------------------------------------------------------------------------------

/// One life of this process: stale in every child made by fork since.
#[derive(Clone, Copy)]
pub struct ForkToken {
    page: &'static AtomicU64,
    value: u64,
}

/// Never set back, and copied by fork: along a line of ancestors no number comes twice.
static LIVES: AtomicU64 = AtomicU64::new(0);

impl ForkToken {
    /// The token of this process. A child that asks gets a life of its own.
    ///
    /// # Panics
    /// If the kernel has not one page of memory left.
    #[must_use]
    pub fn current() -> Self {
        ensure_handlers();
        let page = token_page();
        Self { page, value: value_in(page) }
    }

    /// Whether this is a forked child of the process that made the token. One load, one compare.
    #[must_use]
    #[inline]
    pub fn is_stale(&self) -> bool {
        // ORDER none, Relaxed: the page changes by fork alone, which is no race with this thread.
        self.page.load(Ordering::Relaxed) != self.value
    }

    /// The number itself, for error texts and tests.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.value
    }
}

impl PartialEq for ForkToken {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Eq for ForkToken {}

impl std::fmt::Debug for ForkToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ForkToken({:#x})", self.value)
    }
}

/// The number of this life; a new one if the page was wiped since.
fn value_in(page: &AtomicU64) -> u64 {
    // ORDER none, Relaxed: the number is compared only; nothing else is read because of it.
    let value = page.load(Ordering::Relaxed);
    if value != 0 {
        return value;
    }
    let next = LIVES.fetch_add(1, Ordering::Relaxed) + 1;
    let fresh = (u64::from(process::my_pid()) << 32) | (next & 0xffff_ffff);
    match page.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => fresh,
        Err(other_thread) => other_thread,
    }
}

/// Set once, to a page that is never unmapped.
static PAGE: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());
/// Whether the fork handlers are installed.
static HANDLED: AtomicBool = AtomicBool::new(false);

/// The page, made at the first call. Several threads may make one, and none waits for another (F4):
/// the losers of the race unmap theirs.
fn token_page() -> &'static AtomicU64 {
    // ORDER T1 page, Acquire: pairs with the Release of whoever made it, so that it is mapped.
    let mut page = PAGE.load(Ordering::Acquire);
    if page.is_null() {
        let size = process::page_size();
        let fresh = new_page(size);
        // ORDER T1 page, Release: the mapping and its advice come before the address.
        match PAGE.compare_exchange(ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => page = fresh,
            Err(other_thread) => {
                page = other_thread;
                // SAFETY: mapped by `new_page` just now and never published.
                let _ = unsafe { rustix::mm::munmap(fresh.cast(), size) };
            }
        }
    }
    // SAFETY: PAGE holds a page made by `new_page`: aligned, zeroed at first, never unmapped, and
    // accessed as this `AtomicU64` only.
    unsafe { &*page }
}

/// Installs the fork handlers unless they are. Two threads at once install them twice, which does
/// everything once: the lock counts, and the second run in the child finds an empty registry.
fn ensure_handlers() {
    // ORDER T2 handlers, Acquire: whoever sees it may rely on them.
    if HANDLED.load(Ordering::Acquire) {
        return;
    }
    token_page();
    install_handlers();
    // ORDER T2 handlers, Release: they are installed.
    HANDLED.store(true, Ordering::Release);
}

/// A private zeroed page that the kernel zeroes again in every child.
fn new_page(size: usize) -> *mut AtomicU64 {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new private mapping at an address of the kernel's choice changes no other memory.
    let page = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), size, prot, MapFlags::PRIVATE) };
    let page = page.expect("one page for the fork token");
    // Older than Linux 4.14: the handler below zeroes the page instead, raw clone is not noticed.
    // SAFETY: exactly the page that was just mapped and that nobody else knows; wiping it on fork is
    // what the atomic inside is for.
    let _ = unsafe { rustix::mm::madvise(page, size, Advice::LinuxWipeOnFork) };
    page.cast()
}

// ---------------------------------------------------------------------------------------------
// Lock
// ---------------------------------------------------------------------------------------------

/// A lock that the forking thread can hold across fork and set right again in the child.
///
/// Re-entrant, because a handle may be dropped (and unregister itself) inside a critical section.
struct ForkLock {
    /// 0 free; else the holder's life (upper 30 bits), and 1 held or 2 held and somebody may sleep.
    word: AtomicU32,
    /// Thread id of the holder, 0 if none. Only equality with one's own id means anything.
    owner: AtomicU32,
    /// How often the holder has it. Accessed by the holder alone.
    depth: AtomicU32,
}

static LOCK: ForkLock = ForkLock { word: AtomicU32::new(0), owner: AtomicU32::new(0), depth: AtomicU32::new(0) };

/// The bits of a token that fit beside the lock's state.
const LIFE: u64 = 0x3fff_ffff;
const HELD: u32 = 1;
const SLEEPERS: u32 = 2;
const STATE: u32 = 3;

fn thread_id() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
}

/// The life of this process as the lock and the registry note it: a number that no ancestor has.
fn life() -> u32 {
    // The lower half counts lives, and process ids take the upper one.
    (value_in(token_page()) & LIFE) as u32
}

impl ForkLock {
    fn is_mine(&self) -> bool {
        // ORDER none, Relaxed: only this thread ever stores its id here, so seeing it means holding.
        let word = self.word.load(Ordering::Relaxed);
        word != 0 && word >> 2 == life() && self.owner.load(Ordering::Relaxed) == thread_id()
    }

    fn enter(&self) {
        if self.is_mine() {
            self.depth.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let life = life() << 2;
        let mut quiet = HELD;
        loop {
            let seen = self.word.load(Ordering::Relaxed);
            let abandoned = seen != 0 && seen & !STATE != life;
            if seen == 0 || abandoned {
                // F5: a holder of another life does not exist in this process.
                // ORDER L1 lock, Acquire: pairs with the Release in `leave`.
                let mine = life | quiet;
                if self.word.compare_exchange(seen, mine, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    break;
                }
                continue;
            }
            // Who has slept once cannot know whether others still do.
            quiet = SLEEPERS;
            let contended = life | SLEEPERS;
            if seen == contended
                || self.word.compare_exchange(seen, contended, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            {
                futex::wait(&self.word, contended, None);
            }
        }
        self.owner.store(thread_id(), Ordering::Relaxed);
        self.depth.store(1, Ordering::Relaxed);
    }

    fn leave(&self) {
        if self.depth.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        self.owner.store(0, Ordering::Relaxed);
        // ORDER L1 unlock, Release: what was done inside is seen by the next holder.
        if self.word.swap(0, Ordering::Release) & STATE == SLEEPERS {
            futex::wake(&self.word, 1);
        }
    }

    /// In the child, whose only thread is the copy of the one that prepared: one level less, and
    /// the ids that life and thread have now.
    fn reborn(&self) {
        let left = self.depth.load(Ordering::Relaxed).saturating_sub(1);
        self.depth.store(left, Ordering::Relaxed);
        let (owner, word) = if left == 0 { (0, 0) } else { (thread_id(), life() << 2 | HELD) };
        self.owner.store(owner, Ordering::Relaxed);
        self.word.store(word, Ordering::Release);
    }
}

/// Keeps fork out while it lives.
#[derive(Debug)]
#[must_use = "fork is kept out only while the guard lives"]
pub struct Critical {
    /// The lock belongs to the thread that took it.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Drop for Critical {
    fn drop(&mut self) {
        LOCK.leave();
    }
}

/// No fork happens in this process until the guard is dropped. The same thread may nest it.
///
/// For the short stretches in which a descriptor exists that a child must not inherit: open → send
/// → close, receive → map → close. Do not wait for anything inside, and do not fork: another thread
/// that forks waits for the guard, and so does whoever waits for that thread.
pub fn critical() -> Critical {
    ensure_handlers();
    LOCK.enter();
    Critical { _not_send: std::marker::PhantomData }
}

// ---------------------------------------------------------------------------------------------
// Registry
// ---------------------------------------------------------------------------------------------

struct Registry {
    /// The life whose handles these are (F5).
    life: u32,
    holes: [(usize, usize); HOLES_MAX],
    holes_len: usize,
    fds: [RawFd; FDS_MAX],
    fds_len: usize,
}

struct Guarded(UnsafeCell<Registry>);

// SAFETY: the only way in is `with_registry`, whose caller holds LOCK, and the child's handler, which
// runs on the only thread there is.
unsafe impl Sync for Guarded {}

static REGISTRY: Guarded = Guarded(UnsafeCell::new(Registry {
    life: 0,
    holes: [(0, 0); HOLES_MAX],
    holes_len: 0,
    fds: [0; FDS_MAX],
    fds_len: 0,
}));

/// Runs `f` on the registry, with proof that fork and other threads are kept out (F1).
///
/// `f` must not lead here again; the functions below are all that call it, and they do not.
fn with_registry<R>(_inside: &Critical, f: impl FnOnce(&mut Registry) -> R) -> R {
    // SAFETY: the guard proves that this thread holds LOCK, hence no other has a reference, and `f`
    // does not come back here, hence this thread has no second one.
    let registry = unsafe { &mut *REGISTRY.0.get() };
    let life = life();
    if registry.life != life {
        registry.life = life;
        registry.holes_len = 0;
        registry.fds_len = 0;
    }
    f(registry)
}

/// Has `base..base + len` covered in a forked child.
pub(crate) fn register_hole(base: NonNull<c_void>, len: usize, inside: &Critical) -> Result<()> {
    let registered = with_registry(inside, |registry| {
        let place = registry.holes.get_mut(registry.holes_len)?;
        *place = (base.as_ptr() as usize, len);
        registry.holes_len += 1;
        Some(())
    });
    registered.ok_or_else(|| {
        OsError::check(
            "mmap",
            "another shared mapping",
            format!("this process has {HOLES_MAX} already"),
            "close rings that are not used",
        )
    })
}

/// Forgets what [`register_hole`] was told; call it before unmapping, inside the same section.
pub(crate) fn unregister_hole(base: NonNull<c_void>, inside: &Critical) {
    let base = base.as_ptr() as usize;
    with_registry(inside, |registry| {
        let live = registry.holes_len;
        if let Some(at) = registry.holes[..live].iter().position(|(b, _)| *b == base) {
            registry.holes.swap(at, live - 1);
            registry.holes_len -= 1;
        }
    });
}

/// Has descriptor `fd` replaced by an inert one in a forked child. Twice is once.
///
/// Past 4096 descriptors it is not registered: a child then keeps it open, and the death of this
/// process is noticed by its lock instead of by the socket.
pub fn register_fd(fd: RawFd) {
    with_registry(&critical(), |registry| {
        let live = registry.fds_len;
        if live < FDS_MAX && !registry.fds[..live].contains(&fd) {
            registry.fds[live] = fd;
            registry.fds_len += 1;
        }
    });
}

/// Forgets descriptor `fd`; call it before closing, inside one [`critical`] section.
pub fn unregister_fd(fd: RawFd) {
    with_registry(&critical(), |registry| {
        let live = registry.fds_len;
        if let Some(at) = registry.fds[..live].iter().position(|f| *f == fd) {
            registry.fds.swap(at, live - 1);
            registry.fds_len -= 1;
        }
    });
}

/// A descriptor that a forked child must not have: registered as long as it is open.
#[derive(Debug)]
pub(crate) struct ControlFd {
    /// Taken only when this is consumed.
    fd: Option<OwnFd>,
    token: ForkToken,
}

impl ControlFd {
    /// Takes over `fd`, which was opened inside the same section.
    pub(crate) fn new(fd: OwnedFd, _inside: &Critical) -> Self {
        register_fd(fd.as_raw_fd());
        Self { fd: Some(OwnFd::new(fd)), token: ForkToken::current() }
    }

    /// Whether this is a forked child, where the number means an inert descriptor.
    pub(crate) fn is_stale(&self) -> bool {
        self.token.is_stale()
    }

    /// The plain descriptor; a forked child gets it from now on.
    pub(crate) fn into_fd(mut self) -> OwnedFd {
        let fd = self.fd.take().expect("a control descriptor is taken once");
        if !self.is_stale() {
            unregister_fd(fd.as_fd().as_raw_fd());
        }
        fd.into_fd()
    }

    /// The descriptor, to be used at once.
    pub(crate) fn get(&self, what: &str) -> Result<BorrowedFd<'_>> {
        self.fd.as_ref().expect("a control descriptor is there until it is consumed").get(what)
    }

    /// Whether the number still means what it meant.
    pub(crate) fn is_ours(&self) -> bool {
        self.fd.as_ref().is_some_and(OwnFd::is_ours)
    }
}

impl AsFd for ControlFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let fd = self.fd.as_ref();
        fd.expect("a control descriptor is there until it is consumed").as_fd()
    }
}

impl Drop for ControlFd {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        // Unregistered and closed in one section: a child forked in between would keep it open.
        let _inside = critical();
        if self.is_stale() {
            // An inert one stands in its place.
            fd.close();
            return;
        }
        unregister_fd(fd.as_fd().as_raw_fd());
        drop(fd);
    }
}

// ---------------------------------------------------------------------------------------------
// Handlers
// ---------------------------------------------------------------------------------------------

fn install_handlers() {
    // SAFETY: the three functions have the C calling convention and no arguments, are safe to run
    // around fork (F2), and stay valid as long as this library is loaded; the C library drops
    // handlers of a library that is unloaded.
    let rc = unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
    assert_eq!(rc, 0, "pthread_atfork is out of memory");
}

/// The life that forks, for its child to compare with; written inside LOCK.
static FORKING: AtomicU32 = AtomicU32::new(0);

extern "C" fn prepare() {
    LOCK.enter();
    FORKING.store(life(), Ordering::Relaxed);
}

extern "C" fn parent() {
    // Handlers that were installed while this fork was under way have not prepared it.
    if LOCK.is_mine() {
        LOCK.leave();
    }
}

extern "C" fn child() {
    // ORDER none, Relaxed in all of this: it is the only thread there is.
    // The kernel has wiped the page already where it knows how to; this covers the others. A page
    // that shows another life than the one that forked has had its new one already.
    let page = token_page();
    // SAFETY: this is the only thread, and it is not inside `with_registry`, which forks nowhere.
    let registry = unsafe { &mut *REGISTRY.0.get() };
    let forking = FORKING.load(Ordering::Relaxed);
    if page.load(Ordering::Relaxed) & LIFE == u64::from(forking) {
        page.store(0, Ordering::Relaxed);
    }
    if registry.life == forking {
        for (base, len) in &registry.holes[..registry.holes_len] {
            wall(*base, *len);
        }
        silence(&registry.fds[..registry.fds_len]);
    }
    // Walls are plain mappings that a grandchild inherits; the descriptors are inert by now.
    registry.holes_len = 0;
    registry.fds_len = 0;
    LOCK.reborn();
}

/// Covers the hole that a DONTFORK mapping left, so that nothing else is ever put there.
fn wall(base: usize, len: usize) {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    let at = ptr::with_exposed_provenance_mut(base);
    // SAFETY: the range was a DONTFORK mapping of the parent at the time of fork (F1), so in this
    // child, which has run nothing but fork handlers, there is no memory of anybody's in it. What
    // another handler might have put there in between would be replaced; without the wall it would
    // be read and written by stale views, which is worse.
    let _ = unsafe { rustix::mm::mmap_anonymous(at, len, ProtFlags::empty(), flags) };
}

/// Makes each number refer to an inert event counter: valid to close, silent, nobody's.
fn silence(fds: &[RawFd]) {
    let Some(first) = fds.first().copied() else {
        return;
    };
    let flags = libc::EFD_CLOEXEC | libc::EFD_NONBLOCK;
    // SAFETY: eventfd has no preconditions.
    let mut inert = unsafe { libc::eventfd(0, flags) };
    if inert < 0 {
        // No number is free: use that of the first, which is to go anyway.
        // SAFETY: a registered number is owned by a handle of the parent (F1); this child's copy of
        // the handle only ever closes it, which the replacement below makes valid again.
        unsafe { libc::close(first) };
        // SAFETY: as above.
        inert = unsafe { libc::eventfd(0, flags) };
    }
    for fd in fds {
        if *fd == inert {
            continue;
        }
        if inert < 0 {
            // The kernel is out of memory; then at least let go of the socket.
            // SAFETY: as for `first` above.
            unsafe { libc::close(*fd) };
        } else {
            // SAFETY: dup3 replaces the number atomically; both are open or about to be (above).
            unsafe { libc::dup3(inert, *fd, libc::O_CLOEXEC) };
        }
    }
    if inert >= 0 && !fds.contains(&inert) {
        // SAFETY: created above, known to nobody else.
        unsafe { libc::close(inert) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_keeps_its_token() {
        let token = ForkToken::current();
        assert!(!token.is_stale());
        assert_eq!(token, ForkToken::current());
        assert_ne!(token.value(), 0);
    }

    #[test]
    fn a_section_nests_and_keeps_other_threads_out() {
        static INSIDE: AtomicU32 = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let _outer = critical();
                        let _inner = critical();
                        assert_eq!(INSIDE.fetch_add(1, Ordering::Relaxed), 0);
                        INSIDE.fetch_sub(1, Ordering::Relaxed);
                    }
                });
            }
        });
    }

    #[test]
    fn a_full_registry_is_an_error_and_not_a_crash() {
        // Other tests that map something wait for the section; none of them forks.
        let inside = critical();
        let mut taken = 0;
        let base = |n: usize| NonNull::new(ptr::without_provenance_mut(4096 * (n + 1))).unwrap();
        let error = loop {
            match register_hole(base(taken), 4096, &inside) {
                Ok(()) => taken += 1,
                Err(error) => break error,
            }
        };
        for n in 0..taken {
            unregister_hole(base(n), &inside);
        }
        assert!(error.to_string().contains("4096"), "{error}");
        assert_eq!(with_registry(&inside, |registry| registry.holes_len), HOLES_MAX - taken);
    }
}
