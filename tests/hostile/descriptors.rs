//! Descriptors that are not what they are said to be, in the welcome of a producer that lies.

use std::{
    fs,
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use forebay::{Backing, Kind};
use forebay_os::{
    Access, Conn,
    object::{self, memfd, shm},
};
use forebay_testkit::{Actor, Place};

use crate::{
    impostor::{Impostor, Step},
    rig::{
        Book,
        Expect::{Either, Refused},
        Outcome,
    },
    stage::{BINARY, here, producer},
};

/// What the six descriptors of a welcome are.
const NAMES: [&str; 6] = ["ring", "data", "members", "lock", "probe", "bell"];

/// What an error about a descriptor says it is about.
const NAMED: &[&str] =
    &["object", "event counter", "lock", "descriptor", "seals", "SEALS", "allocated", "magic", "instance", "mmap"];

fn open(path: &str) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

fn bytes_of(fd: &OwnedFd) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; object::object_len(fd).unwrap() as usize];
    fs::File::from(fd.try_clone().unwrap()).read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// An anonymous object with these bytes, sealed as said.
fn copy(bytes: &[u8], seals: memfd::Seals) -> OwnedFd {
    let fd = memfd::create("forebay-test", None).unwrap();
    fs::File::from(fd.try_clone().unwrap()).write_all(bytes).unwrap();
    memfd::seal(&fd, seals).unwrap();
    fd
}

pub(crate) type Make = Box<dyn Fn() -> OwnedFd + Sync>;

/// Other things that a descriptor can be.
pub(crate) fn things() -> Vec<(&'static str, Make)> {
    let all = memfd::Seals::SHRINK | memfd::Seals::GROW;
    vec![
        ("a pipe's reading end", Box::new(|| std::io::pipe().unwrap().0.into())),
        ("a pipe's writing end", Box::new(|| std::io::pipe().unwrap().1.into())),
        ("a socket", Box::new(|| OwnedFd::from(Conn::pair().unwrap().0))),
        ("a directory", Box::new(|| open("/tmp"))),
        ("/dev/zero", Box::new(|| open("/dev/zero"))),
        ("/dev/null", Box::new(|| open("/dev/null"))),
        ("a file of /proc", Box::new(|| open("/proc/self/status"))),
        ("an eventfd", Box::new(|| forebay_os::EventFd::new().unwrap().as_fd().try_clone_to_owned().unwrap())),
        ("an epoll set", Box::new(|| forebay_os::Epoll::new().unwrap().as_fd().try_clone_to_owned().unwrap())),
        ("an empty object", Box::new(move || copy(&[], all))),
        ("a page of zeros", Box::new(move || copy(&[0; 4096], all))),
        ("a page of ones", Box::new(move || copy(&[0xff; 4096], all))),
    ]
}

const RINGS: [(Kind, Backing); 4] = [
    (Kind::Queue, Backing::Posix),
    (Kind::Queue, Backing::Memfd),
    (Kind::Broadcast, Backing::Posix),
    (Kind::Broadcast, Backing::Memfd),
];

#[test]
fn a_descriptor_that_is_something_else_is_refused() {
    for (kind, backing) in RINGS {
        let impostor = Impostor::new(|place| here(place, "fds").kind(kind).backing(backing).create().unwrap());
        let mut book = Book::new(&format!("descriptors of a {backing} {kind}"));
        for (i, name) in NAMES.into_iter().enumerate() {
            for (what, make) in things() {
                // Some do as well: a lock that its giver holds, a bell that nobody rings.
                let expect = if i < 3 { Refused(NAMED) } else { Either(NAMED) };
                book.lie(name, what, expect, || impostor.attach(Step::Welcome, |_, fds| fds[i] = make()));
            }
            for other in (0..6).filter(|&other| other != i) {
                let what = format!("the {} once more", NAMES[other]);
                let expect = if i < 3 { Refused(NAMED) } else { Either(NAMED) };
                book.lie(name, &what, expect, || {
                    impostor.attach(Step::Welcome, |_, fds| fds[i] = fds[other].try_clone().unwrap())
                });
            }
        }
        book.close();
        impostor.end();
    }
}

#[test]
fn more_or_fewer_descriptors_than_belong_to_a_welcome_are_refused() {
    let impostor = Impostor::new(|place| here(place, "count").create().unwrap());
    let mut book = Book::new("number of descriptors");
    for count in (0..6).chain([7, 8, 64, 253]) {
        book.lie(
            "welcome.descriptors",
            &count.to_string(),
            Refused(&["welcome.descriptors", "6 descriptors", "at most 6"]),
            || {
                impostor.attach(Step::Welcome, |_, fds| {
                    fds.truncate(count);
                    while fds.len() < count {
                        fds.push(open("/dev/null"));
                    }
                })
            },
        );
    }
    book.lie("admitted.descriptors", "3", Either(NAMED), || {
        impostor.attach(Step::Admitted, |_, fds| fds.extend((0..3).map(|_| open("/dev/null"))))
    });
    book.close();
    impostor.end();
}

/// Went wrong: a consumer took the header's word for it that nobody can cut the objects of a memfd ring, and populated
/// a hole of any size.
#[test]
fn memfd_objects_that_can_be_cut_or_have_holes_are_refused() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let impostor = Impostor::new(|place| here(place, "seals").kind(kind).backing(Backing::Memfd).create().unwrap());
        let mut book = Book::new(&format!("seals of a memfd {kind}"));
        for (i, name) in NAMES.into_iter().enumerate().take(3) {
            let weak = [memfd::Seals::NONE, memfd::Seals::GROW, memfd::Seals::GROW | memfd::Seals::SEAL];
            for seals in weak {
                book.lie(name, &format!("{seals:?}"), Refused(&["seals"]), || {
                    impostor.attach(Step::Welcome, |_, fds| fds[i] = copy(&bytes_of(&fds[i]), seals))
                });
            }
            let cut = memfd::Seals::SHRINK | memfd::Seals::GROW;
            book.lie(name, "a page too short", Refused(&["object", "length"]), || {
                impostor.attach(Step::Welcome, |_, fds| {
                    let bytes = bytes_of(&fds[i]);
                    fds[i] = copy(&bytes[..bytes.len() - 4096], cut);
                })
            });
        }
        // A terabyte of nothing: every page of it that is read takes memory.
        book.lie("data", "a terabyte of holes", Refused(&["allocated"]), || {
            impostor.attach(Step::Welcome, |_, fds| {
                let fd = memfd::create("forebay-test", None).unwrap();
                fs::File::from(fd.try_clone().unwrap()).set_len(1 << 40).unwrap();
                memfd::seal(&fd, memfd::Seals::SHRINK | memfd::Seals::GROW).unwrap();
                fds[1] = fd;
            })
        });
        // The consumer writes its words: an object that it can only read is an error, not a fault.
        book.lie("members", "read-only", Refused(&["mmap"]), || {
            impostor.attach(Step::Welcome, |_, fds| fds[2] = memfd::reopen_read_only(&fds[2]).unwrap())
        });
        book.close();
        impostor.end();
    }
}

#[test]
fn an_object_of_another_ring_is_refused() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let other = Place::new();
        let stranger = here(&other, "mixed").kind(kind).create().unwrap();
        let impostor = Impostor::new(|place| here(place, "mixed").kind(kind).create().unwrap());
        let mut book = Book::new(&format!("objects of another {kind}"));
        let members = if kind == Kind::Queue { "pool" } else { "m1" };
        for (i, part) in [(0, "ring"), (2, members)] {
            book.lie(NAMES[i], "of another ring of the same name", Refused(&["instance", "object"]), || {
                let path = other.object("mixed", part);
                impostor.attach(Step::Welcome, |_, fds| {
                    fds[i] = shm::open(&format!("/{}", path.file_name().unwrap().to_str().unwrap()), Access::ReadWrite)
                        .unwrap();
                })
            });
        }
        // Slots have no header; whose they are cannot be seen, and nothing but values comes of it.
        book.lie("data", "of another ring", Either(NAMED), || {
            let path = other.object("mixed", "data");
            impostor.attach(Step::Welcome, |_, fds| fds[1] = fs::File::open(path).unwrap().into())
        });
        book.close();
        impostor.end();
        stranger.discard();
    }
}

/// A process that may open few descriptors loses some of the welcome's on their way (MSG_CTRUNC).
#[test]
fn a_consumer_without_room_for_the_descriptors_says_so() {
    let place = Place::new();
    let mut feeder = producer(&place, "few", "");
    let mut book = Book::new("room for descriptors");
    let mut attached = 0;
    for most in 5..24 {
        book.lie("RLIMIT_NOFILE", &most.to_string(), Either(&["error"]), || {
            let mut command = Command::new(BINARY);
            command.args(["consumer", "few", "timeout_ms=0"]);
            limit(&mut command, most);
            let mut victim = Actor::spawn(command, &place, "consumer few");
            let line = victim.line();
            if line.starts_with("ready") {
                attached += 1;
                return Outcome::Harmless;
            }
            Outcome::Refused(line)
        });
    }
    assert!(attached > 0, "with two dozen it has enough");
    book.close();
    feeder.ask("publish 1", "published 1");
    feeder.kill();
    place.sweep();
}

#[allow(unsafe_code, reason = "the limit is set between fork and exec")]
fn limit(command: &mut Command, most: u64) {
    let set = move || {
        let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: `limit` is a valid rlimit for the length of the call.
        let rc = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
        if rc == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: the closure makes one system call and allocates nothing unless that fails.
    unsafe { command.pre_exec(set) };
}
