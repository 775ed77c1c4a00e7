//! The loop: what falls due is sent, what comes is counted.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use rustix::{
    event::{Timespec, epoll},
    fd::OwnedFd,
};
use serde_json::Value;

use crate::{
    connection::{Connection, Outcome},
    tally::Tally,
};

/// What to do.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) address: SocketAddr,
    pub(crate) requests: Vec<Vec<u8>>,
    pub(crate) connections: usize,
    pub(crate) rate: Option<f64>,
    pub(crate) warmup: Duration,
    pub(crate) measured: Duration,
    pub(crate) patience: Duration,
    pub(crate) expect: Option<Vec<u8>>,
}

struct Run<'p> {
    plan: &'p Plan,
    poll: OwnedFd,
    connections: Vec<Connection>,
    idle: Vec<usize>,
    /// When those fell due that no connection was free for.
    due: VecDeque<Instant>,
    next_request: usize,
    /// Only what falls due in between is counted.
    counted_from: Instant,
    counted_to: Instant,
    tally: Tally,
}

/// Does it; the JSON is [`Tally::answer`].
pub(crate) fn run(plan: &Plan) -> io::Result<Value> {
    let now = Instant::now();
    let mut run = Run {
        plan,
        poll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        connections: Vec::new(),
        idle: Vec::new(),
        due: VecDeque::new(),
        next_request: 0,
        counted_from: now,
        counted_to: now,
        tally: Tally::new().map_err(io::Error::other)?,
    };
    for _ in 0..plan.connections {
        run.connect()?;
    }
    // A server that is slow to accept them (a short backlog costs a second) has not been asked for anything yet.
    let begin = Instant::now();
    run.counted_from = begin + plan.warmup;
    run.counted_to = run.counted_from + plan.measured;
    run.until_the_end(begin)?;
    Ok(run.tally.answer(plan.measured, plan.rate))
}

impl Run<'_> {
    fn until_the_end(&mut self, begin: Instant) -> io::Result<()> {
        let mut random = fastrand::Rng::with_seed(7);
        let mut gap = move |rate: f64| Duration::from_secs_f64(-(1.0 - random.f64()).ln() / rate);
        let mut next = self.plan.rate.map(|rate| begin + gap(rate));
        let give_up = self.counted_to + self.plan.patience;
        let mut events = Vec::with_capacity(256);
        loop {
            let now = Instant::now();
            let over = now >= self.counted_to;
            if over && (now >= give_up || (self.due.is_empty() && self.idle.len() == self.connections.len())) {
                break;
            }
            if over {
                next = None;
            }
            while let (Some(at), Some(rate)) = (next, self.plan.rate) {
                if at > now {
                    break;
                }
                self.due.push_back(at);
                next = Some(at + gap(rate));
            }
            self.hand_out(now, over)?;
            self.tally.most_waiting = self.tally.most_waiting.max(self.due.len());
            let until = next.unwrap_or(give_up).min(if over { give_up } else { self.counted_to });
            let wait = until.saturating_duration_since(Instant::now());
            let wait = Timespec { tv_sec: wait.as_secs().cast_signed(), tv_nsec: i64::from(wait.subsec_nanos()) };
            events.clear();
            match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                self.ready(event.data.u64() as usize, event.flags)?;
            }
        }
        let counted = |due: &Instant| (self.counted_from..self.counted_to).contains(due);
        let under_way = self.connections.iter().filter_map(|connection| connection.under_way.map(|(_, _, due)| due));
        self.tally.unanswered =
            (under_way.filter(counted).count() + self.due.iter().filter(|due| counted(due)).count()) as u64;
        Ok(())
    }

    /// What is due goes to connections that are free; in a closed loop, all that are free ask again.
    fn hand_out(&mut self, now: Instant, over: bool) -> io::Result<()> {
        while let Some(&index) = self.idle.last() {
            let due = match self.plan.rate {
                Some(_) => self.due.pop_front(),
                None => (!over).then_some(now),
            };
            let Some(due) = due else { break };
            self.idle.pop();
            self.connections[index].begin(self.next_request, due);
            self.next_request = (self.next_request + 1) % self.plan.requests.len();
            self.go_on_sending(index)?;
        }
        Ok(())
    }

    fn ready(&mut self, index: usize, flags: epoll::EventFlags) -> io::Result<()> {
        if self.connections[index].under_way.is_none() {
            // Writable, which is no news; or closed by the server while nothing was asked of it.
            let closed = epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
            return if flags.intersects(closed) { self.connect_again(index) } else { Ok(()) };
        }
        match self.connections[index].receive(self.plan.expect.as_deref()) {
            Ok(Some((outcome, kept))) => {
                self.done(index, outcome);
                if kept { Ok(()) } else { self.connect_again(index) }
            }
            Ok(None) => self.go_on_sending(index),
            Err(_) => self.broken(index),
        }
    }

    fn go_on_sending(&mut self, index: usize) -> io::Result<()> {
        match self.connections[index].send(&self.plan.requests) {
            Ok(_) => Ok(()),
            Err(_) => self.broken(index),
        }
    }

    fn broken(&mut self, index: usize) -> io::Result<()> {
        self.done(index, Outcome::Broken);
        self.connect_again(index)
    }

    fn done(&mut self, index: usize, outcome: Outcome) {
        if let Some((_, _, due)) = self.connections[index].under_way.take() {
            if (self.counted_from..self.counted_to).contains(&due) {
                self.tally.count(outcome, due.elapsed());
            }
            self.idle.push(index);
        }
    }

    fn connect(&mut self) -> io::Result<()> {
        let index = self.connections.len();
        let connection = Connection::open(self.plan.address)?;
        self.watch(&connection, index)?;
        self.connections.push(connection);
        self.idle.push(index);
        Ok(())
    }

    fn connect_again(&mut self, index: usize) -> io::Result<()> {
        let connection = Connection::open(self.plan.address)?;
        self.watch(&connection, index)?;
        self.connections[index] = connection; // the old one leaves the poll as it is closed
        Ok(())
    }

    fn watch(&self, connection: &Connection, index: usize) -> io::Result<()> {
        let all = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        Ok(epoll::add(&self.poll, &connection.stream, epoll::EventData::new_u64(index as u64), all)?)
    }
}
