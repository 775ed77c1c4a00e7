//! Where a test of the engine is: an engine whose workers are this test binary again, running [`crate::worker`].

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use forebay::DType;
use forebay_serve::{
    Config,
    backend::{Answer, Backend, Call, Health, Input, NamedTensor, Priority, Refusal},
    engine::Engine,
    metrics::Metrics,
    trace::Tracer,
};
use tokio::task::JoinHandle;

/// No wait in a test is longer; whoever waits this long hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A place of one test: rings, marks, configuration.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A model that doubles: `more` goes into the table `worker`, `sections` behind it.
    pub(crate) fn config(&self, mode: &str, more: &str, sections: &str) -> Config {
        let generate = mode == "generate";
        let test = std::env::current_exe().unwrap();
        let marks = self.path("");
        let outputs = if generate {
            String::new()
        } else {
            "[[model.outputs]]\nname = \"y\"\ndtype = \"float32\"\nshape = [2]\n".to_owned()
        };
        let text = format!(
            r#"
            [model]
            name = "double"
            generate = {generate}
            [model.input]
            type = "tensors"
            tensors = [{{ name = "x", dtype = "float32", shape = [2] }}]
            {outputs}
            [worker]
            command = ["{test}", "--exact", "worker_process", "--nocapture", "--test-threads=1"]
            env = {{ WORKER_MODE = "{mode}", WORKER_MARKS = "{marks}" }}
            {more}
            {sections}
            "#,
            test = test.display(),
            marks = marks.display(),
        );
        toml::from_str(&text).unwrap()
    }

    /// The first life ends its rings when it is told to, and neither leaves nor heeds SIGTERM; the next one waits for `start`.
    pub(crate) fn lingering(&self, more: &str) -> Config {
        let mut config = self.config("linger", more, "");
        let deaf = ["sh", "-c", "trap '' TERM; exec \"$0\" \"$@\""].map(str::to_owned);
        config.worker.command.splice(..0, deaf);
        config
    }

    pub(crate) fn start(&self, config: Config) -> Arc<Engine> {
        self.start_with(config, Metrics::new(), Tracer::off())
    }

    pub(crate) fn start_with(&self, config: Config, metrics: Arc<Metrics>, tracer: Tracer) -> Arc<Engine> {
        let dir = Some(self.path("rings"));
        let checked = forebay_serve::engine::check(config).unwrap();
        Arc::new(Engine::start(checked, dir, metrics, tracer).unwrap())
    }

    /// An engine that is ready.
    pub(crate) async fn engine(&self, mode: &str, more: &str, sections: &str) -> Arc<Engine> {
        let engine = self.start(self.config(mode, more, sections));
        until("the engine is ready", || engine.health() == Health::Ready).await;
        engine
    }

    pub(crate) async fn until_marked(&self, name: &str) {
        let path = self.path(name);
        until(name, || path.exists()).await;
    }

    pub(crate) fn mark(&self, name: &str) {
        fs::write(self.path(name), "").unwrap();
    }
}

pub(crate) async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < PATIENCE, "waited too long until: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A call with these items, each followed by a 1.
pub(crate) fn call(items: &[f32]) -> Call {
    let bytes: Vec<u8> = items.iter().flat_map(|x| [*x, 1.0]).flat_map(f32::to_le_bytes).collect();
    let shape = vec![items.len() as u64, 2];
    let x = NamedTensor { name: "x".to_owned(), dtype: DType::F32, shape, bytes: bytes.into() };
    Call {
        input: Input::Tensors(vec![x]),
        parameters: serde_json::Map::new(),
        priority: Priority::Normal,
        deadline: Instant::now() + PATIENCE,
        request_id: "test".into(),
        trace: None,
    }
}

pub(crate) async fn ask(engine: &Engine, items: &[f32]) -> Result<Answer, Refusal> {
    tokio::time::timeout(PATIENCE, engine.infer(call(items))).await.expect("no answer at all")
}

/// [`ask`], in a task of its own.
pub(crate) fn asking(engine: &Arc<Engine>, items: &[f32]) -> JoinHandle<Result<Answer, Refusal>> {
    let (engine, items) = (Arc::clone(engine), items.to_vec());
    tokio::spawn(async move { ask(&engine, &items).await })
}

/// The first element of each answered item.
pub(crate) fn firsts(answer: &Answer) -> Vec<Result<f32, String>> {
    let first = |bytes: &[u8]| f32::from_le_bytes(bytes[..4].try_into().unwrap());
    let one = |item: &Result<_, forebay_serve::backend::ItemError>| match item {
        Ok(row) => {
            let row: &forebay_serve::backend::Row = row;
            Ok(row.tensors().next().map(|(_, _, _, bytes)| first(bytes)).unwrap())
        }
        Err(error) => Err(error.message.clone()),
    };
    answer.items.iter().map(one).collect()
}

pub(crate) fn pids(engine: &Engine) -> Vec<u32> {
    engine.status().workers.iter().flat_map(|worker| worker.pids.clone()).collect()
}

pub(crate) fn restarts(engine: &Engine) -> u64 {
    engine.status().workers.iter().map(|worker| worker.restarts).sum()
}

pub(crate) fn lives(pid: u32) -> bool {
    // A zombie is dead.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// Sends `signal`, like `-9`.
pub(crate) fn kill(pid: u32, signal: &str) {
    assert!(std::process::Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}
