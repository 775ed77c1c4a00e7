"""A real GPU: `make gpu` runs these; elsewhere they are skipped.

FOREBAY_GPU_MESSAGES says how many messages the long test sends (2,000,000).
"""

from __future__ import annotations

import itertools
import os
import signal
import time
import warnings

import numpy as np
import pytest

import forebay

torch = pytest.importorskip("torch")
from forebay.torch import DevicePrefetcher, Replies  # noqa: E402

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU (torch.cuda.is_available() is False)"),
    pytest.mark.timeout(300),
]

# About 2e9 a second on the GPUs of today: long against everything else here.
LONG = 400_000_000

# Sends messages whose every element says which message it is, as fast as slots come free.
SENDER = """
import numpy as np
COUNT, ELEMENTS, SLOTS, OPTIONS = {count}, {elements}, {slots}, {options!r}
OPTIONS |= {{"slots": SLOTS, "slot_bytes": ELEMENTS * 8, "full_timeout_s": 120.0}}
producer = forebay.Producer(NAME, directory=DIRECTORY, **OPTIONS)
producer.wait_for_consumers({consumers}, 60.0)
for value in range(1, COUNT + 1):
    loan = producer.loan({{"x": ("int64", (ELEMENTS,))}})
    loan["x"].numpy()[:] = value
    loan.publish(correlation_id=value)
producer.drain(120.0)
producer.close()
"""


def sender(ring, count, *, elements=512, slots=4, consumers=1, **options):
    script = SENDER.format(count=count, elements=elements, slots=slots, consumers=consumers, options=options)
    return ring.run(script, stdout=None)


def finish(process):
    assert process.wait(120) == 0


def pinned(ring, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        consumer = ring.consumer(timeout_s=30.0, **options)
        if not consumer.pin():
            consumer.close()
            consumer = ring.consumer(timeout_s=30.0, writable=True, **options)
            # This one must do: else the warning is the failure.
            warnings.simplefilter("error")
            assert consumer.pin()
    return consumer


def until(what, seconds=60):
    start = time.monotonic()
    while not what():
        assert time.monotonic() - start < seconds, "not in time"
        time.sleep(0.0005)


@pytest.mark.parametrize("backing", ["posix", "memfd"])
@pytest.mark.parametrize("huge_pages", [False, True])
def test_slots_are_pinned_with_both_backings_and_the_runtime_sees_it(ring, backing, huge_pages):
    producer = ring.producer(backing=backing, huge_pages=huge_pages, slots=4, slot_bytes=1 << 22, writable=True)
    consumer = pinned(ring)
    producer.send({"x": np.arange(1000)})
    message = consumer.recv(30.0)
    assert message["x"].pinned
    assert message["x"].torch().is_pinned()
    there = message.to("cuda")
    assert there["x"].is_cuda
    assert torch.equal(there["x"].cpu(), torch.arange(1000))


def test_it_can_be_pinned_and_unpinned_again_and_again(ring):
    producer = ring.producer(slots=4, slot_bytes=1 << 20, writable=True)
    for value in range(30):
        consumer = pinned(ring)
        producer.send({"x": np.full(1 << 17, value)})
        there = consumer.recv(30.0).to()["x"]
        consumer.close()
        del consumer
        assert (there == value).all()


@pytest.mark.timeout(1800)
def test_contents_are_right_after_millions_of_overwrites(ring):
    count = int(os.environ.get("FOREBAY_GPU_MESSAGES", "2000000"))
    process = sender(ring, count, writable=True)
    consumer = pinned(ring)
    streams = [torch.cuda.Stream() for _ in range(3)]
    room = [torch.empty(512, dtype=torch.int64, device="cuda") for _ in streams]
    wrong = [torch.zeros((), dtype=torch.int64, device="cuda") for _ in streams]
    turn = itertools.cycle(range(len(streams)))
    received = 0
    for message in consumer:
        own = next(turn)
        message.to(stream=streams[own], out={"x": room[own]})
        with torch.cuda.stream(streams[own]):
            wrong[own] += (room[own] != message.correlation_id).any()
        received += 1
        # Dropped at once; iteration acks it.
        del message
    torch.cuda.synchronize()
    assert (received, [int(w) for w in wrong]) == (count, [0, 0, 0])
    assert consumer.take_device_trouble() is None
    finish(process)


def test_no_slot_is_released_before_its_copy_even_if_the_message_is_dropped_at_once(ring):
    producer = ring.producer(slots=2, slot_bytes=1 << 20, when_full="fail", writable=True)
    consumer = pinned(ring, quota=2)
    stream = torch.cuda.Stream()
    there = []
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG)
    for value in (1, 2):
        producer.send({"x": np.full(1 << 16, value)})
        there.append(consumer.recv(30.0).to(stream=stream)["x"])
    with pytest.raises(forebay.RingFull):
        producer.send({"x": np.zeros(1)})
    assert consumer.try_recv() is None
    assert consumer.in_flight == 2
    stream.synchronize()
    # Poison what was released.
    until(lambda: consumer.in_flight == 0)
    for _ in range(2):
        producer.send({"x": np.full(1 << 16, -1)})
    assert [(int(t.min()), int(t.max())) for t in there] == [(1, 1), (2, 2)]


@pytest.mark.parametrize("how", ["current", "at the end", "recorded"])
def test_plain_torch_copies_of_a_view_keep_the_slot(ring, how):
    producer = ring.producer(slots=2, slot_bytes=1 << 20, when_full="fail", writable=True)
    consumer = pinned(ring, quota=2)
    producer.send({"x": np.full(1 << 16, 5)})
    stream = torch.cuda.current_stream() if how == "current" else torch.cuda.Stream()
    message = consumer.recv(30.0)
    view = message["x"].torch()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG)
        there = view.to("cuda", non_blocking=True)
        if how == "at the end":
            del view, message
    if how == "recorded":
        message.record_stream(stream)
    view = message = None
    until(lambda: consumer.in_flight == 1 or stream.query())
    # One slot is kept: the other is free.
    producer.send({"x": np.full(1 << 16, -1)})
    if not stream.query():
        with pytest.raises(forebay.RingFull):
            producer.send({"x": np.full(1 << 16, -1)})
    stream.synchronize()
    until(lambda: consumer.in_flight == 0)
    producer.send({"x": np.full(1 << 16, -1)})
    assert (int(there.min()), int(there.max())) == (5, 5)


def test_views_on_the_cpu_keep_the_slot_beyond_the_copy(ring):
    producer = ring.producer(slots=2, slot_bytes=1 << 20, when_full="fail", writable=True)
    consumer = pinned(ring, quota=2)
    for value in (1, 2):
        producer.send({"x": np.full(1 << 16, value)})
    message, _other = consumer.recv(30.0), consumer.recv(30.0)
    view = message["x"].numpy()
    there = message.to()["x"]
    torch.cuda.synchronize()
    del message
    time.sleep(0.05)
    with pytest.raises(forebay.RingFull):
        producer.send({"x": np.zeros(1)})
    assert (view == 1).all()
    assert (there == 1).all()


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(0)", "pass"])
def test_a_process_may_end_while_it_copies(ring, end):
    producer = ring.producer(slots=4, slot_bytes=64 << 20, writable=True, backing="memfd")
    for value in range(4):
        producer.send({"x": np.full(8 << 20, value)})
    process = ring.run(f"""
import os, signal, torch
consumer = forebay.Consumer(NAME, directory=DIRECTORY, writable=True, quota=4)
assert consumer.pin()
stream = torch.cuda.Stream()
room = [torch.empty(8 << 20, dtype=torch.int64, device="cuda") for _ in range(3)]
kept = []
for to in room:
    message = consumer.recv(30.0)
    message.to(stream=stream, out={{"x": to}})
    kept.append(message)
for _ in range(50):
    for message, to in zip(kept, room):
        message.to(stream=stream, out={{"x": to}})
print("copying", flush=True)
{end}
""")
    assert process.stdout.readline().strip() == "copying"
    process.wait(120)
    # What it had comes again, whole; then its slots are written again.
    consumer = pinned(ring, quota=4)
    seen = {}
    while len(seen) < 4:
        message = consumer.recv(60.0)
        there = message.to()["x"]
        seen[int(there[0])] = int(there.min()) == int(there.max())
        message.ack()
        del message
    assert seen == dict.fromkeys(range(4), True)
    for value in range(10, 18):
        producer.send({"x": np.full(8 << 20, value)}, timeout_s=60.0)
        assert (consumer.recv(60.0).to()["x"] == value).all()


def test_a_graph_is_captured_while_leases_are_pending(ring):
    producer = ring.producer(slots=8, slot_bytes=1 << 20, writable=True)
    consumer = pinned(ring)
    busy = torch.cuda.Stream()
    static = torch.zeros(1 << 16, dtype=torch.int64, device="cuda")
    out, rooms = torch.zeros_like(static), [torch.zeros_like(static) for _ in range(2)]
    for value in range(1, 4):
        producer.send({"x": np.full(1 << 16, value)})
    graph = torch.cuda.CUDAGraph()
    # In the strictest mode: a forbidden call of any thread spoils it.
    with torch.cuda.graph(graph, capture_error_mode="global"):
        with torch.cuda.stream(busy):
            torch.cuda._sleep(LONG)
        for room in rooms:
            consumer.recv(30.0).to(stream=busy, out={"x": room})
        view = consumer.recv(30.0)["x"].torch()
        out.copy_(static * 2)
        # Its end notes the stream that captures.
        del view
        # This thread asks, and so does the one that reaps.
        assert consumer.try_recv() is None
        pending = consumer.in_flight
        time.sleep(0.05)
        assert consumer.try_recv() is None
    assert pending >= 2
    static.fill_(21)
    graph.replay()
    torch.cuda.synchronize()
    assert (out == 42).all()
    assert [int(room[0]) for room in rooms] == [1, 2]
    until(lambda: consumer.in_flight == 0)
    assert consumer.held() == []
    assert consumer.take_device_trouble() is None


def test_a_copy_cannot_become_part_of_a_graph(ring):
    producer = ring.producer(slots=8, slot_bytes=1 << 20, writable=True)
    consumer = pinned(ring)
    room = torch.zeros(4, dtype=torch.int64, device="cuda")
    producer.send({"x": np.ones(4, np.int64)})
    message = consumer.recv(30.0)
    refused = []
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        room.add_(1)
        try:
            message.to(out={"x": room})
        except forebay.DeviceError as e:
            refused.append(str(e))
    assert "capturing" in refused[0]
    graph.replay()
    assert room.tolist() == [1, 1, 1, 1]


def test_several_processes_pin_one_ring(ring):
    producer = ring.producer(kind="broadcast", slots=4, slot_bytes=1 << 20)
    other = ring.run("""
import torch
consumer = forebay.Consumer(NAME, directory=DIRECTORY)
print("pinned", consumer.pin(), flush=True)
for message in consumer:
    there = message.to()["x"]
    assert (there == message.correlation_id).all()
""")
    consumer = ring.consumer(timeout_s=30.0)
    with warnings.catch_warnings():
        # Where read-only maps cannot be registered it goes unpinned, in both.
        warnings.simplefilter("ignore")
        mine = consumer.pin()
    assert other.stdout.readline().split() == ["pinned", str(mine)]
    producer.wait_for_consumers(2, 30.0)
    for value in range(200):
        producer.send({"x": np.full(1 << 16, value)}, correlation_id=value, timeout_s=30.0)
        assert (consumer.recv(30.0).to()["x"] == value).all()
    producer.close()
    finish(other)


def test_unpinned_messages_arrive_as_well(ring):
    producer, consumer = ring.producer(slots=4, slot_bytes=1 << 22), ring.consumer()
    for value in range(20):
        producer.send({"x": np.full(1 << 18, value), "y": np.zeros((0, 3), np.float32)}, timeout_s=30.0)
        there = consumer.recv(30.0).to("cuda:0")
        assert (there["x"] == value).all()
        assert there["y"].shape == (0, 3)


@pytest.mark.parametrize("static", [False, True])
def test_the_prefetcher_gives_what_was_sent_and_a_graph_can_be_replayed_on_it(ring, static):
    process = sender(ring, 2000, elements=4096, slots=8, writable=True)
    consumer = pinned(ring)
    loader = iter(DevicePrefetcher(consumer, "cuda", depth=2, static=static, timeout_s=60.0))
    graphs, places, out = {}, set(), torch.zeros((), dtype=torch.int64, device="cuda")
    for value in range(1, 2001):
        batch = next(loader)
        at = batch["x"].data_ptr()
        places.add(at)
        if at not in graphs:
            graphs[at] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graphs[at]):
                out.copy_(batch["x"].sum())
        graphs[at].replay()
        if value % 50 == 0:
            assert int(out) == 4096 * value
    assert len(places) == (1 if static else 3)
    assert next(loader, None) is None
    finish(process)


def test_results_come_back_without_waiting_for_them(ring):
    producer, consumer = ring.producer(slots=8, slot_bytes=1 << 20), ring.consumer()
    with Replies(producer) as replies:
        # Its pinned memory is allocated, which may wait for the device.
        for _ in range(4):
            replies.send({"y": torch.zeros(1000, device="cuda")})
        replies.flush()
        for _ in range(4):
            consumer.recv(60.0)
        results = [torch.full((1000,), value, device="cuda") for value in range(4)]
        torch.cuda.synchronize()
        start = time.perf_counter()
        torch.cuda._sleep(LONG)
        for value, result in enumerate(results):
            replies.send({"y": result}, correlation_id=value)
        sent = time.perf_counter() - start
        seen = [consumer.recv(60.0) for _ in range(4)]
        came = time.perf_counter() - start
    assert sent < came / 2
    for value, message in enumerate(seen):
        assert message.correlation_id == value
        assert (message["y"].numpy() == value).all()


def test_cupy_arrays_are_targets_too(ring):
    cupy = pytest.importorskip("cupy")
    producer = ring.producer(slots=4, slot_bytes=1 << 20, writable=True)
    consumer = pinned(ring)
    producer.send({"x": np.arange(1000, dtype=np.float32)})
    room, stream = cupy.empty(1000, cupy.float32), cupy.cuda.Stream(non_blocking=True)
    consumer.recv(30.0).to(stream=stream, out={"x": room})
    stream.synchronize()
    assert (cupy.asnumpy(room) == np.arange(1000)).all()


def test_a_killed_reader_is_noticed_while_its_memory_is_pinned(ring):
    producer = ring.producer(slots=4, slot_bytes=16 << 20, writable=True)
    process = ring.run("""
import torch, time
consumer = forebay.Consumer(NAME, directory=DIRECTORY, writable=True)
assert consumer.pin()
message = consumer.recv(30.0)
print("has it", flush=True)
time.sleep(100)
""")
    producer.send({"x": np.arange(1000)})
    assert process.stdout.readline().strip() == "has it"
    process.send_signal(signal.SIGKILL)
    consumer = ring.consumer()
    assert consumer.recv(60.0).attempts == 1
    process.wait(60)
