"""Sending: loans, arrays of all sorts, full rings, bad input."""

import ctypes
import gc
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import forebay

PATIENCE = 20


def test_a_loan_is_a_mapping(ring):
    producer, consumer = ring.pair()
    loan = producer.loan({"a": ("int64", (2, 2)), "b": ("float32", 3)})
    assert loan.keys() == list(loan) == ["a", "b"]
    assert len(loan) == 2
    assert "a" in loan
    assert "c" not in loan
    assert [(name, tensor.shape) for name, tensor in loan.items()] == [("a", (2, 2)), ("b", (3,))]
    loan["a"] = np.arange(4).reshape(2, 2)
    loan["b"].numpy()[:] = 1
    loan["b"] = loan["b"]
    with pytest.raises(KeyError):
        loan["c"]
    with pytest.raises(ValueError, match=r'field "a" is int64\[2, 2\], the array is int64\[4\]'):
        loan["a"] = np.arange(4)
    assert producer.stats.loaned == 1
    assert loan.publish() == 1
    assert producer.stats.loaned == 0
    for use in (loan.publish, lambda: loan["a"], loan.values):
        with pytest.raises(forebay.LoanEnded):
            use()
    loan.discard()
    got = consumer.recv(10)
    assert got["a"].numpy().tolist() == [[0, 1], [2, 3]]
    assert got["b"].numpy().tolist() == [1, 1, 1]


def test_a_loan_that_is_left_publishes_nothing(ring):
    producer, consumer = ring.pair()
    with pytest.raises(ZeroDivisionError), producer.loan({"x": ("int8", 1)}):
        1 / 0  # noqa: B018
    producer.loan({"x": ("int8", 1)})
    gc.collect()
    assert consumer.try_recv() is None
    assert producer.send({"x": np.zeros(1)}) == 1


def test_too_much_user_data_leaves_the_loan_as_it_was(ring):
    producer, _consumer = ring.pair()
    loan = producer.loan({"x": ("int8", 1)})
    with pytest.raises(forebay.PublishError, match="257 bytes of user data, at most 256"):
        loan.publish(user=bytes(257))
    assert loan.publish(user=bytes(256)) == 1
    with pytest.raises(ValueError, match="at most 256"):
        producer.send({"x": np.zeros(1)}, user=bytes(257))
    assert producer.send({"x": np.zeros(1)}) == 2
    assert producer.stats.loaned == 0  # what is given back is counted with the next publish


def test_what_can_be_sent(ring):
    torch = pytest.importorskip("torch")
    producer, consumer = ring.pair(slots=16)
    base = np.arange(6, dtype="int32").reshape(2, 3)
    cases = [
        (base, ("int32", (2, 3))),
        (base[:1], ("int32", (1, 3))),
        (base.T[:0], ("int32", (0, 2))),
        (np.float32(3), ("float32", ())),
        (b"abc", ("uint8", (3,))),
        (bytearray(b"abc"), ("uint8", (3,))),
        (memoryview(base), ("int32", (2, 3))),
        (torch.arange(6).reshape(2, 3)[1:], ("int64", (1, 3))),
        (torch.ones(1, 5)[:, ::5], ("float32", (1, 1))),
        (np.broadcast_to(np.float64(1), (1, 1)), ("float64", (1, 1))),
    ]
    for array, (dtype, shape) in cases:
        producer.send({"x": array})
        tensor = consumer.recv(10)["x"]
        assert (tensor.dtype, tensor.shape) == (dtype, shape)
        assert tensor.tobytes() == (array if isinstance(array, bytes | bytearray) else np.asarray(array).tobytes())
        producer.send({"x": tensor})  # a tensor of a ring, passed on
        assert consumer.recv(10)["x"].tobytes() == tensor.tobytes()


def test_what_cannot_be_sent_is_named(ring):
    torch = pytest.importorskip("torch")
    producer = ring.producer()
    base = np.arange(6).reshape(2, 3)
    cases = [
        (base.T, "is not contiguous"),
        (base[:, ::2], "is not contiguous"),
        (torch.arange(6).reshape(2, 3).T, "is not contiguous"),
        (torch.ones(2, device="meta"), "host memory|cannot be exported"),
        (torch.ones(2, requires_grad=True), "cannot be exported"),
        (base.astype(">i8"), "no ring carries"),
        (np.array(["a"]), "no ring carries"),
        (np.array([1], dtype="datetime64[s]"), "field"),
        (np.zeros(2, dtype=[("a", "i4")]), "no ring carries"),
        ([1, 2], "is a list, expected an array"),
        (5, "is a int, expected an array"),
        (None, "expected an array"),
    ]
    for array, text in cases:
        with pytest.raises(ValueError, match=text) as caught:
            producer.send({"ok": base, "bad one": array})
        assert str(caught.value).startswith('field "bad one" ')
    assert producer.stats.loaned == 0
    assert producer.stats.published == 0


class OnAGpu:
    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, **_):
        raise AssertionError("not to be called")


def test_another_device_is_refused_before_it_is_touched(ring):
    with pytest.raises(ValueError, match='field "x" is not in host memory; move it to the CPU first'):
        ring.producer().send({"x": OnAGpu()})


class Pinned:
    """An array in the host's memory of a device's library, as torch shows a tensor after pin_memory()."""

    def __init__(self, kind, array):
        self.kind, self.array = kind, array

    def __dlpack_device__(self):
        return (self.kind, 0)

    def __dlpack__(self, **_):
        capsule = self.array.__dlpack__()
        find = ctypes.pythonapi.PyCapsule_GetPointer
        find.restype, find.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        # Behind the pointer to the data: the device's kind.
        ctypes.c_int32.from_address(find(capsule, b"dltensor") + 8).value = self.kind
        return capsule


@pytest.mark.parametrize("kind", [1, 3, 11])
def test_memory_of_the_host_that_a_device_pinned_is_sent(ring, kind):
    producer, consumer = ring.pair()
    array = np.arange(6, dtype="int32").reshape(2, 3)
    producer.send({"x": Pinned(kind, array)})
    np.testing.assert_array_equal(consumer.recv(10)["x"].numpy(), array)


def test_memory_of_a_device_that_says_it_is_the_hosts_only_in_one_place_is_refused(ring):
    odd = Pinned(2, np.arange(6))
    odd.__class__ = type("Odd", (Pinned,), {"__dlpack_device__": lambda _: (3, 0)})
    with pytest.raises(ValueError, match="is not in host memory"):
        ring.producer().send({"x": odd})


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"ids": ("int32", (4, 8))}, "int32"),
        ({"ids": ("int64", (4,))}, "rank 1"),
        ({"ids": ("int64", (5, 8))}, "at most"),
        ({"idz": ("int64", (4, 8))}, "idz"),
        ({}, "must be given once"),
    ],
)
def test_what_the_schema_forbids(ring, fields, text):
    producer = ring.producer(schema=forebay.Schema("tokens", "1.0", {"ids": ("int64", (4, 8))}))
    with pytest.raises(ValueError, match=text) as caught:
        producer.loan(fields)
    assert isinstance(caught.value, forebay.FieldsMismatch)


def test_too_large_too_many_dims_and_strange_shapes(ring):
    producer = ring.producer()
    with pytest.raises(ValueError, match="largest slot has 65536") as caught:
        producer.loan({"x": ("int8", 1 << 17)})
    assert isinstance(caught.value, forebay.MessageTooLarge)
    assert (caught.value.needed_bytes, caught.value.largest_bytes) == (1 << 17, 1 << 16)
    with pytest.raises(forebay.FieldsMismatch):
        producer.loan({"x": ("int8", (1,) * 9)})
    with pytest.raises(forebay.FieldsMismatch):
        producer.loan({f"x{n}": ("int8", 1) for n in range(33)})
    for shape in [(-1,), (None,), (1.5,), "ab"]:
        with pytest.raises((ValueError, TypeError)):
            producer.loan({"x": ("int8", shape)})


def test_a_full_ring_says_who_holds_it(ring):
    producer, consumer = ring.pair(slots=2, when_full="block")
    for _ in range(2):
        producer.send({"x": np.zeros(1)})
    kept = consumer.recv(10)
    with pytest.raises(TimeoutError, match="no free slot") as caught:
        producer.send({"x": np.zeros(1)}, timeout_s=0.02)
    assert isinstance(caught.value, forebay.RingFull)
    assert (caught.value.slots, caught.value.unclaimed, caught.value.loaned) == (2, 1, 0)
    assert caught.value.waited_s >= 0.02
    assert str(kept.sequence) == "1"


def test_a_waiting_producer_goes_on_when_a_slot_is_released(ring):
    producer, consumer = ring.pair(slots=2)
    for _ in range(2):
        producer.send({"x": np.zeros(1)})
    kept = [consumer.recv(10)]
    gate = threading.Event()
    thread = threading.Thread(target=lambda: (gate.wait(), kept.clear()))
    thread.start()
    gate.set()
    assert producer.send({"x": np.zeros(1)}, timeout_s=20) == 3
    thread.join()


def test_a_thread_that_waits_keeps_nobody_from_the_producer(ring):
    producer, consumer = ring.pair(slots=3)
    producer.send({"x": np.zeros(1)})
    loan = producer.loan({"x": ("float64", (1,))})
    waits = [threading.Thread(target=producer.drain, args=(30,)) for _ in range(2)]
    for thread in waits:
        thread.start()
    # Whoever came later would wait for both, if they did not give way.
    assert producer.send({"x": np.zeros(1)}, timeout_s=0) == 2
    assert producer.stats.outstanding == 2
    assert loan.publish() == 3
    with pytest.raises(forebay.RingFull) as caught:
        producer.send({"x": np.zeros(1)}, timeout_s=0.1)
    assert caught.value.waited_s >= 0.1
    assert all(thread.is_alive() for thread in waits)
    for _ in range(3):
        consumer.recv(10)
    for thread in waits:
        thread.join(30)
        assert not thread.is_alive()


def test_ctrl_c_within_a_library_is_not_an_array_that_cannot_be_sent(ring):
    class Interrupted:
        def __dlpack_device__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ring.producer().send({"x": Interrupted()})


def test_own_loans_are_not_waited_for(ring):
    producer = ring.producer(slots=2)
    loans = [producer.loan({"x": ("int8", 1)}) for _ in range(2)]
    with pytest.raises(forebay.OwnLoansOutstanding, match="publish or drop a loan first"):
        producer.loan({"x": ("int8", 1)})
    loans.pop()
    gc.collect()
    producer.loan({"x": ("int8", 1)})


@pytest.mark.parametrize("letters", [0, 1])
def test_slots_that_other_threads_copy_into_are_waited_for(ring, letters):
    producer, consumer = ring.pair(slots=2 + letters, slot_bytes=8 << 20, max_attempts=1)
    if letters:
        producer.send({"x": np.zeros(1)})
        consumer.recv(10).nack()
    # More than is copied with the interpreter held.
    large = np.zeros(8 << 20, np.uint8)
    with ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(producer.send, {"x": large}, timeout_s=40) for _ in range(40)]
        got = [consumer.recv(40).sequence for _ in sent]
    assert sorted(call.result() for call in sent) == got == list(range(1 + letters, 41 + letters))
    assert producer.stats.dead_letters == letters


def test_drop_oldest_and_fail(ring):
    producer, consumer = ring.pair(slots=2, when_full="drop-oldest")
    for n in range(5):
        producer.send({"x": np.array([n])})
    assert producer.stats.dropped == 3
    assert consumer.recv(10).sequence == 4
    assert consumer.recv(10).sequence == 5


def test_fail_fails_at_once(ring):
    producer = ring.producer(slots=2, when_full="fail")
    for _ in range(2):
        producer.send({"x": np.zeros(1)})
    with pytest.raises(forebay.RingFull):
        producer.send({"x": np.zeros(1)})


def test_use_after_close(ring):
    producer = ring.producer()
    loan = producer.loan({"x": ("int8", 1)})
    producer.close()
    producer.close()
    for use in (lambda: producer.loan({}), lambda: producer.send({}), loan.publish, lambda: producer.stats):
        with pytest.raises(forebay.HandleClosed):
            use()


def test_a_taken_name_says_by_whom(ring):
    ring.producer(label="the first")
    with pytest.raises(forebay.RingTaken, match="living producer") as caught:
        ring.producer()
    assert caught.value.ring == ring.name
    assert caught.value.holder


@pytest.mark.parametrize(
    "option",
    [
        {"slots": 0},
        {"kind": "stack"},
        {"backing": "tape"},
        {"when_full": "panic"},
        {"max_consumers": 33},
        {"kind": "broadcast", "writable": True},
        {"classes": [(4, 64)]},
    ],
    ids=str,
)
def test_options_that_cannot_be(ring, option):
    with pytest.raises(ValueError):  # noqa: PT011 - texts are the library's
        ring.producer(**option)


def test_a_bad_name(tmp_path):
    with pytest.raises(ValueError, match="a-z0-9") as caught:
        forebay.Producer("Bad Name", directory=tmp_path)
    assert isinstance(caught.value, forebay.InvalidOptions)


def test_a_ring_that_does_not_fit(ring):
    with pytest.raises(MemoryError, match="are free") as caught:
        ring.producer(slots=4, slot_bytes=1 << 40)
    assert isinstance(caught.value, forebay.InsufficientMemory)
    assert caught.value.needed_bytes > caught.value.free_bytes > 0


def test_size_classes(ring):
    producer = forebay.Producer(ring.name, directory=ring.directory, classes=[(2, 64), (2, 4096)])
    ring._made.append(producer)
    consumer = ring.consumer()
    small = producer.loan({"x": ("int8", 64)})
    large = producer.loan({"x": ("int8", 65)})
    assert small.slot < 2 <= large.slot
    small.publish()
    large.publish()
    assert [consumer.recv(10)["x"].shape for _ in range(2)] == [(64,), (65,)]


@pytest.mark.parametrize("backing", ["posix", "memfd"])
@pytest.mark.parametrize("kind", ["queue", "broadcast"])
def test_every_kind_and_backing(ring, kind, backing):
    producer = ring.producer(kind=kind, backing=backing)
    consumer = ring.consumer()
    producer.wait_for_consumers(1, 10)
    assert producer.consumers == 1
    assert producer.kind == consumer.kind == kind
    for n in range(50):
        producer.send({"x": np.array([n])})
        assert consumer.recv(10)["x"].numpy().tolist() == [n]
    producer.drain(10)
    assert producer.stats.outstanding == 0


def test_waits_time_out(ring):
    producer = ring.producer()
    with pytest.raises(TimeoutError) as caught:
        producer.wait_for_consumers(1, 0.01)
    assert isinstance(caught.value, forebay.WaitTimeout)
    assert caught.value.waited_s >= 0.01
    producer.send({"x": np.zeros(1)})
    with pytest.raises(forebay.WaitTimeout):
        producer.drain(0.01)


def test_a_producer_pickles_as_name_and_options(ring):
    producer = ring.producer(schema=forebay.Schema("s", "1.0", {"x": ("int8", (3,))}), slots=5)
    data = pickle.dumps(producer)
    with pytest.raises(forebay.RingTaken):
        pickle.loads(data)
    producer.discard()
    other = pickle.loads(data)
    assert (other.ring, other.schema, other.stats.published) == (ring.name, producer_schema(), 0)
    other.discard()


def producer_schema():
    return forebay.Schema("s", "1.0", {"x": ("int8", (3,))})


def test_a_successor_finds_where_the_last_one_was(ring):
    producer = ring.producer()
    assert producer.takeover is None
    producer.send({"x": np.zeros(1)}, user=b"line 7")
    producer.suspend()
    other = ring.producer()
    assert (other.takeover.last_sequence, other.takeover.last_user) == (1, b"line 7")
    assert other.takeover.outstanding == 1
    assert other.notes == []


def test_a_successor_with_other_slots_is_refused(ring):
    producer = ring.producer()
    producer.send({"x": np.zeros(1)})
    producer.suspend()
    with pytest.raises(ValueError, match="left by a dead producer") as caught:
        ring.producer(slots=8)
    assert isinstance(caught.value, forebay.RingDiffers)
    assert caught.value.outstanding == 1
    ring.producer(slots=8, fresh=True).discard()


def test_however_many_dtype_objects_there_are_each_is_read_right(ring):
    producer, consumer = ring.pair()
    kinds = ["int8", "int16", "int32", "int64", "float32", "float64"]
    # New objects, all at a time: more than are remembered. Equal ones need not be the same.
    objects = [(kind, np.dtype(kind).newbyteorder("=")) for kind in kinds]
    objects += [(kind, type(kind, (), {"name": kind})()) for kind in kinds * 8]
    for _ in range(2):
        for kind, spec in objects:
            with producer.loan({"x": (spec, (2,))}) as loan:
                loan.publish()
            assert consumer.recv(10)["x"].dtype == kind


def test_a_dtype_object_that_cannot_be_hashed_may_change(ring):
    producer, consumer = ring.pair()

    class Changing:
        __hash__ = None
        name = "int8"

    spec = Changing()
    for kind in ("int8", "int64", "float32"):
        spec.name = kind
        with producer.loan({"x": (spec, (2,))}) as loan:
            loan.publish()
        assert consumer.recv(10)["x"].dtype == kind


def test_a_long_wait_for_a_slot_is_one_wait(ring):
    producer, consumer = ring.pair(slots=2)
    for _ in range(2):
        producer.send({"x": b"1"})
    sender = threading.Thread(target=producer.send, args=({"x": b"1"},), kwargs={"timeout_s": PATIENCE})
    sender.start()
    # It lets go of the producer each time, for others to have it.
    while producer.stats.full_waits == 0:
        assert sender.is_alive()
    for _ in range(5):
        assert producer.stats.full_waits == 1
    consumer.recv(PATIENCE)
    sender.join()
    assert producer.stats.full_waits == 1
    with pytest.raises(forebay.RingFull):
        producer.send({"x": b"1"}, timeout_s=0.2)
    assert producer.stats.full_waits == 2
