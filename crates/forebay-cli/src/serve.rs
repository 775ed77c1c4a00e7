//! `forebay serve`: reads the configuration, listens, starts the workers, serves, drains.

use std::{
    io,
    path::PathBuf,
    process,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args as ClapArgs;
use forebay_serve::{
    Config,
    backend::{Backend, Health, Takes},
    engine::{self, Checked, Engine},
    http, logs,
    metrics::Metrics,
    trace::Tracer,
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{failure::Failure, show};

/// Signals this close together are one: `timeout` and process groups deliver one wish twice.
const SAME: Duration = Duration::from_millis(300);
/// How long what the runtime still does at the end may take.
const LAST_WORK: Duration = Duration::from_secs(1);

const LONG_ABOUT: &str = "\
Serves a model over HTTP: checks, tokenizes, decodes and batches requests, and hands ready batches to worker processes \
through shared memory. It starts the workers, restarts them when they die, and ends them with itself.

SIGTERM and SIGINT let requests finish (server.drain_s), a second one ends it at once; SIGHUP replaces the workers one \
after the other.";

/// Serves a model over HTTP, with workers in Python.
#[derive(Debug, ClapArgs)]
#[command(long_about = LONG_ABOUT)]
pub(crate) struct Args {
    /// The configuration, TOML.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets a key, such as batch.max_items=64; may be given several times. Counts more than FOREBAY_SERVE_BATCH_MAX_ITEMS
    /// in the environment, which counts more than the file.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,
    /// Address and port to listen on (server.listen).
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Workers to start (worker.count).
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Reads the configuration and the files that it names, says what is wrong with them, and ends.
    #[arg(long)]
    check_config: bool,
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE, such as batch.max_items=64")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Runs `forebay serve`.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let started = Instant::now();
    let mut flags = args.set.clone();
    flags.extend(args.listen.iter().map(|listen| ("server.listen".to_owned(), listen.clone())));
    flags.extend(args.workers.map(|count| ("worker.count".to_owned(), count.to_string())));
    // A variable that is not UTF-8 is none of ours.
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let config = Config::load(args.config.as_deref(), environment, &flags).map_err(Failure::usage)?;
    config.bearer_keys().map_err(Failure::usage)?;
    let checked = engine::check(config).map_err(Failure::usage)?;
    if args.check_config {
        show::say(&summary(&checked));
        return Ok(());
    }
    let _log = logs::init(&checked.config().log).map_err(Failure::failed)?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = match checked.config().server.threads {
        0 => (cores / 2).max(1),
        threads => threads,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("forebay-http")
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start {threads} threads: {e}; lower server.threads")))?;
    let done = runtime.block_on(serve(checked, started));
    runtime.shutdown_timeout(LAST_WORK);
    done
}

/// What a configuration amounts to.
fn summary(checked: &Checked) -> String {
    let (config, model) = (checked.config(), checked.model());
    let takes = match model.takes {
        Takes::Texts => "texts",
        Takes::Images => "images",
        Takes::Tensors => "tensors",
        Takes::Rows => "rows",
    };
    let tensors: Vec<&str> = model.inputs.iter().map(|tensor| tensor.name.as_str()).collect();
    let (count, ranks) = (config.worker.count, config.worker.ranks);
    let of = if ranks > 1 { format!(" of {ranks} ranks") } else { String::new() };
    format!(
        "the configuration can be used: model {:?} takes {takes} ({}), on {}, {count} worker{}{of}: {}",
        model.name,
        tensors.join(", "),
        config.server.listen,
        if count == 1 { "" } else { "s" },
        config.worker.command.join(" "),
    )
}

async fn serve(checked: Checked, started: Instant) -> Result<(), Failure> {
    let config = checked.config().clone();
    let mut signals = Signals::catch().map_err(|e| Failure::failed(format!("cannot catch signals: {e}")))?;
    // The ports first: if somebody else has one, no worker needs to be started.
    let listeners = http::bind(&config).await.map_err(Failure::failed)?;
    let address = listeners.local_addr().map_err(Failure::failed)?;
    let metrics = Metrics::new();
    let tracer = Tracer::new(&config, &metrics);
    let engine = Engine::start(checked, None, Arc::clone(&metrics), tracer.clone()).map_err(Failure::failed)?;
    let engine = Arc::new(engine);
    tracing::info!(model = config.model.name, "listening on http://{address}");
    tokio::spawn(announce(Arc::clone(&engine), started));
    let shutdown = {
        let engine = Arc::clone(&engine);
        async move {
            signals.until_stop(&engine).await;
            tracing::info!("stopping: requests that are under way are finished; a second signal ends at once");
            tokio::spawn(signals.exit_on_next());
        }
    };
    let backend: Arc<dyn Backend> = Arc::clone(&engine) as Arc<dyn Backend>;
    let served = http::serve_on(listeners, &config, backend, metrics, tracer.clone(), shutdown).await;
    engine.stop().await;
    tracer.flush().await;
    tracing::info!("stopped");
    served.map_err(Failure::failed)
}

/// Says when the model is ready for the first time.
async fn announce(engine: Arc<Engine>, started: Instant) {
    while engine.health() != Health::Ready {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tracing::info!(seconds = started.elapsed().as_secs_f64(), "ready");
}

/// The signals that are listened to.
struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
    hup: tokio::signal::unix::Signal,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for SIGTERM or SIGINT; replaces the workers at each SIGHUP.
    async fn until_stop(&mut self, engine: &Arc<Engine>) {
        loop {
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.int.recv() => return,
                _ = self.hup.recv() => {
                    tracing::info!("replacing the workers");
                    let reload = engine.reload();
                    tokio::spawn(async move {
                        match reload.await {
                            Ok(()) => tracing::info!("all workers are new"),
                            Err(why) => tracing::warn!("not all workers were replaced: {why}"),
                        }
                    });
                }
            }
        }
    }

    /// Ends the process at the next signal; its workers end with it.
    async fn exit_on_next(mut self) {
        let first = Instant::now();
        loop {
            let number = tokio::select! {
                _ = self.term.recv() => SignalKind::terminate().as_raw_value(),
                _ = self.int.recv() => SignalKind::interrupt().as_raw_value(),
            };
            if first.elapsed() >= SAME {
                process::exit(128 + number);
            }
        }
    }
}
