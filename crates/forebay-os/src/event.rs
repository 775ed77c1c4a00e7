//! Event counters, epoll sets and timers: what a foreign event loop can wait for.
//!
//! All are CLOEXEC and made non-blocking; a counter that a peer shares may be made blocking by that peer. An [`Epoll`] is
//! replaced by an inert descriptor in a forked child (see [`crate::fork`]), because changing it there would change the
//! parent's set.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::error::retry;
use crate::own::OwnFd;
use crate::{OsError, Result, clock, fork};

/// A counter that is readable once somebody signalled it.
#[derive(Debug)]
pub struct EventFd(OwnFd);

impl EventFd {
    /// A new counter at zero.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn new() -> Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fd = eventfd(0, flags).map_err(|e| OsError::new("eventfd", "a new counter", e))?;
        Ok(Self(OwnFd::new(fd)))
    }

    /// A counter received from a peer.
    ///
    /// The descriptor is a claim. Files, pipes and sockets are refused (writing to a pipe may raise
    /// SIGPIPE); with anything else that is no counter, [`signal`](Self::signal) and
    /// [`drain`](Self::drain) just fail. It is made non-blocking here, which whoever shares it can undo: both ends have
    /// one file description. [`drain`](Self::drain) of a counter does not wait even then, from Linux 5.8 on;
    /// [`signal`](Self::signal) waits while such a peer keeps the counter full, and of something that is no counter both may
    /// wait.
    ///
    /// # Errors
    /// It is no kernel object without a file type, or cannot be made non-blocking.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let what = "a received event counter";
        let stat = rustix::fs::fstat(&fd).map_err(|e| OsError::new("fstat", what, e))?;
        if stat.st_mode & libc::S_IFMT != 0 {
            return Err(OsError::check(
                "fstat",
                what,
                format!("its file type is {:#o}, an event counter has none", stat.st_mode & libc::S_IFMT),
                "update both sides to the same version, or distrust that peer",
            ));
        }
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(|e| OsError::new("fcntl", what, e))?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)
            .map_err(|e| OsError::new("fcntl", what, e))?;
        Ok(Self(OwnFd::new(fd)))
    }

    /// Makes it readable. False if the descriptor is not a counter, or somebody closed it.
    ///
    /// Costs about a third of a microsecond when nobody waits. Hold no lock meanwhile that others need: see
    /// [`from_fd`](Self::from_fd).
    pub fn signal(&self) -> bool {
        let Ok(fd) = self.0.get("a counter") else { return false };
        match retry(|| rustix::io::write(fd, &1_u64.to_ne_bytes())) {
            // Full means that 2^64 - 2 signals wait already: it is readable, which is all we want.
            Ok(_) | Err(Errno::AGAIN) => true,
            Err(_) => false,
        }
    }

    /// Makes it unreadable. True if it had been signalled since the last time.
    pub fn drain(&self) -> bool {
        let Ok(fd) = self.0.get("a counter") else { return false };
        let mut count = [0_u8; 8];
        // Whoever shares the counter may have made it blocking. An offset of all ones is none, as for any stream.
        let now =
            retry(|| rustix::io::preadv2(fd, &mut [IoSliceMut::new(&mut count)], u64::MAX, ReadWriteFlags::NOWAIT));
        match now {
            Ok(n) => n > 0,
            Err(Errno::AGAIN) => false,
            // Before Linux 5.8 a counter cannot be asked that way, and what a peer calls a counter perhaps never.
            Err(_) => retry(|| rustix::io::read(fd, &mut count[..])).is_ok_and(|n| n > 0),
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<EventFd> for OwnedFd {
    fn from(event: EventFd) -> Self {
        event.0.into_fd()
    }
}

/// A set of descriptors that is itself one, readable while any of them is.
#[derive(Debug)]
pub struct Epoll(fork::ControlFd);

impl Epoll {
    /// A new, empty set.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn new() -> Result<Self> {
        let inside = fork::critical();
        let fd = epoll::create(CreateFlags::CLOEXEC).map_err(|e| OsError::new("epoll_create1", "a new set", e))?;
        Ok(Self(fork::ControlFd::new(fd, &inside)))
    }

    /// Adds `fd` under `id`: the set is readable while `fd` is, or while its other end is gone.
    ///
    /// # Errors
    /// The descriptor is in the set already or cannot be waited for.
    pub fn add(&self, fd: impl AsFd, id: u64) -> Result<()> {
        let flags = EventFlags::IN | EventFlags::RDHUP;
        epoll::add(&self.0, fd, EventData::new_u64(id), flags)
            .map_err(|e| OsError::new("epoll_ctl", format!("descriptor {id} of the set"), e))
    }

    /// Takes `fd` out of the set. One that is not in it is no error.
    ///
    /// # Errors
    /// The descriptor is not one that can be in a set.
    pub fn remove(&self, fd: impl AsFd) -> Result<()> {
        match epoll::delete(&self.0, fd) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(OsError::new("epoll_ctl", "a descriptor to remove", errno)),
        }
    }

    /// The ids that are ready, at most 16 at once, waiting up to `timeout` for the first.
    ///
    /// Empty means that the time is over or a signal came.
    ///
    /// # Errors
    /// None is known for a valid set.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Vec<u64>> {
        let empty = epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        let mut events = [empty; 16];
        let timeout = timeout.map(clock::timespec);
        match epoll::wait(&self.0, &mut events[..], timeout.as_ref()) {
            Ok(n) => Ok(events[..n].iter().map(|e| e.data.u64()).collect()),
            Err(Errno::INTR) => Ok(Vec::new()),
            Err(errno) => Err(OsError::new("epoll_wait", "a set", errno)),
        }
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A timer that is readable once it has run out.
#[derive(Debug)]
pub struct TimerFd(OwnFd);

impl TimerFd {
    /// A new timer on the monotonic clock, not armed.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn new() -> Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let fd = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)
            .map_err(|e| OsError::new("timerfd_create", "a new timer", e))?;
        Ok(Self(OwnFd::new(fd)))
    }

    /// Lets it run out after `span`, and then every `span` again if `periodic`; zero disarms it.
    ///
    /// # Errors
    /// None is known for a valid timer.
    pub fn arm(&self, span: Duration, periodic: bool) -> Result<()> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let span = clock::timespec(span);
        let spec = Itimerspec { it_interval: if periodic { span } else { zero }, it_value: span };
        rustix::time::timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &spec)
            .map(drop)
            .map_err(|e| OsError::new("timerfd_settime", "a timer", e))
    }

    /// Makes it unreadable. True if it had run out since the last time.
    pub fn drain(&self) -> bool {
        let Ok(fd) = self.0.get("a counter") else { return false };
        let mut count = [0_u8; 8];
        retry(|| rustix::io::read(fd, &mut count[..])).is_ok_and(|n| n > 0)
    }
}

impl AsFd for TimerFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Option<Duration> = Some(Duration::ZERO);

    #[test]
    fn a_set_is_readable_while_a_member_is() {
        let (set, event, timer) = (Epoll::new().unwrap(), EventFd::new().unwrap(), TimerFd::new().unwrap());
        set.add(&event, 7).unwrap();
        set.add(&timer, 8).unwrap();
        assert!(set.add(&event, 9).is_err());
        assert_eq!(set.wait(NOW).unwrap(), []);

        assert!(event.signal() && event.signal());
        assert_eq!(set.wait(None).unwrap(), [7]);
        assert!(event.drain() && !event.drain());
        assert_eq!(set.wait(NOW).unwrap(), []);

        timer.arm(Duration::from_millis(1), false).unwrap();
        assert_eq!(set.wait(None).unwrap(), [8]);
        assert!(timer.drain() && !timer.drain());

        set.remove(&event).unwrap();
        set.remove(&event).unwrap();
        event.signal();
        assert_eq!(set.wait(NOW).unwrap(), []);
    }

    #[test]
    fn a_counter_that_its_peer_made_blocking_is_drained_without_waiting() {
        let own = EventFd::new().unwrap();
        let peers = own.as_fd().try_clone_to_owned().unwrap();
        rustix::fs::fcntl_setfl(&peers, rustix::fs::OFlags::empty()).unwrap();
        let (done, answer) = std::sync::mpsc::channel();
        // A thread of its own: where it does wait, the test fails and does not.
        std::thread::spawn(move || {
            let empty = own.drain();
            let _ = done.send((empty, own.signal() && own.drain()));
        });
        assert_eq!(answer.recv_timeout(Duration::from_secs(20)), Ok((false, true)));
    }

    #[test]
    fn a_disarmed_timer_never_runs_out() {
        let timer = TimerFd::new().unwrap();
        timer.arm(Duration::from_secs(3600), true).unwrap();
        timer.arm(Duration::ZERO, true).unwrap();
        assert!(!timer.drain());
    }

    #[test]
    fn a_received_descriptor_that_is_no_counter_is_refused_or_fails() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        assert!(EventFd::from_fd(write).is_err());
        assert!(EventFd::from_fd(read).is_err());
        let timer = EventFd::from_fd(TimerFd::new().unwrap().0.into_fd()).unwrap();
        assert!(!timer.signal() && !timer.drain());
        let real = EventFd::from_fd(EventFd::new().unwrap().into()).unwrap();
        assert!(real.signal() && real.drain());
    }
}
