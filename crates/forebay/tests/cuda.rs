//! Copies to devices, on a CUDA runtime without one: `tests/cuda/fake_cudart.rs`, where the test decides when a copy is done.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]
#![allow(unsafe_code, reason = "the fake is a library of C functions")]
#![allow(clippy::missing_transmute_annotations, reason = "the field that a function goes to says its type")]

use std::{
    ffi::{CString, c_int},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use forebay::{
    AckMode, Backing, Consumer, ConsumerOptions, DType, FieldSpec, Kind, LoanError, Producer, RecvError, WhenFull,
    cuda::{self, CudaError, Stream},
};

const SOON: Duration = Duration::from_secs(20);
const ELEMENTS: usize = 1000;

/// The fake's functions for tests.
struct Fake {
    reset: extern "C" fn(),
    hold: extern "C" fn(c_int),
    run: extern "C" fn(usize, i64) -> i64,
    waiting: extern "C" fn(usize) -> i64,
    fail: extern "C" fn(c_int, c_int, u32),
    read_only: extern "C" fn(c_int),
    count: extern "C" fn(usize) -> i64,
    begin_capture: extern "C" fn(usize),
    end_capture: extern "C" fn(usize) -> c_int,
    alloc: extern "C" fn(usize) -> usize,
}

const REGISTERED: usize = 0;
const UNREGISTERED: usize = 1;
const SPOILT: usize = 3;
const TORN: usize = 4;
const PAGEABLE: usize = 5;
const FLAGS: usize = 8;
const FAIL_REGISTER: c_int = 0;
const FAIL_COPY: c_int = 1;
const FAIL_QUERY: c_int = 2;
const FAIL_RECORD: c_int = 3;

fn build() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/cuda/fake_cudart.rs");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (own, to) = (folder.join(format!("fake-{}", std::process::id())), folder.join("libcudart.so.fake"));
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = Command::new(rustc)
        .args(["--edition", "2024", "--crate-type", "cdylib", "-C", "panic=abort", "-o"])
        .args([&own, &source])
        .status()
        .unwrap();
    assert!(built.success());
    std::fs::rename(&own, &to).unwrap();
    to
}

/// The fake, in this process as torch's runtime would be: it is loaded, and forebay finds it. One test at a time.
fn fake() -> (&'static Fake, MutexGuard<'static, ()>) {
    static FAKE: OnceLock<Fake> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let fake = FAKE.get_or_init(|| {
        assert!(matches!(cuda::runtime(), Err(CudaError::NotLoaded { .. })), "no CUDA before it is loaded");
        let path = CString::new(build().to_str().unwrap()).unwrap();
        // SAFETY: the fake runs nothing when it is loaded.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!library.is_null());
        macro_rules! find {
            ($name:literal) => {{
                // SAFETY: the library is open.
                let at = unsafe { libc::dlsym(library, $name.as_ptr()) };
                assert!(!at.is_null());
                // SAFETY: the fake's function of this name has the type of the field.
                unsafe { std::mem::transmute(at) }
            }};
        }
        Fake {
            reset: find!(c"fake_reset"),
            hold: find!(c"fake_hold"),
            run: find!(c"fake_run"),
            waiting: find!(c"fake_waiting"),
            fail: find!(c"fake_fail"),
            read_only: find!(c"fake_read_only"),
            count: find!(c"fake_count"),
            begin_capture: find!(c"fake_begin_capture"),
            end_capture: find!(c"fake_end_capture"),
            alloc: find!(c"fake_alloc"),
        }
    });
    (fake.reset)();
    (fake, turn)
}

struct Rig {
    fake: &'static Fake,
    producer: Producer,
    consumer: Consumer,
    // In this order: rings end before their directory and before the next test begins.
    _dir: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

fn rig_of(
    producer: impl FnOnce(forebay::ProducerOptions) -> forebay::ProducerOptions,
    consumer: impl FnOnce(ConsumerOptions) -> ConsumerOptions,
) -> Rig {
    let (fake, turn) = fake();
    let dir = tempfile::tempdir().unwrap();
    let options = Producer::options("gpu").dir(dir.path()).slots(2).slot_bytes(1 << 14).when_full(WhenFull::Fail);
    let mut producer = producer(options).create().unwrap();
    let consumer = consumer(Consumer::options("gpu").dir(dir.path()).quota(2)).attach().unwrap();
    producer.wait_for_consumers(1, Some(SOON)).unwrap();
    Rig { fake, producer, consumer, _dir: dir, _turn: turn }
}

fn rig() -> Rig {
    rig_of(|p| p, |c| c)
}

/// A stream of the fake: any number.
fn stream(number: usize) -> Stream {
    // SAFETY: the fake takes any.
    unsafe { Stream::from_raw(0, number) }
}

impl Rig {
    fn publish(&mut self, value: i32) -> Result<u64, LoanError> {
        let mut loan = self.producer.loan(&[FieldSpec::new("x", DType::I32, &[ELEMENTS as u64])])?;
        loan.tensor_mut::<i32>("x").unwrap().fill(value);
        Ok(loan.publish().unwrap())
    }

    fn recv(&mut self) -> forebay::Message {
        self.consumer.recv_timeout(SOON).unwrap()
    }

    fn target(&self) -> usize {
        (self.fake.alloc)(ELEMENTS * 4)
    }

    fn count(&self, which: usize) -> i64 {
        (self.fake.count)(which)
    }

    /// Waits until the producer finds a free slot, without the consumer's doing anything.
    fn published_without_recv(&mut self, value: i32) {
        let start = Instant::now();
        while self.publish(value).is_err() {
            assert!(start.elapsed() < SOON, "the slot was not released");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn copy(message: &forebay::Message, to: usize, stream: Stream) -> Result<(), CudaError> {
    // SAFETY: `to` is from `target`, and every tensor here is as long.
    unsafe { message.copy_to_device(&[(0, to)], stream) }
}

/// What lies at a target.
fn found(at: usize) -> Vec<i32> {
    // SAFETY: from `target`; nothing writes there now.
    unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<i32>(at), ELEMENTS) }.to_vec()
}

#[test]
fn a_slot_is_kept_until_its_copy_is_done_although_the_message_was_dropped_at_once() {
    let mut rig = rig();
    rig.consumer.pin(None).unwrap();
    assert!(rig.consumer.is_pinned());
    (rig.fake.hold)(1);
    let to = [rig.target(), rig.target()];
    for (i, &to) in to.iter().enumerate() {
        rig.publish(40 + i as i32).unwrap();
        let message = rig.recv();
        copy(&message, to, stream(7)).unwrap();
    }
    assert_eq!(rig.consumer.in_flight(), 2);
    assert_eq!(rig.consumer.held().len(), 2);
    // Both were dropped, and are acked: only their memory is kept.
    assert_eq!(rig.consumer.stats().acked, 2);
    assert!(rig.publish(99).is_err(), "no slot may be free");
    assert!(rig.consumer.try_recv().unwrap().is_none());
    assert!(rig.publish(99).is_err(), "looking for messages releases nothing early");
    // The first copy and its event.
    assert_eq!((rig.fake.run)(7, 2), 2);
    assert!(rig.consumer.try_recv().unwrap().is_none());
    rig.publish(99).unwrap();
    assert!(rig.publish(98).is_err());
    (rig.fake.run)(7, 2);
    assert!(rig.consumer.try_recv().unwrap().is_some());
    assert_eq!((found(to[0]), found(to[1])), (vec![40; ELEMENTS], vec![41; ELEMENTS]));
    assert_eq!((rig.count(PAGEABLE), rig.count(SPOILT)), (0, 0));
}

#[test]
fn slots_are_released_although_nobody_receives() {
    let mut rig = rig();
    rig.consumer.pin(Some(0)).unwrap();
    (rig.fake.hold)(1);
    let to = rig.target();
    for value in [1, 2] {
        rig.publish(value).unwrap();
        copy(&rig.recv(), to, stream(1)).unwrap();
    }
    assert!(rig.publish(3).is_err());
    (rig.fake.hold)(0);
    rig.published_without_recv(3);
    assert_eq!(found(to)[..], [2; ELEMENTS]);
}

#[test]
fn views_on_the_cpu_keep_the_slot_beyond_its_copy() {
    let mut rig = rig();
    rig.consumer.pin(None).unwrap();
    for value in [5, 6] {
        rig.publish(value).unwrap();
    }
    let (first, _second) = (rig.recv(), rig.recv());
    let view = first.tensor("x").unwrap();
    copy(&first, rig.target(), stream(1)).unwrap();
    drop(first);
    for _ in 0..3 {
        // At quota, or nothing there: it looks either way.
        let _ = rig.consumer.try_recv();
        assert!(rig.publish(7).is_err());
    }
    assert_eq!(view.as_slice::<i32>().unwrap(), [5; ELEMENTS]);
    drop(view);
    rig.published_without_recv(7);
}

#[test]
fn a_recorded_stream_keeps_the_slot_until_it_is_past_what_it_had_at_the_end() {
    let mut rig = rig();
    rig.consumer.pin(None).unwrap();
    (rig.fake.hold)(1);
    rig.publish(1).unwrap();
    let kept = rig.recv();
    rig.publish(2).unwrap();
    let message = rig.recv();
    for number in [11, 12] {
        message.tensor("x").unwrap().record_stream(stream(number)).unwrap();
        message.record_stream(stream(number)).unwrap();
    }
    assert_eq!((rig.fake.waiting)(11), 0, "nothing is recorded while the program may give the stream more");
    std::thread::spawn(move || drop(message)).join().unwrap();
    let start = Instant::now();
    while (rig.fake.waiting)(11) + (rig.fake.waiting)(12) < 2 {
        assert!(start.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(rig.publish(3).is_err());
    (rig.fake.run)(11, 1);
    assert!(rig.consumer.try_recv().is_ok());
    assert!(rig.publish(3).is_err(), "the other stream is not past it");
    (rig.fake.run)(12, 1);
    rig.published_without_recv(3);
    drop(kept);
}

#[test]
fn a_copy_and_a_recorded_stream_on_one_slot_both_count() {
    let mut rig = rig();
    rig.consumer.pin(None).unwrap();
    (rig.fake.hold)(1);
    rig.publish(1).unwrap();
    let kept = rig.recv();
    rig.publish(2).unwrap();
    let message = rig.recv();
    message.record_stream(stream(2)).unwrap();
    copy(&message, rig.target(), stream(1)).unwrap();
    drop(message);
    (rig.fake.run)(1, 9);
    let start = Instant::now();
    while (rig.fake.waiting)(2) == 0 {
        assert!(rig.publish(3).is_err());
        assert!(start.elapsed() < SOON);
    }
    (rig.fake.run)(2, 9);
    rig.published_without_recv(3);
    drop(kept);
}

#[test]
fn a_graph_that_is_captured_meanwhile_is_not_spoilt() {
    let mut rig = rig();
    rig.consumer.pin(None).unwrap();
    (rig.fake.hold)(1);
    rig.publish(1).unwrap();
    copy(&rig.recv(), rig.target(), stream(1)).unwrap();
    rig.publish(2).unwrap();
    let message = rig.recv();
    message.record_stream(stream(9)).unwrap();
    (rig.fake.begin_capture)(9);
    let refused = copy(&message, rig.target(), stream(9)).unwrap_err();
    assert!(matches!(refused, CudaError::Capturing) && refused.to_string().contains("DevicePrefetcher"), "{refused}");
    drop(message);
    // This thread captures, and receives; the reaper asks, too.
    (rig.fake.run)(1, 9);
    rig.published_without_recv(3);
    assert!(rig.consumer.try_recv().unwrap().is_some());
    rig.published_without_recv(4);
    assert!(rig.publish(5).is_err(), "what was recorded for a stream that captures waits");
    assert_eq!(((rig.fake.end_capture)(9), rig.count(SPOILT)), (1, 0));
    let start = Instant::now();
    while (rig.fake.waiting)(9) == 0 {
        assert!(start.elapsed() < SOON, "after the capture the event is recorded");
        std::thread::sleep(Duration::from_millis(1));
    }
    (rig.fake.run)(9, 9);
    rig.published_without_recv(5);
}

#[test]
fn memory_is_unregistered_after_the_last_lease_and_never_under_a_copy() {
    for backing in [Backing::Posix, Backing::Memfd] {
        let mut rig = rig_of(|p| p.backing(backing), |c| c);
        rig.consumer.pin(None).unwrap();
        rig.consumer.pin(None).unwrap();
        assert_eq!(rig.count(REGISTERED), 1);
        (rig.fake.hold)(1);
        rig.publish(8).unwrap();
        let to = rig.target();
        copy(&rig.recv(), to, stream(3)).unwrap();
        let Rig { fake, consumer, producer, _dir, _turn } = rig;
        drop(consumer);
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!((fake.count)(UNREGISTERED), 0, "a copy is in flight");
        (fake.run)(3, 9);
        let start = Instant::now();
        while (fake.count)(UNREGISTERED) == 0 {
            assert!(start.elapsed() < SOON, "it was not unregistered");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(((fake.count)(TORN), (fake.count)(REGISTERED)), (0, 0));
        assert_eq!(found(to), [8; ELEMENTS]);
        drop(producer);
    }
}

#[test]
fn several_consumers_pin_one_ring() {
    let mut rig = rig_of(|p| p.kind(Kind::Broadcast), |c| c);
    let mut other = Consumer::options("gpu").dir(rig._dir.path()).attach().unwrap();
    rig.producer.wait_for_consumers(2, Some(SOON)).unwrap();
    rig.consumer.pin(Some(0)).unwrap();
    other.pin(Some(1)).unwrap();
    assert_eq!(rig.count(REGISTERED), 2);
    rig.publish(3).unwrap();
    let (mine, others) = (rig.recv(), other.recv_timeout(SOON).unwrap());
    let to = [rig.target(), rig.target()];
    copy(&mine, to[0], stream(1)).unwrap();
    // SAFETY: the fake takes any stream.
    let elsewhere = unsafe { Stream::from_raw(1, 2) };
    copy(&others, to[1], elsewhere).unwrap();
    assert_eq!((found(to[0]), found(to[1])), (vec![3; ELEMENTS], vec![3; ELEMENTS]));
}

#[test]
fn a_read_only_map_says_what_it_needs_and_a_writable_one_does_without() {
    let mut rig = rig_of(|p| p.writable(true), |c| c);
    (rig.fake.read_only)(0);
    let refused = rig.consumer.pin(None).unwrap_err().to_string();
    assert!(refused.contains("cudaDevAttrHostRegisterReadOnlySupported") && refused.contains("writable"), "{refused}");
    assert!(!rig.consumer.is_pinned());
    // Everything works unpinned.
    rig.publish(4).unwrap();
    let (message, to) = (rig.recv(), rig.target());
    copy(&message, to, stream(1)).unwrap();
    assert_eq!((found(to)[0], rig.count(PAGEABLE)), (4, 1));
    let mut writable = Consumer::options("gpu").dir(rig._dir.path()).writable(true).attach().unwrap();
    writable.pin(None).unwrap();
    assert_eq!(rig.count(FLAGS), 1, "portable, and not read-only");
    (rig.fake.read_only)(1);
    rig.consumer.pin(None).unwrap();
    assert_eq!(rig.count(FLAGS), 9, "portable and read-only");
}

#[test]
fn what_the_runtime_refuses_is_said_with_its_code() {
    let mut rig = rig();
    (rig.fake.fail)(FAIL_REGISTER, 801, 1);
    let refused = rig.consumer.pin(None).unwrap_err();
    assert_eq!(refused.code(), Some(801));
    assert!(refused.to_string().contains("cudaHostRegister failed with CUDA error 801: a fake error"), "{refused}");
    assert!(rig.consumer.pin(Some(17)).is_ok(), "its side was made for the device that there is");
    let mut other = Consumer::options("gpu").dir(rig._dir.path()).attach().unwrap();
    assert_eq!(other.pin(Some(17)).unwrap_err().code(), Some(101));
}

#[test]
fn a_copy_that_fails_half_way_leaks_no_slot_and_releases_none_early() {
    let mut rig = rig();
    rig.consumer.pin(None).unwrap();
    (rig.fake.hold)(1);
    rig.publish(1).unwrap();
    let message = rig.recv();
    let to = [rig.target(), rig.target()];
    copy(&message, to[0], stream(1)).unwrap();
    (rig.fake.fail)(FAIL_COPY, 700, 1);
    assert_eq!(copy(&message, to[1], stream(1)).unwrap_err().code(), Some(700));
    (rig.fake.fail)(FAIL_RECORD, 700, 1);
    assert_eq!(copy(&message, to[1], stream(1)).unwrap_err().code(), Some(700));
    assert_eq!(found(to[1]), [1; ELEMENTS], "begun without an event, so it was waited for");
    // SAFETY: refused before anything is done.
    let refused = unsafe { message.copy_to_device(&[(1, 0)], stream(1)) }.unwrap_err();
    assert!(refused.to_string().contains("no tensor 1"), "{refused}");
    drop(message);
    (rig.fake.hold)(0);
    rig.publish(2).unwrap();
    rig.published_without_recv(3);
}

#[test]
fn a_device_that_fails_keeps_no_slot() {
    let mut rig = rig();
    rig.consumer.pin(None).unwrap();
    (rig.fake.hold)(1);
    for value in [1, 2] {
        rig.publish(value).unwrap();
        copy(&rig.recv(), rig.target(), stream(1)).unwrap();
    }
    (rig.fake.fail)(FAIL_QUERY, 700, u32::MAX);
    rig.published_without_recv(3);
    assert_eq!(rig.consumer.take_device_trouble().unwrap().code(), Some(700));
    assert!(rig.consumer.take_device_trouble().is_none());
}

#[test]
fn closing_gives_back_what_was_not_acked_and_not_what_a_device_still_reads() {
    let mut rig = rig_of(|p| p.slots(3), |c| c.ack(AckMode::Manual).quota(3));
    rig.consumer.pin(None).unwrap();
    (rig.fake.hold)(1);
    for value in [1, 2] {
        rig.publish(value).unwrap();
        let message = rig.recv();
        copy(&message, rig.target(), stream(1)).unwrap();
        if value == 1 {
            message.ack();
        }
    }
    rig.consumer.close();
    let mut next = Consumer::options("gpu").dir(rig._dir.path()).attach().unwrap();
    assert!(next.try_recv().unwrap().is_none(), "the device still reads it");
    (rig.fake.hold)(0);
    let again = next.recv_timeout(SOON).unwrap();
    assert_eq!((again.attempts(), again.as_slice::<i32>("x").unwrap()[0]), (1, 2));
    drop(again);
    assert!(matches!(next.recv_timeout(Duration::from_millis(1)), Err(RecvError::Timeout { .. })));
}

#[test]
fn contents_are_right_after_many_overwrites_with_copies_always_in_flight() {
    let mut rig = rig_of(|p| p.slots(4).when_full(WhenFull::Block), |c| c.quota(4));
    rig.consumer.pin(None).unwrap();
    (rig.fake.hold)(1);
    let to: Vec<usize> = (0..4).map(|_| rig.target()).collect();
    for round in 0..500_i32 {
        rig.publish(round).unwrap();
        let message = rig.recv();
        let number = (round % 2 + 1) as usize;
        copy(&message, to[round as usize % 4], stream(number)).unwrap();
        drop(message);
        if round >= 2 {
            // The one two rounds ago, on the same stream: the copy and its event.
            (rig.fake.run)(number, 2);
            assert_eq!(found(to[(round as usize - 2) % 4]), vec![round - 2; ELEMENTS]);
        }
    }
    assert_eq!((rig.count(SPOILT), rig.count(PAGEABLE)), (0, 0));
    assert!(rig.count(7) < 16, "events are used again");
}

#[test]
fn the_place_of_a_device_is_asked_of_the_runtime() {
    let (_fake, _turn) = fake();
    assert_eq!(cuda::pci_bus_id(3).unwrap(), "0000:03:00.0");
    assert_eq!(cuda::current_device().unwrap(), 0);
    assert!(cuda::runtime().unwrap().ends_with("libcudart.so.fake"));
}
