//! The producer's control thread: lets consumers in, notices when they go, mends what they left.
//!
//! It touches slot words, sockets and the queue of joins and leaves; never the publisher's shadow. It blocks all
//! signals, so that they reach the user's threads.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use arrayvec::ArrayString;
use forebay_layout::{
    control::{Control, FRAME_BYTES, Hello, Intent, RefuseCode, Welcome},
    header::{MAJOR, Object},
};
use forebay_os::{
    EventFd, OsError, fork,
    poll::{Events, poll_fds},
    signals,
    socket::{Conn, Listener, SocketError},
};

use super::{client, locks};
use crate::producer::site::{Seat, Site};

/// How long a guest may take for its next packet.
const PATIENCE: Duration = Duration::from_secs(1);
/// Connections served at a time, members included.
const MAX_GUESTS: usize = 96;
/// Connections accepted before those that are there are heard again: fewer than there are places beside the members'.
const ACCEPTED_AT_ONCE: usize = 32;
/// How often leaving and joining members are probed.
const TICK: Duration = Duration::from_millis(50);
/// How often all members are probed, in case a forked child keeps a dead one's socket open.
const ROUND: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Guest {
    conn: Conn,
    stage: Stage,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// Connected, said nothing.
    Silent { deadline: Instant },
    /// Has a welcome, has not said Ready.
    Joining { index: u8, deadline: Instant },
    /// Attached.
    Member { index: u8 },
    /// To be dropped.
    Over,
}

/// Runs until the site's stop bell rings. The guests' sockets close with it.
pub(crate) fn run(site: &Arc<Site>, listener: &Listener) {
    // A thread that cannot block signals still serves; they would only be delivered here.
    let _ = signals::block_all_signals_on_this_thread();
    let mut server = Server { site, guests: Vec::new(), round: Instant::now() };
    while server.step(listener) {}
}

struct Server<'a> {
    site: &'a Arc<Site>,
    guests: Vec<Guest>,
    round: Instant,
}

impl Server<'_> {
    fn step(&mut self, listener: &Listener) -> bool {
        let accepting = self.guests.len() < MAX_GUESTS || self.most_silent().is_some();
        let mut fds: Vec<(BorrowedFd<'_>, Events)> = vec![(self.site.stop.as_fd(), Events::READ)];
        fds.extend(self.guests.iter().map(|guest| (guest.conn.as_fd(), Events::READ)));
        if accepting {
            fds.push((listener.as_fd(), Events::READ));
        }
        let Ok(events) = poll_fds(&fds, Some(self.nap())) else {
            // Out of memory in the kernel: the next round may find it better.
            std::thread::sleep(TICK);
            return !self.site.is_over();
        };
        if !events[0].is_empty() || self.site.is_over() {
            return false;
        }
        for i in 0..self.guests.len() {
            if !events[1 + i].is_empty() {
                self.hear(i);
            }
        }
        if accepting && events.last().is_some_and(|events| !events.is_empty()) {
            self.accept(listener);
        }
        self.tick();
        true
    }

    fn nap(&self) -> Duration {
        let hurried = self.guests.iter().any(|guest| !matches!(guest.stage, Stage::Member { .. }));
        if hurried || self.site.any_leaving() { TICK } else { ROUND }
    }

    /// Lets in who is waiting. When all places for guests are taken, the one that has been silent longest makes room: who
    /// has something to say has said it long before its turn comes.
    fn accept(&mut self, listener: &Listener) {
        for _ in 0..ACCEPTED_AT_ONCE {
            if self.guests.len() >= MAX_GUESTS && !self.dismiss_most_silent() {
                return;
            }
            match listener.accept() {
                Ok(Some(conn)) => {
                    let deadline = Instant::now() + PATIENCE;
                    self.guests.push(Guest { conn, stage: Stage::Silent { deadline } });
                }
                Ok(None) => return,
                Err(_) => {
                    // No descriptor is left; the connection waits, and polling it would spin.
                    std::thread::sleep(TICK);
                    return;
                }
            }
        }
    }

    fn most_silent(&self) -> Option<usize> {
        let silent = self.guests.iter().enumerate().filter_map(|(i, guest)| match guest.stage {
            Stage::Silent { deadline } => Some((deadline, i)),
            _ => None,
        });
        silent.min().map(|(_, i)| i)
    }

    fn dismiss_most_silent(&mut self) -> bool {
        let found = self.most_silent();
        if let Some(i) = found {
            self.guests.remove(i);
        }
        found.is_some()
    }

    fn tick(&mut self) {
        let now = Instant::now();
        for guest in &mut self.guests {
            match guest.stage {
                Stage::Silent { deadline } if deadline <= now => guest.stage = Stage::Over,
                Stage::Joining { index, deadline } if deadline <= now => {
                    self.site.dismiss(index);
                    guest.stage = Stage::Over;
                }
                _ => {}
            }
        }
        self.guests.retain(|guest| !matches!(guest.stage, Stage::Over));
        let all = now.duration_since(self.round) >= ROUND;
        if all {
            self.round = now;
        }
        self.site.probe_members(all);
    }

    fn hear(&mut self, i: usize) {
        let guest = &mut self.guests[i];
        let mut buffer = [0; FRAME_BYTES];
        let message = match guest.conn.try_recv(&mut buffer, 0) {
            Ok(Some(received)) => client::decode(&buffer[..received.len]),
            Ok(None) => return,
            Err(_) => {
                // Hung up, or sent what no client sends: it leaves, or its lock byte says that it died.
                match guest.stage {
                    Stage::Joining { index, .. } => self.site.dismiss(index),
                    Stage::Member { index } => self.site.leaving(index),
                    _ => {}
                }
                guest.stage = Stage::Over;
                return;
            }
        };
        let next = match (self.guests[i].stage, message) {
            (Stage::Silent { .. }, Ok(Control::Hello(hello))) if self.is_here(&hello) => {
                // Its own connection says when a member goes; a second one would say so for it.
                refuse(&self.guests[i].conn, RefuseCode::Stranger, "that member is connected already; attach anew");
                Stage::Over
            }
            (Stage::Silent { .. }, Ok(Control::Hello(hello))) => greet(self.site, &self.guests[i].conn, &hello),
            (Stage::Joining { index, .. }, Ok(Control::Ready)) => admit(self.site, &self.guests[i].conn, index),
            (Stage::Member { index }, Ok(Control::Leave)) => {
                self.site.leaving(index);
                Stage::Over
            }
            (stage, message) => {
                match stage {
                    Stage::Joining { index, .. } => self.site.dismiss(index),
                    // A member that talks nonsense loses its connection and nothing else.
                    Stage::Member { index } => self.site.leaving(index),
                    _ => {}
                }
                let reason = match message {
                    Err(defect) => defect.to_string(),
                    Ok(_) => "this packet does not belong here".to_owned(),
                };
                refuse(&self.guests[i].conn, RefuseCode::Version, &reason);
                Stage::Over
            }
        };
        self.guests[i].stage = next;
    }
}

impl Server<'_> {
    /// Whether somebody asks to go on as a member that has a connection.
    fn is_here(&self, hello: &Hello) -> bool {
        let Intent::Rejoin { index, .. } = hello.intent else { return false };
        self.guests.iter().any(|guest| matches!(guest.stage, Stage::Member { index: own } if u32::from(own) == index))
    }
}

fn refuse(conn: &Conn, code: RefuseCode, reason: &str) {
    let mut text = ArrayString::new();
    for c in reason.chars() {
        if text.try_push(c).is_err() {
            break;
        }
    }
    // A peer that does not listen does not get an answer.
    let _ = client::send(conn, &Control::Refuse(code, text), &[]);
}

fn greet(site: &Arc<Site>, conn: &Conn, hello: &Hello) -> Stage {
    let refused = |code, reason: String| {
        refuse(conn, code, &reason);
        Stage::Over
    };
    match conn.peer() {
        Ok(peer) if site.dir.trust().accepts(peer.uid) => {}
        Ok(peer) => {
            let reason = format!("uid {} is not allowed here; run both sides as one user", peer.uid);
            return refused(RefuseCode::User, reason);
        }
        Err(e) => return refused(RefuseCode::Failed, e.to_string()),
    }
    if hello.layout_major != MAJOR {
        let reason = format!(
            "the producer writes layout {MAJOR}, this client reads {}; update the older side",
            hello.layout_major
        );
        return refused(RefuseCode::Version, reason);
    }
    if hello.ring.as_str() != site.ring {
        let reason = format!("this is ring {:?}, not {:?}", site.ring, hello.ring.as_str());
        return refused(RefuseCode::Ring, reason);
    }
    // An observer neither sleeps in the ring nor wakes anybody.
    if !hello.membarrier && hello.intent != Intent::Observe {
        site.require_fences();
    }
    match hello.intent {
        Intent::Attach => match seat(site, conn, hello) {
            Ok(stage) => stage,
            Err((code, reason)) => refused(code, reason),
        },
        Intent::Rejoin { instance, index, incarnation } => {
            let index = index as u8;
            let known = site.objects.header.instance == instance && site.returned(index, incarnation as u16);
            if !known {
                return refused(RefuseCode::Stranger, "this ring does not know that member; attach anew".to_owned());
            }
            match rejoin(site, conn, index, incarnation) {
                Ok(()) => Stage::Member { index },
                Err(reason) => refused(RefuseCode::Failed, reason),
            }
        }
        Intent::Observe => {
            // One answer, and the connection is over.
            if let Err(e) = show(site, conn) {
                refuse(conn, RefuseCode::Failed, &e);
            }
            Stage::Over
        }
    }
}

fn welcome(site: &Site, index: u8, incarnation: u32) -> Control {
    Control::Welcome(Welcome {
        instance: site.objects.header.instance,
        epoch: site.epoch,
        index: index.into(),
        incarnation,
        lock_byte: locks::member_byte(index),
        producer_byte: locks::PRODUCER_BYTE,
    })
}

/// Finds a place for a new member and sends it everything it needs.
fn seat(site: &Arc<Site>, conn: &Conn, hello: &Hello) -> Result<Stage, (RefuseCode, String)> {
    let failed = |e: OsError| (RefuseCode::Failed, e.to_string());
    let found = site.find_seat(hello).or_else(|| {
        // Who died may not have hung up yet: somebody else may hold its socket.
        site.probe_members(true);
        site.find_seat(hello)
    });
    let Some(Seat { index, incarnation }) = found else {
        let most = site.objects.header.geometry.max_consumers;
        return Err((
            RefuseCode::Full,
            format!("all {most} places are taken; close a consumer, or create the ring with more max_consumers"),
        ));
    };
    let sent = send_all(site, conn, index, incarnation).map_err(failed);
    match sent {
        Ok(true) => Ok(Stage::Joining { index, deadline: Instant::now() + PATIENCE }),
        Ok(false) => {
            site.dismiss(index);
            Ok(Stage::Over)
        }
        Err(e) => {
            site.dismiss(index);
            Err(e)
        }
    }
}

fn send_all(site: &Site, conn: &Conn, index: u8, incarnation: u16) -> Result<bool, OsError> {
    let geometry = &site.objects.header.geometry;
    let members = if site.objects.pool.is_some() { Object::Pool } else { Object::Member(index) };
    let bell = EventFd::new()?;
    let file = site.locks.file(index);
    let probe: OwnedFd = file.probe_fd()?;
    let ring = site.objects.grant(Object::Ring, false)?;
    let data = site.objects.grant(Object::Data, geometry.writable)?;
    let members = site.objects.grant(members, true)?;
    // From the lock until our copy of its descriptor is closed, nobody forks (liveness, H3).
    let inside = fork::critical();
    let Some(lock) = file.try_lock(locks::member_byte(index))? else {
        return Ok(false);
    };
    let sent = client::send(
        conn,
        &welcome(site, index, incarnation.into()),
        &[ring, data, members, lock.as_fd(), probe.as_fd(), bell.as_fd()],
    );
    drop(lock);
    drop(inside);
    match sent {
        Ok(()) => {
            site.keep_bell(index, bell);
            Ok(true)
        }
        Err(SocketError::Os(e)) => Err(e),
        Err(_) => Ok(false),
    }
}

fn admit(site: &Arc<Site>, conn: &Conn, index: u8) -> Stage {
    if !site.locks.is_held(index) {
        refuse(conn, RefuseCode::Failed, "the lock byte is not held; receive its descriptor and map it before Ready");
        site.dismiss(index);
        return Stage::Over;
    }
    site.admitted(index);
    match client::send(conn, &Control::Admitted, &[]) {
        Ok(()) => Stage::Member { index },
        Err(_) => {
            site.leaving(index);
            Stage::Over
        }
    }
}

fn rejoin(site: &Arc<Site>, conn: &Conn, index: u8, incarnation: u32) -> Result<(), String> {
    let bell = EventFd::new().map_err(|e| e.to_string())?;
    client::send(conn, &welcome(site, index, incarnation), &[bell.as_fd()]).map_err(|e| e.to_string())?;
    site.keep_bell(index, bell);
    Ok(())
}

fn show(site: &Site, conn: &Conn) -> Result<(), String> {
    let ring = site.objects.grant(Object::Ring, false).map_err(|e| e.to_string())?;
    let mut fds = vec![ring];
    let probes: Vec<OwnedFd> = site.observed_probes().collect::<Result<_, _>>().map_err(|e: OsError| e.to_string())?;
    fds.extend(probes.iter().map(AsFd::as_fd));
    fds.extend(site.objects.observed());
    client::send(conn, &welcome(site, 0, 0), &fds).map_err(|e| e.to_string())
}
