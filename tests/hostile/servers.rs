//! Somebody who listens where a producer should, and is none: silent, garbled, half done, or too talkative.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use forebay::AttachError;
use forebay_layout::control::{Control, FRAME_BYTES, Intent};
use forebay_os::{Conn, Dir, Listener, poll};
use forebay_testkit::{Place, WATCHDOG, watchdog::until};

use crate::{
    control::{bytes, hello},
    header::attached,
    impostor::{Impostor, Step},
    rig::{
        Book,
        Expect::{Either, Refused},
        Outcome,
    },
    stage::{attach, here},
};

const RING: &str = "false";

/// A consumer attaches to who does this with its connection.
fn meet(act: impl FnOnce(&Conn) + Send) -> Result<(), AttachError> {
    let place = Place::new();
    let listener = Listener::bind(&Dir::open(Some(place.path())).unwrap(), &format!("{RING}.sock")).unwrap();
    thread::scope(|scope| {
        let (done, over) = mpsc::channel::<()>();
        scope.spawn(move || {
            poll::poll_one(listener.as_fd(), poll::Events::READ, Some(WATCHDOG)).unwrap();
            let conn = listener.accept().unwrap().unwrap();
            act(&conn);
            let _ = over.recv();
        });
        let result = attach(&place, RING).timeout(Some(Duration::ZERO)).attach().map(drop);
        drop(done);
        result
    })
}

fn outcome(result: Result<(), AttachError>) -> Outcome {
    match result {
        Ok(()) => Outcome::Damage("it attached".to_owned()),
        Err(e) => attached(&e),
    }
}

fn listened(conn: &Conn) {
    let _ = conn.recv(&mut [0; FRAME_BYTES], 0, Some(Instant::now() + WATCHDOG));
}

/// The hello's deadline is a second. Of three tries one is to be near it, on a machine that does other things.
///
/// Went wrong: it took two, one of them with every fork of the process held up.
#[test]
fn a_server_that_says_nothing_is_given_a_second() {
    let mut tries = Vec::new();
    for _ in 0..3 {
        let start = Instant::now();
        let error = meet(|_| {}).unwrap_err();
        let took = start.elapsed();
        assert!(matches!(error, AttachError::Silent { .. }), "{error}");
        assert!(error.to_string().contains("connected but silent"), "{error}");
        assert!(took >= Duration::from_secs(1), "{took:?}");
        tries.push(took);
        if took < Duration::from_millis(1900) {
            return;
        }
    }
    panic!("a second's patience lasted {tries:?}");
}

#[test]
fn what_is_no_welcome_is_refused() {
    let mut book = Book::new("servers");
    let garbage = vec![0xa5; 100_000];
    for length in [1, 8, 511, 512, 513, 100_000] {
        book.lie("answer", &format!("{length} bytes of garbage"), Either(&["control.", "did not fit"]), || {
            outcome(meet(|conn| {
                listened(conn);
                conn.send(&garbage[..length], &[]).unwrap();
            }))
        });
    }
    for packet in [Control::Ready, Control::Admitted, Control::Leave, hello(RING, Intent::Attach)] {
        book.lie("answer", "another packet", Refused(&["control.type"]), || {
            outcome(meet(|conn| {
                listened(conn);
                conn.send(&bytes(&packet.encode()), &[]).unwrap();
            }))
        });
    }
    book.lie("answer", "none, and hangs up", Either(&[]), || {
        // The connection ends with the listener's thread.
        let place = Place::new();
        let listener = Listener::bind(&Dir::open(Some(place.path())).unwrap(), &format!("{RING}.sock")).unwrap();
        let server = thread::spawn(move || {
            poll::poll_one(listener.as_fd(), poll::Events::READ, Some(WATCHDOG)).unwrap();
            drop(listener.accept());
        });
        let result = attach(&place, RING).timeout(Some(Duration::ZERO)).attach().map(drop);
        server.join().unwrap();
        outcome(result)
    });
    book.close();
}

#[test]
fn half_a_handshake_is_an_error_within_its_deadline() {
    let impostor = Impostor::new(|place| here(place, RING).create().unwrap());
    let mut book = Book::new("half a handshake");
    let nothing = |_: &mut _, fds: &mut Vec<OwnedFd>| fds.clear();
    book.lie("welcome", "without what belongs to it", Refused(&["welcome.descriptors"]), || {
        impostor.attach(Step::Welcome, nothing)
    });
    book.lie("admitted", "a welcome instead", Either(&["control.type"]), || {
        let welcome = impostor.welcome().encode();
        match impostor.attach(Step::Admitted, |frame, _| *frame = welcome) {
            Outcome::Harmless => Outcome::Damage("a second welcome was taken for an admission".to_owned()),
            other => other,
        }
    });
    book.lie("admitted", "never", Refused(&["connected but silent"]), || impostor.silent());
    book.close();
    impostor.end();
}

/// Went wrong: the descriptor for event loops was readable for ever, and whoever polled it never slept again.
#[test]
fn a_server_that_talks_after_the_handshake_does_not_keep_an_event_loop_busy() {
    let impostor = Impostor::new(|place| here(place, RING).create().unwrap());
    impostor.talks_on(|consumer| {
        let fd = consumer.fileno().unwrap();
        until("an event loop that sleeps", || {
            assert!(consumer.try_recv().unwrap().is_none());
            !readable(fd)
        });
    });
    impostor.end();
}

/// Bytes of the slots that this process has mapped to read: what is in its page tables.
fn resident() -> u64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut ours, mut bytes) = (false, 0);
    for line in maps.lines() {
        if line.contains("r--s") {
            ours = line.contains(&format!(".{POPULATED}.data"));
        } else if let (true, Some(rss)) = (ours, line.strip_prefix("Rss:")) {
            bytes += rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
            ours = false;
        }
    }
    bytes
}

const POPULATED: &str = "populated";

/// Went wrong: a consumer populated its mappings before it said that it was ready, and with a ring of some 20 GiB never
/// was within the second that it has.
#[test]
fn what_takes_long_is_done_once_the_server_has_heard_that_its_consumer_is_ready() {
    let impostor = Impostor::new(|place| here(place, POPULATED).create().unwrap());
    let look = || assert_eq!(resident(), 0, "populated before it was ready");
    let (found, expected) = impostor.at_ready(look, |consumer| (resident(), consumer.data_range().len())).unwrap();
    assert_eq!(found, expected as u64);
    impostor.end();
}

/// Its memory is gone by then: the consumer leaves its place again.
#[test]
fn a_consumer_that_cannot_populate_its_mappings_leaves() {
    let impostor = Impostor::new(|place| here(place, "emptied").create().unwrap());
    let data = std::fs::OpenOptions::new().write(true).open(impostor.object("data")).unwrap();
    let truncate = || {
        data.set_len(0).unwrap();
    };
    let error = impostor.at_ready(truncate, |_| ()).unwrap_err();
    assert!(matches!(error, AttachError::Os(_)) && error.to_string().contains("truncated"), "{error}");
    until("its place is free again", || impostor.consumers() == 0);
    impostor.discard();
}

/// Whether a descriptor of this process is readable now.
#[allow(unsafe_code, reason = "poll by number: the consumer lends its descriptor as one")]
fn readable(fd: i32) -> bool {
    let mut set = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd for the length of the call.
    let found = unsafe { libc::poll(&raw mut set, 1, 0) };
    found > 0
}

#[test]
fn a_server_that_accepts_nobody_is_not_there_yet() {
    let place = Place::new();
    let dir = Dir::open(Some(place.path())).unwrap();
    let _listener = Listener::bind(&dir, &format!("{RING}.sock")).unwrap();
    let mut waiting = Vec::new();
    let why = loop {
        match Conn::connect(&dir, &format!("{RING}.sock")) {
            Ok(conn) => waiting.push(conn),
            Err(e) => break e.to_string(),
        }
    };
    assert!(why.contains("does not accept"), "{why}");
    let error = attach(&place, RING).timeout(Some(Duration::ZERO)).attach().unwrap_err();
    assert!(matches!(error, AttachError::NotThere { .. }) && error.to_string().contains("does not accept"), "{error}");
}
