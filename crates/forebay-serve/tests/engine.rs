//! The engine with real worker processes: what they answer, and what happens when they do not.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::*;
use forebay_serve::{
    Config,
    backend::{Backend, Call, Finish, Health, Input, ItemError, ItemErrorKind, Part, Refusal, TextItem, TraceContext},
    metrics::Metrics,
    trace::Tracer,
};

/// Not a test: what the workers of the others are.
#[test]
fn worker_process() {
    worker();
}

macro_rules! engine_test {
    ($(#[$doc:meta])* async fn $name:ident($place:ident: Place) $body:block) => {
        $(#[$doc])*
        #[test]
        fn $name() {
            log();
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let $place = Place::new();
            runtime.block_on(async { tokio::time::timeout(2 * PATIENCE, async $body).await.expect("it hangs") });
        }
    };
}

engine_test! {
    async fn items_are_answered_in_their_order_with_their_times(place: Place) {
        let engine = place.engine("normal", "", "").await;
        let answer = ask(&engine, &[1.0, 2.0, 3.0]).await.unwrap();
        assert_eq!(firsts(&answer), [Ok(2.0), Ok(4.0), Ok(6.0)]);
        assert_eq!(answer.timings.batch_items, 3);
        assert!(answer.timings.hand_over_s > 0.0 && answer.timings.forward_s > 0.0, "{:?}", answer.timings);
        let status = engine.status();
        assert_eq!((status.queued_items, status.running_items, status.workers.len()), (0, 0, 1));
        assert!(status.workers[0].rss_bytes > 0 && status.workers[0].slots.1 == 4, "{:?}", status.workers[0]);
        engine.stop().await;
        assert!(matches!(ask(&engine, &[1.0]).await, Err(Refusal::Draining)));
    }
}

engine_test! {
    async fn a_call_of_more_items_than_a_batch_is_split_and_joined(place: Place) {
        let engine = place.engine("normal", "answer_slots = 4", "[batch]\nmax_items = 8").await;
        let items: Vec<f32> = (0..100).map(|x| x as f32).collect();
        let expected: Vec<_> = items.iter().map(|x| Ok(2.0 * x)).collect();
        let one = || async { firsts(&ask(&engine, &items).await.unwrap()) };
        let (a, b, c, d) = tokio::join!(one(), one(), one(), one());
        assert!([a, b, c, d].iter().all(|found| *found == expected));
    }
}

engine_test! {
    async fn each_stage_of_a_batch_is_measured(place: Place) {
        let metrics = Metrics::new();
        let engine = place.start_with(place.config("normal", "", ""), Arc::clone(&metrics), Tracer::off());
        until("the engine is ready", || engine.health() == Health::Ready).await;
        assert_eq!(firsts(&ask(&engine, &[1.0, 2.0]).await.unwrap()), [Ok(2.0), Ok(4.0)]);
        for line in [
            "forebay_stage_seconds_count{stage=\"ingest\"} 1",
            "forebay_stage_seconds_count{stage=\"queue\"} 1",
            "forebay_stage_seconds_count{stage=\"batch_wait\"} 1",
            "forebay_stage_seconds_count{stage=\"hand_over\"} 1",
            "forebay_stage_seconds_count{stage=\"forward\"} 1",
            "forebay_batch_items_bucket{le=\"2.0\"} 1",
        ] {
            // The answer may be there before all is counted of how the batch left.
            until(line, || metrics.text("double", engine.status()).lines().any(|found| found == line)).await;
        }
    }
}

engine_test! {
    async fn a_queue_that_is_full_takes_nothing_until_it_has_room(place: Place) {
        let sections = "[batch]\nprefetch = 0\n[limits]\nitems = 20000\nqueue_timeout_s = 60";
        let engine = place.engine("normal", "", sections).await;
        let asked = |items: Vec<f32>| {
            let engine = Arc::clone(&engine);
            tokio::spawn(async move { ask(&engine, &items).await })
        };
        let held = asked(vec![UNTIL_FILE]);
        place.until_marked("waiting").await;
        let many = asked(vec![1.0; 16_384]);
        until("they wait", || engine.status().queued_items == 16_384).await;
        let refused = ask(&engine, &[2.0]).await;
        assert!(matches!(refused, Err(Refusal::Full { waiting: 16_384, limit: 16_384, .. })), "{refused:?}");
        many.abort();
        until("they left", || engine.status().queued_items == 0).await;
        let next = asked(vec![2.0]);
        until("it waits", || engine.status().queued_items == 1).await;
        place.mark("go");
        assert_eq!(firsts(&next.await.unwrap().unwrap()), [Ok(4.0)]);
        assert!(held.await.unwrap().is_ok());
    }
}

engine_test! {
    async fn waiting_items_share_a_batch(place: Place) {
        let engine = place.engine("normal", "", "").await;
        let held = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { ask(&engine, &[UNTIL_FILE]).await }
        });
        place.until_marked("waiting").await;
        let others: Vec<_> = (0..10)
            .map(|x| {
                let engine = Arc::clone(&engine);
                tokio::spawn(async move { ask(&engine, &[x as f32]).await })
            })
            .collect();
        until("all wait", || engine.status().queued_items == 10).await;
        assert!(engine.status().oldest_wait_s > 0.0);
        place.mark("go");
        for (x, other) in others.into_iter().enumerate() {
            let answer = other.await.unwrap().unwrap();
            assert_eq!((firsts(&answer), answer.timings.batch_items), (vec![Ok(2.0 * x as f32)], 10));
        }
        assert!(held.await.unwrap().is_ok());
    }
}

engine_test! {
    async fn a_killed_worker_is_told_at_once_and_started_again(place: Place) {
        let engine = place.engine("normal", "", "").await;
        let waiting = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { (ask(&engine, &[UNTIL_FILE]).await, Instant::now()) }
        });
        place.until_marked("waiting").await;
        let pid = pids(&engine)[0];
        let killed = Instant::now();
        assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
        let (answer, at) = waiting.await.unwrap();
        assert!(matches!(answer, Err(Refusal::WorkerDied)), "{answer:?}");
        assert!(at.duration_since(killed) < Duration::from_millis(200), "{:?}", at.duration_since(killed));
        assert_eq!(firsts(&ask(&engine, &[4.0]).await.unwrap()), [Ok(8.0)]);
        let worker = engine.status().workers.remove(0);
        assert_eq!((worker.restarts, worker.last_exit.as_deref()), (1, Some("killed by signal 9")));
    }
}

engine_test! {
    async fn a_batch_that_was_handed_over_ahead_survives_the_worker(place: Place) {
        let engine = place.engine("normal", "backoff_s = 0.01", "[batch]\nmax_items = 1").await;
        let running = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { ask(&engine, &[UNTIL_FILE]).await }
        });
        place.until_marked("waiting").await;
        let ahead = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { ask(&engine, &[3.0]).await }
        });
        until("it is ahead", || engine.status().workers[0].batches == 2).await;
        let pid = pids(&engine)[0];
        assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
        assert!(matches!(running.await.unwrap(), Err(Refusal::WorkerDied)));
        assert_eq!(firsts(&ahead.await.unwrap().unwrap()), [Ok(6.0)]);
    }
}

engine_test! {
    async fn items_of_a_dead_worker_are_tried_once_more_if_so_configured(place: Place) {
        let engine = place.engine("normal", "on_death = \"retry\"\nbackoff_s = 0.01", "").await;
        assert_eq!(firsts(&ask(&engine, &[KILL_ITSELF_ONCE]).await.unwrap()), [Ok(2.0 * KILL_ITSELF_ONCE)]);
        assert!(matches!(ask(&engine, &[KILL_ITSELF]).await, Err(Refusal::WorkerDied)), "twice is enough");
        until("it is back", || engine.health() == Health::Ready).await;
        assert_eq!(restarts(&engine), 3);
    }
}

engine_test! {
    async fn a_worker_that_hangs_is_replaced(place: Place) {
        let engine = place.engine("normal", "batch_timeout_s = 0.3\nbackoff_s = 0.01", "").await;
        let started = Instant::now();
        assert!(matches!(ask(&engine, &[HANG]).await, Err(Refusal::WorkerDied)));
        assert!(started.elapsed() >= Duration::from_millis(300));
        assert_eq!(firsts(&ask(&engine, &[4.0]).await.unwrap()), [Ok(8.0)]);
        assert!(engine.status().workers[0].last_exit.as_ref().unwrap().contains("hung"));
    }
}

/// Whether all threads of a process are stopped.
fn is_stopped(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap()).all(|stat| {
        // Behind the name, which is in brackets and may hold anything.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

engine_test! {
    async fn workers_that_all_stand_still_make_it_not_ready(place: Place) {
        let sections = "[limits]\nrequest_timeout_s = 0.3";
        let engine = place.engine("normal", "count = 2\nbatch_timeout_s = 20", sections).await;
        until("both are ready", || engine.status().workers.iter().all(|worker| worker.state == "ready")).await;
        let send = |signal: &str| {
            for pid in pids(&engine) {
                let sent = std::process::Command::new("kill").args([signal, &pid.to_string()]).status().unwrap();
                assert!(sent.success());
            }
        };
        send("-STOP");
        // One thread takes the signal, when it runs; only then are the others told.
        until("both are stopped", || pids(&engine).iter().all(|&pid| is_stopped(pid))).await;
        let ask_one = || {
            let engine = Arc::clone(&engine);
            tokio::spawn(async move { ask(&engine, &[4.0]).await })
        };
        let one = ask_one();
        until("one has it", || engine.status().running_items == 1).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(engine.health(), Health::Ready, "the other one has nothing that it could have answered");
        let other = ask_one();
        until("it is not ready", || engine.health() != Health::Ready).await;
        match engine.health() {
            Health::NotReady(why) => assert!(why.contains("worker 1 stands still: no answer for "), "{why}"),
            found => panic!("{found:?}"),
        }
        send("-CONT");
        assert!(one.await.unwrap().is_ok() && other.await.unwrap().is_ok());
        assert_eq!((engine.health(), restarts(&engine)), (Health::Ready, 0));
    }
}

engine_test! {
    async fn what_the_model_does_wrong_is_told_and_leaves_it_healthy(place: Place) {
        let engine = place.engine("normal", "", "").await;
        match ask(&engine, &[WRONG_SHAPE]).await {
            Err(Refusal::Worker { message, .. }) => assert!(message.contains("[3], expected float32 of [2]"), "{message}"),
            found => panic!("{found:?}"),
        }
        match ask(&engine, &[FAIL_BATCH]).await {
            Err(Refusal::Worker { kind, message }) => assert_eq!((&kind[..], &message[..]), ("ValueError", "not today")),
            found => panic!("{found:?}"),
        }
        let answer = ask(&engine, &[1.0, FAIL_ITEM, 3.0]).await.unwrap();
        assert_eq!(firsts(&answer), [Ok(2.0), Err("ValueError: a bad item".to_owned()), Ok(6.0)]);
        assert_eq!((restarts(&engine), engine.health()), (0, Health::Ready));
    }
}

engine_test! {
    async fn a_batch_that_fails_as_a_whole_fails_its_items_and_no_others_of_their_call(place: Place) {
        let engine = place.engine("normal", "", "[batch]\nmax_items = 2").await;
        let not_today = || Err("ValueError: not today".to_owned());
        let answer = ask(&engine, &[1.0, 2.0, FAIL_BATCH, 4.0, 5.0]).await.unwrap();
        assert_eq!(firsts(&answer), [Ok(2.0), Ok(4.0), not_today(), not_today(), Ok(10.0)]);
        // Alone in its batch.
        let answer = ask(&engine, &[1.0, 2.0, FAIL_BATCH]).await.unwrap();
        assert_eq!(firsts(&answer), [Ok(2.0), Ok(4.0), not_today()]);
        let found = firsts(&ask(&engine, &[WRONG_SHAPE, 2.0, 3.0]).await.unwrap());
        assert!(found[..2].iter().all(|item| item.as_ref().is_err_and(|text| text.contains("[3], expected"))), "{found:?}");
        assert_eq!(found[2], Ok(6.0));
        // Each batch of it.
        let answer = ask(&engine, &[FAIL_BATCH; 3]).await.unwrap();
        assert_eq!(firsts(&answer), [not_today(), not_today(), not_today()]);
        // All of it in one.
        match ask(&engine, &[1.0, FAIL_BATCH]).await {
            Err(Refusal::Worker { kind, message }) => assert_eq!((&kind[..], &message[..]), ("ValueError", "not today")),
            found => panic!("{found:?}"),
        }
        assert_eq!((restarts(&engine), engine.health()), (0, Health::Ready));
    }
}

engine_test! {
    async fn a_worker_that_keeps_every_batch_is_replaced(place: Place) {
        let engine = place.engine("leak", "backoff_s = 0.01", "[limits]\nqueue_timeout_s = 20").await;
        for x in 0..10 {
            assert_eq!(firsts(&ask(&engine, &[x as f32]).await.unwrap()), [Ok(2.0 * x as f32)]);
        }
        assert!(restarts(&engine) >= 1);
        assert!(engine.status().workers[0].last_exit.as_ref().unwrap().contains("kept the tensors"));
    }
}

engine_test! {
    async fn workers_that_keep_ending_make_it_not_ready(place: Place) {
        let config = place.config("crash-later", "backoff_s = 0.01\ncrash_loop = 3", "");
        place.mark("crash");
        let engine = place.start(config);
        until("it gave up", || engine.status().workers[0].state == "failed").await;
        match engine.health() {
            Health::NotReady(why) => assert!(why.contains("exit status 9") && why.contains("ImportError"), "{why}"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(ask(&engine, &[1.0]).await, Err(Refusal::NotReady(_))));
        let why = engine.reload().await.unwrap_err();
        assert!(why.starts_with("worker 0: ended before it was ready (exit status 9"), "{why}");
        std::fs::remove_file(place.path("crash")).unwrap();
        engine.reload().await.unwrap();
        assert_eq!(engine.health(), Health::Ready, "after all");
        assert_eq!(firsts(&ask(&engine, &[1.0]).await.unwrap()), [Ok(2.0)]);
    }
}

engine_test! {
    async fn a_worker_that_never_says_that_it_is_ready_is_started_again(place: Place) {
        let engine = place.start(place.config("mute", "start_timeout_s = 0.2\nbackoff_s = 0.01", ""));
        until("it was started again", || restarts(&engine) >= 1).await;
        assert!(matches!(engine.health(), Health::NotReady(_)));
        assert!(engine.status().workers[0].last_exit.as_ref().unwrap().contains("not ready within 0.2 s"));
    }
}

engine_test! {
    async fn a_reload_under_load_fails_no_request(place: Place) {
        let engine = place.engine("slow-2", "count = 2", "[batch]\nmax_items = 4").await;
        until("both are ready", || engine.status().workers.iter().all(|worker| worker.state == "ready")).await;
        let before = pids(&engine);
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let clients: Vec<_> = (0..8)
            .map(|x| {
                let (engine, stop) = (Arc::clone(&engine), Arc::clone(&stop));
                tokio::spawn(async move {
                    let mut asked = 0;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        assert_eq!(firsts(&ask(&engine, &[x as f32]).await.unwrap()), [Ok(2.0 * x as f32)]);
                        asked += 1;
                    }
                    asked
                })
            })
            .collect();
        engine.reload().await.unwrap();
        let after = pids(&engine);
        assert!(after.len() == 2 && after.iter().all(|pid| !before.contains(pid)), "{before:?} {after:?}");
        until("the old ones are gone", || before.iter().all(|&pid| !lives(pid))).await;
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for client in clients {
            assert!(client.await.unwrap() > 0);
        }
        assert_eq!(restarts(&engine), 0);
    }
}

engine_test! {
    async fn a_worker_that_starts_begins_anew_with_a_reload_which_waits_for_it(place: Place) {
        place.mark("started");
        let engine = place.start(place.config("late", "", ""));
        until("it starts", || pids(&engine).len() == 1).await;
        let first = pids(&engine)[0];
        let reload = tokio::spawn(engine.reload());
        until("another one starts", || pids(&engine).first().is_some_and(|&pid| pid != first)).await;
        until("the first one is gone", || !lives(first)).await;
        assert!(!reload.is_finished() && engine.health() != Health::Ready);
        place.mark("start");
        reload.await.unwrap().unwrap();
        assert_eq!((engine.health(), restarts(&engine)), (Health::Ready, 0));
    }
}

engine_test! {
    async fn a_worker_that_dies_while_its_successor_starts_is_answered_for(place: Place) {
        let engine = place.engine("late", "", "").await;
        let waiting = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { ask(&engine, &[UNTIL_FILE]).await }
        });
        place.until_marked("waiting").await;
        let pid = pids(&engine)[0];
        let reload = tokio::spawn(engine.reload());
        until("the next one starts", || pids(&engine).len() == 2).await;
        assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
        let answer = waiting.await.unwrap();
        assert!(matches!(answer, Err(Refusal::WorkerDied)), "{answer:?}");
        assert!(matches!(engine.health(), Health::NotReady(_)), "the successor is not there yet");
        place.mark("start");
        reload.await.unwrap().unwrap();
        assert_eq!(firsts(&ask(&engine, &[2.0]).await.unwrap()), [Ok(4.0)]);
    }
}

/// The first life ends its rings when it is told to, and neither leaves nor heeds SIGTERM; the next one waits for `start`.
fn lingering(place: &Place, more: &str) -> Config {
    let mut config = place.config("linger", more, "");
    let deaf = ["sh", "-c", "trap '' TERM; exec \"$0\" \"$@\""].map(str::to_owned);
    config.worker.command.splice(..0, deaf);
    config
}

engine_test! {
    async fn a_worker_that_stays_without_its_rings_is_replaced(place: Place) {
        place.mark("start");
        // It is looked after more often than its last answers may take.
        let engine = place.start(lingering(&place, "batch_timeout_s = 0.2\nbackoff_s = 0.01"));
        until("the engine is ready", || engine.health() == Health::Ready).await;
        let pid = pids(&engine)[0];
        place.mark("leave");
        until("it was started again", || restarts(&engine) == 1).await;
        until("it is gone", || !lives(pid)).await;
        until("the next one is ready", || engine.health() == Health::Ready).await;
    }
}

engine_test! {
    async fn a_worker_that_stays_without_its_rings_while_its_successor_starts_is_answered_for(place: Place) {
        let engine = place.start(lingering(&place, ""));
        until("the engine is ready", || engine.health() == Health::Ready).await;
        let waiting = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { ask(&engine, &[1.0]).await }
        });
        place.until_marked("waiting").await;
        let pid = pids(&engine)[0];
        let reload = tokio::spawn(engine.reload());
        until("the next one starts", || pids(&engine).len() == 2).await;
        place.mark("leave");
        let answer = waiting.await.unwrap();
        assert!(matches!(answer, Err(Refusal::WorkerDied)), "{answer:?}");
        until("it is gone", || !lives(pid)).await;
        assert!(!reload.is_finished() && matches!(engine.health(), Health::NotReady(_)), "the successor is not there yet");
        place.mark("start");
        reload.await.unwrap().unwrap();
        assert_eq!(engine.health(), Health::Ready);
    }
}

engine_test! {
    async fn stopping_does_not_wait_for_a_worker_that_starts(place: Place) {
        let engine = place.engine("late", "", "").await;
        let reload = tokio::spawn(engine.reload());
        until("the next one starts", || pids(&engine).len() == 2).await;
        let pids = pids(&engine);
        engine.stop().await;
        assert!(reload.await.unwrap().unwrap_err().contains("shutting down"));
        until("both are gone", || pids.iter().all(|&pid| !lives(pid))).await;
    }
}

engine_test! {
    async fn a_dropped_call_leaves_the_queue_and_tells_the_worker(place: Place) {
        let engine = place.engine("normal", "", "[batch]\nprefetch = 0").await;
        let running = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { ask(&engine, &[UNTIL_CANCELLED]).await }
        });
        place.until_marked("waiting").await;
        let queued = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { ask(&engine, &[1.0]).await }
        });
        until("one waits", || engine.status().queued_items == 1).await;
        queued.abort();
        until("it left", || engine.status().queued_items == 0).await;
        running.abort();
        place.until_marked("cancelled").await;
        until("its place is free", || engine.status().running_items == 0).await;
        assert_eq!(firsts(&ask(&engine, &[2.0]).await.unwrap()), [Ok(4.0)]);
    }
}

engine_test! {
    async fn deadlines_are_kept_in_the_queue_and_in_the_worker(place: Place) {
        let engine = place.engine("normal", "", "[limits]\nqueue_timeout_s = 0.2").await;
        let mut late = call(&[UNTIL_CANCELLED]);
        late.deadline = Instant::now() + Duration::from_millis(500);
        let running = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { (engine.infer(late).await, Instant::now()) }
        });
        place.until_marked("waiting").await;
        let mut soon = call(&[1.0]);
        soon.deadline = Instant::now() + Duration::from_millis(50);
        let (waits, gives_up) = tokio::join!(ask(&engine, &[1.0]), engine.infer(soon));
        assert!(matches!(waits, Err(Refusal::QueueTimeout { waited_s }) if waited_s >= 0.2), "{waits:?}");
        assert!(matches!(gives_up, Err(Refusal::Deadline)), "{gives_up:?}");
        let (late, _) = running.await.unwrap();
        assert!(matches!(late, Err(Refusal::Deadline)), "{late:?}");
        place.until_marked("cancelled").await;
        assert_eq!(firsts(&ask(&engine, &[2.0]).await.unwrap()), [Ok(4.0)]);
    }
}

engine_test! {
    async fn every_rank_sees_each_batch_and_the_death_of_one_restarts_all(place: Place) {
        let engine = place.engine("normal", "ranks = 2\nbackoff_s = 0.01", "").await;
        let before = pids(&engine);
        assert_eq!(before.len(), 2);
        assert_eq!(firsts(&ask(&engine, &[5.0, 6.0]).await.unwrap()), [Ok(10.0), Ok(12.0)]);
        place.until_marked("rank-1-saw-5").await;
        let waiting = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { ask(&engine, &[UNTIL_FILE]).await }
        });
        place.until_marked("waiting").await;
        assert!(std::process::Command::new("kill").args(["-9", &before[1].to_string()]).status().unwrap().success());
        assert!(matches!(waiting.await.unwrap(), Err(Refusal::WorkerDied)));
        assert_eq!(firsts(&ask(&engine, &[7.0]).await.unwrap()), [Ok(14.0)]);
        until("all of the old group is gone", || before.iter().all(|&pid| !lives(pid))).await;
        let after = pids(&engine);
        assert!(after.len() == 2 && after.iter().all(|pid| !before.contains(pid)));
    }
}

engine_test! {
    async fn stopping_lets_requests_finish_and_workers_leave(place: Place) {
        let engine = place.engine("slow-100", "", "").await;
        let pid = pids(&engine)[0];
        let running = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { ask(&engine, &[1.0]).await }
        });
        until("it runs", || engine.status().running_items == 1).await;
        engine.drain();
        assert!(engine.health() == Health::Draining && matches!(ask(&engine, &[1.0]).await, Err(Refusal::Draining)));
        engine.stop().await;
        assert_eq!(firsts(&running.await.unwrap().unwrap()), [Ok(2.0)]);
        assert!(!lives(pid));
        assert_eq!(restarts(&engine), 0);
    }
}

engine_test! {
    async fn workers_end_with_an_engine_that_is_dropped(place: Place) {
        let engine = place.engine("normal", "count = 2", "").await;
        until("both are ready", || pids(&engine).len() == 2).await;
        let pids = pids(&engine);
        drop(engine);
        until("they are gone", || pids.iter().all(|&pid| !lives(pid))).await;
    }
}

engine_test! {
    async fn texts_of_all_lengths_share_batches_within_their_limits(place: Place) {
        let mut config = place.config("texts", "", "[batch]\nmax_items = 16\nmax_tokens = 256");
        let tokenizer = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/tokenizer.json");
        let input = format!("type = \"text\"\ntokenizer = \"{tokenizer}\"\nmax_tokens = 64");
        config.model.input = toml::from_str(&input).unwrap();
        let engine = place.start(config);
        // Long ones are prepared on the CPU pool, short ones at once.
        for repeated in [1, 20] {
            let lengths: Vec<usize> = (0..60).map(|i| (i * 37) % 61).collect();
            let texts = lengths.iter().map(|&length| TextItem {
                text: "light ".repeat(length) + &" ".repeat(100 * (repeated - 1)),
                pair: None,
            });
            let asked = Call { input: Input::Texts(texts.collect()), ..call(&[]) };
            let answer = engine.infer(asked).await.unwrap();
            let expected: Vec<_> = lengths.iter().map(|&length| Ok(length as f32 + 2.0)).collect();
            assert_eq!(firsts(&answer), expected);
            for item in &answer.items {
                let padded = item.as_ref().unwrap().tensors().next().unwrap().3[4..8].to_vec();
                assert!(f32::from_le_bytes(padded.try_into().unwrap()) <= 256.0);
            }
        }
        let soon = || Instant::now() + Duration::from_secs(20);
        let tokens = engine.tokenize(vec!["light".to_owned()], false, soon()).await.unwrap().unwrap();
        assert_eq!(tokens[0].tokens, ["light"]);
        let long = engine.tokenize(vec!["light ".repeat(10_000)], false, soon()).await.unwrap().unwrap();
        assert_eq!(long[0].ids.len(), 10_000);
        let late = engine.tokenize(vec!["light ".repeat(10_000)], false, Instant::now()).await.unwrap();
        assert!(matches!(late, Err(Refusal::Deadline)), "{late:?}");
    }
}

/// Answers requests with 200 and sends their JSON on.
async fn collector(listener: tokio::net::TcpListener, bodies: tokio::sync::mpsc::UnboundedSender<serde_json::Value>) {
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    while let Ok((stream, _)) = listener.accept().await {
        let mut stream = BufReader::new(stream);
        let mut length = 0;
        let mut line = String::new();
        while stream.read_line(&mut line).await.unwrap_or(0) > 0 {
            if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = text.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                let mut body = vec![0; length];
                stream.read_exact(&mut body).await.unwrap();
                let _ = bodies.send(serde_json::from_slice(&body).unwrap());
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            }
            line.clear();
        }
    }
}

engine_test! {
    async fn a_batch_is_traced_into_the_worker_and_linked_to_its_requests(place: Place) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (send, mut bodies) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(collector(listener, send));
        let config = place.config("normal", "", &format!("[trace]\notlp = \"http://{address}\""));
        let metrics = Metrics::new();
        let tracer = Tracer::new(&config, &metrics);
        let engine = place.start_with(config, metrics, tracer);
        until("the engine is ready", || engine.health() == Health::Ready).await;
        let held = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { ask(&engine, &[UNTIL_FILE]).await }
        });
        place.until_marked("waiting").await;
        let traced = |number: u8| {
            let trace = TraceContext { trace_id: [number; 16], span_id: [number; 8], sampled: true };
            let (engine, call) = (Arc::clone(&engine), Call { trace: Some(trace), ..call(&[f32::from(number)]) });
            tokio::spawn(async move { engine.infer(call).await })
        };
        let (one, other) = (traced(1), traced(2));
        until("both wait", || engine.status().queued_items == 2).await;
        place.mark("go");
        assert!(held.await.unwrap().is_ok() && one.await.unwrap().is_ok() && other.await.unwrap().is_ok());
        let mut spans = Vec::new();
        while spans.len() < 2 {
            let body = bodies.recv().await.unwrap();
            spans.extend(body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone());
        }
        let named = |name: &str| spans.iter().find(|span| span["name"] == name).unwrap();
        let (batch, forward) = (named("batch"), named("forward"));
        // Part of the first request's trace, linked to the second's; the order in which they came is theirs.
        let ids = ["01".repeat(16), "02".repeat(16)];
        let own = ids.iter().position(|id| batch["traceId"] == **id).unwrap();
        assert_eq!(batch["parentSpanId"], ["01".repeat(8), "02".repeat(8)][own]);
        assert_eq!(batch["links"][0]["traceId"], ids[1 - own]);
        assert_eq!((&forward["traceId"], &forward["parentSpanId"]), (&batch["traceId"], &batch["spanId"]));
        let [trace, span] = ["traceId", "spanId"].map(|key| batch[key].as_str().unwrap());
        assert!(place.path(&format!("trace-{trace}-{span}-1")).exists(), "the worker was told the batch's span");
        let time = |span: &serde_json::Value, key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
        assert!(time(batch, "startTimeUnixNano") <= time(forward, "startTimeUnixNano"));
        assert!(time(forward, "endTimeUnixNano") <= time(batch, "endTimeUnixNano"));
    }
}

/// All parts, by item.
async fn read(engine: &Arc<impl Backend>, items: &[f32]) -> Vec<(Vec<u32>, Option<Finish>)> {
    let mut parts = engine.generate(call(items)).await.unwrap();
    let mut all = vec![(Vec::new(), None); items.len()];
    while let Some(part) = std::future::poll_fn(|context| parts.as_mut().poll_next(context)).await {
        let Part { item, tokens, finished, .. } = part.unwrap();
        assert!(all[item].1.is_none(), "nothing comes after the last");
        all[item].0.extend(tokens);
        all[item].1 = finished;
    }
    all
}

engine_test! {
    async fn tokens_come_part_by_part_to_whom_they_belong(place: Place) {
        let engine = place.engine("generate", "", "[batch]\nmax_items = 3").await;
        let (one, other) = tokio::join!(read(&engine, &[3.0, 1.0]), read(&engine, &[2.0, 5.0]));
        let countdown = |from: u32| ((0..=from).rev().collect::<Vec<u32>>(), Some(Finish::Stop));
        assert_eq!(one, [countdown(3), countdown(1)]);
        assert_eq!(other, [countdown(2), countdown(5)]);
        let whole = ask(&engine, &[2.0]).await.unwrap();
        let tokens: Vec<u8> = whole.items[0].as_ref().unwrap().tensors().next().unwrap().3.to_vec();
        assert_eq!(tokens.chunks(8).map(|token| token[0]).collect::<Vec<_>>(), [2, 1, 0]);
    }
}

engine_test! {
    async fn an_item_that_cannot_begin_ends_alone(place: Place) {
        let engine = place.engine("generate", "", "[batch]\nmax_items = 1").await;
        let found = read(&engine, &[2.0, FAIL_BATCH, 1.0]).await;
        let failed = ItemError { kind: ItemErrorKind::Model, message: "ValueError: not today".to_owned() };
        assert_eq!(found[1], (vec![], Some(Finish::Error(failed))));
        assert_eq!((&found[0], &found[2]), (&(vec![2, 1, 0], Some(Finish::Stop)), &(vec![1, 0], Some(Finish::Stop))));
        let whole = ask(&engine, &[2.0, FAIL_BATCH]).await.unwrap();
        assert!(whole.items[0].is_ok() && whole.items[1].is_err());
        let alone = ask(&engine, &[FAIL_BATCH]).await;
        assert!(matches!(&alone, Err(Refusal::Worker { kind, .. }) if kind == "ValueError"), "{alone:?}");
    }
}

engine_test! {
    async fn a_dropped_stream_is_cancelled_in_the_worker(place: Place) {
        let engine = place.engine("generate", "", "").await;
        let mut parts = engine.generate(call(&[1e6])).await.unwrap();
        for _ in 0..3 {
            std::future::poll_fn(|context| parts.as_mut().poll_next(context)).await.unwrap().unwrap();
        }
        drop(parts);
        place.until_marked("cancelled").await;
        until("its place is free", || engine.status().running_items == 0).await;
        assert_eq!(read(&engine, &[1.0]).await[0].0, [1, 0]);
    }
}

engine_test! {
    async fn a_stream_ends_at_its_deadline_whatever_is_ready(place: Place) {
        let engine = place.engine("generate", "", "").await;
        let deadline = Instant::now() + Duration::from_millis(300);
        let mut parts = engine.generate(Call { deadline, ..call(&[1e6]) }).await.unwrap();
        // The worker makes tokens meanwhile, and nobody reads them.
        tokio::time::sleep_until((deadline + Duration::from_millis(10)).into()).await;
        let next = std::future::poll_fn(|context| parts.as_mut().poll_next(context)).await;
        assert!(matches!(next, Some(Err(Refusal::Deadline))), "{next:?}");
        assert!(std::future::poll_fn(|context| parts.as_mut().poll_next(context)).await.is_none());
        place.until_marked("cancelled").await;
    }
}

engine_test! {
    async fn a_reload_lets_a_stream_go_on_for_longer_than_a_batch_may_take(place: Place) {
        let engine = place.engine("generate", "batch_timeout_s = 0.5\ngrace_s = 0.1", "").await;
        let old = pids(&engine)[0];
        let mut parts = engine.generate(call(&[1e6])).await.unwrap();
        std::future::poll_fn(|context| parts.as_mut().poll_next(context)).await.unwrap().unwrap();
        engine.reload().await.unwrap();
        let replaced = Instant::now();
        while replaced.elapsed() < Duration::from_millis(1500) {
            std::future::poll_fn(|context| parts.as_mut().poll_next(context)).await.unwrap().unwrap();
        }
        assert!(lives(old) && !pids(&engine).contains(&old));
        drop(parts);
        until("the old one is gone", || !lives(old)).await;
        assert_eq!(read(&engine, &[1.0]).await[0].0, [1, 0]);
    }
}

engine_test! {
    async fn a_stream_whose_worker_dies_ends_with_that(place: Place) {
        let engine = place.engine("generate", "on_death = \"retry\"\nbackoff_s = 0.01", "").await;
        let mut parts = engine.generate(call(&[1e6])).await.unwrap();
        std::future::poll_fn(|context| parts.as_mut().poll_next(context)).await.unwrap().unwrap();
        let pid = pids(&engine)[0];
        assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
        let end = loop {
            match std::future::poll_fn(|context| parts.as_mut().poll_next(context)).await.unwrap() {
                Ok(_) => {}
                Err(refusal) => break refusal,
            }
        };
        assert!(matches!(end, Refusal::WorkerDied), "{end:?}");
    }
}
