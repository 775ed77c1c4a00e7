//! The processes that run the model: started, watched, restarted, replaced, ended.
//!
//! ```text
//!               ┌───────────── back-off: 0.1 s, doubling to 30 s ◀────────────┐
//!               ▼                                                             │ died, hung, leaked
//!   start ─▶ Starting ── Ready of its service ──▶ Ready ─────────────────────┤
//!               │                                   │ reload: the next life   │
//!               └── not in time, or ended ─▶ ──┐    ▼ is ready first          │
//!                                              │  Draining ─▶ gone            │
//!                                              └──────────────────────────────┘
//! ```
//!
//! Each worker has a task here. A death is seen by the rings (the control socket hangs up) and by the end of the process,
//! whichever is first; what it had answered until then is delivered, what it had not is answered with its death. After
//! `crash_loop` deaths within a minute a worker counts as failed until a life of a minute, or a reload that it is ready
//! after; it is still tried again, every 30 s.

mod board;
mod deaths;
mod life;
mod process;

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::board::Board;
use self::{
    board::State,
    deaths::{Began, Deaths},
    life::Life,
    process::Spawner,
};
use crate::{backend::Boxed, engine::Core};

/// How soon a reload notices that the server is to end.
const STOP_LOOK: Duration = Duration::from_millis(50);
/// How long a worker may keep all its slots without work before it is replaced.
const LEAK_PATIENCE: Duration = Duration::from_secs(1);

/// Why workers cannot be watched over.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the thread that starts workers: {0}; raise the limit on processes (ulimit -u)")]
pub struct WorkersError(std::io::Error);

/// What the tasks of all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    spawner: Spawner,
    keys: AtomicU64,
}

impl Shared {
    fn next_key(&self) -> u64 {
        // ORDER none, Relaxed: only that no number is used twice.
        self.keys.fetch_add(1, Ordering::Relaxed)
    }

    fn set_pids(&self, core: &Core, index: usize, pids: &[u32]) {
        core.board.change(index, |slot| slot.starting_pids = pids.to_vec());
    }
}

/// Where it is told how a reload went.
type Asked = oneshot::Sender<Result<(), String>>;

/// What a worker's task is told.
#[derive(Debug)]
enum Order {
    /// Begin a new life, then end this one; told once the new one is ready.
    Reload(Asked),
    /// Finish and end.
    Stop(oneshot::Sender<()>),
}

/// All workers of a model.
#[derive(Debug)]
pub(crate) struct Workers {
    tasks: Vec<mpsc::Sender<Order>>,
    /// One reload at a time.
    reloading: Arc<tokio::sync::Mutex<()>>,
}

impl Workers {
    pub(crate) fn start(core: &Arc<Core>) -> Result<Self, WorkersError> {
        let shared = Arc::new(Shared { spawner: Spawner::start().map_err(WorkersError)?, keys: AtomicU64::new(0) });
        let count = core.config.worker.count.max(1);
        core.board.begin(count);
        let (crash_loop, backoff_s) = (core.config.worker.crash_loop, core.config.worker.backoff_s);
        let first_pause = Duration::try_from_secs_f64(backoff_s).unwrap_or(Duration::MAX);
        let task = |index| {
            let (orders, queue) = mpsc::channel(4);
            let (core, shared) = (Arc::downgrade(core), Arc::clone(&shared));
            let deaths = Deaths::new(crash_loop, first_pause);
            let watch = Watch { core, shared, index, orders: queue, asked: Vec::new(), deaths };
            tokio::spawn(watch.run());
            orders
        };
        Ok(Self { tasks: (0..count).map(task).collect(), reloading: Arc::default() })
    }

    /// Replaces one after the other.
    pub(crate) fn reload(&self) -> Boxed<Result<(), String>> {
        let (tasks, reloading) = (self.tasks.clone(), Arc::clone(&self.reloading));
        Box::pin(async move {
            let Ok(_only) = reloading.try_lock() else {
                return Err("a reload is under way; wait until it is done".to_owned());
            };
            for (index, task) in tasks.iter().enumerate() {
                let (done, wait) = oneshot::channel();
                let gone = || "the server is shutting down".to_owned();
                task.send(Order::Reload(done)).await.map_err(|_| gone())?;
                let result = wait.await.map_err(|_| gone())?;
                result.map_err(|why| format!("worker {index}: {why}"))?;
            }
            Ok(())
        })
    }

    /// Lets all finish and end.
    pub(crate) async fn stop(&self) {
        let mut waits = Vec::new();
        for task in &self.tasks {
            let (done, wait) = oneshot::channel();
            if task.send(Order::Stop(done)).await.is_ok() {
                waits.push(wait);
            }
        }
        for wait in waits {
            // A task that is gone has no worker any more.
            let _ = wait.await;
        }
    }
}

/// The task of one worker.
struct Watch {
    core: Weak<Core>,
    shared: Arc<Shared>,
    index: usize,
    orders: mpsc::Receiver<Order>,
    /// Those who asked for a new life while there was none, and wait until it is ready.
    asked: Vec<Asked>,
    deaths: Deaths,
}

/// How a life ended.
enum Ended {
    /// By itself, or it had to be killed.
    Died(String),
    /// It was told to.
    Stopped,
}

impl Watch {
    async fn run(mut self) {
        loop {
            let Some(core) = self.core.upgrade() else { return };
            core.board.change(self.index, |slot| slot.state = slot.state.starting());
            let mut began = Began { started: Instant::now(), ready: None };
            let ended = match self.start_or_stop(&core).await {
                None => Ended::Stopped,
                Some(Ok(life)) => {
                    began.ready = Some(Instant::now());
                    core.board.ready(self.index, &life.link, &life.group.pids());
                    core.add_link(Arc::clone(&life.link));
                    if !self.asked.is_empty() {
                        self.deaths.forget();
                    }
                    self.answer(&Ok(()));
                    self.serve(&core, life, &mut began).await
                }
                Some(Err(why)) => {
                    self.answer(&Err(why.clone()));
                    Ended::Died(why)
                }
            };
            let Ended::Died(why) = ended else {
                core.board.change(self.index, |slot| slot.gone(State::Draining));
                return;
            };
            let length = self.deaths.count(began, Instant::now());
            let failed = self.deaths.failed();
            core.metrics.restart(self.index);
            tracing::warn!(
                worker = self.index,
                why,
                pause_s = length.as_secs_f64(),
                failed,
                "worker ended; it is started again"
            );
            core.board.change(self.index, |slot| {
                slot.gone(if failed { State::Failed } else { State::BackingOff });
                slot.restarts += 1;
                slot.last_exit = Some(why);
            });
            core.fail_if_hopeless();
            drop(core);
            if self.wait(length).await {
                return;
            }
        }
    }

    /// A worker that is ready, or why there is none; `None` if it was told to stop before.
    async fn start_or_stop(&mut self, core: &Arc<Core>) -> Option<Result<Life, String>> {
        let mut start = Box::pin(Life::start(core, &self.shared, self.index));
        loop {
            tokio::select! {
                life = &mut start => return Some(life),
                order = self.orders.recv() => match order {
                    Some(Order::Reload(done)) => {
                        // What it read so far may be what is to be replaced.
                        start = Box::pin(Life::start(core, &self.shared, self.index));
                        self.asked.push(done);
                    }
                    Some(Order::Stop(done)) => {
                        let _ = done.send(());
                        return None;
                    }
                    None => return None,
                },
            }
        }
    }

    /// Tells those who asked for a new life how it began.
    fn answer(&mut self, how: &Result<(), String>) {
        for done in self.asked.drain(..) {
            // Who asked may have left.
            let _ = done.send(how.clone());
        }
    }

    /// Watches over a worker until it ends. A reload makes it another one, and `began` that one's.
    async fn serve(&mut self, core: &Arc<Core>, mut life: Life, began: &mut Began) -> Ended {
        let limit = batch_timeout(core);
        let tick = (limit / 4).clamp(Duration::from_millis(20), Duration::from_millis(250));
        let mut look = tokio::time::interval(tick);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                how = life.ended() => {
                    self.bury(core, &life);
                    return Ended::Died(how);
                }
                _ = look.tick() => {
                    let Some(why) = fault(&life, limit) else { continue };
                    kill(&life).await;
                    self.bury(core, &life);
                    return Ended::Died(why);
                }
                order = self.orders.recv() => match order {
                    Some(Order::Reload(done)) => {
                        let started = Instant::now();
                        let (next, result) = self.replace(core, life).await;
                        if result.is_ok() {
                            *began = Began { started, ready: Some(Instant::now()) };
                            self.deaths.forget();
                        }
                        let why = result.as_ref().err().cloned().unwrap_or_default();
                        // Who asked may have left.
                        let _ = done.send(result);
                        match next {
                            Some(next) => life = next,
                            None => return Ended::Died(why),
                        }
                    }
                    Some(Order::Stop(done)) => {
                        core.board.change(self.index, |slot| slot.state = State::Draining);
                        life.retire(core).await;
                        let _ = done.send(());
                        return Ended::Stopped;
                    }
                    None => return Ended::Stopped,
                },
            }
        }
    }

    /// Answers for what a dead worker had. From the first answer on it does not count as ready.
    fn bury(&self, core: &Arc<Core>, life: &Life) {
        core.board.change(self.index, |slot| slot.gone(State::BackingOff));
        if !life.is_read() {
            // Whoever reads its answers had no processor in time. What it answered before it died is in its ring all the same.
            core.read_last_answers(&life.link);
        }
        core.remove_link(&life.link);
    }

    /// The next life, once it is ready; else the one there is, if it still lives.
    async fn replace(&self, core: &Arc<Core>, life: Life) -> (Option<Life>, Result<(), String>) {
        let start = Life::start(core, &self.shared, self.index);
        tokio::pin!(start);
        let mut old = Some(life);
        loop {
            let ended = async {
                match &old {
                    Some(life) => life.ended().await,
                    None => std::future::pending().await,
                }
            };
            let how = tokio::select! {
                next = &mut start => match next {
                    Ok(next) => {
                        self.take_over(core, &next, old);
                        return (Some(next), Ok(()));
                    }
                    Err(why) => {
                        core.board.change(self.index, |slot| slot.starting_pids.clear());
                        let goes_on = if old.is_some() { "; the one before it goes on" } else { "" };
                        tracing::warn!(worker = self.index, why, "the new worker is not ready{goes_on}");
                        return (old, Err(why + goes_on));
                    }
                },
                how = ended => how,
                () = tokio::time::sleep(STOP_LOOK) => {
                    if core.is_draining() {
                        return (old, Err("the server is shutting down".to_owned()));
                    }
                    match old.as_ref().map(|life| (life, fault(life, batch_timeout(core)))) {
                        Some((life, Some(why))) => {
                            kill(life).await;
                            why
                        }
                        _ => continue,
                    }
                }
            };
            if let Some(life) = old.take() {
                tracing::warn!(worker = self.index, how, "worker ended before its successor was ready");
                self.bury(core, &life);
            }
        }
    }

    /// From now on the next life gets the batches; the one before it finishes what it has.
    fn take_over(&self, core: &Arc<Core>, next: &Life, old: Option<Life>) {
        core.board.ready(self.index, &next.link, &next.group.pids());
        core.add_link(Arc::clone(&next.link));
        if let Some(old) = old {
            core.close_link(&old.link);
            let core = Arc::clone(core);
            tokio::spawn(async move { old.retire(&core).await });
        }
    }

    /// Waits; true if it was told to stop meanwhile.
    async fn wait(&mut self, length: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(length) => false,
            order = self.orders.recv() => match order {
                // Somebody wants it now, having changed what made it die, perhaps.
                Some(Order::Reload(done)) => {
                    self.asked.push(done);
                    false
                }
                Some(Order::Stop(done)) => {
                    let _ = done.send(());
                    true
                }
                None => true,
            },
        }
    }
}

fn batch_timeout(core: &Core) -> Duration {
    Duration::try_from_secs_f64(core.config.worker.batch_timeout_s).unwrap_or(Duration::MAX)
}

/// Why a worker that lives is to be killed, if it is.
fn fault(life: &Life, limit: Duration) -> Option<String> {
    let now = Instant::now();
    if let Some(stuck) = life.link.stuck_for(now).filter(|stuck| *stuck > limit) {
        return Some(format!("hung: no answer for {:.1} s", stuck.as_secs_f64()));
    }
    let leaks = life.link.leaking_for(now).filter(|since| *since > LEAK_PATIENCE);
    leaks.map(|_| "kept the tensors of all batches that there is room for".to_owned())
}

async fn kill(life: &Life) {
    life.link.close();
    life.group.signal(Signal::KILL);
    life.ended().await;
}
