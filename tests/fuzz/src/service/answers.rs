//! A real client, and a liar that answers.

use std::collections::BTreeMap;

use forebay::{
    Consumer, DType, FieldSpec, Kind, LoanError, Producer, RecvError,
    service::{Answer, AnswerKind, Client, Error, ITEMS_FIELD, Item, ItemStatus, Meta, TEXT_FIELD},
};
use forebay_testkit::Place;

use super::{
    Draft, Field, How, LAST_ITEM, MOST_STEPS, SERVICE, SLOTS, attach, check_that_all_is_free, is_named, liars_ring,
    next, read, receive_the_rest,
};
use crate::bytes::Bytes;

/// What the client waits for, by request.
type Account = BTreeMap<u64, Open>;

/// A request without its last answer.
struct Open {
    items: Vec<u64>,
    left: Vec<u64>,
}

pub(super) fn play(place: &Place, how: &How, mut input: Bytes<'_>) {
    let mut answers = liars_ring(place, "a", how.schema, Kind::Queue);
    let mut both = Both::begin(place, how);
    let mut well = true;
    for _ in 0..MOST_STEPS {
        if input.is_empty() {
            break;
        }
        let step = input.byte();
        match step & 7 {
            0 | 1 => both.ask(step, &mut input),
            2 => both.cancel(&mut input),
            _ => {
                let mut draft = both.draft(&mut input);
                (0..input.below(4)).for_each(|_| draft.lie(&mut input));
                let said = draft.publish(&mut answers);
                // Some wait for others.
                if step & 0x40 == 0 {
                    well = both.hear(said, step & 0x80 != 0);
                }
            }
        }
        if !well {
            break;
        }
    }
    well = well && both.hear(false, false);
    both.kept.clear();
    if !well {
        drop(both);
        receive_the_rest(place, "a");
        both = Both::begin(place, how);
    }
    check_that_all_is_free(&mut answers);
    if how.schema.can_be_right() {
        both.exchange(&mut answers);
        check_that_all_is_free(&mut answers);
    }
    both.check_that_requests_are_free();
}

/// The client, and what the liar hears of it.
struct Both {
    client: Client,
    /// One for each rank.
    requests: Vec<Consumer>,
    cancels: Vec<Consumer>,
    account: Account,
    kept: Vec<Answer>,
}

impl Both {
    fn begin(place: &Place, how: &How) -> Self {
        let options = Client::options(SERVICE).dir(place.path()).slots(SLOTS).slot_bytes(256).max_items(8);
        let mut client = options.ranks(how.ranks).create().unwrap();
        let of_each_rank = |which: &str| (0..how.ranks).map(|_| attach(place, which)).collect();
        let (requests, cancels) = (of_each_rank("q"), of_each_rank("c"));
        assert!(client.accept_within(&mut || false).unwrap());
        Self { client, requests, cancels, account: Account::new(), kept: Vec::new() }
    }

    fn ask(&mut self, step: u8, input: &mut Bytes<'_>) {
        let count = 1 + usize::from(step >> 4 & 3);
        let first = u64::from(input.byte() & 15);
        let items: Vec<Item> = (first..).take(count).map(Item::new).collect();
        let ids: Vec<u64> = items.iter().map(|item| item.id).collect();
        let taken = self.account.values().any(|open| open.left.iter().any(|id| ids.contains(id)));
        match self.client.request(&[FieldSpec::new("x", DType::F32, &[count as u64, 2])], &items) {
            Ok(loan) => {
                assert!(!taken, "an item is asked for twice");
                let request = loan.publish(&Meta::default()).unwrap();
                self.account.insert(request, Open { left: ids.clone(), items: ids });
                for consumer in &mut self.requests {
                    assert_eq!(next(consumer).user(), Draft::new(1, request, count).user);
                }
            }
            Err(LoanError::Fields { .. }) => assert!(taken),
            Err(e) => panic!("{e}"),
        }
    }

    fn cancel(&mut self, input: &mut Bytes<'_>) {
        let request = u64::from(input.byte() & 15);
        let count = input.below(4);
        let items: Vec<u64> = input.take(count).iter().map(|&id| id.into()).collect();
        self.client.cancel(request, &items);
        if self.account.contains_key(&request) {
            for consumer in &mut self.cancels {
                assert_eq!(next(consumer).user(), Draft::new(2, request, items.len()).user);
            }
        }
    }

    /// An answer that is right, or any bytes.
    fn draft(&self, input: &mut Bytes<'_>) -> Draft {
        let (what, which) = (input.byte(), input.byte());
        let open = self.account.iter().nth(usize::from(which) % self.account.len().max(1));
        let (request, left) = open.map_or((u64::from(which), [].as_slice()), |(id, open)| (*id, open.left.as_slice()));
        let last = u64::from(what >> 3 & 1);
        let rows = |items: &[u64], last: u64| {
            let shape = [items.len() as u64, 2];
            let words = items.iter().flat_map(move |&id| [id, last << 8]);
            (Field::new("x", DType::F32, &shape, [0u8; 64]), Field::of_words(ITEMS_FIELD, &shape, words))
        };
        let text = |text: &'static str| Field::new(TEXT_FIELD, DType::U8, &[64], text);
        match what & 7 {
            0 => {
                let mut draft = Draft::new(16, 0, 0).with(text("torch 2"));
                draft.put(44, 7);
                draft.put(48, 4711);
                draft
            }
            1 | 2 => {
                let (x, items) = rows(left, 1);
                Draft::new(17, request, left.len()).with(x).with(items).with(text("ValueError: no"))
            }
            3 | 4 => {
                let mut some: Vec<u64> = self.account.values().flat_map(|open| open.left.iter().copied()).collect();
                some.truncate(1 + usize::from(what >> 4 & 7));
                let (x, items) = rows(&some, last);
                Draft::new(18, 0, some.len()).with(x).with(items).with(text("ValueError: no"))
            }
            5 => {
                let mut draft = Draft::new(19, request, 0).with(text("ValueErrorno"));
                draft.put(40, 10);
                draft.put(44, 2);
                draft
            }
            6 => Draft::new(what >> 3, request, left.len()).with(rows(left, 1).1),
            _ => Draft::of_bytes(input),
        }
    }

    /// Reads what waits: at least something if `something` was said. False once the client is of no use.
    fn hear(&mut self, mut something: bool, keep: bool) -> bool {
        loop {
            match self.client.try_answer() {
                Ok(Some(answer)) => {
                    something = false;
                    enter(&mut self.account, &answer);
                    if keep {
                        self.kept.push(answer);
                    }
                }
                Ok(None) => {
                    assert!(!something, "what was said is not heard");
                    return true;
                }
                // It has all that there are.
                Err(Error::Recv(RecvError::Quota { .. })) => {
                    assert!(!self.kept.is_empty(), "nothing is held");
                    self.kept.clear();
                }
                Err(e) => {
                    assert!(is_named(&e), "{e}");
                    let again = self.client.try_answer().map(drop).unwrap_err();
                    assert_eq!(again.to_string(), e.to_string());
                    assert!(!self.client.is_alive());
                    return false;
                }
            }
            assert_eq!(self.client.outstanding(), self.account.len());
        }
    }

    /// A request and its answer, both as they should be.
    fn exchange(&mut self, answers: &mut Producer) {
        let fields = [FieldSpec::new("x", DType::F32, &[1, 2])];
        let mut loan = self.client.request(&fields, &[Item::new(LAST_ITEM)]).unwrap();
        loan.tensor_mut::<f32>("x").unwrap().copy_from_slice(&[1.5, 2.5]);
        let request = loan.publish(&Meta::default()).unwrap();
        for consumer in &mut self.requests {
            let message = next(consumer);
            assert_eq!(message.user(), Draft::new(1, request, 1).user);
            assert_eq!(message.as_slice::<f32>("x").unwrap(), [1.5, 2.5]);
            assert_eq!(message.as_slice::<u64>(ITEMS_FIELD).unwrap(), [LAST_ITEM, 0]);
        }
        let x: Vec<u8> = [3f32, 5.0].into_iter().flat_map(f32::to_le_bytes).collect();
        let draft = Draft::new(17, request, 1).with(Field::new("x", DType::F32, &[1, 2], x)).with(Field::of_words(
            ITEMS_FIELD,
            &[1, 2],
            [LAST_ITEM, 1 << 8],
        ));
        assert!(draft.publish(answers), "there is no room");
        let answer = self.client.try_answer().unwrap().unwrap();
        assert_eq!((answer.kind(), answer.request()), (AnswerKind::Result, request));
        let item = answer.items()[0];
        assert_eq!((item.id, item.request, item.status, item.last), (LAST_ITEM, request, ItemStatus::Ok, true));
        assert_eq!(answer.tensor("x").unwrap().as_slice::<f32>().unwrap(), [3.0, 5.0]);
    }

    /// As many requests can be written as there are slots, and as many cancellations were heard as said.
    fn check_that_requests_are_free(&mut self) {
        let mut loans = Vec::new();
        for item in 0..u64::from(SLOTS) {
            loans.push(self.client.request(&[], &[Item::new(LAST_ITEM + 1 + item)]).unwrap().detach());
        }
        for consumer in self.cancels.iter_mut().chain(&mut self.requests) {
            assert!(consumer.try_recv().unwrap().is_none());
        }
    }
}

/// Looks at all of an answer, which must fit what is open.
fn enter(account: &mut Account, answer: &Answer) {
    read(answer.message());
    let items = answer.items();
    let texts = (0..=items.len()).filter_map(|index| answer.error(index)).map(str::len).sum::<usize>();
    assert!(texts <= items.len() << 16 && answer.error(items.len()).is_none());
    match answer.kind() {
        AnswerKind::Ready => assert!(answer.readiness().is_some() && items.is_empty()),
        AnswerKind::Failed => {
            assert!(answer.failure().is_some() && items.is_empty());
            account.remove(&answer.request()).expect("it was open");
        }
        AnswerKind::Result => {
            let open = account.remove(&answer.request()).expect("it was open");
            assert!(open.items == open.left, "a part of it was answered");
            assert!(items.iter().map(|item| item.id).eq(open.items));
        }
        AnswerKind::Part => {
            for item in items {
                let open = account.get_mut(&item.request).expect("it was open");
                let place = open.left.iter().position(|id| *id == item.id).expect("it was open");
                if item.last {
                    open.left.remove(place);
                    if open.left.is_empty() {
                        account.remove(&item.request);
                    }
                }
            }
        }
        kind => panic!("{kind:?}"),
    }
    if matches!(answer.kind(), AnswerKind::Result | AnswerKind::Part) {
        for (_, meta) in answer.fields() {
            assert_eq!(meta.shape().first(), Some(&(items.len() as u64)), "not a row for each item");
        }
    }
}
