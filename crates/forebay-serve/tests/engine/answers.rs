//! Items become batches, and their answers find back: order, limits, deadlines.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use forebay_serve::backend::{Backend, Call, Input, Refusal, TextItem};

use crate::{
    place::{ask, asking, call, firsts, until},
    worker::{UNTIL_CANCELLED, UNTIL_FILE},
};

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
    async fn waiting_items_share_a_batch(place: Place) {
        let engine = place.engine("normal", "", "").await;
        let held = asking(&engine, &[UNTIL_FILE]);
        place.until_marked("waiting").await;
        let others: Vec<_> = (0..10).map(|x| asking(&engine, &[x as f32])).collect();
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
    async fn a_queue_that_is_full_takes_nothing_until_it_has_room(place: Place) {
        let sections = "[batch]\nprefetch = 0\n[limits]\nitems = 20000\nqueue_timeout_s = 60";
        let engine = place.engine("normal", "", sections).await;
        let held = asking(&engine, &[UNTIL_FILE]);
        place.until_marked("waiting").await;
        let many = asking(&engine, &[1.0; 16_384]);
        until("they wait", || engine.status().queued_items == 16_384).await;
        let refused = ask(&engine, &[2.0]).await;
        assert!(matches!(refused, Err(Refusal::Full { waiting: 16_384, limit: 16_384, .. })), "{refused:?}");
        many.abort();
        until("they left", || engine.status().queued_items == 0).await;
        let next = asking(&engine, &[2.0]);
        until("it waits", || engine.status().queued_items == 1).await;
        place.mark("go");
        assert_eq!(firsts(&next.await.unwrap().unwrap()), [Ok(4.0)]);
        assert!(held.await.unwrap().is_ok());
    }
}

engine_test! {
    async fn a_dropped_call_leaves_the_queue_and_tells_the_worker(place: Place) {
        let engine = place.engine("normal", "", "[batch]\nprefetch = 0").await;
        let running = asking(&engine, &[UNTIL_CANCELLED]);
        place.until_marked("waiting").await;
        let queued = asking(&engine, &[1.0]);
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
            async move { engine.infer(late).await }
        });
        place.until_marked("waiting").await;
        let mut soon = call(&[1.0]);
        soon.deadline = Instant::now() + Duration::from_millis(50);
        let (waits, gives_up) = tokio::join!(ask(&engine, &[1.0]), engine.infer(soon));
        assert!(matches!(waits, Err(Refusal::QueueTimeout { waited_s }) if waited_s >= 0.2), "{waits:?}");
        assert!(matches!(gives_up, Err(Refusal::Deadline)), "{gives_up:?}");
        let late = running.await.unwrap();
        assert!(matches!(late, Err(Refusal::Deadline)), "{late:?}");
        place.until_marked("cancelled").await;
        assert_eq!(firsts(&ask(&engine, &[2.0]).await.unwrap()), [Ok(4.0)]);
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
