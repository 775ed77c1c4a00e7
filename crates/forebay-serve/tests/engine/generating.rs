//! Answers that come in parts.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use forebay_serve::backend::{Backend, Call, Finish, ItemError, ItemErrorKind, Part, Refusal};

use crate::{
    place::{ask, call, kill, lives, pids, until},
    worker::FAIL_BATCH,
};

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
        kill(pid, "-9");
        let end = loop {
            match std::future::poll_fn(|context| parts.as_mut().poll_next(context)).await.unwrap() {
                Ok(_) => {}
                Err(refusal) => break refusal,
            }
        };
        assert!(matches!(end, Refusal::WorkerDied), "{end:?}");
    }
}
