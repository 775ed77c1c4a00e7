//! The ends of a worker's lives: how long it rests after each, and whether it counts as failed.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// The longest pause before a dead worker is started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Deaths within this time count together; a life of more than that is one that went well.
const CRASH_LOOP_TIME: Duration = Duration::from_secs(60);

/// When a life began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Began {
    pub(super) started: Instant,
    /// When it was ready, if it ever was.
    pub(super) ready: Option<Instant>,
}

/// The deaths of one worker.
#[derive(Debug)]
pub(super) struct Deaths {
    crash_loop: usize,
    first_pause: Duration,
    recent: VecDeque<Instant>,
    pause: Option<Duration>,
    failed: bool,
}

impl Deaths {
    /// `crash_loop`: deaths within a minute after which it counts as failed.
    pub(super) fn new(crash_loop: usize, first_pause: Duration) -> Self {
        let crash_loop = crash_loop.max(1);
        Self { crash_loop, first_pause, recent: VecDeque::new(), pause: None, failed: false }
    }

    /// A life ended. How long to wait before the next one.
    pub(super) fn count(&mut self, life: Began, now: Instant) -> Duration {
        let is_long = |since: Instant| now.saturating_duration_since(since) > CRASH_LOOP_TIME;
        self.recent.push_back(now);
        while self.recent.front().is_some_and(|&at| is_long(at)) {
            self.recent.pop_front();
        }
        if is_long(life.started) {
            self.pause = None;
        }
        // Tried every 30 s it never dies often within a minute again: only a life that went well says that it is over.
        let went_well = life.ready.is_some_and(is_long);
        self.failed = self.failed && !went_well || self.recent.len() >= self.crash_loop;
        let doubled = self.pause.map_or(self.first_pause, |last| last * 2);
        let pause = if self.failed { LONGEST_PAUSE } else { doubled.min(LONGEST_PAUSE) };
        self.pause = Some(pause);
        pause
    }

    /// It is another one from now on, and ready: what its predecessors died of says nothing of it.
    pub(super) fn forget(&mut self) {
        *self = Self::new(self.crash_loop, self.first_pause);
    }

    /// Whether it died too often for anybody to wait for it.
    pub(super) fn failed(&self) -> bool {
        self.failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A worker that lives as long as it is told to.
    struct Worker {
        deaths: Deaths,
        now: Instant,
    }

    impl Worker {
        fn new(crash_loop: usize) -> Self {
            Self { deaths: Deaths::new(crash_loop, Duration::from_millis(100)), now: Instant::now() }
        }

        /// Starts for as long, then is ready for as long or never, and dies: the pause, and whether it counts as failed.
        fn live(&mut self, starts: Duration, ready: Option<Duration>) -> (Duration, bool) {
            let started = self.now;
            let life = Began { started, ready: ready.map(|_| started + starts) };
            self.now += starts + ready.unwrap_or_default();
            let pause = self.deaths.count(life, self.now);
            self.now += pause;
            (pause, self.deaths.failed())
        }
    }

    #[test]
    fn pauses_double_until_it_has_failed() {
        let mut worker = Worker::new(4);
        let lives: Vec<_> = (0..4).map(|_| worker.live(s(1), None)).collect();
        let ms = Duration::from_millis;
        assert_eq!(lives, [(ms(100), false), (ms(200), false), (ms(400), false), (s(30), true)]);
    }

    #[test]
    fn a_worker_that_goes_on_dying_stays_failed() {
        // At once, after it was ready, after a minute of starting.
        for (starts, ready) in [(s(1), None), (s(1), Some(s(10))), (s(90), None)] {
            let mut worker = Worker::new(5);
            let first: Vec<_> = (0..5).map(|_| worker.live(Duration::ZERO, None).1).collect();
            assert_eq!(first, [false, false, false, false, true]);
            for life in 0..20 {
                assert_eq!(worker.live(starts, ready), (s(30), true), "life {life} of {starts:?}, {ready:?}");
            }
        }
    }

    #[test]
    fn another_worker_in_its_place_begins_anew() {
        let mut worker = Worker::new(3);
        assert!((0..3).map(|_| worker.live(s(1), None)).last().is_some_and(|(_, failed)| failed));
        worker.deaths.forget();
        assert_eq!(worker.live(s(1), Some(s(1))), (Duration::from_millis(100), false));
    }

    #[test]
    fn a_life_of_more_than_a_minute_begins_anew() {
        let mut worker = Worker::new(3);
        assert!((0..3).map(|_| worker.live(s(1), None)).last().is_some_and(|(_, failed)| failed));
        assert_eq!(worker.live(s(1), Some(s(61))), (Duration::from_millis(100), false));
        assert_eq!(worker.live(s(1), None), (Duration::from_millis(200), false));
    }
}
