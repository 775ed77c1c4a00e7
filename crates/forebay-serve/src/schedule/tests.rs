use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn limits() -> Limits {
    Limits {
        max_items: 4,
        max_tokens: 4096,
        max_bytes: u64::MAX,
        token_bytes: 16,
        pad_to_multiple_of: 1,
        buckets: Vec::new(),
        window: Duration::ZERO,
        prefetch: 1,
        continuous: false,
        queue_timeout: Duration::from_secs(5),
        max_waiting: 1000,
    }
}

fn after(seconds: f64) -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(Instant::now) + Duration::from_secs_f64(seconds)
}

fn push(schedule: &mut Schedule<u32>, now: f64, priority: Priority, items: &[(usize, u32)]) -> Ticket {
    let items = items.iter().map(|&(tokens, load)| (Size { tokens, ..Size::default() }, load));
    schedule.push(after(now), priority, after(now + 30.0), items).unwrap()
}

fn loads(batch: &Batch<u32>) -> Vec<u32> {
    batch.items.iter().map(|item| item.load).collect()
}

#[test]
fn a_free_worker_gets_what_there_is_at_once() {
    let mut schedule = Schedule::new(limits());
    schedule.add_worker(7);
    assert!(schedule.assign(after(0.0)).is_none());
    push(&mut schedule, 0.0, Priority::Normal, &[(5, 1)]);
    let batch = schedule.assign(after(0.0)).unwrap();
    assert_eq!((batch.worker, batch.width, loads(&batch)), (7, 5, vec![1]));
    assert_eq!(schedule.load_of(7), (1, 1));
}

#[test]
fn a_busy_worker_is_given_a_full_batch_ahead_and_no_other() {
    let mut schedule = Schedule::new(limits());
    schedule.add_worker(0);
    push(&mut schedule, 0.0, Priority::Normal, &[(5, 0)]);
    let first = schedule.assign(after(0.0)).unwrap();
    push(&mut schedule, 0.0, Priority::Normal, &[(5, 1), (5, 2), (5, 3)]);
    assert!(schedule.assign(after(0.0)).is_none(), "it may still grow");
    push(&mut schedule, 0.0, Priority::Normal, &[(5, 4), (5, 5)]);
    assert_eq!(loads(&schedule.assign(after(0.0)).unwrap()), [1, 2, 3, 4]);
    push(&mut schedule, 0.0, Priority::Normal, &[(5, 6), (5, 7), (5, 8), (5, 9)]);
    assert!(schedule.assign(after(0.0)).is_none(), "one ahead, not two");
    schedule.release(first.id, 1);
    assert_eq!(loads(&schedule.assign(after(0.0)).unwrap()), [5, 6, 7, 8]);
}

#[test]
fn the_worker_that_has_least_to_do_is_next() {
    let mut schedule = Schedule::new(limits());
    for key in 0..3 {
        schedule.add_worker(key);
    }
    push(&mut schedule, 0.0, Priority::Normal, &[(1, 0); 11]);
    let first: Vec<_> = std::iter::from_fn(|| schedule.assign(after(0.0))).collect();
    assert_eq!(
        first.iter().map(|batch| (batch.worker, batch.items.len())).collect::<Vec<_>>(),
        [(0, 4), (1, 4), (2, 3)]
    );
    push(&mut schedule, 0.0, Priority::Normal, &[(1, 0); 4]);
    assert_eq!(schedule.assign(after(0.0)).unwrap().worker, 2, "it has three items, the others four");
}

#[test]
fn a_free_worker_takes_its_share_and_leaves_the_others_theirs() {
    let mut schedule = Schedule::new(Limits { max_items: 32, ..limits() });
    schedule.add_worker(0);
    schedule.add_worker(1);
    push(&mut schedule, 0.0, Priority::Normal, &[(1, 0); 20]);
    let first = schedule.assign(after(0.0)).unwrap();
    assert_eq!(schedule.assign(after(0.0)).unwrap().items.len(), 10);
    assert_eq!(first.items.len(), 10);
    // The other one runs ten: of the twenty there are in all, each has ten.
    schedule.release(first.id, 10);
    push(&mut schedule, 0.0, Priority::Normal, &[(1, 0); 12]);
    assert_eq!(schedule.assign(after(0.0)).unwrap().items.len(), 11);
    assert!(schedule.assign(after(0.0)).is_none());
    assert_eq!(schedule.waiting(), 1);
}

#[test]
fn a_worker_that_leaves_or_has_no_room_has_no_share() {
    let mut schedule = Schedule::new(Limits { max_items: 32, ..limits() });
    (0..3).for_each(|key| schedule.add_worker(key));
    schedule.close_worker(1);
    schedule.block_worker(2, true);
    push(&mut schedule, 0.0, Priority::Normal, &[(1, 0); 20]);
    assert_eq!(schedule.assign(after(0.0)).unwrap().items.len(), 20);
}

#[test]
fn a_full_batch_waits_for_one_of_many_that_will_soon_be_free() {
    let mut schedule = Schedule::new(limits());
    (0..4).for_each(|key| schedule.add_worker(key));
    push(&mut schedule, 0.0, Priority::Normal, &[(1, 0); 4]);
    let first: Vec<_> = std::iter::from_fn(|| schedule.assign(after(0.0))).collect();
    assert_eq!(first.len(), 4, "one for each");
    push(&mut schedule, 0.0, Priority::Normal, &[(1, 0); 4]);
    assert!(schedule.assign(after(0.0)).is_none(), "four would be a full batch, and two are a share");
    schedule.release(first[2].id, 1);
    let next = schedule.assign(after(0.0)).unwrap();
    assert_eq!((next.worker, next.items.len()), (2, 2));
}

#[test]
fn generating_workers_are_filled_evenly() {
    let mut schedule = Schedule::new(Limits { continuous: true, max_items: 8, ..limits() });
    schedule.add_worker(0);
    schedule.add_worker(1);
    push(&mut schedule, 0.0, Priority::Normal, &[(1, 0); 6]);
    while schedule.assign(after(0.0)).is_some() {}
    assert_eq!((schedule.load_of(0).1, schedule.load_of(1).1), (3, 3));
    push(&mut schedule, 0.0, Priority::Normal, &[(1, 0); 20]);
    while schedule.assign(after(0.0)).is_some() {}
    assert_eq!((schedule.load_of(0).1, schedule.load_of(1).1, schedule.waiting()), (8, 8, 10));
}

#[test]
fn items_of_like_length_go_together_and_the_oldest_is_among_them() {
    let mut schedule = Schedule::new(limits());
    let lengths = [400, 10, 12, 390, 11, 410, 9, 395];
    let items: Vec<_> = lengths.iter().enumerate().map(|(load, &tokens)| (tokens, load as u32)).collect();
    push(&mut schedule, 0.0, Priority::Normal, &items);
    schedule.add_worker(0);
    assert_eq!(loads(&schedule.assign(after(0.0)).unwrap()), [0, 3, 5, 7]);
    assert_eq!(loads(&schedule.assign(after(0.0)).unwrap()), [1, 2, 4, 6]);
}

#[test]
fn a_long_text_is_not_joined_by_many_short_ones() {
    let mut schedule = Schedule::new(Limits { max_items: 32, ..limits() });
    let mut items = vec![(512, 99)];
    items.extend((0..31).map(|load| (10, load)));
    push(&mut schedule, 0.0, Priority::Normal, &items);
    schedule.add_worker(0);
    let first = schedule.assign(after(0.0)).unwrap();
    assert_eq!(first.items.len(), 3);
    schedule.release(first.id, 3);
    let rest = schedule.assign(after(0.0)).unwrap();
    assert_eq!((rest.items.len(), rest.width), (29, 10));
}

#[test]
fn items_come_from_one_bucket_unless_there_is_room() {
    let mut schedule = Schedule::new(Limits { buckets: vec![16, 64], ..limits() });
    push(&mut schedule, 0.0, Priority::Normal, &[(16, 0), (17, 1), (17, 2), (3, 3), (4, 4), (5, 5)]);
    schedule.add_worker(0);
    let first = schedule.assign(after(0.0)).unwrap();
    assert_eq!(loads(&first), [0, 3, 4, 5]);
    schedule.release(first.id, 4);
    assert_eq!(loads(&schedule.assign(after(0.0)).unwrap()), [1, 2]);
}

#[test]
fn classes_go_one_before_the_other_and_fill_each_others_batches() {
    let mut schedule = Schedule::new(limits());
    push(&mut schedule, 0.0, Priority::Low, &[(1, 0), (1, 1)]);
    push(&mut schedule, 0.0, Priority::Normal, &[(1, 2), (1, 3), (1, 4)]);
    push(&mut schedule, 0.0, Priority::High, &[(1, 5)]);
    schedule.add_worker(0);
    assert_eq!(loads(&schedule.assign(after(0.0)).unwrap()), [5, 2, 3, 4]);
}

#[test]
fn a_window_keeps_a_batch_that_is_not_full() {
    let mut schedule = Schedule::new(Limits { window: Duration::from_millis(10), ..limits() });
    schedule.add_worker(0);
    push(&mut schedule, 0.0, Priority::Normal, &[(1, 0)]);
    assert!(schedule.assign(after(0.0)).is_none());
    assert_eq!(schedule.wake_at(), Some(after(0.010)));
    assert!(schedule.assign(after(0.009)).is_none());
    assert_eq!(loads(&schedule.assign(after(0.010)).unwrap()), [0]);
    push(&mut schedule, 1.0, Priority::Normal, &[(1, 1), (1, 2), (1, 3), (1, 4)]);
    assert_eq!(schedule.assign(after(1.0)).unwrap().items.len(), 4, "a full one waits for nothing");
}

#[test]
fn with_a_window_nothing_is_shared() {
    let mut schedule = Schedule::new(Limits { window: Duration::from_millis(10), ..limits() });
    schedule.add_worker(0);
    schedule.add_worker(1);
    push(&mut schedule, 0.0, Priority::Normal, &[(1, 0); 4]);
    assert_eq!(schedule.assign(after(0.0)).unwrap().items.len(), 4, "a full one");
    push(&mut schedule, 0.0, Priority::Normal, &[(1, 0); 2]);
    assert!(schedule.assign(after(0.0)).is_none());
    assert_eq!(schedule.assign(after(0.010)).unwrap().items.len(), 2, "and one whose time is over");
}

#[test]
fn what_cannot_be_handed_over_has_waited_all_the_same() {
    let mut schedule = Schedule::new(limits());
    schedule.add_worker(0);
    push(&mut schedule, 0.0, Priority::Normal, &[(1, 7)]);
    for round in 1..5 {
        let batch = schedule.assign(after(f64::from(round))).unwrap();
        schedule.release(batch.id, 1);
        schedule.put_back(batch.items);
        assert_eq!(schedule.oldest(), Some(after(0.0)));
    }
    assert_eq!(schedule.expire(after(5.0)), [(Expired::Queue { waited: Duration::from_secs(5) }, 7)]);
}

#[test]
fn what_waits_too_long_leaves_with_the_reason() {
    let mut schedule = Schedule::new(limits());
    push(&mut schedule, 0.0, Priority::Normal, &[(1, 0)]);
    let item = std::iter::once((Size::default(), 1));
    schedule.push(after(0.0), Priority::Normal, after(2.0), item).unwrap();
    assert_eq!(schedule.wake_at(), Some(after(2.0)));
    assert!(schedule.expire(after(1.9)).is_empty());
    assert_eq!(schedule.expire(after(2.0)), [(Expired::Deadline, 1)]);
    assert_eq!(schedule.expire(after(5.0)), [(Expired::Queue { waited: Duration::from_secs(5) }, 0)]);
    assert_eq!((schedule.waiting(), schedule.wake_at()), (0, None));
}

#[test]
fn a_full_queue_refuses_the_whole_call() {
    let mut schedule = Schedule::new(Limits { max_waiting: 3, ..limits() });
    let five = vec![(Size::default(), 0); 5];
    assert!(schedule.push(after(0.0), Priority::Low, after(9.0), five.clone().into_iter()).is_ok(), "it was empty");
    assert_eq!(schedule.push(after(0.0), Priority::High, after(9.0), five.into_iter()), Err(Full { waiting: 5 }));
    assert_eq!(schedule.waiting(), 5);
}

#[test]
fn a_cancelled_call_leaves_the_queue() {
    let mut schedule = Schedule::new(limits());
    let first = push(&mut schedule, 0.0, Priority::Normal, &[(1, 0), (1, 1)]);
    push(&mut schedule, 0.0, Priority::Normal, &[(1, 2)]);
    assert_eq!(schedule.cancel(&first), [0, 1]);
    assert!(schedule.cancel(&first).is_empty());
    schedule.add_worker(0);
    assert_eq!(loads(&schedule.assign(after(0.0)).unwrap()), [2]);
}

#[test]
fn items_of_a_dead_worker_go_first_on_another() {
    let mut schedule = Schedule::new(Limits { max_items: 2, ..limits() });
    schedule.add_worker(0);
    push(&mut schedule, 0.0, Priority::Normal, &[(1, 0), (1, 1), (1, 2), (1, 3)]);
    let first = schedule.assign(after(0.0)).unwrap();
    schedule.remove_worker(0);
    assert!(schedule.assign(after(0.0)).is_none());
    schedule.begin_anew(after(4.0), first.items);
    assert!(schedule.expire(after(5.0)).iter().all(|(_, load)| *load >= 2), "the others began anew");
    schedule.add_worker(1);
    assert_eq!(loads(&schedule.assign(after(5.0)).unwrap()), [0, 1]);
    schedule.release(first.id, 2);
    assert_eq!(schedule.load_of(1), (1, 2), "what the dead one had counts for nobody");
}

#[test]
fn a_continuous_worker_is_filled_up_item_by_item() {
    let mut schedule = Schedule::new(Limits { continuous: true, ..limits() });
    schedule.add_worker(0);
    push(&mut schedule, 0.0, Priority::Normal, &[(1, 0), (1, 1), (1, 2)]);
    let first = schedule.assign(after(0.0)).unwrap();
    push(&mut schedule, 0.0, Priority::Normal, &[(1, 3), (1, 4)]);
    assert_eq!(loads(&schedule.assign(after(0.0)).unwrap()), [3]);
    assert!(schedule.assign(after(0.0)).is_none());
    schedule.release(first.id, 1);
    assert_eq!(loads(&schedule.assign(after(0.0)).unwrap()), [4]);
}

#[test]
fn closed_and_blocked_workers_get_nothing() {
    let mut schedule = Schedule::new(limits());
    schedule.add_worker(0);
    schedule.add_worker(1);
    schedule.close_worker(0);
    schedule.block_worker(1, true);
    push(&mut schedule, 0.0, Priority::Normal, &[(1, 0)]);
    assert!(schedule.assign(after(0.0)).is_none());
    schedule.block_worker(1, false);
    assert_eq!(schedule.assign(after(0.0)).unwrap().worker, 1);
}

/// What may happen to a schedule.
#[derive(Debug, Clone)]
enum Event {
    Push { priority: u8, sizes: Vec<(usize, u64, u64)>, patience_ms: u64 },
    Pass { ms: u64 },
    Finish { which: usize, items: usize },
    Cancel { which: usize },
    Die { which: usize },
    Start,
    Block { which: usize, blocked: bool },
}

fn event() -> impl Strategy<Value = Event> {
    let size = (0usize..700, 0u64..5000, 0u64..2);
    prop_oneof![
        6 => (0u8..3, proptest::collection::vec(size, 1..12), 0u64..8000)
            .prop_map(|(priority, sizes, patience_ms)| Event::Push { priority, sizes, patience_ms }),
        3 => (0u64..3000).prop_map(|ms| Event::Pass { ms }),
        6 => (0usize..8, 1usize..6).prop_map(|(which, items)| Event::Finish { which, items }),
        2 => (0usize..20).prop_map(|which| Event::Cancel { which }),
        1 => (0usize..4).prop_map(|which| Event::Die { which }),
        2 => Just(Event::Start),
        1 => (0usize..4, any::<bool>()).prop_map(|(which, blocked)| Event::Block { which, blocked }),
    ]
}

proptest! {
    #[test]
    fn no_item_is_lost_or_given_twice_and_no_batch_is_over_its_limits(
        events in proptest::collection::vec(event(), 1..120),
        max_items in 1usize..9,
        max_tokens in 1usize..3000,
        max_bytes in 1u64..40_000,
        prefetch in 0usize..3,
        continuous: bool,
        pad_to_multiple_of in 1usize..9,
    ) {
        let limits = Limits {
            max_items, max_tokens, max_bytes, prefetch, continuous, pad_to_multiple_of,
            buckets: vec![32, 128], max_waiting: 40, ..limits()
        };
        let mut schedule = Schedule::new(limits.clone());
        let (mut clock, mut next_load, mut next_key) = (0.0, 0u32, 0u64);
        let mut tickets: Vec<Ticket> = Vec::new();
        let mut waiting: HashSet<u32> = HashSet::new();
        let mut flights: Vec<(u64, u64, usize, Vec<Waiting<u32>>)> = Vec::new();
        let mut workers: Vec<(u64, bool)> = Vec::new();
        for event in events {
            let now = after(clock);
            match event {
                Event::Push { priority, sizes, patience_ms } => {
                    let priority = [Priority::High, Priority::Normal, Priority::Low][usize::from(priority)];
                    let items: Vec<_> = sizes.iter().map(|&(tokens, bytes, group)| {
                        next_load += 1;
                        (Size { tokens, bytes, group }, next_load)
                    }).collect();
                    let loads: Vec<u32> = items.iter().map(|item| item.1).collect();
                    let deadline = now + Duration::from_millis(patience_ms);
                    let had = schedule.waiting();
                    match schedule.push(now, priority, deadline, items.into_iter()) {
                        Ok(ticket) => {
                            prop_assert!(had == 0 || had + loads.len() <= 40);
                            waiting.extend(loads);
                            tickets.push(ticket);
                        }
                        Err(full) => prop_assert!(full.waiting == had && had + loads.len() > 40),
                    }
                }
                Event::Pass { ms } => {
                    clock += ms as f64 / 1e3;
                    for (why, load) in schedule.expire(after(clock)) {
                        prop_assert!(waiting.remove(&load));
                        if let Expired::Queue { waited } = why {
                            prop_assert!(waited >= Duration::from_secs(5));
                        }
                    }
                    prop_assert!(schedule.wake_at().is_none_or(|at| at > after(clock)));
                }
                Event::Finish { which, items } if which < flights.len() => {
                    let flight = &mut flights[which];
                    let items = items.min(flight.2);
                    schedule.release(flight.0, items);
                    flight.2 -= items;
                    if flight.2 == 0 {
                        flights.remove(which);
                    }
                }
                Event::Cancel { which } if which < tickets.len() => {
                    for load in schedule.cancel(&tickets.swap_remove(which)) {
                        prop_assert!(waiting.remove(&load));
                    }
                }
                Event::Die { which } if which < workers.len() => {
                    let (key, _) = workers.remove(which);
                    schedule.remove_worker(key);
                    let (dead, rest): (Vec<_>, Vec<_>) = flights.into_iter().partition(|flight| flight.1 == key);
                    flights = rest;
                    for (.., items) in dead {
                        waiting.extend(items.iter().map(|item| item.load));
                        schedule.begin_anew(now, items);
                    }
                }
                Event::Start => {
                    schedule.add_worker(next_key);
                    workers.push((next_key, false));
                    next_key += 1;
                }
                Event::Block { which, blocked } if which < workers.len() => {
                    workers[which].1 = blocked;
                    schedule.block_worker(workers[which].0, blocked);
                }
                _ => {}
            }
            loop {
                // Before: everything that waits, and what workers have that may be given more.
                let open = || workers.iter().filter(|worker| !worker.1).map(|worker| schedule.load_of(worker.0).1);
                let share = (schedule.waiting() + open().sum::<usize>()).div_ceil(open().count().max(1));
                let Some(batch) = schedule.assign(after(clock)) else { break };
                let items = &batch.items;
                prop_assert!(items.len() <= share);
                prop_assert!(!items.is_empty() && items.len() <= max_items);
                prop_assert!(workers.contains(&(batch.worker, false)));
                let longest = items.iter().map(|item| item.size.tokens).max().unwrap_or(0);
                prop_assert_eq!(batch.width, longest.next_multiple_of(pad_to_multiple_of));
                if items.len() > 1 {
                    let padded = batch.width * items.len();
                    let bytes: u64 = items.iter().map(|item| item.size.bytes).sum();
                    prop_assert!(padded <= max_tokens && bytes + padded as u64 * 16 <= max_bytes);
                    prop_assert!(items.iter().all(|item| item.size.group == items[0].size.group));
                }
                for item in items {
                    prop_assert!(waiting.remove(&item.load), "given twice");
                }
                let (_, running) = schedule.load_of(batch.worker);
                prop_assert!(!continuous || running <= max_items.min(share));
                flights.push((batch.id, batch.worker, items.len(), batch.items));
            }
            // I3: whoever has nothing to do has nothing to take.
            let idle = workers.iter().any(|&(key, blocked)| !blocked && schedule.load_of(key).0 == 0);
            prop_assert!(!idle || waiting.is_empty());
            prop_assert_eq!(schedule.waiting(), waiting.len());
            prop_assert_eq!(schedule.running(), flights.iter().map(|flight| flight.2).sum::<usize>());
        }
    }

    #[test]
    fn the_oldest_is_always_in_the_next_batch(lengths in proptest::collection::vec(1usize..600, 1..100)) {
        let mut schedule = Schedule::new(Limits { max_items: 8, ..limits() });
        let items: Vec<_> = lengths.iter().enumerate().map(|(load, &tokens)| (tokens, load as u32)).collect();
        push(&mut schedule, 0.0, Priority::Normal, &items);
        schedule.add_worker(0);
        let mut left: HashSet<u32> = (0..lengths.len() as u32).collect();
        while let Some(batch) = schedule.assign(after(0.0)) {
            prop_assert!(loads(&batch).contains(left.iter().min().unwrap()));
            loads(&batch).iter().for_each(|load| { left.remove(load); });
            schedule.release(batch.id, batch.items.len());
        }
        prop_assert!(left.is_empty());
    }
}
