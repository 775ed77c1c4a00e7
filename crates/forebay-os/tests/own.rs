//! A descriptor that somebody closed, and whose number another file got, is neither used nor closed as ours.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]
#![allow(unsafe_code, reason = "the number of another descriptor is taken over on purpose")]

use std::{
    fs::File,
    io::{Read, Seek, Write},
    mem::ManuallyDrop,
    os::fd::{AsFd, AsRawFd, FromRawFd},
};

use forebay_os::{EventFd, LockFile, Probe, TimerFd, event::Epoll, own::OwnFd, socket::Conn};

mod common;
use common::Place;

/// A file of the program's own, under the number of `fd`: as if it had closed that and opened the file.
fn usurp(fd: impl AsFd) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"mine").unwrap();
    let number = fd.as_fd().as_raw_fd();
    // SAFETY: closes the number and makes it the file's, in one step; its former owner is what is tested.
    assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), number) }, number);
    // SAFETY: the number is this file's now, and its former owner must not close it.
    unsafe { File::from_raw_fd(number) }
}

fn is_whole(mut file: File) {
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "mine");
}

#[test]
fn nothing_is_written_to_or_read_from_a_file_that_has_our_number() {
    let (bell, timer) = (EventFd::new().unwrap(), TimerFd::new().unwrap());
    for file in [usurp(&bell), usurp(&timer)] {
        assert!(!bell.signal() && !bell.drain() && !timer.drain());
        drop(file.try_clone().unwrap());
        is_whole(file);
    }
    let (near, far) = Conn::pair().unwrap();
    let file = usurp(&near);
    assert!(near.send(b"hello", &[]).is_err());
    assert!(near.try_recv(&mut [0; 8], 0).is_err());
    assert!(near.is_hung_up());
    drop((near, far));
    is_whole(file);
}

#[test]
fn a_probe_whose_file_is_gone_says_so_and_never_that_somebody_is_dead() {
    let locks = LockFile::anonymous().unwrap();
    let held = locks.try_lock(3).unwrap().unwrap();
    let probe = Probe::from_fd(locks.probe_fd().unwrap());
    assert!(probe.is_locked(3).unwrap());
    let file = usurp(&probe);
    let error = probe.is_locked(3).unwrap_err();
    assert!(error.to_string().contains("closed by somebody else"), "{error}");
    drop(probe);
    is_whole(file);
    // A lock file is written to as well.
    let file = usurp(&locks);
    assert!(locks.write_note(b"note").is_err() && locks.write_mark([1, 1]).is_err());
    drop(locks);
    is_whole(file);
    drop(held);
}

#[test]
fn a_directory_that_has_our_number_is_not_used() {
    let (place, other) = (Place::new(), tempfile::tempdir().unwrap());
    let dir = place.dir();
    let foreign = File::open(other.path()).unwrap();
    // SAFETY: as in `usurp`.
    assert!(unsafe { libc::dup2(foreign.as_raw_fd(), dir.fd().as_raw_fd()) } >= 0);
    assert!(LockFile::create_or_open(&dir, "locks").is_err());
    assert!(dir.list("").is_err() && dir.remove("locks").is_err());
    assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0);
    let number = dir.fd().as_raw_fd();
    drop(dir);
    // SAFETY: the number is ours, by dup2.
    drop(unsafe { File::from_raw_fd(number) });
}

#[test]
fn what_was_closed_is_not_closed_again() {
    let own = OwnFd::new(tempfile::tempfile().unwrap().into());
    assert!(own.is_ours());
    let number = own.as_fd().as_raw_fd();
    let file = ManuallyDrop::new(usurp(&own));
    assert!(!own.is_ours() && own.get("a file").is_err());
    drop(own);
    // SAFETY: asks about a number.
    assert!(unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0, "the program's own file was closed");
    is_whole(ManuallyDrop::into_inner(file));
    let set = Epoll::new().unwrap();
    let file = usurp(&set);
    drop(set);
    is_whole(file);
}
