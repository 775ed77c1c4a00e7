//! What children of fork find, and what they cannot do to their parents.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod common;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Child, End, Flag, deadline, forever, until};
use forebay_os::object::{allocate, memfd};
use forebay_os::{Access, Conn, Epoll, EventFd, ForkToken, Mapping};

const PAGE: usize = 4096;

fn object(len: u64) -> OwnedFd {
    let fd = memfd::create("forebay-os-test", None).unwrap();
    allocate(&fd, len).unwrap();
    fd
}

/// The permissions of the memory at `address`, as `/proc/self/maps` shows them. (Neighbouring walls
/// are shown as one.)
fn permissions(address: usize) -> Option<String> {
    let text = std::fs::read_to_string("/proc/self/maps").unwrap();
    text.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let number = |hex| usize::from_str_radix(hex, 16).unwrap();
        (number(start)..number(end)).contains(&address).then(|| rest[..4].to_owned())
    })
}

/// What a descriptor of this process refers to.
fn target(fd: i32) -> String {
    let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    link.to_string_lossy().into_owned()
}

#[test]
fn a_token_is_stale_in_the_child_and_a_new_life_begins_there() {
    let token = ForkToken::current();
    let check = || {
        assert!(token.is_stale());
        let own = ForkToken::current();
        assert!(!own.is_stale() && token.is_stale());
        assert_ne!(own, token);
        Child::fork(|| {
            assert!(own.is_stale() && token.is_stale());
            assert_ne!(ForkToken::current(), own);
        })
        .succeed();
        assert!(!own.is_stale());
    };
    Child::fork(check).succeed();
    // No handler runs here: the kernel alone wipes the page.
    Child::raw_clone(|| {
        assert!(token.is_stale());
        let own = ForkToken::current();
        assert!(!own.is_stale() && own != token);
    })
    .succeed();
    assert!(!token.is_stale());
    assert_eq!(ForkToken::current(), token);
}

#[test]
fn the_child_finds_a_wall_where_the_mapping_was() {
    let mapping = Mapping::map(object(64 << 20).as_fd(), 64 << 20, Access::ReadWrite).unwrap();
    mapping.populate().unwrap();
    let base = mapping.base().as_ptr() as usize;
    let mut mapping = Some(mapping);
    Child::fork(|| {
        let mapping = mapping.take().unwrap();
        assert_eq!(permissions(base).as_deref(), Some("---p"));
        assert!(mapping.is_stale());
        assert!(mapping.populate().is_err() && mapping.lock().is_err());
        // Neither memory of its own nor a mapping of its own may land there.
        let blocks: Vec<Vec<u8>> = (0..64).map(|_| vec![1; 1 << 20]).collect();
        for block in &blocks {
            let at = block.as_ptr() as usize;
            assert!(at + block.len() <= base || at >= base + mapping.len());
        }
        let own = Mapping::map(object(8192).as_fd(), 8192, Access::ReadWrite).unwrap();
        own.populate().unwrap();
        drop(own);
        // Dropping the inherited handle leaves the wall where it is, for grandchildren as well.
        drop(mapping);
        assert_eq!(permissions(base).as_deref(), Some("---p"));
        Child::fork(|| assert_eq!(permissions(base).as_deref(), Some("---p"))).succeed();
    })
    .succeed();
}

#[test]
fn a_view_inherited_by_a_child_faults_and_the_parent_keeps_its_own() {
    let mapping = Mapping::map(object(PAGE as u64).as_fd(), PAGE, Access::ReadWrite).unwrap();
    let at = mapping.base();
    // SAFETY: mapped for writing, and of this test alone.
    unsafe { at.write_volatile(77) };
    let end = Child::fork(|| {
        // SAFETY: none; the wall is there to stop exactly this.
        std::hint::black_box(unsafe { at.read_volatile() });
    })
    .wait();
    assert_eq!(end, End::Signalled(libc::SIGSEGV));
    // SAFETY: mapped.
    assert_eq!(unsafe { at.read_volatile() }, 77);
}

#[test]
fn a_child_does_not_hide_its_parents_death_from_the_other_side() {
    let (ours, theirs) = Conn::pair().unwrap();
    let mut theirs = Some(OwnedFd::from(theirs));
    let (there, go) = (Flag::new(), Flag::new());
    let mut parent = Child::fork(|| {
        let conn = Conn::from_fd(theirs.take().unwrap()).unwrap();
        let grandchild = Child::fork(|| {
            // SAFETY: takes the death signal back: it is to survive its parent.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
            assert!(conn.is_hung_up());
            assert!(conn.send(b"x", &[]).is_err());
            there.raise();
            go.wait();
            there.raise();
        });
        std::mem::forget(grandchild);
        forever();
    });
    drop(theirs);
    there.wait();
    assert!(!ours.is_hung_up());
    parent.kill();
    until("the hang-up", || ours.is_hung_up());
    go.raise();
    there.wait();
}

#[test]
fn a_childs_copy_of_a_control_descriptor_is_inert_and_safe_to_drop() {
    let (a, b) = Conn::pair().unwrap();
    let set = Epoll::new().unwrap();
    let event = EventFd::new().unwrap();
    set.add(&event, 1).unwrap();
    let (conn_number, set_number) = (a.as_fd().as_raw_fd(), set.as_fd().as_raw_fd());
    let (mut a, mut set) = (Some(a), Some(set));
    assert!(target(conn_number).starts_with("socket:"));
    Child::fork(|| {
        assert_eq!(target(conn_number), "anon_inode:[eventfd]");
        assert_eq!(target(set_number), "anon_inode:[eventfd]");
        assert!(set.as_ref().unwrap().remove(&event).is_err(), "the parent's set is out of reach");
        drop(a.take());
        drop(set.take());
        // The numbers were the handles' own to close: what is opened now is not closed by anybody.
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(file.metadata().is_ok());
    })
    .succeed();
    // The parent's are as before.
    event.signal();
    let (a, set) = (a.unwrap(), set.unwrap());
    assert_eq!(set.wait(Some(common::WATCHDOG)).unwrap(), [1]);
    a.send(b"hello", &[]).unwrap();
    assert_eq!(b.recv(&mut [0; 8], 0, deadline()).unwrap().len, 5);
}

#[test]
fn control_descriptors_become_inert_even_when_no_number_is_free() {
    // In a process of its own, because the limit is the process's.
    Child::fork(|| {
        let mut conns: Vec<(Conn, Conn)> = (0..4).map(|_| Conn::pair().unwrap()).collect();
        let mut full: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).take(64).collect();
        let most = full.last().unwrap().as_raw_fd() as u64 + 1;
        let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: lowers a limit of this process.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
        assert!(std::fs::File::open("/dev/null").is_err(), "the table is full");
        Child::fork(|| {
            full.clear();
            for (a, b) in &conns {
                assert_eq!(target(a.as_fd().as_raw_fd()), "anon_inode:[eventfd]");
                assert_eq!(target(b.as_fd().as_raw_fd()), "anon_inode:[eventfd]");
            }
            conns.clear();
        })
        .succeed();
    })
    .succeed();
}

#[test]
fn a_child_whose_fork_ran_no_handlers_believes_nothing_it_inherited() {
    // In a process of its own: the raw clone must not hit the C library in the middle of something.
    Child::fork(|| {
        let mapping = Mapping::map(object(PAGE as u64).as_fd(), PAGE, Access::ReadWrite).unwrap();
        let base = mapping.base().as_ptr();
        let inside = Flag::new();
        std::thread::scope(|scope| {
            let holder = scope.spawn(|| {
                let _critical = forebay_os::fork::critical();
                inside.raise();
                std::thread::park();
            });
            inside.wait();
            Child::raw_clone(|| {
                // The hole has no wall, and gets memory of this child's own.
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
                let rights = libc::PROT_READ | libc::PROT_WRITE;
                // SAFETY: replaces nothing, by its flags.
                assert_eq!(unsafe { libc::mmap(base.cast(), PAGE, rights, flags, -1, 0) }, base.cast());
                // SAFETY: mapped just now.
                unsafe { base.write_volatile(5) };
                // A fork with handlers must not wall in what was its parent's parent's,
                Child::fork(|| {
                    // SAFETY: mapped above, and inherited.
                    assert_eq!(unsafe { base.read_volatile() }, 5);
                })
                .succeed();
                // and the section's holder does not exist here: this must not wait for it.
                let own = Mapping::map(object(PAGE as u64).as_fd(), PAGE, Access::ReadWrite).unwrap();
                let own_base = own.base().as_ptr() as usize;
                // What is this child's own is walled in.
                Child::fork(|| {
                    assert_eq!(permissions(own_base).as_deref(), Some("---p"));
                    // SAFETY: mapped above, and inherited.
                    assert_eq!(unsafe { base.read_volatile() }, 5);
                })
                .succeed();
            })
            .succeed();
            holder.thread().unpark();
        });
    })
    .succeed();
}

#[test]
fn forks_between_busy_threads_neither_hang_nor_leave_a_broken_child() {
    let fd = object(PAGE as u64);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let mapping = Mapping::map(fd.as_fd(), PAGE, Access::ReadWrite).unwrap();
                    let pair = Conn::pair().unwrap();
                    drop(mapping);
                    drop(pair);
                }
            });
        }
        for _ in 0..200 {
            Child::fork(|| {
                let mapping = Mapping::map(fd.as_fd(), PAGE, Access::ReadWrite).unwrap();
                mapping.populate().unwrap();
                let (a, b) = Conn::pair().unwrap();
                a.send(b"x", &[]).unwrap();
                b.recv(&mut [0; 4], 0, deadline()).unwrap();
                Child::fork(|| assert!(mapping.is_stale())).succeed();
            })
            .succeed();
        }
        stop.store(true, Ordering::Relaxed);
    });
}
