//! What the tests with real workers cannot bring about: a CPU pool that is busy or panics, a gigabyte of prepared items.

use std::sync::mpsc as channel;

use forebay::{
    FieldSpec,
    service::{Client, Server},
};

use super::*;
use crate::backend::{NamedTensor, Priority};

const IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../forebay-ingest/tests/data/images");

/// An engine whose worker never gets ready.
fn engine(folder: &tempfile::TempDir) -> Engine {
    engine_of(folder, "type = \"tensors\"\ntensors = [{ name = \"x\", dtype = \"float32\", shape = [2] }]", 0)
}

fn engine_of(folder: &tempfile::TempDir, input: &str, cpu_threads: usize) -> Engine {
    let config = toml::from_str(&format!(
        r#"
        [model]
        name = "never"
        [model.input]
        {input}
        [server]
        cpu_threads = {cpu_threads}
        [batch]
        prefetch = 0
        [worker]
        command = ["sleep", "60"]
        "#,
    ));
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

#[test]
fn parts_come_back_in_their_order_and_a_panic_in_one_is_the_answer() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let engine = engine(&folder);
        let each = |inputs, panics| {
            let work = move |_: &Core, input: usize| if input == panics { panic!("on purpose") } else { 2 * input };
            engine.core.each_on_the_pool(Instant::now() + LONG, inputs, work)
        };
        assert_eq!(each((0..100).collect(), usize::MAX).await.unwrap(), (0..100).map(|i| 2 * i).collect::<Vec<_>>());
        assert!(each(Vec::new(), usize::MAX).await.unwrap().is_empty());
        for panics in [0, 50, 99] {
            let panicked = each((0..100).collect(), panics).await;
            assert!(matches!(&panicked, Err(Refusal::Worker { kind, .. }) if kind == "Internal"), "{panicked:?}");
        }
    });
}

#[test]
fn what_a_caller_brought_goes_with_it_though_the_pool_is_busy() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let engine = engine_of(&folder, "type = \"tensors\"\ntensors = [{ name = \"x\", dtype = \"int64\" }]", 1);
        let (begins, begun) = channel::channel();
        let (open, gate) = channel::channel();
        let gate = Mutex::new(gate);
        let brought: Vec<Arc<()>> = (0..3).map(|_| Arc::default()).collect();
        let held = || brought.iter().map(|one| Arc::strong_count(one) - 1).collect::<Vec<_>>();
        // The first one is done, the second one stops the only thread, the third one waits in the queue.
        let inputs = brought.iter().cloned().enumerate().collect();
        let work = move |_: &Core, (index, input): (usize, Arc<()>)| {
            if index == 1 {
                let _ = begins.send(());
                let _ = gate.lock().unwrap().recv_timeout(LONG);
            }
            input
        };
        let core = Arc::clone(&engine.core);
        let several = tokio::spawn(async move { core.each_on_the_pool(Instant::now() + LONG, inputs, work).await });
        begun.recv_timeout(LONG).unwrap();
        assert_eq!(held(), [1, 1, 1]);
        several.abort();
        assert!(several.await.unwrap_err().is_cancelled());
        assert_eq!(held(), [0, 1, 0]);
        let other = Arc::clone(&brought[0]);
        let one = engine.core.on_the_pool(Instant::now() + LONG, move |_| drop(other));
        assert!(tokio::time::timeout(Duration::from_millis(50), one).await.is_err());
        assert_eq!(held(), [0, 1, 0]);
        open.send(()).unwrap();
        assert_eq!(engine.core.on_the_pool(Instant::now() + LONG, |_| 7).await.unwrap(), 7);
        assert_eq!(held(), [0, 0, 0]);
    });
}

#[test]
fn images_that_are_ready_are_not_held_up_by_work_that_came_later() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let processor = folder.path().join("preprocessor_config.json");
        std::fs::write(&processor, r#"{"image_processor_type": "CLIPImageProcessor"}"#).unwrap();
        let engine = engine_of(&folder, &format!("type = \"image\"\nprocessor = \"{}\"", processor.display()), 2);
        let read = |name: &str| Bytes::from(std::fs::read(format!("{IMAGES}/{name}")).unwrap());
        // The last one takes longest.
        let images =
            vec![read("gradient.png"), Bytes::from_static(b"no image"), read("gradient.png"), read("coffee.jpg")];
        let mut asked = Call { input: Input::Images(images), ..call(LONG) };
        let core = Arc::clone(&engine.core);
        let first = tokio::spawn(async move { core.prepare(&mut asked).await });
        tokio::time::sleep(Duration::from_millis(2)).await;
        let (tell, answered) = channel::channel();
        let core = Arc::clone(&engine.core);
        let later = tokio::spawn(async move {
            core.on_the_pool(Instant::now() + LONG, move |_| answered.recv_timeout(LONG).is_ok()).await
        });
        let prepared =
            tokio::time::timeout(LONG / 2, first).await.expect("it waits for what came later").unwrap().unwrap();
        tell.send(()).unwrap();
        assert!(later.await.unwrap().unwrap());
        let good: Vec<bool> = prepared.items.iter().map(Result::is_ok).collect();
        assert_eq!(good, [true, false, true, true]);
        let parameters = [("no_such".to_owned(), 1.into())].into_iter().collect();
        let images = Input::Images(vec![Bytes::from_static(b"no image"); 2]);
        let refused = engine.core.prepare(&mut Call { input: images, parameters, ..call(LONG) }).await;
        assert!(
            matches!(&refused, Err(Refusal::Invalid { field, .. }) if field == "parameters.no_such"),
            "{refused:?}"
        );
    });
}

/// A worker that is ready, and whose answers nobody reads.
async fn unread(engine: &Engine, folder: &tempfile::TempDir) -> (Arc<Link>, Server) {
    let (dir, intake) = (folder.path().join("rings"), &engine.core.intake);
    let options = Client::options("unread").dir(&dir).schema(intake.schema().clone()).slot_bytes(intake.slot_bytes());
    let mut client = options.create().unwrap();
    let attach = || {
        let mut server = Server::options("unread").dir(dir).attach().unwrap();
        server.ready("").unwrap();
        server
    };
    let attached = tokio::task::spawn_blocking(attach);
    let accepted = tokio::task::spawn_blocking(move || client.accept_within(&mut || false).map(|_| client));
    let link = Link::new(1 << 20, 0, accepted.await.unwrap().unwrap());
    engine.core.add_link(Arc::clone(&link));
    (link, attached.await.unwrap())
}

fn answer_one(mut server: Server) -> Server {
    let request = server.recv().unwrap();
    let mut loan = server.answer(&request, &[FieldSpec::new("y", DType::F32, &[1])]).unwrap();
    loan.tensor_mut::<f32>("y").unwrap()[0] = 7.0;
    loan.publish().unwrap();
    server
}

#[test]
fn what_a_worker_answered_before_it_died_is_delivered_and_nothing_new_given_to_it() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let engine = engine(&folder);
        let (link, server) = unread(&engine, &folder).await;
        let answered = tokio::spawn(engine.infer(call(LONG)));
        let mut server = tokio::task::spawn_blocking(move || answer_one(server)).await.unwrap();
        let waiting = tokio::spawn(engine.infer(call(LONG)));
        while engine.status().queued_items == 0 {
            tokio::task::yield_now().await;
        }
        engine.core.read_last_answers(&link);
        let answer = answered.await.unwrap().unwrap();
        let row = answer.items[0].as_ref().unwrap();
        assert_eq!(row.tensors().next().unwrap().3, 7_f32.to_le_bytes());
        // It would be what the worker died of.
        assert!(server.try_recv().unwrap().is_none());
        engine.core.remove_link(&link);
        assert_eq!((engine.status().queued_items, waiting.is_finished()), (1, false));
        waiting.abort();
    });
}

#[test]
fn a_worker_that_died_behind_its_answer_is_given_nothing_new() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let engine = engine(&folder);
        let (link, server) = unread(&engine, &folder).await;
        let answered = tokio::spawn(engine.infer(call(LONG)));
        tokio::task::spawn_blocking(move || answer_one(server)).await.unwrap();
        let waiting = tokio::spawn(engine.infer(call(LONG)));
        while engine.status().queued_items == 0 || link.lock().client.is_alive() {
            tokio::task::yield_now().await;
        }
        assert!(engine.core.read_answers(&link).is_err());
        assert!(answered.await.unwrap().is_ok());
        engine.core.remove_link(&link);
        assert_eq!((engine.status().queued_items, waiting.is_finished()), (1, false));
        waiting.abort();
    });
}

#[test]
fn who_reads_answers_reads_them_alone() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let engine = engine(&folder);
        let (link, server) = unread(&engine, &folder).await;
        let answered = tokio::spawn(engine.infer(call(LONG)));
        let _server = tokio::task::spawn_blocking(move || answer_one(server)).await.unwrap();
        let reading = link.reading();
        let other = tokio::task::spawn_blocking({
            let (core, link) = (Arc::clone(&engine.core), Arc::clone(&link));
            move || core.read_answers(&link)
        });
        // Nothing happens, for which there is no event to wait for; that this is too short fails no good program.
        std::thread::sleep(Duration::from_millis(20));
        assert!(!answered.is_finished());
        drop(reading);
        assert_eq!(other.await.unwrap().unwrap(), Reading::All);
        assert!(answered.await.unwrap().is_ok());
    });
}
