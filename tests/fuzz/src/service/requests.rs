//! A real server, and a liar that asks.

use std::collections::HashSet;

use forebay::{
    Consumer, DType, FieldSpec, Kind, Producer, RecvError,
    service::{Error, ITEMS_FIELD, Item, ItemStatus, PartItem, Request, Server, Timings},
};
use forebay_testkit::Place;

use super::{
    Draft, Field, How, LAST_ITEM, MOST_STEPS, SERVICE, SLOTS, attach, check_that_all_is_free, is_named, liars_ring,
    next, read, receive_the_rest,
};
use crate::{bytes::Bytes, server::SOON};

pub(super) fn play(place: &Place, how: &How, mut input: Bytes<'_>) {
    let kind = if how.ranks > 1 { Kind::Broadcast } else { Kind::Queue };
    let (mut requests, mut cancels) =
        (liars_ring(place, "q", how.schema, kind), liars_ring(place, "c", super::Fields::Any, kind));
    let mut both = Both::begin(place);
    // What cancellations may have meant; what they lack is 0.
    let (mut well, mut named) = (true, HashSet::from([0]));
    for _ in 0..MOST_STEPS {
        if input.is_empty() {
            break;
        }
        let step = input.byte();
        well = match step & 7 {
            0..=3 => {
                let mut draft = both.draft_request(&mut input);
                (0..input.below(4)).for_each(|_| draft.lie(&mut input));
                let said = draft.publish(&mut requests);
                // Some wait for others.
                step & 0x40 != 0 || both.hear(said)
            }
            4 | 5 => {
                let mut draft = both.draft_cancel(&mut input);
                (0..input.below(4)).for_each(|_| draft.lie(&mut input));
                let words = draft.fields.iter().flat_map(|field| field.bytes.chunks(8)).chain(draft.user.get(8..16));
                named.extend(words.map(word));
                draft.publish(&mut cancels);
                both.hear_cancels(&named)
            }
            _ => {
                both.answer(step, &mut input);
                true
            }
        };
        if !well {
            break;
        }
    }
    well = well && both.hear(false);
    if well {
        both.fail_all();
    } else {
        drop(both);
        if kind == Kind::Queue {
            receive_the_rest(place, "q");
            receive_the_rest(place, "c");
        }
        both = Both::begin(place);
    }
    check_that_all_is_free(&mut requests);
    check_that_all_is_free(&mut cancels);
    if how.schema.can_be_right() {
        both.exchange(&mut requests, &mut cancels, &named);
        check_that_all_is_free(&mut requests);
        check_that_all_is_free(&mut cancels);
    }
}

fn word(bytes: &[u8]) -> u64 {
    let mut whole = [0; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(whole)
}

/// A request that was received.
struct Held {
    id: u64,
    /// `None` if the model let go of it.
    request: Option<Request>,
    items: Vec<u64>,
    left: Vec<u64>,
}

/// The server, and what the liar hears of it.
struct Both {
    server: Server,
    answers: Consumer,
    held: Vec<Held>,
}

impl Both {
    fn begin(place: &Place) -> Self {
        let options = Server::options(SERVICE).dir(place.path()).timeout(Some(SOON));
        let server = options.answer_slots(SLOTS).answer_slot_bytes(512).max_items(64).attach().unwrap();
        Self { server, answers: attach(place, "a"), held: Vec::new() }
    }

    /// A request that is right, or any bytes.
    fn draft_request(&self, input: &mut Bytes<'_>) -> Draft {
        let what = input.byte();
        if what & 7 == 7 {
            return Draft::of_bytes(input);
        }
        let (id, first) = (u64::from(input.byte()), u64::from(input.byte() & 31));
        let count = 1 + usize::from(what >> 4 & 3);
        let shape = [count as u64, 2];
        let items = (first..).take(count).flat_map(|item| [item, u64::from(what)]);
        let mut draft = Draft::new(1, id, count)
            .with(Field::new("x", DType::F32, &shape, [0u8; 64]))
            .with(Field::of_words(ITEMS_FIELD, &shape, items));
        draft.user[24..57].copy_from_slice(&[what; 33]);
        // A scalar is nobody's row.
        if what & 8 != 0 { draft.with(Field::new("y", DType::F32, &[], [0u8; 4])) } else { draft }
    }

    /// A cancellation that is right, or any bytes.
    fn draft_cancel(&self, input: &mut Bytes<'_>) -> Draft {
        let what = input.byte();
        if what & 7 == 7 {
            return Draft::of_bytes(input);
        }
        let (which, count) = (input.byte(), usize::from(what >> 3 & 3));
        let held = self.held.get(usize::from(which) % self.held.len().max(1));
        let (id, items) = held.map_or((u64::from(which), [].as_slice()), |held| (held.id, held.items.as_slice()));
        let items: Vec<u64> = items.iter().copied().chain(u64::from(what)..).take(count).collect();
        Draft::new(2, id, count).with(Field::of_words(ITEMS_FIELD, &[count as u64], items))
    }

    /// Receives what waits: at least something if `something` was said. False once the server is of no use.
    fn hear(&mut self, mut something: bool) -> bool {
        loop {
            match self.server.try_recv() {
                Ok(Some(request)) => {
                    something = false;
                    self.enter(request);
                }
                Ok(None) => {
                    assert!(!something, "what was said is not heard");
                    return true;
                }
                // All slots are held: the model lets go of what it was given first.
                Err(Error::Recv(RecvError::Quota { .. })) => {
                    let first = self.held.iter_mut().find_map(|held| held.request.take());
                    assert!(first.is_some(), "nothing is held");
                }
                Err(e) => {
                    assert!(is_named(&e), "{e}");
                    let again = self.server.try_recv().map(drop).unwrap_err();
                    assert_eq!(again.to_string(), e.to_string());
                    return false;
                }
            }
            assert_eq!(self.server.outstanding(), self.held.len());
        }
    }

    /// Looks at all of a request, which must fit what is open.
    fn enter(&mut self, request: Request) {
        read(request.message());
        let items: Vec<u64> = request.items().iter().map(|item: &Item| item.id).collect();
        let open: HashSet<u64> = self.held.iter().flat_map(|held| held.left.iter().copied()).collect();
        assert!(!items.is_empty() && items.iter().collect::<HashSet<_>>().len() == items.len(), "{items:?}");
        assert!(items.iter().all(|item| !open.contains(item)), "one of {items:?} is open");
        assert!(self.held.iter().all(|held| held.id != request.id()), "{} is open", request.id());
        for (_, meta) in request.fields() {
            assert!(meta.shape().first().is_none_or(|&rows| rows == items.len() as u64), "not a row for each item");
        }
        assert!(!request.cancelled(items.len()), "there is no such item");
        assert!(request.trace().is_none_or(|trace| trace.trace_id != [0; 16]));
        self.held.push(Held { id: request.id(), request: Some(request), left: items.clone(), items });
    }

    /// Reads the cancellations. False once the server is of no use.
    fn hear_cancels(&mut self, named: &HashSet<u64>) -> bool {
        let cancelled = self.server.cancelled();
        for (id, item) in &cancelled {
            let held = self.held.iter().find(|held| held.id == *id).expect("it is open");
            assert!(held.left.contains(item), "it was answered");
        }
        for held in &self.held {
            let Some(request) = &held.request else { continue };
            for (index, item) in held.items.iter().enumerate() {
                let asked = self.server.is_cancelled(held.id, *item);
                assert!(self.server.ranks() > 1 || request.cancelled(index) == asked);
            }
        }
        if cancelled.iter().any(|(id, item)| !named.contains(id) && !named.contains(item)) {
            // It does as if nobody waited any more, because it cannot read who does; it must say so.
            let e = self.server.try_recv().map(drop).expect_err("nobody is told why all is cancelled");
            assert!(is_named(&e), "{e}");
            return false;
        }
        true
    }

    /// Answers something, as the server of a model may. What it says is heard at once, so there is always room.
    fn answer(&mut self, step: u8, input: &mut Bytes<'_>) {
        let which = input.below(self.held.len().max(1));
        let is_open = |id: &u64| self.held.iter().any(|held| held.left.contains(id));
        let stranger = (0..).find(|id| !is_open(id)).unwrap();
        let Some(held) = self.held.get_mut(which) else { return };
        let mut room = || -> bool { panic!("it waits for room") };
        let text = input.take(usize::from(step >> 3)).to_vec();
        let text = String::from_utf8_lossy(&text);
        let count = held.items.len();
        let whole = held.left.len() == count;
        let kind = match (step >> 3 & 7, &held.request) {
            (0..=2, Some(request)) => {
                let shape = [count as u64, 2];
                let fields = [FieldSpec::new("x", DType::F32, &shape)];
                match self.server.answer_within(request, &fields, &mut room) {
                    Ok(mut loan) => {
                        assert!(whole, "it is answered twice");
                        assert!(!loan.set_status(count, ItemStatus::Error, &text));
                        for index in 0..count.min(input.below(8)) {
                            let status = [ItemStatus::Ok, ItemStatus::Error, ItemStatus::Cancelled][index % 3];
                            assert!(loan.set_status(index, status, &text));
                        }
                        loan.set_timings(Timings { start_ns: 1, end_ns: 2 });
                        loan.publish().unwrap();
                        held.left.clear();
                        17
                    }
                    Err(Error::Answered { .. }) if !whole => return,
                    Err(e) => panic!("{e}"),
                }
            }
            (3, Some(request)) => {
                self.server.fail_within(request, "ValueError", &text, &mut room).unwrap();
                held.left.clear();
                19
            }
            (4, _) => {
                held.request = None;
                return;
            }
            _ => {
                let some = held.left.iter().take(1 + input.below(3)).map(|&id| PartItem { id, last: step & 0x80 != 0 });
                let mut some: Vec<PartItem> = some.collect();
                if input.byte() & 0x80 != 0 {
                    some.push(PartItem::last(stranger));
                    match self.server.part_within(&some, &[], &mut room) {
                        Err(Error::NoSuchItem { item, .. }) => assert_eq!(item, stranger),
                        found => panic!("{found:?}"),
                    }
                    return;
                }
                self.server.part_within(&some, &[], &mut room).unwrap().publish().unwrap();
                held.left.retain(|id| !some.contains(&PartItem::last(*id)));
                18
            }
        };
        if held.left.is_empty() {
            self.held.remove(which);
        }
        let said = next(&mut self.answers);
        assert_eq!((&said.user()[..4], said.user()[6]), (b"FBSV".as_slice(), kind));
        assert_eq!(self.server.outstanding(), self.held.len());
    }

    /// Ends what is still open.
    fn fail_all(&mut self) {
        for held in self.held.drain(..) {
            match held.request {
                Some(request) => self.server.fail(&request, "RuntimeError", "that is all").unwrap(),
                None => {
                    // As many rows as there is room for.
                    for some in held.left.chunks(64) {
                        let items: Vec<PartItem> = some.iter().copied().map(PartItem::last).collect();
                        self.server.part(&items, &[]).unwrap().publish().unwrap();
                        drop(next(&mut self.answers));
                    }
                    continue;
                }
            }
            drop(next(&mut self.answers));
        }
        assert_eq!(self.server.outstanding(), 0);
        assert!(self.server.cancelled().is_empty());
    }

    /// A request, a cancellation and the answer, all as they should be.
    fn exchange(&mut self, requests: &mut Producer, cancels: &mut Producer, named: &HashSet<u64>) {
        // Cancelled by nobody so far.
        let id = (LAST_ITEM..).find(|id| !named.contains(id) && !named.contains(&(id + 1))).unwrap();
        let x: Vec<u8> = [1.5f32, 2.5, 3.5, 4.5].into_iter().flat_map(f32::to_le_bytes).collect();
        let draft = Draft::new(1, id, 2).with(Field::new("x", DType::F32, &[2, 2], x)).with(Field::of_words(
            ITEMS_FIELD,
            &[2, 2],
            [id, 0, id + 1, 9],
        ));
        assert!(draft.publish(requests), "there is no room");
        let request = self.server.try_recv().unwrap().unwrap();
        assert_eq!((request.id(), request.items()), (id, [Item::new(id), Item::until(id + 1, 9)].as_slice()));
        assert_eq!(request.message().as_slice::<f32>("x").unwrap(), [1.5, 2.5, 3.5, 4.5]);
        let draft = Draft::new(2, id, 1).with(Field::of_words(ITEMS_FIELD, &[1], [id + 1]));
        assert!(draft.publish(cancels), "there is no room");
        assert_eq!(self.server.cancelled(), [(id, id + 1)]);
        let mut loan = self.server.answer(&request, &[FieldSpec::new("y", DType::U8, &[2])]).unwrap();
        loan.tensor_mut::<u8>("y").unwrap().copy_from_slice(&[7, 8]);
        loan.publish().unwrap();
        let said = next(&mut self.answers);
        assert_eq!(said.user(), Draft::new(17, id, 2).user);
        assert_eq!(said.as_slice::<u64>(ITEMS_FIELD).unwrap(), [id, 1 << 8, id + 1, 1 << 8]);
        assert_eq!(said.as_slice::<u8>("y").unwrap(), [7, 8]);
        assert_eq!(self.server.outstanding(), 0);
    }
}
