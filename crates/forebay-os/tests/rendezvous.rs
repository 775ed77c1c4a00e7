//! The directory and the sockets in it: who may be there, who takes over, what travels.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod common;

use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Child, Place, deadline};
use forebay_os::object::identity;
use forebay_os::{Conn, ConnectError, Dir, Listener, SocketError, Trust, process, socket};

fn connected(dir: &Dir, listener: &Listener, file: &str) -> (Conn, Conn) {
    let client = Conn::connect(dir, file).unwrap();
    (listener.accept().unwrap().expect("a connection waits"), client)
}

#[test]
fn the_directory_is_made_private_and_found_again_under_every_path() {
    let place = Place::new();
    let path = place.path().join("d");
    let dir = Dir::open(Some(&path)).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(dir.path(), path);

    symlink(place.path(), place.path().join("parent")).unwrap();
    let other = Dir::open(Some(&place.path().join("parent/d"))).unwrap();
    assert_eq!(dir.hash(), other.hash());
    assert_ne!(dir.hash(), Dir::open(Some(&place.path().join("e"))).unwrap().hash());
}

#[test]
fn a_directory_that_others_could_have_prepared_is_refused_with_advice() {
    let place = Place::new();
    let refused = |name: &str| Dir::open(Some(&place.path().join(name))).unwrap_err().to_string();

    Dir::open(Some(&place.path().join("open"))).unwrap();
    std::fs::set_permissions(place.path().join("open"), PermissionsExt::from_mode(0o777)).unwrap();
    let text = refused("open");
    assert!(text.contains("0777") && text.contains("chmod go-w"), "{text}");

    symlink(place.path(), place.path().join("link")).unwrap();
    let text = refused("link");
    assert!(text.contains("no link"), "{text}");

    std::fs::write(place.path().join("file"), "").unwrap();
    assert!(refused("file").contains("must be a directory"));
    assert!(refused("missing/d").contains("missing first"));

    if process::uid() == 0 {
        let theirs = place.path().join("theirs");
        Dir::open(Some(&theirs)).unwrap();
        std::os::unix::fs::chown(&theirs, Some(12345), None).unwrap();
        let text = refused("theirs");
        assert!(text.contains("uid 12345") && text.contains("uid 0"), "{text}");
        let them = Trust { uids: vec![12345], ..Trust::default() };
        assert!(Dir::open_trusting(Some(&theirs), them).is_ok());
    }
}

#[test]
fn a_wider_trust_makes_a_wider_directory_and_wider_files() {
    let place = Place::new();
    let path = place.path().join("d");
    let group = Trust { uids: Vec::new(), mode: 0o770 };
    let dir = Dir::open_trusting(Some(&path), group).unwrap();
    let _socket = Listener::bind(&dir, "s").unwrap();
    let mode = |p: &Path| std::fs::symlink_metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&path.join("s"))), (0o770, 0o660));
    assert!(Dir::open(Some(&path)).is_err());
}

#[test]
fn the_default_is_chosen_by_the_environment() {
    Child::fork(|| {
        let place = Place::new();
        let set = |name: &str, value: &Path| {
            // SAFETY: the only thread of this process.
            unsafe { std::env::set_var(name, value) };
        };
        let chosen = || Dir::open(None).unwrap().path().to_owned();
        set("FOREBAY_DIR", &place.path().join("named"));
        set("XDG_RUNTIME_DIR", place.path());
        assert_eq!(chosen(), place.path().join("named"));
        set("FOREBAY_DIR", Path::new(""));
        assert_eq!(chosen(), place.path().join("forebay"));
        // A runtime directory that does not exist, or is another's, is not ours to use.
        set("XDG_RUNTIME_DIR", &place.path().join("missing"));
        assert_eq!(chosen(), Path::new(&format!("/tmp/forebay-{}", process::uid())));
        // A relative one keeps its meaning.
        std::env::set_current_dir(place.path()).unwrap();
        set("FOREBAY_DIR", Path::new("relative"));
        let dir = Dir::open(None).unwrap();
        std::env::set_current_dir("/").unwrap();
        assert_eq!(dir.path(), place.path().join("relative"));
    })
    .succeed();
    let _ = std::fs::remove_dir(format!("/tmp/forebay-{}", process::uid()));
}

#[test]
fn files_are_listed_and_removed_by_plain_names_only() {
    let place = Place::new();
    let dir = place.dir();
    for name in ["b.sock", "a.sock", "c.lock"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    assert_eq!(dir.list(".sock").unwrap(), ["a.sock", "b.sock"]);
    dir.remove("a.sock").unwrap();
    dir.remove("a.sock").unwrap();
    assert_eq!(dir.list("").unwrap(), ["b.sock", "c.lock"]);
    for name in ["", ".", "..", "../x", "/etc/x", "a\0b"] {
        assert!(dir.remove(name).is_err(), "{name:?}");
        assert!(Listener::bind(&dir, name).is_err(), "{name:?}");
    }
}

#[test]
fn messages_arrive_whole_with_their_descriptors_and_the_peers_name() {
    let place = Place::new();
    let dir = place.dir();
    let listener = Listener::bind(&dir, "s").unwrap();
    assert!(listener.accept().unwrap().is_none());
    let (server, client) = connected(&dir, &listener, "s");
    let peer = server.peer().unwrap();
    assert_eq!((peer.uid, peer.pid), (process::uid(), process::my_pid()));

    let files: Vec<_> = (0..socket::MAX_FDS).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
    let all: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    client.send(b"one", &[]).unwrap();
    client.send(b"two", &all[..3]).unwrap();
    client.send(b"three", &all).unwrap();
    let mut buf = [0; 64];
    for (text, fds) in [("one", 0), ("two", 3), ("three", socket::MAX_FDS)] {
        let received = server.recv(&mut buf, socket::MAX_FDS, deadline()).unwrap();
        assert_eq!(&buf[..received.len], text.as_bytes());
        assert_eq!(received.fds.len(), fds);
        for fd in &received.fds {
            assert_eq!(identity(fd).unwrap(), identity(&files[0]).unwrap());
            assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        }
    }
    assert!(client.send(b"", &[]).is_err());
}

#[test]
fn a_message_that_does_not_fit_is_refused_and_its_descriptors_are_closed() {
    // In a process of its own, whose descriptors can be counted.
    Child::fork(|| {
        let (a, b) = Conn::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let fds = [file.as_fd(); 5];
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open();
        for max in [0, 1, 2, 3, 4] {
            a.send(b"12345678", &fds).unwrap();
            let error = b.recv(&mut [0; 64], max, deadline()).unwrap_err();
            assert!(matches!(error, SocketError::Truncated { .. }), "{max}: {error}");
            assert_eq!(open(), before, "{max}");
        }
        a.send(b"12345678", &fds).unwrap();
        let error = b.recv(&mut [0; 7], 5, deadline()).unwrap_err();
        assert!(error.to_string().contains("more than 7 bytes"), "{error}");
        assert_eq!(open(), before);
        // The connection goes on.
        a.send(b"x", &fds).unwrap();
        assert_eq!(b.recv(&mut [0; 8], 5, deadline()).unwrap().fds.len(), 5);
    })
    .succeed();
}

#[test]
fn silence_a_full_queue_and_a_hang_up_are_told_apart() {
    let (a, b) = Conn::pair().unwrap();
    let start = Instant::now();
    let span = Duration::from_millis(5);
    assert!(matches!(a.recv(&mut [0; 8], 0, Some(start + span)), Err(SocketError::TimedOut)));
    assert!(start.elapsed() >= span);
    assert!(!a.is_hung_up());

    let full = loop {
        if let Err(e) = a.send(&[0; 1024], &[]) {
            break e;
        }
    };
    assert!(matches!(full, SocketError::Full), "{full}");

    b.send(b"last words", &[]).unwrap();
    drop(b);
    assert!(a.is_hung_up());
    // What was sent before is still delivered. (The unread rest of ours resets the connection.)
    let mut buf = [0; 16];
    loop {
        match a.recv(&mut buf, 0, deadline()) {
            Ok(received) => assert_eq!(&buf[..received.len], b"last words"),
            Err(e) => break assert!(matches!(e, SocketError::Hangup), "{e}"),
        }
    }
    assert!(matches!(a.send(b"x", &[]), Err(SocketError::Hangup)));
}

#[test]
fn connecting_before_anybody_listens_is_not_yet_and_says_why() {
    let place = Place::new();
    let dir = place.dir();
    let why = || match Conn::connect(&dir, "s") {
        Err(ConnectError::NotYet { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    assert!(why().contains("no socket"));
    let listener = Listener::bind(&dir, "s").unwrap();
    let mut waiting = Vec::new();
    while let Ok(conn) = Conn::connect(&dir, "s") {
        waiting.push(conn);
    }
    assert!(waiting.len() > 100);
    assert!(why().contains("does not accept"));
    drop(listener);
    assert!(why().contains("owner is gone"));
    // Another kind of socket is not ours to wait for.
    dir.remove("s").unwrap();
    let _stream = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
    let error = Conn::connect(&dir, "s").unwrap_err();
    assert!(matches!(error, ConnectError::Os(_)), "{error}");
}

#[test]
fn a_successor_takes_the_name_over_and_keeps_it() {
    let place = Place::new();
    let dir = place.dir();
    let mut old = Listener::bind(&dir, "s").unwrap();
    old.unlink_on_drop(true);
    assert!(old.is_current().unwrap());
    let mut new = Listener::bind(&dir, "s").unwrap();
    assert!(!old.is_current().unwrap() && new.is_current().unwrap());
    drop(old);
    let _both = connected(&dir, &new, "s");
    // A child that drops its copy removes nothing.
    new.unlink_on_drop(true);
    let mut new = Some(new);
    Child::fork(|| drop(new.take())).succeed();
    assert_eq!(dir.list("").unwrap(), ["s"]);
    drop(new);
    assert_eq!(dir.list("").unwrap(), [""; 0]);
}

#[test]
fn a_path_longer_than_an_address_works_all_the_same() {
    let place = Place::new();
    let deep = place.path().join("x".repeat(100));
    std::fs::create_dir(&deep).unwrap();
    let dir = Dir::open(Some(&deep.join("d"))).unwrap();
    let file = format!("{}.sock", "n".repeat(64));
    let listener = Listener::bind(&dir, &file).unwrap();
    let (server, client) = connected(&dir, &listener, &file);
    client.send(b"x", &[]).unwrap();
    assert_eq!(server.recv(&mut [0; 4], 0, deadline()).unwrap().len, 1);
    assert!(Listener::bind(&dir, &"n".repeat(250)).is_err());
    assert_eq!(dir.list("").unwrap(), [file]);
}
