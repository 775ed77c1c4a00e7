//! Memory objects: names, seals, and every byte there before it is needed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod common;

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};

use common::{Child, End};
use forebay_os::object::{AllocateError, allocate, identity, memfd, object_len, owner, shm};
use forebay_os::{Access, Mapping, Trust, process};
use memfd::Seals;

/// A name of this test alone; unlinked when dropped.
struct Name(String);

impl Name {
    fn new() -> Self {
        Self(format!("/forebay.test.{:032x}", process::random_u128()))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        shm::unlink(&self.0).unwrap();
    }
}

fn errno<T>(result: rustix::io::Result<T>) -> Option<i32> {
    result.err().map(rustix::io::Errno::raw_os_error)
}

/// Bytes that the object has memory for.
fn backed(fd: &OwnedFd) -> u64 {
    rustix::fs::fstat(fd).unwrap().st_blocks as u64 * 512
}

#[test]
fn a_name_is_created_once_found_by_others_and_gone_after_unlink() {
    let name = Name::new();
    let made = shm::create(&name.0, 0o600).unwrap();
    assert_eq!(shm::create(&name.0, 0o600).unwrap_err().kind(), ErrorKind::AlreadyExists);
    let found = shm::open(&name.0, Access::ReadOnly).unwrap();
    assert_eq!(identity(&made).unwrap(), identity(&found).unwrap());
    assert_eq!(shm::list(&name.0[..20]).unwrap().iter().filter(|n| **n == name.0).count(), 1);

    shm::unlink(&name.0).unwrap();
    shm::unlink(&name.0).unwrap();
    assert_eq!(shm::open(&name.0, Access::ReadOnly).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(shm::list(&name.0).unwrap(), [""; 0]);
}

#[test]
fn the_mode_is_what_was_asked_for_whatever_the_umask() {
    Child::fork(|| {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let name = Name::new();
        let fd = shm::create(&name.0, 0o660).unwrap();
        assert_eq!(owner(&fd).unwrap(), (process::uid(), 0o660));
        // Wider than the default trusts, and said so; accepted by who allows it.
        let refused = shm::open(&name.0, Access::ReadOnly).unwrap_err().to_string();
        assert!(refused.contains("0660") && refused.contains("chmod"), "{refused}");
        let group = Trust { uids: Vec::new(), mode: 0o770 };
        assert!(shm::open_trusting(&name.0, Access::ReadWrite, &group).is_ok());
    })
    .succeed();
}

#[test]
fn planted_links_fifos_and_strangers_are_refused_without_hanging() {
    let (real, planted) = (Name::new(), Name::new());
    let _fd = shm::create(&real.0, 0o600).unwrap();
    let path = format!("/dev/shm{}", planted.0);
    std::os::unix::fs::symlink(format!("/dev/shm{}", real.0), &path).unwrap();
    assert_eq!(shm::open(&planted.0, Access::ReadOnly).unwrap_err().raw_os_error(), Some(libc::ELOOP));
    assert_eq!(shm::create(&planted.0, 0o600).unwrap_err().kind(), ErrorKind::AlreadyExists);
    shm::unlink(&planted.0).unwrap();

    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    let refused = shm::open(&planted.0, Access::ReadOnly).unwrap_err().to_string();
    assert!(refused.contains("Fifo"), "{refused}");
    // The descriptor's owner is compared, so another's object is refused; only root can make one.
    if process::uid() == 0 {
        std::os::unix::fs::chown(format!("/dev/shm{}", real.0), Some(12345), None).unwrap();
        let refused = shm::open(&real.0, Access::ReadOnly).unwrap_err().to_string();
        assert!(refused.contains("uid 12345"), "{refused}");
        let them = Trust { uids: vec![12345], ..Trust::default() };
        assert!(shm::open_trusting(&real.0, Access::ReadOnly, &them).is_ok());
    }
}

#[test]
fn names_that_are_no_names_are_refused() {
    for name in ["", "x", "/", "/.", "/..", "/a/b", "/a\0b", &format!("/{}", "x".repeat(256))] {
        assert!(shm::create(name, 0o600).is_err(), "{name:?}");
        assert!(shm::open(name, Access::ReadOnly).is_err(), "{name:?}");
        assert!(shm::unlink(name).is_err(), "{name:?}");
    }
}

#[test]
fn every_byte_is_there_after_allocation() {
    let name = Name::new();
    let len = (70 << 20) + 123;
    for fd in [memfd::create("forebay-os-test", None).unwrap(), shm::create(&name.0, 0o600).unwrap()] {
        allocate(&fd, len).unwrap();
        assert_eq!(object_len(&fd).unwrap(), len);
        assert!(backed(&fd) >= len);
        // Again is fine, less is refused.
        allocate(&fd, len).unwrap();
        assert!(allocate(&fd, len - 1).is_err());
        assert_eq!(object_len(&fd).unwrap(), len);
    }
}

#[test]
fn what_does_not_fit_is_refused_with_numbers_and_leaves_nothing() {
    let name = Name::new();
    let (shm, memfd) = (shm::create(&name.0, 0o600).unwrap(), memfd::create("forebay-os-test", None).unwrap());
    let huge = 1 << 50;
    for (fd, place) in [(&shm, "/dev/shm"), (&memfd, "memory")] {
        let error = allocate(fd, huge).unwrap_err();
        let AllocateError::NoSpace { needed, free, where_ } = error else { panic!("{error}") };
        assert_eq!(needed, huge);
        assert!(free > 0 && free < huge);
        assert!(where_.contains(place), "{where_}");
        let text = AllocateError::NoSpace { needed, free, where_ }.to_string();
        assert!(text.contains(&free.to_string()) && text.contains("smaller slots"), "{text}");
        assert_eq!(object_len(fd).unwrap(), 0);
        assert_eq!(backed(fd), 0);
    }
}

#[test]
fn a_small_file_system_fills_up_with_an_error_and_not_with_sigbus() {
    // In mount and user namespaces of its own. A host that forbids those cannot show this one.
    let mut child = Child::fork(|| {
        let (users, groups) = (format!("0 {} 1", process::uid()), format!("0 {} 1", process::gid()));
        // SAFETY: a single-threaded process changes its own namespaces.
        if unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) } != 0 {
            eprintln!("no user namespaces here");
            return;
        }
        std::fs::write("/proc/self/setgroups", "deny").unwrap();
        std::fs::write("/proc/self/uid_map", users).unwrap();
        std::fs::write("/proc/self/gid_map", groups).unwrap();
        // SAFETY: literals, and a mount in this process's own namespace.
        let rc = unsafe {
            libc::mount(c"t".as_ptr(), c"/dev/shm".as_ptr(), c"tmpfs".as_ptr(), 0, c"size=1m".as_ptr().cast())
        };
        if rc != 0 {
            eprintln!("no tmpfs here");
            return;
        }
        let name = Name::new();
        let fd = shm::create(&name.0, 0o600).unwrap();
        let error = allocate(&fd, (1 << 20) + 1).unwrap_err();
        let AllocateError::NoSpace { free, .. } = error else { panic!("{error}") };
        assert_eq!(free, 1 << 20);
        allocate(&fd, 1 << 20).unwrap();
        let mapping = Mapping::map(fd.as_fd(), 1 << 20, Access::ReadWrite).unwrap();
        mapping.populate().unwrap();
        let other = Name::new();
        let full = allocate(shm::create(&other.0, 0o600).unwrap(), 4096).unwrap_err().to_string();
        assert!(full.contains("0 free"), "{full}");
    });
    assert_eq!(child.wait(), End::Exited(0));
}

#[test]
fn allocation_gets_through_a_storm_of_signals() {
    extern "C" fn nothing(_: libc::c_int) {}
    Child::fork(|| {
        let handler: extern "C" fn(libc::c_int) = nothing;
        // SAFETY: the zeroed rest is an empty mask and no flags, SA_RESTART in particular.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as libc::sighandler_t;
        // SAFETY: valid action, old one not asked for.
        unsafe { libc::sigaction(libc::SIGVTALRM, &raw const action, std::ptr::null_mut()) };
        let often = libc::timeval { tv_sec: 0, tv_usec: 1000 };
        let timer = libc::itimerval { it_interval: often, it_value: often };
        // SAFETY: valid timer, old one not asked for.
        unsafe { libc::setitimer(libc::ITIMER_VIRTUAL, &raw const timer, std::ptr::null_mut()) };
        // Virtual time stands still inside the kernel; real time does not.
        // SAFETY: as above.
        unsafe { libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()) };
        // SAFETY: as above.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
        let fd = memfd::create("forebay-os-test", None).unwrap();
        allocate(&fd, 256 << 20).unwrap();
        assert!(backed(&fd) >= 256 << 20);
        let mapping = Mapping::map(fd.as_fd(), 256 << 20, Access::ReadWrite).unwrap();
        mapping.populate().unwrap();
    })
    .succeed();
}

#[test]
fn a_sealed_object_cannot_be_cut_grown_or_mapped_writable_by_anybody() {
    let fd = memfd::create("forebay-os-test", None).unwrap();
    allocate(&fd, 8192).unwrap();
    let writer = Mapping::map(fd.as_fd(), 8192, Access::ReadWrite).unwrap();
    let seals = Seals::SHRINK | Seals::GROW | Seals::FUTURE_WRITE | Seals::SEAL;
    memfd::seal(&fd, seals).unwrap();
    assert!(memfd::seals(&fd).unwrap().contains(seals));
    assert!(!memfd::seals(&fd).unwrap().contains(Seals::WRITE));

    // Through our descriptor, and through one that a peer would open behind our back.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    let reopened = OwnedFd::from(std::fs::File::options().read(true).write(true).open(path).unwrap());
    for fd in [&fd, &reopened] {
        assert_eq!(errno(rustix::fs::ftruncate(fd, 0)), Some(libc::EPERM));
        assert_eq!(errno(rustix::fs::ftruncate(fd, 1 << 20)), Some(libc::EPERM));
        assert_eq!(errno(rustix::io::pwrite(fd, b"x", 0)), Some(libc::EPERM));
        let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        assert_eq!(errno(rustix::fs::fallocate(fd, hole, 0, 4096)), Some(libc::EPERM));
        assert!(Mapping::map(fd.as_fd(), 8192, Access::ReadWrite).is_err());
        assert!(Mapping::map(fd.as_fd(), 8192, Access::ReadOnly).is_ok());
    }
    // Ours, from before, still writes.
    // SAFETY: mapped for writing, of this test alone.
    unsafe { writer.base().write_volatile(1) };
    assert!(memfd::seal(&fd, Seals::WRITE).is_err());
}

#[test]
fn a_read_only_descriptor_cannot_write_or_map_writable() {
    let fd = memfd::create("forebay-os-test", None).unwrap();
    allocate(&fd, 4096).unwrap();
    let look = memfd::reopen_read_only(&fd).unwrap();
    assert_eq!(identity(&look).unwrap(), identity(&fd).unwrap());
    assert_eq!(errno(rustix::io::pwrite(&look, b"x", 0)), Some(libc::EBADF));
    let refused = Mapping::map(look.as_fd(), 4096, Access::ReadWrite).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    Mapping::map(look.as_fd(), 4096, Access::ReadOnly).unwrap().populate().unwrap();
}

#[test]
fn huge_pages_work_or_say_what_is_missing() {
    let size = 2 << 20;
    assert!(memfd::create("forebay-os-test", Some(3 << 20)).is_err());
    let fd = match memfd::create("forebay-os-test", Some(size)) {
        Ok(fd) => fd,
        Err(e) => return assert!(e.to_string().contains("huge pages of 2097152"), "{e}"),
    };
    match allocate(&fd, size) {
        Ok(()) => {
            assert!(Mapping::map(fd.as_fd(), 4096, Access::ReadWrite).is_err());
            Mapping::map(fd.as_fd(), size as usize, Access::ReadWrite).unwrap().populate().unwrap();
        }
        Err(e) => {
            let text = e.to_string();
            assert!(matches!(e, AllocateError::NoSpace { .. }), "{text}");
            assert!(text.contains("vm.nr_hugepages"), "{text}");
        }
    }
}
