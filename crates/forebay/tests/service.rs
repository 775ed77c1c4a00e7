//! Both ends of a service in one process, on threads.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]
#![allow(unsafe_code, reason = "one of these tests forks")]

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use forebay::{
    Backing, DType, FieldSpec, Kind, LoanError, Producer, PublishError, RecvError, Schema,
    service::{
        AnswerKind, Client, ClientOptions, Error, ITEMS_FIELD, Item, ItemStatus, Meta, PartItem, Request, Server,
        Timings, Trace,
    },
};

const SOON: Duration = Duration::from_secs(20);

fn pair(options: impl FnOnce(ClientOptions) -> ClientOptions) -> (tempfile::TempDir, Client, Server) {
    let dir = tempfile::tempdir().unwrap();
    let options = options(Client::options("s").dir(dir.path()).slots(4).slot_bytes(4096));
    let mut client = options.create().unwrap();
    let server = Server::options("s").dir(dir.path()).answer_slots(4).answer_slot_bytes(4096).attach().unwrap();
    assert!(client.accept_within(&mut || false).unwrap());
    (dir, client, server)
}

fn ask(client: &mut Client, ids: &[u64], meta: &Meta) -> u64 {
    let items: Vec<Item> = ids.iter().map(|&id| Item::until(id, 1000 + id)).collect();
    let shape = [ids.len() as u64, 2];
    let mut loan = client.request(&[FieldSpec::new("x", DType::F32, &shape)], &items).unwrap();
    for (x, i) in loan.tensor_mut::<f32>("x").unwrap().iter_mut().zip(0u16..) {
        *x = i.into();
    }
    loan.publish(meta).unwrap()
}

fn double(server: &mut Server, request: &Request) {
    let shape = [request.items().len() as u64, 2];
    let mut loan = server.answer(request, &[FieldSpec::new("y", DType::F32, &shape)]).unwrap();
    let x = request.message().as_slice::<f32>("x").unwrap();
    for (y, x) in loan.tensor_mut::<f32>("y").unwrap().iter_mut().zip(x) {
        *y = 2.0 * x;
    }
    loan.set_timings(Timings { start_ns: 5, end_ns: 7 });
    loan.publish().unwrap();
}

#[test]
fn a_request_is_answered_with_everything_it_said() {
    let (_dir, mut client, mut server) = pair(|options| options);
    server.ready("threads 1.0").unwrap();
    let ready = client.recv_timeout(SOON).unwrap();
    let readiness = ready.readiness().unwrap();
    assert_eq!((ready.kind(), readiness.text, readiness.ranks), (AnswerKind::Ready, "threads 1.0", 1));
    assert_eq!(readiness.pid, std::process::id());

    let trace = Trace { trace_id: [1; 16], span_id: [2; 8], flags: 1 };
    let meta = Meta { deadline_ns: 99, trace: Some(trace) };
    let id = ask(&mut client, &[7, 3], &meta);
    assert_eq!(client.outstanding(), 1);
    let request = server.recv().unwrap();
    assert_eq!((request.id(), request.deadline_ns(), request.trace()), (id, 99, Some(trace)));
    assert_eq!(request.items(), [Item::until(7, 1007), Item::until(3, 1003)]);
    assert_eq!(request.fields().map(|(name, _)| name).collect::<Vec<_>>(), ["x"]);
    assert_eq!(server.outstanding(), 1);
    double(&mut server, &request);
    assert_eq!(server.outstanding(), 0);

    let answer = client.recv_timeout(SOON).unwrap();
    assert_eq!(
        (answer.kind(), answer.request(), answer.timings()),
        (AnswerKind::Result, id, Timings { start_ns: 5, end_ns: 7 })
    );
    assert_eq!(answer.tensor("y").unwrap().as_slice::<f32>().unwrap(), [0.0, 2.0, 4.0, 6.0]);
    assert_eq!(
        answer.items().iter().map(|item| (item.id, item.status, item.last)).collect::<Vec<_>>(),
        [(7, ItemStatus::Ok, true), (3, ItemStatus::Ok, true)]
    );
    assert_eq!(client.outstanding(), 0);
    assert!(client.try_answer().unwrap().is_none());
    assert!(client.is_alive());
}

#[test]
fn single_items_fail_and_say_why() {
    let (_dir, mut client, mut server) = pair(|options| options);
    ask(&mut client, &[1, 2, 3], &Meta::default());
    let request = server.recv().unwrap();
    let mut loan = server.answer(&request, &[FieldSpec::new("y", DType::U8, &[3])]).unwrap();
    assert!(loan.set_status(1, ItemStatus::Error, "ValueError: ünfit"));
    assert!(loan.set_status(2, ItemStatus::Cancelled, ""));
    assert!(!loan.set_status(3, ItemStatus::Error, "there is no item 3"));
    loan.publish().unwrap();
    let answer = client.recv_timeout(SOON).unwrap();
    let statuses: Vec<_> = answer.items().iter().map(|item| item.status).collect();
    assert_eq!(statuses, [ItemStatus::Ok, ItemStatus::Error, ItemStatus::Cancelled]);
    assert_eq!((answer.error(0), answer.error(1), answer.error(2)), (None, Some("ValueError: ünfit"), None));
}

#[test]
fn texts_are_there_in_a_forked_child() {
    // They were read where the slot is in the parent, and where the child has nothing: a SIGSEGV.
    let (_dir, mut client, mut server) = pair(|options| options);
    let ready = "threads 1.0 ".repeat(30);
    server.ready(&ready).unwrap();
    ask(&mut client, &[1, 2], &Meta::default());
    ask(&mut client, &[3], &Meta::default());
    let request = server.recv().unwrap();
    let mut loan = server.answer(&request, &[FieldSpec::new("y", DType::U8, &[2, 512])]).unwrap();
    assert!(loan.set_status(1, ItemStatus::Error, "ValueError: unfit"));
    loan.publish().unwrap();
    let request = server.recv().unwrap();
    server.fail(&request, "RuntimeError", "no more").unwrap();
    let answers: Vec<_> = (0..3).map(|_| client.recv_timeout(SOON).unwrap()).collect();
    // SAFETY: the child only compares bytes and leaves at once, neither of which takes a lock that another thread may hold.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let right = answers[0].readiness().is_some_and(|readiness| readiness.text == ready)
            && answers[1].error(0).is_none()
            && answers[1].error(1) == Some("ValueError: unfit")
            && answers[2].failure() == Some(("RuntimeError", "no more"));
        // SAFETY: it takes a number.
        unsafe { libc::_exit(if right { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: the child is ours, and status is writable.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0, "a signal in the lowest byte, else what the child exited with");
}

#[test]
fn a_server_that_says_it_is_ready_can_be_interrupted() {
    let (_dir, mut client, mut server) = pair(|options| options);
    for _ in 0..4 {
        server.ready("once").unwrap();
    }
    let mut asked = 0;
    let wait = server.ready_within("no room", &mut || {
        asked += 1;
        asked > 1
    });
    assert!(matches!(wait, Err(Error::Interrupted { .. })), "{wait:?}");
    assert_eq!(client.recv_timeout(SOON).unwrap().kind(), AnswerKind::Ready);
    server.ready_within("there is room", &mut || false).unwrap();
}

#[test]
fn texts_beyond_their_room_are_cut() {
    let (_dir, mut client, mut server) = pair(|options| options);
    let ids: Vec<u64> = (0..8).collect();
    ask(&mut client, &ids, &Meta::default());
    let request = server.recv().unwrap();
    let mut loan = server.answer(&request, &[]).unwrap();
    for index in 0..8 {
        assert!(loan.set_status(index, ItemStatus::Error, &"ä".repeat(2000)));
    }
    loan.publish().unwrap();
    let answer = client.recv_timeout(SOON).unwrap();
    assert_eq!(answer.error(0).map(str::len), Some(1024));
    assert_eq!(answer.error(3).map(str::len), Some(1024));
    assert_eq!((answer.error(4), answer.items()[4].status), (None, ItemStatus::Error));
    let id = ask(&mut client, &[9], &Meta::default());
    let request = server.recv().unwrap();
    server.fail(&request, "RuntimeError", &"x".repeat(10_000)).unwrap();
    let answer = client.recv_timeout(SOON).unwrap();
    let (kind, text) = answer.failure().unwrap();
    assert_eq!((answer.request(), kind, text.len()), (id, "RuntimeError", 4096 - 12));
}

#[test]
fn a_request_is_answered_once() {
    let (_dir, mut client, mut server) = pair(|options| options);
    let id = ask(&mut client, &[1], &Meta::default());
    let request = server.recv().unwrap();
    let wrong = server.answer(&request, &[FieldSpec::new("y", DType::F32, &[2, 2])]).unwrap_err();
    assert_eq!(
        wrong.to_string(),
        "field \"y\" has 2 rows, expected 1 rows, one for each item; return as many rows as came in"
    );
    assert!(matches!(server.answer(&request, &[FieldSpec::new("y", DType::F32, &[])]), Err(Error::Rows { .. })));
    let large = server.answer(&request, &[FieldSpec::new("y", DType::F32, &[1, 100_000])]).unwrap_err();
    assert!(matches!(&large, Error::AnswerTooLarge { needed: 400_000, room: 20_416, .. }), "{large}");
    drop(server.answer(&request, &[]).unwrap());
    assert_eq!(server.outstanding(), 1, "a dropped loan answers nothing");
    double(&mut server, &request);
    assert!(matches!(server.answer(&request, &[]), Err(Error::Answered { request, .. }) if request == id));
    assert!(matches!(server.fail(&request, "", ""), Err(Error::Answered { .. })));
    client.recv_timeout(SOON).unwrap();
}

#[test]
fn parts_come_in_any_number_and_from_several_requests() {
    let (_dir, mut client, mut server) = pair(|options| options);
    let a = ask(&mut client, &[1, 2], &Meta::default());
    let b = ask(&mut client, &[5], &Meta::default());
    let (first, second) = (server.recv().unwrap(), server.recv().unwrap());
    assert_eq!((first.id(), second.id()), (a, b));
    let mut loan =
        server.part(&[PartItem::more(1), PartItem::last(5)], &[FieldSpec::new("token", DType::I64, &[2])]).unwrap();
    loan.tensor_mut::<i64>("token").unwrap().copy_from_slice(&[11, 55]);
    loan.publish().unwrap();
    let part = client.recv_timeout(SOON).unwrap();
    assert_eq!((part.kind(), part.request(), client.outstanding()), (AnswerKind::Part, 0, 1));
    let rows: Vec<_> = part.items().iter().map(|item| (item.id, item.request, item.last)).collect();
    assert_eq!(rows, [(1, a, false), (5, b, true)]);
    assert_eq!(part.message().as_slice::<i64>("token").unwrap(), [11, 55]);
    assert!(matches!(server.part(&[PartItem::more(5)], &[]), Err(Error::NoSuchItem { item: 5, .. })));
    assert!(matches!(
        server.part(&[PartItem::last(1), PartItem::more(1)], &[]),
        Err(Error::NoSuchItem { item: 1, .. })
    ));
    server.part(&[PartItem::last(1)], &[]).unwrap().publish().unwrap();
    assert!(matches!(server.answer(&first, &[]), Err(Error::Answered { .. })), "one of its items has its answer");
    assert_eq!(client.recv_timeout(SOON).unwrap().items().len(), 1);
    // What is left of a request can still fail as a whole.
    server.fail(&first, "RuntimeError", "no more").unwrap();
    let failed = client.recv_timeout(SOON).unwrap();
    assert_eq!((failed.request(), failed.failure()), (a, Some(("RuntimeError", "no more"))));
    assert_eq!((client.outstanding(), server.outstanding()), (0, 0));
}

#[test]
fn cancellations_are_seen_while_the_server_computes() {
    let (_dir, mut client, mut server) = pair(|options| options);
    let a = ask(&mut client, &[1, 2], &Meta::default());
    let b = ask(&mut client, &[3, 4], &Meta::default());
    let request = server.recv().unwrap();
    assert!(!request.cancelled(0) && !request.cancelled(1));
    client.cancel(a, &[2]);
    // Of a request that the server has not received yet.
    client.cancel(b, &[]);
    assert!(!request.cancelled(0) && request.cancelled(1) && !request.cancelled(2));
    assert!(server.is_cancelled(a, 2));
    assert_eq!(server.cancelled(), [(a, 2)], "the other request was not received yet");
    double(&mut server, &request);
    assert!(!request.cancelled(1), "it is answered");
    let request = server.recv().unwrap();
    assert!(request.cancelled(0) && request.cancelled(1));
    assert_eq!(server.cancelled(), [(b, 3), (b, 4)]);
    double(&mut server, &request);
    assert!(server.cancelled().is_empty());
    assert_eq!(client.recv_timeout(SOON).unwrap().request(), a);
    assert_eq!(client.recv_timeout(SOON).unwrap().request(), b);
    client.cancel(a, &[1]);
    let c = ask(&mut client, &[1], &Meta::default());
    let request = server.recv().unwrap();
    assert!(!request.cancelled(0), "an id is used again once it is answered");
    client.cancel(c, &[1]);
    assert!(request.cancelled(0));
}

#[test]
fn cancellations_that_find_no_room_are_said_later() {
    let (_dir, mut client, mut server) = pair(|options| options.slot_bytes(1 << 16));
    let ids: Vec<u64> = (0..1000).collect();
    let id = ask(&mut client, &ids, &Meta::default());
    let request = server.recv().unwrap();
    for item in &ids {
        client.cancel(id, &[*item]);
    }
    assert!(request.cancelled(0) && !request.cancelled(999), "the ring has far fewer slots");
    for _ in 0..40 {
        assert!(client.try_answer().unwrap().is_none());
        assert!(request.cancelled(0));
    }
    assert!((0..1000).all(|index| request.cancelled(index)));
}

#[test]
fn a_cancellation_that_cannot_be_read_is_an_error_and_not_silence() {
    // It counted as one of everything, for ever, and no call said why.
    let dir = tempfile::tempdir().unwrap();
    let ring = |name| Producer::options(name).dir(dir.path()).backing(Backing::Memfd).slots(2).slot_bytes(64).create();
    let (mut requests, mut cancels) = (ring("s.q").unwrap(), ring("s.c").unwrap());
    let mut server = Server::options("s").dir(dir.path()).attach().unwrap();
    let mut header = [0; 64];
    header[..7].copy_from_slice(b"FBSV\x01\0\x01");
    (header[8], header[16]) = (1, 1);
    let mut loan = requests.loan(&[FieldSpec::new(ITEMS_FIELD, DType::U64, &[1, 2])]).unwrap();
    loan.tensor_mut::<u64>(ITEMS_FIELD).unwrap().copy_from_slice(&[7, 0]);
    loan.set_user(&header).unwrap();
    loan.publish().unwrap();
    let request = server.recv().unwrap();
    assert!(!request.cancelled(0));
    (header[4], header[6]) = (9, 2);
    let mut loan = cancels.loan(&[]).unwrap();
    loan.set_user(&header).unwrap();
    loan.publish().unwrap();
    assert!(request.cancelled(0), "nobody can say any more who waits");
    for _ in 0..2 {
        assert!(matches!(server.try_recv(), Err(Error::Version { found: 9, expected: 1, .. })));
    }
}

#[test]
fn a_request_that_cannot_be_is_refused() {
    let (_dir, mut client, mut server) = pair(|options| options);
    let x = |shape: &'static [u64]| FieldSpec::new("x", DType::F32, shape);
    let mut refuse = |fields: &[FieldSpec<'_>], items: &[Item], word: &str| match client.request(fields, items) {
        Err(e @ LoanError::Fields { .. }) => assert!(e.to_string().contains(word), "{e}"),
        found => panic!("{found:?}"),
    };
    refuse(&[x(&[1])], &[], "without items");
    refuse(&[x(&[3, 1])], &[Item::new(1), Item::new(2)], "first dim must be 2");
    refuse(&[x(&[2])], &[Item::new(1), Item::new(1)], "given twice");
    ask(&mut client, &[9], &Meta::default());
    match client.request(&[x(&[1])], &[Item::new(9)]) {
        Err(e @ LoanError::Fields { .. }) => assert!(e.to_string().contains("item 9"), "{e}"),
        found => panic!("{found:?}"),
    }
    // A scalar is nobody's row.
    let scalar = FieldSpec::new("temperature", DType::F32, &[]);
    client.request(&[x(&[1]), scalar], &[Item::new(10)]).unwrap().publish(&Meta::default()).unwrap();
    assert_eq!(server.recv().unwrap().items()[0].id, 9);
    assert_eq!(server.recv().unwrap().fields().count(), 2);
}

#[test]
fn a_full_service_says_so_at_once_and_goes_on() {
    let (_dir, mut client, mut server) = pair(|options| options);
    for id in 0..4 {
        ask(&mut client, &[id], &Meta::default());
    }
    let fields = [FieldSpec::new("x", DType::F32, &[1, 2])];
    assert!(matches!(client.request(&fields, &[Item::new(9)]), Err(LoanError::Full { .. })));
    for _ in 0..4 {
        let request = server.recv().unwrap();
        double(&mut server, &request);
    }
    // The server leaves off four answers, which the client still has: it must not wait for a fifth slot for ever.
    let kept: Vec<_> = (0..4).map(|_| client.recv_timeout(SOON).unwrap()).collect();
    ask(&mut client, &[9], &Meta::default());
    let request = server.recv().unwrap();
    let mut asked = 0;
    let wait = server.answer_within(&request, &[], &mut || {
        asked += 1;
        asked > 1
    });
    assert!(matches!(wait, Err(Error::Interrupted { .. })));
    drop(wait);
    drop(kept);
    double(&mut server, &request);
    assert_eq!(client.recv_timeout(SOON).unwrap().items()[0].id, 9);
}

#[test]
fn a_schema_binds_requests_and_gets_the_items_field() {
    let schema = Schema::builder("texts", 1, 0).field("ids", DType::I64, &[8, 16]).build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::options("s").dir(dir.path()).schema(schema).slots(2).create().unwrap();
    let mut server = Server::options("s").dir(dir.path()).attach().unwrap();
    assert_eq!(server.schema().unwrap().fields().len(), 2);
    assert!(client.accept_within(&mut || false).unwrap());
    let items: Vec<Item> = (0..8).map(Item::new).collect();
    client.request(&[FieldSpec::new("ids", DType::I64, &[8, 16])], &items).unwrap().publish(&Meta::default()).unwrap();
    assert_eq!(server.recv().unwrap().items().len(), 8);
    let wide = [FieldSpec::new("ids", DType::I64, &[1, 17])];
    assert!(matches!(client.request(&wide, &[Item::new(99)]), Err(LoanError::Fields { .. })));
}

#[test]
fn a_request_can_be_written_on_another_thread() {
    let (_dir, mut client, mut server) = pair(|options| options);
    let loan = client.request(&[FieldSpec::new("x", DType::F32, &[1, 2])], &[Item::new(4)]).unwrap();
    let mut loan = loan.detach();
    assert_eq!(loan.ids(), [4]);
    let loan = thread::spawn(move || {
        loan.tensor_mut::<f32>("x").unwrap().copy_from_slice(&[3.0, 4.0]);
        loan
    });
    let id = client.publish(loan.join().unwrap(), &Meta::default()).unwrap();
    let request = server.recv().unwrap();
    assert_eq!((request.id(), request.message().as_slice::<f32>("x").unwrap()), (id, &[3.0, 4.0][..]));
    let mut answer = server.answer(&request, &[]).unwrap().detach();
    answer.set_timings(Timings { start_ns: 1, end_ns: 2 });
    server.publish(answer).unwrap();
    assert_eq!(client.recv_timeout(SOON).unwrap().timings().end_ns, 2);
}

#[test]
fn an_item_that_another_request_took_meanwhile_is_refused() {
    // Both were published, at which the server ended the service.
    let (_dir, mut client, mut server) = pair(|options| options);
    let fields = [FieldSpec::new("x", DType::F32, &[1, 2])];
    let begin = |client: &mut Client| client.request(&fields, &[Item::new(7)]).unwrap().detach();
    let both = [begin(&mut client), begin(&mut client)];
    let [first, second] = both;
    let id = client.publish(first, &Meta::default()).unwrap();
    match client.publish(second, &Meta::default()) {
        Err(e @ PublishError::ItemTaken { item: 7 }) => assert!(e.to_string().contains("its own id"), "{e}"),
        found => panic!("{found:?}"),
    }
    assert_eq!(client.outstanding(), 1);
    let request = server.recv().unwrap();
    assert!(server.try_recv().unwrap().is_none(), "and nothing was sent");
    double(&mut server, &request);
    drop(request);
    assert_eq!(client.recv_timeout(SOON).unwrap().request(), id);
    let all: Vec<_> = (0..4).map(|_| begin(&mut client)).collect();
    assert_eq!(all.len(), 4, "its slot went back");
}

#[test]
fn after_a_drain_everything_is_answered_and_both_ends_part() {
    let (_dir, mut client, mut server) = pair(|options| options);
    let id = ask(&mut client, &[1], &Meta::default());
    client.drain();
    let fields = [FieldSpec::new("x", DType::F32, &[1, 2])];
    assert!(matches!(client.request(&fields, &[Item::new(2)]), Err(LoanError::Closed { .. })));
    let request = server.recv().unwrap();
    assert!(matches!(server.recv(), Err(Error::Closed { outstanding: 1, .. })));
    assert!(!request.cancelled(0), "the client still waits for it");
    double(&mut server, &request);
    assert!(matches!(server.try_recv(), Err(Error::Closed { outstanding: 0, .. })));
    drop(server);
    assert_eq!(client.recv_timeout(SOON).unwrap().request(), id);
    assert!(matches!(client.recv_timeout(SOON), Err(Error::Closed { outstanding: 0, .. })));
    assert!(!client.is_alive());
}

#[test]
fn a_server_that_leaves_says_how_much_it_left_undone() {
    let (_dir, mut client, mut server) = pair(|options| options);
    ask(&mut client, &[1], &Meta::default());
    let request = server.recv().unwrap();
    drop((request, server));
    assert!(matches!(client.recv_timeout(SOON), Err(Error::Closed { outstanding: 1, .. })));
}

#[test]
fn a_client_that_leaves_ends_the_service() {
    let (_dir, mut client, mut server) = pair(|options| options);
    ask(&mut client, &[1], &Meta::default());
    drop(client);
    let request = server.recv().unwrap();
    assert!(request.cancelled(0), "nobody waits for it");
    assert_eq!(server.cancelled(), [(request.id(), 1)]);
    assert!(matches!(server.recv(), Err(Error::Closed { .. })));
}

#[test]
fn every_rank_gets_each_request_and_rank_0_answers() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::options("s").dir(dir.path()).slots(4).slot_bytes(4096).ranks(2).create().unwrap();
    let attach =
        |rank| Server::options("s").dir(dir.path()).answer_slots(4).answer_slot_bytes(4096).rank(rank).attach();
    let mut lead = attach(0).unwrap();
    assert!(!client.accept_within(&mut || true).unwrap(), "one rank is not there yet");
    let mut other = attach(1).unwrap();
    assert!(client.accept_within(&mut || false).unwrap());
    assert_eq!((lead.ranks(), other.ranks(), other.rank()), (2, 2, 1));
    for id in 0..10 {
        let asked = ask(&mut client, &[id], &Meta::default());
        client.cancel(asked, &[id]);
        let (mine, theirs) = (lead.recv().unwrap(), other.recv().unwrap());
        assert_eq!((mine.id(), theirs.id()), (asked, asked));
        assert!(!mine.cancelled(0) && !theirs.cancelled(0), "ranks must not go on differently");
        assert!(matches!(other.answer(&theirs, &[]), Err(Error::NotRankZero { rank: 1, .. })));
        other.ready("is for rank 0 to say").unwrap();
        other.finish(&theirs);
        double(&mut lead, &mine);
        assert_eq!(client.recv_timeout(SOON).unwrap().request(), asked);
        assert_eq!((lead.outstanding(), other.outstanding()), (0, 0));
    }
    drop(other);
    match client.recv_timeout(SOON) {
        Err(e @ Error::PeerDied { .. }) => assert!(e.to_string().contains("1 of 2 ranks"), "{e}"),
        found => panic!("{found:?}"),
    }
    assert!(matches!(attach(2), Err(Error::NoSuchRank { rank: 2, ranks: 2, .. })));
}

#[test]
fn with_several_ranks_any_number_of_cancellations_is_heard() {
    // Rank 1 was owed each of them, which it never read: after as many as the ring has slots none came through.
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::options("s").dir(dir.path()).slots(4).slot_bytes(4096).ranks(2).create().unwrap();
    let attach = |rank| Server::options("s").dir(dir.path()).answer_slot_bytes(4096).rank(rank).attach().unwrap();
    let (mut lead, mut other) = (attach(0), attach(1));
    assert!(client.accept_within(&mut || false).unwrap());
    let ids: Vec<u64> = (0..100).collect();
    let id = ask(&mut client, &ids, &Meta::default());
    let (mine, theirs) = (lead.recv().unwrap(), other.recv().unwrap());
    for item in &ids {
        client.cancel(id, &[*item]);
        assert!(lead.is_cancelled(id, *item), "{item}");
        assert!(other.cancelled().is_empty() && !other.is_cancelled(id, *item), "only rank 0 hears of it");
    }
    other.finish(&theirs);
    double(&mut lead, &mine);
    assert_eq!(client.recv_timeout(SOON).unwrap().request(), id);
}

#[test]
fn ranks_let_go_of_the_cancellations_that_an_older_client_broadcasts() {
    let dir = tempfile::tempdir().unwrap();
    let ring = |name| {
        let options = Producer::options(name).dir(dir.path()).kind(Kind::Broadcast).max_consumers(2);
        options.backing(Backing::Memfd).slots(2).slot_bytes(64).create().unwrap()
    };
    let (mut requests, mut cancels) = (ring("s.q"), ring("s.c"));
    let attach = |rank| Server::options("s").dir(dir.path()).rank(rank).attach().unwrap();
    let (lead, mut other) = (attach(0), attach(1));
    assert!(requests.wait_for_consumers(2, Some(SOON)).is_ok() && cancels.wait_for_consumers(2, Some(SOON)).is_ok());
    let mut header = [0; 64];
    header[..7].copy_from_slice(b"FBSV\x01\0\x01");
    let mut rounds = 0..10;
    let mut round = |other: &mut dyn FnMut()| {
        let number = rounds.next().unwrap();
        (header[6], header[8], header[16]) = (2, number, 0);
        let mut loan = cancels.loan(&[]).unwrap();
        loan.set_user(&header).unwrap();
        loan.publish().unwrap();
        other();
        assert!(lead.cancelled().is_empty());
    };
    for _ in 0..5 {
        round(&mut || assert!(other.try_recv().unwrap().is_none()));
    }
    // Also while it waits.
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            assert!(other.recv_interruptible(Some(SOON), &mut || over.load(Ordering::Relaxed)).unwrap().is_none());
        });
        for _ in 0..5 {
            round(&mut || {});
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn an_answer_that_a_rank_leaves_behind_comes_before_the_news_that_it_left() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::options("s").dir(dir.path()).slots(4).slot_bytes(4096).ranks(2).create().unwrap();
    let attach = |rank| Server::options("s").dir(dir.path()).answer_slot_bytes(4096).rank(rank).attach().unwrap();
    let (mut lead, other) = (attach(0), attach(1));
    assert!(client.accept_within(&mut || false).unwrap());
    let asked = ask(&mut client, &[1], &Meta::default());
    let request = lead.recv().unwrap();
    let mut other = Some(other);
    // Asked between the look that finds nothing and the count of the ranks.
    let mut between = || {
        if let Some(other) = other.take() {
            double(&mut lead, &request);
            drop(other);
            thread::sleep(Duration::from_millis(300));
        }
        false
    };
    let answer = client.recv_interruptible(Some(SOON), &mut between).unwrap().unwrap();
    assert_eq!(answer.request(), asked);
    match client.recv_timeout(SOON) {
        Err(e @ Error::PeerDied { .. }) => assert!(e.to_string().contains("1 of 2 ranks"), "{e}"),
        found => panic!("{found:?}"),
    }
}

#[test]
fn after_a_drain_ranks_may_leave_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::options("s").dir(dir.path()).slots(4).slot_bytes(4096).ranks(2).create().unwrap();
    let attach = |rank| Server::options("s").dir(dir.path()).answer_slot_bytes(4096).rank(rank).attach().unwrap();
    let (mut lead, mut other) = (attach(0), attach(1));
    assert!(client.accept_within(&mut || false).unwrap());
    let asked = ask(&mut client, &[1], &Meta::default());
    client.drain();
    other.recv().unwrap();
    assert!(matches!(other.recv(), Err(Error::Closed { .. })));
    drop(other);
    let request = lead.recv().unwrap();
    assert!(matches!(client.recv_timeout(Duration::from_millis(120)), Err(Error::Recv(RecvError::Timeout { .. }))));
    assert!(client.try_answer().unwrap().is_none());
    double(&mut lead, &request);
    assert_eq!(client.recv_timeout(SOON).unwrap().request(), asked);
    drop(lead);
    assert!(matches!(client.recv_timeout(SOON), Err(Error::Closed { outstanding: 0, .. })));
}

#[test]
fn nothing_can_be_received_before_the_server_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::options("s").dir(dir.path()).slots(2).slot_bytes(64).create().unwrap();
    assert!(matches!(client.try_answer(), Err(Error::NotAccepted { .. })));
    assert!(!client.is_alive());
    // What is asked before waits for the server.
    let id = ask(&mut client, &[1], &Meta::default());
    let mut server = Server::options("s").dir(dir.path()).attach().unwrap();
    assert_eq!(server.recv().unwrap().id(), id);
    assert!(client.accept_within(&mut || false).unwrap());
    assert!(matches!(client.recv_timeout(Duration::ZERO), Err(Error::Recv(RecvError::Timeout { .. }))));
}

#[test]
fn a_service_that_is_not_there_is_named_when_attaching() {
    let dir = tempfile::tempdir().unwrap();
    let options = Server::options("nobody").dir(dir.path()).timeout(Some(Duration::ZERO));
    assert!(options.attach().unwrap_err().to_string().contains("nobody.c"));
}

#[test]
fn nothing_stays_in_the_directory_whatever_was_under_way() {
    let (dir, mut client, mut server) = pair(|options| options);
    ask(&mut client, &[1], &Meta::default());
    ask(&mut client, &[2], &Meta::default());
    let request = server.recv().unwrap();
    double(&mut server, &request);
    drop(server);
    drop(client);
    drop(request);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}
