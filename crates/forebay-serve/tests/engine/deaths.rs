//! Workers that die, hang, stand still, keep what they are given, or never begin.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use forebay_serve::backend::{Backend, Health, Refusal};

use crate::{
    place::{ask, asking, firsts, kill, lives, pids, restarts, until},
    worker::{HANG, KILL_ITSELF, KILL_ITSELF_ONCE, UNTIL_FILE},
};

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
        kill(pid, "-9");
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
        let running = asking(&engine, &[UNTIL_FILE]);
        place.until_marked("waiting").await;
        let ahead = asking(&engine, &[3.0]);
        until("it is ahead", || engine.status().workers[0].batches == 2).await;
        let pid = pids(&engine)[0];
        kill(pid, "-9");
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
        let send = |signal| pids(&engine).into_iter().for_each(|pid| kill(pid, signal));
        send("-STOP");
        // One thread takes the signal, when it runs; only then are the others told.
        until("both are stopped", || pids(&engine).iter().all(|&pid| is_stopped(pid))).await;
        let one = asking(&engine, &[4.0]);
        until("one has it", || engine.status().running_items == 1).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(engine.health(), Health::Ready, "the other one has nothing that it could have answered");
        let other = asking(&engine, &[4.0]);
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
    async fn a_worker_that_stays_without_its_rings_is_replaced(place: Place) {
        place.mark("start");
        // It is looked after more often than its last answers may take.
        let engine = place.start(place.lingering("batch_timeout_s = 0.2\nbackoff_s = 0.01"));
        until("the engine is ready", || engine.health() == Health::Ready).await;
        let pid = pids(&engine)[0];
        place.mark("leave");
        until("it was started again", || restarts(&engine) == 1).await;
        until("it is gone", || !lives(pid)).await;
        until("the next one is ready", || engine.health() == Health::Ready).await;
    }
}

engine_test! {
    async fn every_rank_sees_each_batch_and_the_death_of_one_restarts_all(place: Place) {
        let engine = place.engine("normal", "ranks = 2\nbackoff_s = 0.01", "").await;
        let before = pids(&engine);
        assert_eq!(before.len(), 2);
        assert_eq!(firsts(&ask(&engine, &[5.0, 6.0]).await.unwrap()), [Ok(10.0), Ok(12.0)]);
        place.until_marked("rank-1-saw-5").await;
        let waiting = asking(&engine, &[UNTIL_FILE]);
        place.until_marked("waiting").await;
        kill(before[1], "-9");
        assert!(matches!(waiting.await.unwrap(), Err(Refusal::WorkerDied)));
        assert_eq!(firsts(&ask(&engine, &[7.0]).await.unwrap()), [Ok(14.0)]);
        until("all of the old group is gone", || before.iter().all(|&pid| !lives(pid))).await;
        let after = pids(&engine);
        assert!(after.len() == 2 && after.iter().all(|pid| !before.contains(pid)));
    }
}
