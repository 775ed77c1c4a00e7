//! Locks held by mappings, passed between real processes that are really killed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod common;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use common::{Child, End, Flag, Place, deadline, forever, until};
use forebay_os::{Conn, Dir, Held, Listener, LockFile, Probe, fork};

/// Locks `byte` and sends the lock to whoever connects next: open → lock → send → close.
fn hand_out(file: &LockFile, listener: &Listener, byte: u64) -> Conn {
    let mut conn = None;
    until("a connection", || {
        conn = listener.accept().unwrap();
        conn.is_some()
    });
    let conn = conn.unwrap();
    let _inside = fork::critical();
    let lock = file.try_lock(byte).unwrap().expect("the byte is free");
    let probe = file.probe_fd().unwrap();
    conn.send(b"lock", &[lock.as_fd(), probe.as_fd()]).unwrap();
    conn
}

/// The other half: receive → map → close.
fn take(dir: &Dir) -> (Held, Probe, Conn) {
    let mut conn = None;
    until("a listener", || {
        conn = Conn::connect(dir, "s").ok();
        conn.is_some()
    });
    let conn = conn.unwrap();
    let mut buf = [0; 16];
    let (held, probe) = conn
        .recv_with(&mut buf, 2, deadline(), |mut received| {
            assert_eq!(received.fds.len(), 2);
            let probe = received.fds.pop().unwrap();
            let lock: OwnedFd = received.fds.pop().unwrap();
            (Held::hold(lock).unwrap(), Probe::from_fd(probe))
        })
        .unwrap();
    (held, probe, conn)
}

/// A child that was handed the lock on `byte`, did `then` with it, and said so.
fn holder(file: &LockFile, byte: u64, then: impl FnOnce(Held, Probe)) -> Child {
    let place = Place::new();
    let dir = place.dir();
    let listener = Listener::bind(&dir, "s").unwrap();
    let ready = Flag::new();
    let child = Child::fork(|| {
        let (held, probe, _conn) = take(&Dir::open(Some(dir.path())).unwrap());
        assert!(probe.is_locked(byte).unwrap());
        ready.raise();
        then(held, probe);
    });
    let _conn = hand_out(file, &listener, byte);
    ready.wait();
    child
}

#[test]
fn a_lock_that_was_passed_on_lives_and_dies_with_its_new_holder() {
    let place = Place::new();
    let named = LockFile::create_or_open(&place.dir(), "locks").unwrap();
    for file in [LockFile::anonymous().unwrap(), named] {
        let probe = file.probe().unwrap();
        assert!(!probe.is_locked(7).unwrap());
        let mut child = holder(&file, 7, |_held, _probe| forever());
        assert!(probe.is_locked(7).unwrap());
        assert!(!probe.is_locked(6).unwrap() && !probe.is_locked(8).unwrap());
        assert!(file.try_lock(7).unwrap().is_none());
        child.kill();
        until("the lock's end", || !probe.is_locked(7).unwrap());
        assert!(file.try_lock(7).unwrap().is_some());
    }
}

#[test]
fn a_holder_that_closes_every_descriptor_still_holds() {
    let file = LockFile::anonymous().unwrap();
    let probe = file.probe().unwrap();
    let closed = Flag::new();
    let mut child = holder(&file, 0, |_held, _probe| {
        // Standard input becomes the way to say so, and everything else goes, as in daemonizers.
        // SAFETY: the child owns its descriptor table and uses none of the others again.
        unsafe { libc::dup2(closed.writer().as_raw_fd(), 0) };
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_close_range, 1, u32::MAX, 0) };
        // SAFETY: writes one byte of a literal.
        unsafe { libc::write(0, b"!".as_ptr().cast(), 1) };
        forever();
    });
    closed.wait();
    assert!(probe.is_locked(0).unwrap());
    child.kill();
    until("the lock's end", || !probe.is_locked(0).unwrap());
}

#[test]
fn a_forked_child_neither_pins_nor_releases_the_lock() {
    let file = LockFile::anonymous().unwrap();
    let probe = file.probe().unwrap();
    let forked = Flag::new();
    let (stay, go) = (Flag::new(), Flag::new());
    let mut child = holder(&file, 3, |held, _probe| {
        // One grandchild drops its copy and leaves, which must not unlock;
        let mut held = Some(held);
        let mut leaver = Child::fork(|| drop(held.take()));
        assert_eq!(leaver.wait(), End::Exited(0));
        // another one outlives the holder, which must not keep it locked.
        let stayer = Child::fork(|| {
            // SAFETY: takes the death signal back: this one is to survive its parent.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
            stay.raise();
            go.wait();
            stay.raise();
        });
        std::mem::forget(stayer);
        stay.wait();
        forked.raise();
        forever();
    });
    forked.wait();
    assert!(probe.is_locked(3).unwrap());
    child.kill();
    until("the lock's end", || !probe.is_locked(3).unwrap());
    // The grandchild was there all the time.
    go.raise();
    stay.wait();
}

#[test]
fn exec_frees_the_lock() {
    let file = LockFile::anonymous().unwrap();
    let probe = file.probe().unwrap();
    let mut child = holder(&file, 1, |held, _probe| {
        std::mem::forget(held);
        let error = std::os::unix::process::CommandExt::exec(std::process::Command::new("sleep").arg("30"));
        panic!("exec: {error}");
    });
    until("the lock's end", || !probe.is_locked(1).unwrap());
    // It is still there, as another program.
    child.kill();
}

#[test]
fn dropping_the_holder_frees_the_lock_for_the_next() {
    let file = LockFile::anonymous().unwrap();
    let probe = file.probe().unwrap();
    for _ in 0..3 {
        let held = {
            let _inside = fork::critical();
            Held::hold(file.try_lock(9).unwrap().unwrap()).unwrap()
        };
        assert!(probe.is_locked(9).unwrap());
        drop(held);
        assert!(!probe.is_locked(9).unwrap());
    }
}

#[test]
fn forks_at_any_moment_never_pin_a_lock() {
    let file = LockFile::anonymous().unwrap();
    let probe = file.probe().unwrap();
    let (a, b) = Conn::pair().unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let children = std::thread::scope(|scope| {
        let forker = scope.spawn(|| {
            let mut children = Vec::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) && children.len() < 300 {
                children.push(Child::fork(forever_without_parent));
            }
            children
        });
        for byte in 0..2000 {
            {
                let _inside = fork::critical();
                let lock = file.try_lock(byte).unwrap().unwrap();
                a.send(b"x", &[lock.as_fd()]).unwrap();
            }
            let held = b.recv_with(&mut [0; 8], 1, deadline(), |mut r| Held::hold(r.fds.pop().unwrap()).unwrap());
            drop(held.unwrap());
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        forker.join().unwrap()
    });
    assert!(!children.is_empty());
    // The children live, and hold nothing.
    let pinned: Vec<u64> = (0..2000).filter(|byte| probe.is_locked(*byte).unwrap()).collect();
    assert_eq!(pinned, []);
}

/// The forking thread ends before the children are looked at: they must not die with it.
fn forever_without_parent() {
    // SAFETY: takes the death signal back; the alarm still ends a forgotten child.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
    forever();
}

#[test]
fn a_lock_file_that_was_replaced_is_noticed() {
    let place = Place::new();
    let dir = place.dir();
    let old = LockFile::create_or_open(&dir, "locks").unwrap();
    assert!(old.is_current(&dir, "locks").unwrap());
    dir.remove("locks").unwrap();
    assert!(!old.is_current(&dir, "locks").unwrap());
    let new = LockFile::create_or_open(&dir, "locks").unwrap();
    assert!(!old.is_current(&dir, "locks").unwrap());
    assert!(new.is_current(&dir, "locks").unwrap());
    // Locks of the one are not locks of the other.
    let _old_lock = old.try_lock(0).unwrap().unwrap();
    assert!(new.try_lock(0).unwrap().is_some());
}

#[test]
fn the_note_is_what_was_written_last_and_the_mark_stays() {
    let file = LockFile::anonymous().unwrap();
    assert_eq!(file.read_note().unwrap(), b"");
    file.write_note(b"pid 4711, a long name").unwrap();
    file.write_note(b"pid 12").unwrap();
    assert_eq!(file.read_note().unwrap(), b"pid 12");
    file.write_note(&[b'x'; 4000]).unwrap();
    assert_eq!(file.read_note().unwrap().len(), 512);
    // The mark stands behind the note, and neither disturbs the other.
    assert_eq!(file.read_mark().unwrap(), None);
    file.write_mark([1 << 63, 7]).unwrap();
    file.write_note(b"pid 13").unwrap();
    assert_eq!(file.read_note().unwrap(), b"pid 13");
    assert_eq!(file.read_mark().unwrap(), Some([1 << 63, 7]));
    let place = Place::new();
    let missing = LockFile::open_existing(&place.dir(), "locks").unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn what_cannot_be_probed_is_an_error_and_never_says_dead() {
    let file = LockFile::anonymous().unwrap();
    assert!(file.try_lock(u64::MAX).is_err());
    assert!(file.probe().unwrap().is_locked(u64::MAX).is_err());
    // A descriptor that only names a file cannot ask for locks.
    let place = Place::new();
    let path = rustix::fs::open(place.path(), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let probe = Probe::from_fd(path);
    assert!(probe.is_locked(0).is_err());
    assert_ne!(probe.identity().unwrap(), file.identity());
}
