"""`forebay.torch` with a real torch, on the CPU; and its order of work on a device whose work is written down."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import forebay

torch = pytest.importorskip("torch")
import forebay.torch  # noqa: E402
from forebay.torch import DevicePrefetcher, Replies  # noqa: E402

SCHEMA = forebay.Schema("frames", "1.0", {"x": ("float32", (4, 8)), "y": ("int64", ())})


def send(producer, value, rows=4):
    producer.send(
        {"x": np.full((rows, 8), value, np.float32), "y": np.array(value, np.int64)},
        correlation_id=value, user=b"blob", timeout_s=20.0,
    )  # fmt: skip


def test_batches_come_in_order_with_what_the_sender_said(ring):
    producer, consumer = ring.producer(slots=8, slot_bytes=None, schema=SCHEMA), ring.consumer()
    for value in range(1, 6):
        send(producer, value)
    seen = []
    for batch in DevicePrefetcher(consumer, "cpu", depth=2, timeout_s=20.0):
        assert torch.equal(batch["x"], torch.full((4, 8), float(batch["y"])))
        seen.append((int(batch["y"]), batch.correlation_id, batch.sequence, batch.user))
        if len(seen) == 5:
            producer.close()
    assert seen == [(value, value, value, b"blob") for value in range(1, 6)]


def test_buffers_are_few_fixed_and_not_overwritten_while_they_are_used(ring):
    producer, consumer = ring.producer(slots=8, slot_bytes=None, schema=SCHEMA), ring.consumer()
    loader = iter(DevicePrefetcher(consumer, "cpu", depth=2, timeout_s=20.0))
    places = []
    for value in range(12):
        for ahead in range(3 if value == 0 else 1):
            send(producer, value + ahead + (0 if value == 0 else 2))
        batch = next(loader)
        assert set(batch["x"].flatten().tolist()) == {float(value)}
        places.append((batch["x"].data_ptr(), batch["y"].data_ptr()))
    assert len(set(places)) == 3
    assert places[:3] == places[3:6] == places[9:]


def test_static_batches_are_always_the_same_tensors(ring):
    producer, consumer = ring.producer(slots=8, slot_bytes=None, schema=SCHEMA), ring.consumer()
    loader = iter(DevicePrefetcher(consumer, "cpu", depth=2, static=True, timeout_s=20.0))
    places = set()
    for value in range(6):
        # As a graph that was captured on the first batch would: by address, whatever the batch's object is.
        send(producer, value)
        batch = next(loader)
        places.add((batch["x"].data_ptr(), batch["y"].data_ptr()))
        assert set(batch["x"].flatten().tolist()) == {float(value)}
    assert len(places) == 1


def test_shapes_may_change_within_one_buffer_and_beyond_it(ring):
    producer, consumer = ring.producer(slots=4), ring.consumer()
    loader = iter(DevicePrefetcher(consumer, "cpu", depth=1, timeout_s=20.0))
    for n in (100, 10, 0, 1000):
        producer.send({"x": np.arange(n, dtype=np.int16)})
        assert next(loader)["x"].tolist() == list(range(n))
    producer.send({"other": np.ones((2, 2), np.float64)})
    assert list(next(loader)) == ["other"]


def test_a_batch_is_acked_when_the_next_one_is_asked_for(ring):
    producer, consumer = ring.producer(slots=8), ring.consumer()
    for value in range(3):
        producer.send({"x": np.array([value])})
    prefetcher = DevicePrefetcher(consumer, "cpu", depth=2, timeout_s=20.0)
    loader = iter(prefetcher)
    next(loader)
    assert (consumer.stats.received, consumer.stats.acked) == (3, 0)
    next(loader)
    assert consumer.stats.acked == 1
    # Leaving the loop keeps what was copied ahead; closing gives it back.
    loader.close()
    assert next(iter(prefetcher))["x"].item() == 2
    producer.send({"x": np.array([3])})
    assert next(iter(prefetcher))["x"].item() == 3
    producer.send({"x": np.array([4])})
    producer.send({"x": np.array([5])})
    loader = iter(prefetcher)
    assert next(loader)["x"].item() == 4
    del loader
    prefetcher.close()
    again = consumer.recv(20.0)
    assert (again.attempts, again["x"].numpy()[0]) == (1, 5)


def test_a_batch_whose_computing_failed_comes_again(ring):
    producer, consumer = ring.producer(slots=8), ring.consumer()
    for value in range(3):
        producer.send({"x": np.array([value])})

    def train():
        with DevicePrefetcher(consumer, "cpu", depth=1, timeout_s=20.0) as prefetcher:
            for batch in prefetcher:
                if batch["x"].item() == 1:
                    raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        train()
    again = [consumer.recv(20.0) for _ in range(2)]
    assert sorted((message["x"].numpy()[0], message.attempts) for message in again) == [(1, 1), (2, 1)]


def test_acked_when_copied_it_holds_no_slot(ring):
    producer, consumer = ring.producer(slots=2), ring.consumer()
    loader = iter(DevicePrefetcher(consumer, "cpu", depth=3, ack="copied", timeout_s=20.0))
    for value in range(5):
        producer.send({"x": np.array([value])}, timeout_s=20.0)
        assert next(loader)["x"].item() == value
        assert consumer.held() == []


def test_a_ring_with_few_slots_is_no_deadlock(ring):
    producer, consumer = ring.producer(slots=3, quota=1), ring.consumer()
    loader = iter(DevicePrefetcher(consumer, "cpu", depth=4, timeout_s=20.0))
    producer.send({"x": np.array([0])})
    for value in range(1, 6):
        producer.send({"x": np.array([value])}, timeout_s=20.0)
        assert next(loader)["x"].item() == value - 1


def test_the_end_of_the_ring_ends_the_loop_and_a_timeout_is_raised(ring):
    producer, consumer = ring.pair()
    prefetcher = DevicePrefetcher(consumer, "cpu", timeout_s=0.01)
    with pytest.raises(forebay.ReceiveTimeout):
        next(iter(prefetcher))
    producer.send({"x": np.array([1])})
    producer.close()
    assert [batch["x"].item() for batch in prefetcher] == [1]


def test_it_stands_where_a_dataset_does_and_pickles(ring):
    producer, consumer = ring.producer(slots=8), ring.consumer()
    prefetcher = DevicePrefetcher(consumer, "cpu", timeout_s=20.0)
    assert isinstance(prefetcher, torch.utils.data.IterableDataset)
    for value in range(3):
        producer.send({"x": np.array([value])})
    producer.close()
    loader = torch.utils.data.DataLoader(prefetcher, batch_size=None)
    assert [batch["x"].item() for batch in loader] == [0, 1, 2]
    for wrong in ({"depth": 0}, {"ack": "later"}):
        with pytest.raises(ValueError, match="expected"):
            DevicePrefetcher(consumer, "cpu", **wrong)
    with pytest.raises(ValueError, match="expected cuda or cpu"):
        next(iter(DevicePrefetcher(consumer, "meta")))


def test_a_pickled_one_begins_anew(ring):
    producer, consumer = ring.producer(slots=8), ring.consumer()
    prefetcher = DevicePrefetcher(consumer, "cpu", depth=3, timeout_s=20.0)
    producer.send({"x": np.array([0])})
    loader = iter(prefetcher)
    assert next(loader)["x"].item() == 0
    next_one = pickle.loads(pickle.dumps(prefetcher))
    prefetcher.close()
    consumer.close()
    producer.send({"x": np.array([1])})
    assert (next(iter(next_one))["x"].item(), next_one.depth) == (1, 3)
    next_one.consumer.close()


class Written(forebay.torch._Cpu):
    """A device that writes down what it was told, and copies when a test would look."""

    def __init__(self, device):
        super().__init__(device)
        self.told, self.events = [], 0

    def event(self):
        self.events += 1
        return self.events

    def copy(self, message, to, after, ready):
        self.told.append(("copy", message.sequence, after, ready))
        super().copy(message, to, after, ready)

    def wait(self, ready):
        self.told.append(("wait", ready))

    def mark(self, event):
        self.told.append(("mark", event))


def test_copies_wait_for_the_use_of_their_buffers_and_use_for_the_copies(ring, monkeypatch):
    monkeypatch.setattr(DevicePrefetcher, "_make_side", lambda self: Written(self.device))
    producer, consumer = ring.producer(slots=8), ring.consumer()
    for value in range(4):
        producer.send({"x": np.array([value])})
    producer.close()
    prefetcher = DevicePrefetcher(consumer, "cpu", depth=1, timeout_s=20.0)
    assert [batch["x"].item() for batch in prefetcher] == [0, 1, 2, 3]
    told = prefetcher._side.told
    copies = {step[1]: step[2:] for step in told if step[0] == "copy"}
    # Two sets of buffers, each with an event for "copied" and one for "used".
    assert (copies[1], copies[2], copies[3], copies[4]) == ((None, 1), (None, 3), (2, 1), (4, 3))
    for sequence, ready, used in ((1, 1, 2), (2, 3, 4)):
        begun, waited, marked = (told.index(step) for step in (
            ("copy", sequence, None, ready), ("wait", ready), ("mark", used)))  # fmt: skip
        again = told.index(("copy", sequence + 2, used, ready))
        assert begun < waited < marked < again
    # The second message was on its way before the first was used.
    assert told.index(("copy", 2, None, 3)) < told.index(("wait", 1))


def test_replies_leave_in_order_and_failures_are_raised(ring):
    producer, consumer = ring.producer(slots=8), ring.consumer()
    with Replies(producer) as replies:
        own = torch.arange(4)
        replies.send({"y": own, "z": np.ones(2)}, correlation_id=7, user=b"u")
        own.zero_()
        replies.send({"y": torch.arange(4).view(2, 2).t()}, correlation_id=8)
    first, second = consumer.recv(20.0), consumer.recv(20.0)
    assert (first.correlation_id, first.user, first["y"].numpy().tolist()) == (7, b"u", [0, 1, 2, 3])
    assert second["y"].numpy().tolist() == [[0, 2], [1, 3]]
    producer.close()
    with pytest.raises(forebay.ForebayError):
        Replies(producer).send({"y": own})


class Slow:
    """An event that is done when the test says so."""

    def __init__(self):
        import threading

        self.done = threading.Event()

    def synchronize(self):
        assert self.done.wait(20)


def test_what_waits_for_a_device_does_not_block_the_sender_and_keeps_its_place(ring):
    producer, consumer = ring.producer(slots=8), ring.consumer()
    replies, event = Replies(producer), Slow()
    # As `send` puts it when tensors are on a GPU.
    replies._put([event], {"y": torch.tensor([1])}, 1, None)
    replies.send({"y": torch.tensor([2])}, correlation_id=2)
    assert consumer.try_recv() is None
    event.done.set()
    replies.flush()
    assert [consumer.recv(20.0).correlation_id for _ in range(2)] == [1, 2]
    replies.close()

    failing = Slow()
    failing.synchronize = lambda: 1 / 0
    replies = Replies(producer)
    replies._put([failing], {"y": torch.tensor([1])}, 1, None)
    with pytest.raises(ZeroDivisionError):
        replies.flush()
    first = Slow()
    first.synchronize = lambda: (event.done.wait(20), 1 / 0)
    event.done.clear()
    for number in (3, 4, 5):
        replies._put([first], {"y": torch.tensor([number])}, number, None)
    event.done.set()
    with pytest.raises(ZeroDivisionError) as caught:
        replies.flush()
    assert caught.value.__notes__ == ["2 replies behind it were not sent"]
    replies.send({"y": torch.tensor([6])}, correlation_id=6)
    assert consumer.recv(20.0).correlation_id == 6
    replies.close()


def test_a_device_that_refuses_loses_no_message(ring, monkeypatch):
    class Refusing(forebay.torch._Cpu):
        refuses = False

        def copy(self, message, to, after, ready):
            if Refusing.refuses and message.sequence == 2:
                Refusing.refuses = False
                raise forebay.DeviceError("out of order")
            super().copy(message, to, after, ready)

    monkeypatch.setattr(DevicePrefetcher, "_make_side", lambda self: Refusing(self.device))
    producer, consumer = ring.producer(slots=8), ring.consumer()
    for value in range(3):
        producer.send({"x": np.array([value])})
    prefetcher = DevicePrefetcher(consumer, "cpu", depth=1, timeout_s=20.0)
    Refusing.refuses = True
    with pytest.raises(forebay.DeviceError):
        next(iter(prefetcher))
    seen = [next(iter(prefetcher))["x"].item() for _ in range(3)]
    assert seen[0] == 0
    assert sorted(seen) == [0, 1, 2]
