//! One life of a worker: its rings, its processes, the task that reads its answers.

use std::{
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use forebay::service::Client;
use rustix::process::Signal;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};

use super::{
    Shared,
    process::{Group, Start},
};
use crate::{
    config::WorkerConfig,
    engine::{Core, Link, Reading, ending},
};

/// How long answers of a worker whose process ended are still read.
const LAST_ANSWERS: Duration = Duration::from_millis(100);
/// How long a batch may take from being assigned to being in the ring of its worker.
const ON_THEIR_WAY: Duration = Duration::from_millis(500);
/// How soon answers are looked for again when too many are held.
const QUOTA_NAP: Duration = Duration::from_millis(1);

/// The descriptor of a service, and what keeps it open.
struct Bell {
    fd: RawFd,
    link: Arc<Link>,
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

impl Bell {
    fn register(link: &Arc<Link>) -> Result<AsyncFd<Self>, String> {
        let fd = link.bell().map_err(|e| e.to_string())?;
        let bell = Self { fd, link: Arc::clone(link) };
        // SAFETY: the descriptor is that of the link's client, which neither closes nor changes it while it lives; the
        // bell, and so the `AsyncFd`, keeps the link.
        let registered = unsafe { AsyncFd::register_with_interest(bell, Interest::READABLE) };
        registered.map_err(|e| format!("cannot wait for answers: {e}"))
    }
}

/// A worker that is ready.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) link: Arc<Link>,
    pub(super) group: Group,
    /// How its rings ended, and when; `None` as long as they have not.
    rings: watch::Receiver<Option<(String, Instant)>>,
}

/// Ends the wait for a worker that will not come.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        // ORDER none, Relaxed: the flag is the whole message.
        self.0.store(true, Ordering::Relaxed);
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(86_400 * 365))
}

impl Life {
    /// Starts the processes of worker `index` and waits until they are ready. Dropping the future kills them.
    pub(super) async fn start(core: &Arc<Core>, shared: &Arc<Shared>, index: usize) -> Result<Self, String> {
        let key = shared.next_key();
        let service = format!("{}.{}.{index}.{key}", core.config.model.name, std::process::id());
        let client = {
            let (core, service) = (Arc::clone(core), service.clone());
            // Allocating the rings takes milliseconds.
            let made = tokio::task::spawn_blocking(move || create(&core, &service)).await;
            made.map_err(|e| e.to_string())??
        };
        let starts = starts(core, &service, index)?;
        let group = Group::start(&shared.spawner, index, starts).await?;
        shared.set_pids(core, index, &group.pids());
        let timeout = seconds(core.config.worker.start_timeout_s);
        let ready = tokio::time::timeout(timeout, Self::until_ready((key, index), client, &group));
        let (bell, text) = match ready.await {
            Ok(ready) => ready?,
            Err(_) => return Err(format!("not ready within {} s", timeout.as_secs_f64())),
        };
        tracing::info!(worker = index, pids = ?group.pids(), %text, "worker is ready");
        let link = Arc::clone(&bell.get_ref().link);
        let (ended, rings) = watch::channel(None);
        let weak = Arc::downgrade(core);
        tokio::spawn(async move {
            let how = read(weak, bell).await;
            // The life may be over for other reasons.
            let _ = ended.send(Some((how, Instant::now())));
        });
        Ok(Self { link, group, rings })
    }

    /// Waits until all ranks are attached and rank 0 says that it is ready; fails once one of the processes has ended.
    async fn until_ready(
        (key, index): (u64, usize),
        client: Client,
        group: &Group,
    ) -> Result<(AsyncFd<Bell>, String), String> {
        let stop = Arc::new(AtomicBool::new(false));
        let _stop = StopOnDrop(Arc::clone(&stop));
        let accepting = tokio::task::spawn_blocking(move || {
            let mut client = client;
            // ORDER none, Relaxed: the flag is the whole message.
            let accepted = client.accept_within(&mut || stop.load(Ordering::Relaxed));
            (client, accepted)
        });
        let client = tokio::select! {
            how = group.one_ended() => return Err(format!("ended before it was ready ({how})")),
            accepted = accepting => match accepted {
                Ok((client, Ok(true))) => client,
                Ok((_, Ok(false))) => return Err("stopped".to_owned()),
                Ok((_, Err(error))) => return Err(group.first_exit().unwrap_or_else(|| error.to_string())),
                Err(error) => return Err(error.to_string()),
            },
        };
        let bell = Bell::register(&Link::new(key, index, client))?;
        loop {
            tokio::select! {
                how = group.one_ended() => return Err(format!("ended before it was ready ({how})")),
                ready = bell.readable() => {
                    let mut ready = ready.map_err(|e| e.to_string())?;
                    match bell.get_ref().link.readiness() {
                        Ok(Some(text)) => {
                            drop(ready);
                            return Ok((bell, text));
                        }
                        Ok(None) => ready.clear_ready(),
                        Err(error) => return Err(ending(&error)),
                    }
                }
            }
        }
    }

    /// Waits until it ends by itself; says how. May be dropped and called anew: what may come after the end of its rings, or of
    /// a process, is waited for since then.
    pub(super) async fn ended(&self) -> String {
        let until = |ended: Option<Instant>| ended.map_or_else(Instant::now, |at| at + LAST_ANSWERS).into();
        tokio::select! {
            end = self.rings_ended() => {
                // The system may be a little later with how the process ended. A worker in Python passes over the signal and
                // leaves by itself; others may need to be told.
                self.group.signal(Signal::TERM);
                let (how, at) = end.unzip();
                let _ = tokio::time::timeout_at(until(at), self.group.one_ended()).await;
                self.group.first_exit().or(how).unwrap_or_else(|| "ended".to_owned())
            }
            how = self.group.one_ended() => {
                self.group.signal(Signal::KILL);
                // What it answered before is in its ring; its death is noticed there, too.
                let _ = tokio::time::timeout_at(until(self.group.one_ended_at()), self.rings_ended()).await;
                how
            }
        }
    }

    /// Whether all of its answers were read, to the end of its rings.
    pub(super) fn is_read(&self) -> bool {
        self.rings.borrow().is_some()
    }

    /// Waits until its rings have ended; how and when, if it is known.
    async fn rings_ended(&self) -> Option<(String, Instant)> {
        let mut rings = self.rings.clone();
        let end = rings.wait_for(Option::is_some).await;
        end.ok().and_then(|end| end.clone())
    }

    /// Lets it finish what it has, then leave; kills it when it hangs, or does not leave in its grace. What it has is wanted
    /// until its callers' deadlines, be that many times `batch_timeout_s`: a stream may be long.
    pub(super) async fn retire(self, core: &Arc<Core>) {
        core.close_link(&self.link);
        let patience = seconds(core.config.worker.batch_timeout_s);
        let started = Instant::now();
        while !self.is_read() {
            let now = Instant::now();
            // Batches that were assigned may still be on their way to its ring.
            let assigned = core.schedule().load_of(self.link.key).1;
            if !self.link.is_wanted(now) && (assigned == 0 || started.elapsed() > ON_THEIR_WAY) {
                break;
            }
            if self.link.stuck_for(now).is_some_and(|stuck| stuck > patience) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let link = Arc::clone(&self.link);
        // Closing a ring joins its thread: short, but not nothing.
        let _ = tokio::task::spawn_blocking(move || link.drain()).await;
        let grace = seconds(core.config.worker.grace_s);
        if !self.group.all_ended(grace).await {
            tracing::warn!(worker = self.link.worker, "worker did not leave within its grace and is killed");
            self.group.signal(Signal::KILL);
            self.group.all_ended(grace).await;
        }
        core.remove_link(&self.link);
    }
}

fn create(core: &Core, service: &str) -> Result<Client, String> {
    let (worker, batch) = (&core.config.worker, &core.config.batch);
    let extra = if core.model.generates { 8 } else { 3 };
    let slots = worker.slots.unwrap_or_else(|| u32::try_from(batch.prefetch + extra).unwrap_or(u32::MAX));
    let mut options = Client::options(service)
        .schema(core.intake.schema().clone())
        .slots(slots)
        .slot_bytes(core.intake.slot_bytes())
        .max_items(u32::try_from(batch.max_items.max(1)).unwrap_or(u32::MAX))
        .ranks(u32::try_from(worker.ranks.max(1)).unwrap_or(u32::MAX))
        .label("forebay serve");
    if let Some(dir) = &core.dir {
        options = options.dir(dir);
    }
    options.create().map_err(|e| e.to_string())
}

/// What to start for one worker: a process for each rank.
fn starts(core: &Core, service: &str, index: usize) -> Result<Vec<Start>, String> {
    let worker: &WorkerConfig = &core.config.worker;
    let ranks = worker.ranks.max(1);
    let port = if ranks > 1 { free_port()? } else { 0 };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let start = |rank: usize| {
        let mut env: Vec<(String, String)> = vec![("PYTHONUNBUFFERED".to_owned(), "1".to_owned())];
        let threads = threads_each(worker.count.saturating_mul(ranks), cores);
        if let (Some(threads), None) = (threads, std::env::var_os(THREADS)) {
            env.push((THREADS.to_owned(), threads.to_string()));
        }
        env.extend(worker.env.iter().map(|(name, value)| (name.clone(), value.clone())));
        let mut set = |name: &str, value: String| env.push((name.to_owned(), value));
        set("FOREBAY_SERVICE", service.to_owned());
        set("FOREBAY_MODEL", core.config.model.name.clone());
        set("FOREBAY_WORKER", index.to_string());
        set("FOREBAY_RANK", rank.to_string());
        set("FOREBAY_RANKS", ranks.to_string());
        set("FOREBAY_ANSWER_SLOTS", worker.answer_slots.to_string());
        set("FOREBAY_ANSWER_SLOT_BYTES", worker.answer_slot_bytes.to_string());
        if let Some(dir) = &core.dir {
            set("FOREBAY_DIR", dir.display().to_string());
        }
        if ranks > 1 {
            set("RANK", rank.to_string());
            set("LOCAL_RANK", rank.to_string());
            set("WORLD_SIZE", ranks.to_string());
            set("MASTER_ADDR", "127.0.0.1".to_owned());
            set("MASTER_PORT", port.to_string());
        }
        Start { command: worker.command.clone(), cwd: worker.cwd.clone(), env }
    };
    Ok((0..ranks).map(start).collect())
}

/// Of each process that computes, as torch, MKL and OpenBLAS read it.
const THREADS: &str = "OMP_NUM_THREADS";

/// How many threads each of several processes gets, if they are to share the cores; one alone takes what it likes.
fn threads_each(processes: usize, cores: usize) -> Option<usize> {
    (processes > 1).then(|| (cores / processes).max(1))
}

/// A port that nobody uses now, for the ranks to meet at.
fn free_port() -> Result<u16, String> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    listener.map(|address| address.port()).map_err(|e| format!("no free port for the ranks: {e}"))
}

/// Reads answers until there will be no more; says why.
async fn read(core: Weak<Core>, bell: AsyncFd<Bell>) -> String {
    loop {
        let mut ready = match bell.readable().await {
            Ok(ready) => ready,
            Err(error) => return error.to_string(),
        };
        let reading = {
            let Some(core) = core.upgrade() else { return "the engine is gone".to_owned() };
            core.read_answers(&bell.get_ref().link)
        };
        match reading {
            Ok(Reading::All) => ready.clear_ready(),
            Ok(Reading::Quota) => tokio::time::sleep(QUOTA_NAP).await,
            Err(error) => {
                bell.get_ref().link.close();
                return ending(&error);
            }
        }
    }
}
