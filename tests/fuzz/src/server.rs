//! A producer's side of the rendezvous socket that says whatever it is told to, to real consumers.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use forebay_layout::control::{Control, FRAME_BYTES};
use forebay_os::{
    Dir, EventFd,
    poll::{Events, poll_fds},
    socket::{Conn, Listener},
};
use forebay_testkit::Place;

/// The name of the ring that it pretends to serve.
pub(crate) const RING: &str = "fuzz";
/// Longer than any answer takes on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// One answer: a packet, and descriptors with it.
pub(crate) type Answer = (Vec<u8>, Vec<OwnedFd>);

/// A thread that accepts connections, one after the other.
pub(crate) struct Server {
    pub(crate) place: Place,
    scripts: Sender<Vec<Answer>>,
    over: Arc<EventFd>,
    ended: Receiver<()>,
}

impl Server {
    /// Listens in a directory of its own.
    pub(crate) fn start() -> Self {
        let place = Place::new();
        let dir = Dir::open(Some(place.path())).unwrap();
        let listener = Listener::bind(&dir, &format!("{RING}.sock")).unwrap();
        let (scripts, todo) = channel();
        let (done, ended) = channel();
        let over = Arc::new(EventFd::new().unwrap());
        let bell = Arc::clone(&over);
        thread::spawn(move || {
            for answers in todo {
                serve(&listener, answers, &bell);
                if done.send(()).is_err() {
                    return;
                }
            }
        });
        Self { place, scripts, over, ended }
    }

    /// Runs `client` while each packet it sends is answered by the next of `answers`. When these are used up, the
    /// connection is closed; the last one stays open until `client` returns.
    pub(crate) fn with<R>(&self, answers: Vec<Answer>, client: impl FnOnce() -> R) -> R {
        self.scripts.send(answers).unwrap();
        let result = client();
        self.over.signal();
        self.ended.recv_timeout(SOON).unwrap();
        result
    }
}

fn serve(listener: &Listener, answers: Vec<Answer>, over: &EventFd) {
    let mut answers = answers.into_iter();
    let mut conn: Option<Conn> = None;
    loop {
        let peer = conn.as_ref().map_or(listener.as_fd(), |conn| conn.as_fd());
        let events = poll_fds(&[(over.as_fd(), Events::READ), (peer, Events::READ)], None).unwrap();
        if !events[0].is_empty() {
            over.drain();
            return;
        }
        match &conn {
            None => conn = listener.accept().unwrap(),
            Some(guest) => {
                let heard = guest.try_recv(&mut [0; FRAME_BYTES], 0);
                let answered = match heard {
                    Ok(None) => true,
                    Ok(Some(_)) => answers.next().is_some_and(|answer| say(guest, &answer)),
                    Err(_) => false,
                };
                if !answered {
                    conn = None;
                }
            }
        }
    }
}

fn say(conn: &Conn, (bytes, fds): &Answer) -> bool {
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
    conn.send(bytes, &fds).is_ok()
}

/// A packet's bytes.
pub(crate) fn packet(message: &Control) -> Vec<u8> {
    message.encode().iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// When an answer has to be there.
pub(crate) fn deadline() -> Option<Instant> {
    Some(Instant::now() + SOON)
}
