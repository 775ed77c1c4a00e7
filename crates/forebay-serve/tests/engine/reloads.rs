//! Workers that are replaced, and an engine that stops.

use std::sync::Arc;

use forebay_serve::backend::{Backend, Health, Refusal};

use crate::{
    place::{ask, asking, firsts, kill, lives, pids, restarts, until},
    worker::{KILL_ITSELF, UNTIL_FILE},
};

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
    async fn what_the_last_worker_died_of_says_nothing_of_the_one_that_a_reload_put_there(place: Place) {
        let engine = place.engine("normal", "crash_loop = 2\nbackoff_s = 0.01", "").await;
        for _ in 0..3 {
            assert!(matches!(ask(&engine, &[KILL_ITSELF]).await, Err(Refusal::WorkerDied)));
            until("it is started again", || {
                assert_ne!(engine.status().workers[0].state, "failed");
                engine.health() == Health::Ready
            })
            .await;
            engine.reload().await.unwrap();
        }
        // Also where it is asked for while there is none.
        for _ in 0..2 {
            assert!(matches!(ask(&engine, &[KILL_ITSELF]).await, Err(Refusal::WorkerDied)));
            until("it is away", || engine.health() != Health::Ready).await;
            engine.reload().await.unwrap();
        }
        assert_eq!((restarts(&engine), engine.health()), (5, Health::Ready));
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
        let waiting = asking(&engine, &[UNTIL_FILE]);
        place.until_marked("waiting").await;
        let pid = pids(&engine)[0];
        let reload = tokio::spawn(engine.reload());
        until("the next one starts", || pids(&engine).len() == 2).await;
        kill(pid, "-9");
        let answer = waiting.await.unwrap();
        assert!(matches!(answer, Err(Refusal::WorkerDied)), "{answer:?}");
        assert!(matches!(engine.health(), Health::NotReady(_)), "the successor is not there yet");
        place.mark("start");
        reload.await.unwrap().unwrap();
        assert_eq!(firsts(&ask(&engine, &[2.0]).await.unwrap()), [Ok(4.0)]);
    }
}

engine_test! {
    async fn a_worker_that_stays_without_its_rings_while_its_successor_starts_is_answered_for(place: Place) {
        let engine = place.start(place.lingering(""));
        until("the engine is ready", || engine.health() == Health::Ready).await;
        let waiting = asking(&engine, &[1.0]);
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
    async fn stopping_lets_requests_finish_and_workers_leave(place: Place) {
        let engine = place.engine("slow-100", "", "").await;
        let pid = pids(&engine)[0];
        let running = asking(&engine, &[1.0]);
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
