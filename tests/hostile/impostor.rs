//! A producer that lies in its handshake: it stands between a consumer and an honest producer in another directory, and
//! changes what it passes on.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use forebay::{Consumer, Producer};
use forebay_layout::control::{Control, FRAME_BYTES, Frame, Intent};
use forebay_os::{Conn, Dir, Listener, LockFile, SocketError, poll};
use forebay_testkit::{Place, WATCHDOG, ledger::publish, watchdog::until};

use crate::{
    control::{bytes, frame, hello},
    header::attached,
    messages,
    rig::Outcome,
    stage::attach,
};

/// Which packet is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Welcome,
    Admitted,
}

/// An honest producer and the place in which somebody else pretends to be it.
#[derive(Debug)]
pub(crate) struct Impostor {
    honest: Place,
    posing: Place,
    producer: std::cell::RefCell<Producer>,
    listener: Listener,
}

impl Impostor {
    pub(crate) fn new(create: impl FnOnce(&Place) -> Producer) -> Self {
        let (honest, posing) = (Place::new(), Place::new());
        let producer = create(&honest);
        let dir = Dir::open(Some(posing.path())).unwrap();
        let listener = Listener::bind(&dir, &format!("{}.sock", producer.ring())).unwrap();
        Self { honest, posing, producer: producer.into(), listener }
    }

    fn ring(&self) -> String {
        self.producer.borrow().ring().to_owned()
    }

    /// A welcome of the honest producer, to see what stands in it.
    pub(crate) fn welcome(&self) -> Control {
        let dir = Dir::open(Some(self.honest.path())).unwrap();
        let conn = Conn::connect(&dir, &format!("{}.sock", self.ring())).unwrap();
        conn.send(&bytes(&hello(&self.ring(), Intent::Attach).encode()), &[]).unwrap();
        crate::control::answer(&conn).unwrap().0
    }

    /// A consumer attaches by way of the impostor, which changes the packet of `step` and the descriptors with it. If it
    /// gets in, it receives what is published then.
    pub(crate) fn attach(&self, step: Step, change: impl FnOnce(&mut Frame, &mut Vec<OwnedFd>) + Send) -> Outcome {
        let ring = self.ring();
        let options = attach(&self.posing, &ring).timeout(Some(Duration::ZERO));
        thread::scope(|scope| {
            let (done, over) = mpsc::channel::<()>();
            let honest = Dir::open(Some(self.honest.path())).unwrap();
            let (listener, file) = (&self.listener, format!("{ring}.sock"));
            let relay = scope.spawn(move || relay(listener, &honest, &file, step, change, &over));
            let attached_now = options.attach();
            let outcome = match attached_now {
                Ok(mut consumer) => {
                    let mut producer = self.producer.borrow_mut();
                    let _ = publish(&mut producer, 8);
                    messages::receive(&mut consumer)
                }
                Err(e) => attached(&e),
            };
            drop(done);
            relay.join().unwrap();
            outcome
        })
    }

    /// Somebody looks at the ring by way of the impostor, which changes the welcome, as often as it is asked.
    pub(crate) fn look(&self, change: impl Fn(&mut Frame, &mut Vec<OwnedFd>) + Sync) -> Outcome {
        let ring = self.ring();
        let posing = Dir::open(Some(self.posing.path())).unwrap();
        // Only who has the name's lock is asked. Nobody else wants it; but a process that another test is starting may
        // have the descriptor of the look before until it has become its program, and the lock with it.
        let lock = LockFile::create_or_open(&posing, &format!("{ring}.lock")).unwrap();
        let mut held = None;
        until("the lock of the name is free", || {
            held = lock.try_lock(0).unwrap();
            held.is_some()
        });
        let over = AtomicBool::new(false);
        let (listener, honest) = (&self.listener, Dir::open(Some(self.honest.path())).unwrap());
        let (over, file, change) = (&over, format!("{ring}.sock"), &change);
        thread::scope(|scope| {
            scope.spawn(move || {
                while !over.load(Ordering::Acquire) {
                    let Ok(Some(observer)) = listener.accept() else {
                        let _ = poll::poll_one(listener.as_fd(), poll::Events::READ, Some(Duration::from_millis(1)));
                        continue;
                    };
                    let producer = Conn::connect(&honest, &file).unwrap();
                    let (hello, _) = received(&observer).unwrap();
                    producer.send(&hello, &[]).unwrap();
                    let (welcome, mut fds) = received(&producer).unwrap();
                    let mut welcome = frame(&welcome).unwrap();
                    change(&mut welcome, &mut fds);
                    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                    let _ = observer.send(&bytes(&welcome), &fds);
                }
            });
            let found = forebay::inspect::list(Some(self.posing.path())).unwrap();
            over.store(true, Ordering::Release);
            match found.into_iter().find(|report| report.name == ring).unwrap().view {
                Ok(_) => Outcome::Harmless,
                Err(why) => Outcome::Refused(why),
            }
        })
    }

    /// A consumer attaches, and is never told that it is admitted.
    pub(crate) fn silent(&self) -> Outcome {
        match self.with_server(pass_welcome, |_| ()) {
            Ok(()) => Outcome::Damage("it attached".to_owned()),
            Err(e) => attached(&e),
        }
    }

    /// A consumer attaches; when it has said that it is ready, and before its producer hears of it, `look` runs.
    pub(crate) fn at_ready<R>(
        &self,
        look: impl FnOnce() + Send,
        then: impl FnOnce(&mut Consumer) -> R,
    ) -> Result<R, forebay::AttachError> {
        self.with_server(
            |consumer, producer| {
                pass_welcome(consumer, producer);
                let (ready, _) = received(consumer).unwrap();
                look();
                producer.send(&ready, &[]).unwrap();
                let (admitted, _) = received(producer).unwrap();
                consumer.send(&admitted, &[]).unwrap();
            },
            then,
        )
    }

    /// The object of the honest ring with this name.
    pub(crate) fn object(&self, part: &str) -> std::path::PathBuf {
        self.honest.object(&self.ring(), part)
    }

    /// Consumers that the honest producer counts.
    pub(crate) fn consumers(&self) -> usize {
        self.producer.borrow().consumers()
    }

    /// Ends it without a message: its memory is gone.
    pub(crate) fn discard(self) {
        self.producer.into_inner().discard();
    }

    /// A consumer attaches; then the server says things that belong nowhere, while `then` uses the consumer.
    pub(crate) fn talks_on(&self, then: impl FnOnce(&mut Consumer)) {
        let (said, heard) = mpsc::channel();
        let attached = self.with_server(
            |consumer, producer| {
                pass_welcome(consumer, producer);
                let (ready, _) = received(consumer).unwrap();
                producer.send(&ready, &[]).unwrap();
                let (admitted, _) = received(producer).unwrap();
                consumer.send(&admitted, &[]).unwrap();
                for _ in 0..3 {
                    consumer.send(&bytes(&Control::Admitted.encode()), &[]).unwrap();
                }
                said.send(()).unwrap();
            },
            |consumer| {
                heard.recv_timeout(WATCHDOG).unwrap();
                then(consumer);
            },
        );
        attached.unwrap();
    }

    /// A consumer attaches to who does `serve` with its connection and one to the honest producer, which both stay
    /// until `then` has run.
    fn with_server<R>(
        &self,
        serve: impl FnOnce(&Conn, &Conn) + Send,
        then: impl FnOnce(&mut Consumer) -> R,
    ) -> Result<R, forebay::AttachError> {
        let ring = self.ring();
        let options = attach(&self.posing, &ring).timeout(Some(Duration::ZERO));
        thread::scope(|scope| {
            let (done, over) = mpsc::channel::<()>();
            let (listener, place) = (&self.listener, self.honest.path());
            let file = format!("{ring}.sock");
            scope.spawn(move || {
                poll::poll_one(listener.as_fd(), poll::Events::READ, Some(WATCHDOG)).unwrap();
                let consumer = listener.accept().unwrap().unwrap();
                let producer = Conn::connect(&Dir::open(Some(place)).unwrap(), &file).unwrap();
                serve(&consumer, &producer);
                let _ = over.recv();
            });
            let attached = options.attach().map(|mut consumer| then(&mut consumer));
            drop(done);
            attached
        })
    }

    pub(crate) fn end(self) {
        let Self { honest, producer, .. } = self;
        let mut producer = producer.into_inner();
        crate::control::serves(&honest, &mut producer).unwrap();
        producer.discard();
    }
}

fn received(conn: &Conn) -> Result<(Vec<u8>, Vec<OwnedFd>), SocketError> {
    let mut buffer = [0; FRAME_BYTES];
    let received = conn.recv(&mut buffer, 64, Some(Instant::now() + WATCHDOG))?;
    Ok((buffer[..received.len].to_vec(), received.fds))
}

fn pass_welcome(consumer: &Conn, producer: &Conn) {
    let (hello, _) = received(consumer).unwrap();
    producer.send(&hello, &[]).unwrap();
    let (welcome, fds) = received(producer).unwrap();
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    consumer.send(&welcome, &fds).unwrap();
}

/// One handshake, passed on. Ends when either side does, or the test is over.
fn relay(
    listener: &Listener,
    honest: &Dir,
    file: &str,
    step: Step,
    change: impl FnOnce(&mut Frame, &mut Vec<OwnedFd>),
    over: &mpsc::Receiver<()>,
) {
    poll::poll_one(listener.as_fd(), poll::Events::READ, Some(WATCHDOG)).unwrap();
    let consumer = listener.accept().unwrap().unwrap();
    let producer = Conn::connect(honest, file).unwrap();
    let mut change = Some(change);
    for now in [Step::Welcome, Step::Admitted] {
        let Ok((asked, _)) = received(&consumer) else { return };
        producer.send(&asked, &[]).unwrap();
        let Ok((answer, mut fds)) = received(&producer) else { return };
        let mut answer = frame(&answer).unwrap();
        if now == step {
            change.take().unwrap()(&mut answer, &mut fds);
        }
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        if consumer.send(&bytes(&answer), &fds).is_err() {
            return;
        }
    }
    // The connection stays as long as the consumer may want it.
    let _ = over.recv();
}
