//! What the model gets wrong, while the worker lives.

use forebay_serve::backend::{Backend, Health, Refusal};

use crate::{
    place::{ask, firsts, restarts},
    worker::{FAIL_BATCH, FAIL_ITEM, WRONG_SHAPE},
};

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
