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
#![allow(unsafe_code, reason = "pthread_atfork, mmap over holes, and descriptors by number")]

use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::futex;
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
        let page = token_page();
        // ORDER none, Relaxed: the number is compared only; nothing else is read because of it.
        let mut value = page.load(Ordering::Relaxed);
        if value == 0 {
            let next = LIVES.fetch_add(1, Ordering::Relaxed) + 1;
            let fresh = (u64::from(process::my_pid()) << 32) | (next & 0xffff_ffff);
            value = match page.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => fresh,
                Err(other_thread) => other_thread,
            };
        }
        Self { page, value }
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

/// The page, made at the first call. Also the place where the fork handlers are installed.
fn token_page() -> &'static AtomicU64 {
    static PAGE: OnceLock<&'static AtomicU64> = OnceLock::new();
    PAGE.get_or_init(|| {
        let size = process::page_size();
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new private mapping at an address of the kernel's choice changes no other memory.
        let page = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), size, prot, MapFlags::PRIVATE) };
        let page = page.expect("one page for the fork token");
        // Older than Linux 4.14: the handler below zeroes the page instead, raw clone is not noticed.
        // SAFETY: exactly the page that was just mapped and that nobody else knows; wiping it on
        // fork is what the atomic inside is for.
        let _ = unsafe { rustix::mm::madvise(page, size, Advice::LinuxWipeOnFork) };
        install_handlers();
        // SAFETY: page-aligned, `size` bytes of zeroes, never unmapped, accessed as `AtomicU64` only.
        unsafe { &*page.cast::<AtomicU64>() }
    })
}

// ---------------------------------------------------------------------------------------------
// Lock
// ---------------------------------------------------------------------------------------------

/// A lock that the forking thread can hold across fork and set right again in the child.
///
/// Re-entrant, because a handle may be dropped (and unregister itself) inside a critical section.
struct ForkLock {
    /// 0 free, 1 held, 2 held and somebody may sleep.
    word: AtomicU32,
    /// Thread id of the holder, 0 if none. Only equality with one's own id means anything.
    owner: AtomicU32,
    /// How often the holder has it. Accessed by the holder alone.
    depth: AtomicU32,
}

static LOCK: ForkLock = ForkLock { word: AtomicU32::new(0), owner: AtomicU32::new(0), depth: AtomicU32::new(0) };

fn thread_id() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
}

impl ForkLock {
    fn enter(&self) {
        let me = thread_id();
        // ORDER none, Relaxed: only this thread ever stores `me` here, so seeing it means holding.
        if self.owner.load(Ordering::Relaxed) == me {
            self.depth.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // ORDER L1 lock, Acquire: pairs with the Release in `leave`.
        if self.word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            while self.word.swap(2, Ordering::Acquire) != 0 {
                futex::wait(&self.word, 2, None);
            }
        }
        self.owner.store(me, Ordering::Relaxed);
        self.depth.store(1, Ordering::Relaxed);
    }

    fn leave(&self) {
        if self.depth.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        self.owner.store(0, Ordering::Relaxed);
        // ORDER L1 unlock, Release: what was done inside is seen by the next holder.
        if self.word.swap(0, Ordering::Release) == 2 {
            futex::wake(&self.word, 1);
        }
    }

    /// In the child, whose only thread is the copy of the one that prepared: one level less, and
    /// the id that this thread has now.
    fn reborn(&self) {
        let left = self.depth.load(Ordering::Relaxed).saturating_sub(1);
        self.depth.store(left, Ordering::Relaxed);
        self.owner.store(if left == 0 { 0 } else { thread_id() }, Ordering::Relaxed);
        self.word.store(u32::from(left != 0), Ordering::Release);
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
    token_page();
    LOCK.enter();
    Critical { _not_send: std::marker::PhantomData }
}

// ---------------------------------------------------------------------------------------------
// Registry
// ---------------------------------------------------------------------------------------------

struct Registry {
    holes: [(usize, usize); HOLES_MAX],
    holes_len: usize,
    fds: [RawFd; FDS_MAX],
    fds_len: usize,
}

/// Locked only inside `critical`, hence never contended and never held across fork.
static REGISTRY: Mutex<Registry> =
    Mutex::new(Registry { holes: [(0, 0); HOLES_MAX], holes_len: 0, fds: [0; FDS_MAX], fds_len: 0 });

/// The registry, with proof that fork is kept out (F1).
fn registry(_inside: &Critical) -> MutexGuard<'static, Registry> {
    // Nothing below panics between two stores; a poisoned lock still guards a sound registry.
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has `base..base + len` covered in a forked child.
pub(crate) fn register_hole(base: NonNull<c_void>, len: usize, inside: &Critical) -> Result<()> {
    let mut registry = registry(inside);
    let at = registry.holes_len;
    let Some(place) = registry.holes.get_mut(at) else {
        return Err(OsError::check(
            "mmap",
            "another shared mapping",
            format!("this process has {HOLES_MAX} already"),
            "close rings that are not used",
        ));
    };
    *place = (base.as_ptr() as usize, len);
    registry.holes_len += 1;
    Ok(())
}

/// Forgets what [`register_hole`] was told; call it before unmapping, inside the same section.
pub(crate) fn unregister_hole(base: NonNull<c_void>, inside: &Critical) {
    let mut registry = registry(inside);
    let live = registry.holes_len;
    let base = base.as_ptr() as usize;
    if let Some(at) = registry.holes[..live].iter().position(|(b, _)| *b == base) {
        registry.holes.swap(at, live - 1);
        registry.holes_len -= 1;
    }
}

/// Has descriptor `fd` replaced by an inert one in a forked child. Twice is once.
///
/// Past 4096 descriptors it is not registered: a child then keeps it open, and the death of this
/// process is noticed by its lock instead of by the socket.
pub fn register_fd(fd: RawFd) {
    let inside = critical();
    let mut registry = registry(&inside);
    let live = registry.fds_len;
    if live < FDS_MAX && !registry.fds[..live].contains(&fd) {
        registry.fds[live] = fd;
        registry.fds_len += 1;
    }
}

/// Forgets descriptor `fd`; call it before closing, inside one [`critical`] section.
pub fn unregister_fd(fd: RawFd) {
    let inside = critical();
    let mut registry = registry(&inside);
    let live = registry.fds_len;
    if let Some(at) = registry.fds[..live].iter().position(|f| *f == fd) {
        registry.fds.swap(at, live - 1);
        registry.fds_len -= 1;
    }
}

/// A descriptor that a forked child must not have: registered as long as it is open.
#[derive(Debug)]
pub(crate) struct ControlFd {
    /// Taken only when this is consumed.
    fd: Option<OwnedFd>,
    token: ForkToken,
}

impl ControlFd {
    /// Takes over `fd`, which was opened inside the same section.
    pub(crate) fn new(fd: OwnedFd, _inside: &Critical) -> Self {
        register_fd(fd.as_raw_fd());
        Self { fd: Some(fd), token: ForkToken::current() }
    }

    /// Whether this is a forked child, where the number means an inert descriptor.
    pub(crate) fn is_stale(&self) -> bool {
        self.token.is_stale()
    }

    /// The plain descriptor; a forked child gets it from now on.
    pub(crate) fn into_fd(mut self) -> OwnedFd {
        let fd = self.fd.take().expect("a control descriptor is taken once");
        if !self.is_stale() {
            unregister_fd(fd.as_raw_fd());
        }
        fd
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
        if !self.is_stale() {
            unregister_fd(fd.as_raw_fd());
        }
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

extern "C" fn prepare() {
    LOCK.enter();
}

extern "C" fn parent() {
    LOCK.leave();
}

extern "C" fn child() {
    // The kernel has wiped the page already where it knows how to; this covers the others.
    // ORDER none, Relaxed: this is the only thread there is.
    token_page().store(0, Ordering::Relaxed);
    // `try_lock`: never contended (see REGISTRY), and this handler must not wait in any case.
    let registry = match REGISTRY.try_lock() {
        Ok(registry) => Some(registry),
        Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(std::sync::TryLockError::WouldBlock) => None,
    };
    if let Some(mut registry) = registry {
        let (holes, fds) = (registry.holes_len, registry.fds_len);
        for (base, len) in &registry.holes[..holes] {
            wall(*base, *len);
        }
        silence(&registry.fds[..fds]);
        // Walls are plain mappings that a grandchild inherits; the descriptors are inert by now.
        registry.holes_len = 0;
        registry.fds_len = 0;
    }
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
        assert_eq!(registry(&inside).holes_len, HOLES_MAX - taken);
    }
}
