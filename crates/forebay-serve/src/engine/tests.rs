//! What the tests with real workers cannot bring about: a panic on the CPU pool, a gigabyte of prepared items.

use super::*;
use crate::backend::{NamedTensor, Priority};

/// An engine whose worker never gets ready.
fn engine(folder: &tempfile::TempDir) -> Engine {
    let config = toml::from_str(
        r#"
        [model]
        name = "never"
        [model.input]
        type = "tensors"
        tensors = [{ name = "x", dtype = "float32", shape = [2] }]
        [worker]
        command = ["sleep", "60"]
        "#,
    );
    let checked = check(config.unwrap()).unwrap();
    Engine::start(checked, Some(folder.path().join("rings")), Metrics::new(), Tracer::off()).unwrap()
}

fn call(patience: Duration) -> Call {
    let x = NamedTensor { name: "x".to_owned(), dtype: DType::F32, shape: vec![1, 2], bytes: vec![0; 8].into() };
    Call {
        input: Input::Tensors(vec![x]),
        parameters: serde_json::Map::new(),
        priority: Priority::Normal,
        deadline: Instant::now() + patience,
        request_id: "test".into(),
        trace: None,
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test);
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_panic_on_the_cpu_pool_is_an_answer_and_not_the_end() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let engine = engine(&folder);
        let panicked = engine.core.on_the_pool(Instant::now() + LONG, |_| -> u8 { panic!("on purpose") }).await;
        assert!(matches!(&panicked, Err(Refusal::Worker { kind, .. }) if kind == "Internal"), "{panicked:?}");
        assert_eq!(engine.core.on_the_pool(Instant::now() + LONG, |_| 7).await.unwrap(), 7);
    });
}

#[test]
fn a_call_that_finds_no_memory_is_refused_and_takes_none() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let engine = engine(&folder);
        let bytes = || engine.core.prepared_bytes.load(Ordering::Relaxed);
        let held = Reserved::new(&engine.core, PREPARED_BYTES).unwrap();
        let refused = engine.infer(call(LONG)).await;
        let full = Refusal::Memory { held_bytes: PREPARED_BYTES, limit_bytes: PREPARED_BYTES, retry_after_s: 1 };
        assert_eq!(refused.unwrap_err().to_string(), full.to_string());
        assert_eq!(bytes(), PREPARED_BYTES);
        drop(held);
        let late = engine.infer(call(Duration::from_millis(50))).await;
        assert!(matches!(late, Err(Refusal::Deadline)), "it was let in, and no worker came: {late:?}");
        assert_eq!(bytes(), 0);
    });
}
