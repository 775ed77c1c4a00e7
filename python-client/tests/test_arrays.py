"""recv_numpy, recv_torch, recv_many(as_=...): from the wait to the array in one call, and nothing weaker for it."""

import gc
import os
import sys
import threading
import time

import numpy as np
import pytest

import forebay
from conftest import finish
from faulty import run

WORDS = 512
ONE = forebay.Schema("one", "1.0", {"x": ("int64", (WORDS,))})
TWO = forebay.Schema("two", "1.0", {"a": ("float32", (2, 3)), "b": ("uint8", (64,))})
FORMS = ["numpy", "torch"]


def pattern(sequence):
    return np.arange(WORDS, dtype="int64") * 1_000_003 + sequence


@pytest.fixture(params=FORMS)
def form(request):
    if request.param == "torch":
        pytest.importorskip("torch")
    return request.param


def receive(consumer, form, timeout_s=10):
    return getattr(consumer, f"recv_{form}")(timeout_s)


def receive_many(consumer, form, limit):
    return consumer.recv_many(limit, 10, as_=form)


def pair(ring, schema=ONE, **options):
    producer = ring.producer(schema=schema, slot_bytes=None, **options)
    return producer, ring.consumer()


def overwrite(producer, consumer, times=64):
    for _ in range(times):
        producer.send({"x": np.full(WORDS, -1, dtype="int64")})
        assert int(consumer.recv_numpy(10)[0]) == -1


def test_a_schema_of_one_field_gives_the_array_itself(ring, form):
    producer, consumer = pair(ring)
    producer.send({"x": pattern(1)})
    array = receive(consumer, form)
    assert type(array).__name__ == {"numpy": "ndarray", "torch": "Tensor"}[form]
    assert str(array.dtype).removeprefix("torch.") == "int64"
    assert tuple(array.shape) == (WORDS,)
    assert np.asarray(array).tolist() == pattern(1).tolist()
    start, end = consumer.data_range
    assert start <= (array.ctypes.data if form == "numpy" else array.data_ptr()) < end


def test_more_fields_give_a_dict_in_the_schemas_order(ring, form):
    producer, consumer = pair(ring, TWO, slots=4)
    producer.send({"b": np.arange(5, dtype="uint8"), "a": np.ones((2, 3), "float32")})
    arrays = receive(consumer, form)
    assert list(arrays) == ["a", "b"]
    assert [tuple(array.shape) for array in arrays.values()] == [(2, 3), (5,)]
    assert np.asarray(arrays["b"]).tolist() == list(range(5))


def test_a_ring_without_a_schema_gives_a_dict(ring, form):
    producer, consumer = ring.pair()
    producer.send({"only": np.arange(3)})
    arrays = receive(consumer, form)
    assert np.asarray(arrays["only"]).tolist() == [0, 1, 2]


def test_an_array_is_what_the_message_would_have_given(ring):
    schemas = [("bool", ()), ("uint8", (0,)), ("float16", (3, 0, 2)), ("complex128", (2, 1)), ("int64", (2,) * 8)]
    for number, (dtype, shape) in enumerate(schemas):
        schema = forebay.Schema("s", "1.0", {"x": (dtype, shape)})
        name = f"{ring.name}-{number}"
        producer = forebay.Producer(name, directory=ring.directory, schema=schema, slots=4)
        consumer = forebay.Consumer(name, directory=ring.directory)
        sent = (np.random.default_rng(7).random(shape) * 100).astype(dtype)
        for _ in range(2):
            producer.send({"x": sent})
        message = consumer.recv(10)
        slow, fast = message["x"].numpy(), consumer.recv_numpy(10)
        assert (fast.dtype, fast.shape, fast.strides) == (slow.dtype, slow.shape, slow.strides)
        assert fast.flags.c_contiguous
        assert fast.flags.aligned
        assert not fast.flags.writeable
        assert not fast.flags.owndata
        assert (np.asarray(fast) == sent).all()
        del message, slow, fast
        consumer.close()
        producer.discard()


def test_bfloat16_arrays(ring):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    producer, consumer = pair(ring, forebay.Schema("s", "1.0", {"x": ("bfloat16", (4,))}))
    producer.send({"x": np.arange(4).astype(ml_dtypes.bfloat16)})
    assert consumer.recv_numpy(10).astype("float32").tolist() == [0, 1, 2, 3]


def test_arrays_of_a_ring_are_read_only_unless_it_is_writable(ring):
    producer, consumer = pair(ring)
    producer.send({"x": pattern(1)})
    with pytest.raises(ValueError, match="read-only"):
        consumer.recv_numpy(10)[0] = 1
    consumer.close()
    other = forebay.Producer(ring.name + "w", directory=ring.directory, schema=ONE, writable=True)
    writer = forebay.Consumer(ring.name + "w", directory=ring.directory, writable=True)
    other.send({"x": pattern(1)})
    array = writer.recv_numpy(10)
    array[0] = 77
    assert array[0] == 77
    del array
    writer.close()
    other.discard()


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_an_array_keeps_its_slot_until_its_last_view_dies(ring, form, many):
    producer, consumer = pair(ring)
    sequence = producer.send({"x": pattern(1)})
    array = receive_many(consumer, form, 3)[0] if many else receive(consumer, form)
    kept = array[3:7]
    del array
    gc.collect()
    assert [lease.sequence for lease in consumer.held()] == [sequence]
    assert consumer.stats.acked == 0
    overwrite(producer, consumer)
    assert np.asarray(kept).tolist() == pattern(1)[3:7].tolist()
    del kept
    gc.collect()
    assert consumer.held() == []
    assert consumer.stats.acked == 65
    producer.drain(10)


def test_an_array_survives_consumer_and_producer(ring, form):
    producer, consumer = pair(ring)
    producer.send({"x": pattern(3)})
    kept = receive(consumer, form)[3:7]
    consumer.close()
    producer.close()
    ring._made.clear()
    del producer, consumer
    gc.collect()
    assert np.asarray(kept).tolist() == pattern(3)[3:7].tolist()


def test_the_fields_of_one_message_keep_its_slot_together(ring, form):
    producer, consumer = pair(ring, TWO)
    producer.send({"a": np.ones((2, 3), "float32"), "b": np.arange(5, dtype="uint8")})
    arrays = receive(consumer, form)
    last = arrays.pop("b")
    del arrays
    gc.collect()
    assert len(consumer.held()) == 1
    assert np.asarray(last).tolist() == list(range(5))
    del last
    gc.collect()
    assert consumer.held() == []


def test_what_is_not_acked_goes_back_when_the_consumer_closes(ring, form):
    producer, consumer = pair(ring)
    producer.send({"x": pattern(1)})
    kept = receive(consumer, form)
    consumer.close()
    other = ring.consumer()
    with pytest.raises(forebay.ReceiveTimeout):
        other.recv(0)
    del kept
    gc.collect()
    again = other.recv(10)
    assert (again.sequence, again.attempts) == (1, 1)


def test_what_is_not_acked_goes_back_when_the_process_dies(ring):
    producer = ring.producer(schema=ONE, slot_bytes=None)
    script = """
c = forebay.Consumer(NAME, directory=DIRECTORY)
kept = [c.recv_numpy(10), *c.recv_many(2, 10, as_="numpy")]
print(len(kept))
sys.stdin.read()
"""
    process = ring.run(script)
    for n in range(3):
        producer.send({"x": pattern(n)})
    assert process.stdout.readline() in {"2\n", "3\n"}
    process.kill()
    process.wait()
    consumer = ring.consumer()
    seen = {}
    for _ in range(3):
        message = consumer.recv(30)
        seen[message.sequence] = message["x"].numpy()[1]
        message.ack()
        del message
    assert seen == {n + 1: pattern(n)[1] for n in range(3)}
    process.stdout.close()
    process.stdin.close()


def test_a_manual_consumer_is_refused_before_a_message_is_taken(ring, form):
    producer = ring.producer(schema=ONE, slot_bytes=None)
    consumer = ring.consumer(ack="manual")
    producer.send({"x": pattern(1)})
    for use in (receive, lambda c, f: receive_many(c, f, 2)):
        with pytest.raises(ValueError, match="cannot be acked"):
            use(consumer, form)
    message = consumer.recv(10)
    assert message.attempts == 0
    message.ack()


def test_an_unknown_form_is_named(ring):
    _producer, consumer = pair(ring)
    with pytest.raises(ValueError, match='"message", "numpy" or "torch"'):
        consumer.recv_many(1, as_="jax")


def test_timeouts_ends_and_errors_are_those_of_recv(ring, form):
    producer, consumer = pair(ring)
    with pytest.raises(forebay.ReceiveTimeout):
        receive(consumer, form, 0)
    begin = time.monotonic()
    with pytest.raises(forebay.ReceiveTimeout) as caught:
        receive(consumer, form, 0.2)
    assert time.monotonic() - begin >= 0.2
    assert caught.value.waited_s >= 0.2
    producer.send({"x": pattern(1)})
    producer.close()
    assert len(receive(consumer, form)) == WORDS
    with pytest.raises(forebay.RingClosed):
        receive(consumer, form)
    consumer.close()
    with pytest.raises(forebay.HandleClosed):
        receive(consumer, form)


def test_a_batch_takes_what_is_there_in_order(ring, form):
    producer, consumer = pair(ring, slots=8)
    for n in range(6):
        producer.send({"x": pattern(n)})
    first = receive_many(consumer, form, 4)
    assert [int(array[0]) for array in first] == [0, 1, 2, 3]
    assert [int(array[0]) for array in receive_many(consumer, form, 4)] == [4, 5]
    del first
    gc.collect()
    assert consumer.held() == []
    with pytest.raises(ValueError, match="limit"):
        consumer.recv_many(0, as_=form)


def test_a_batch_stops_at_the_quota(ring, form):
    producer, consumer = pair(ring, slots=4)
    for n in range(4):
        producer.send({"x": pattern(n)})
    kept = receive_many(consumer, form, 10)
    assert len(kept) == 3
    with pytest.raises(forebay.QuotaExceeded):
        receive(consumer, form, 0)
    kept.pop()
    assert int(receive(consumer, form)[0]) == 3


def test_a_forked_child_is_refused(ring, form):
    producer, consumer = pair(ring)
    producer.send({"x": pattern(1)})
    receive(consumer, form)
    producer.send({"x": pattern(2)})
    child = os.fork()
    if child == 0:
        code = 1
        try:
            receive(consumer, form)
        except forebay.ForkedError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert int(receive(consumer, form)[0]) == 2


def test_no_reference_is_lost_or_kept(ring):
    producer, consumer = pair(ring, slots=8)
    dtype = np.dtype("int64")
    base = None
    counts = []
    for n in range(400):
        producer.send({"x": pattern(n)})
        array = consumer.recv_numpy(10) if n % 2 else consumer.recv_many(4, 10, as_="numpy")[0]
        kind = type(array.base)
        base = base or kind
        assert kind is base
        del array
        if n in {99, 399}:
            gc.collect()
            counts.append((sys.getrefcount(dtype), sys.getrefcount(base), sys.getrefcount(np.ndarray)))
    assert counts[0] == counts[1]
    assert consumer.held() == []


def test_the_base_of_an_array_cannot_be_made_or_changed(ring):
    producer, consumer = pair(ring)
    producer.send({"x": pattern(1)})
    kind = type(consumer.recv_numpy(10).base)
    with pytest.raises(TypeError):
        kind()
    with pytest.raises(TypeError):
        kind.field = 1


def test_threads_receive_arrays_of_one_consumer(ring, form):
    producer, consumer = pair(ring, slots=16)
    total, seen, gate = 2000, [], threading.Lock()

    def work():
        while True:
            try:
                array = receive(consumer, form)
            except forebay.RingClosed:
                return
            with gate:
                seen.append(int(array[0]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(total):
        producer.send({"x": pattern(n)})
    producer.close()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(total))


def test_a_message_whose_array_cannot_be_made_goes_back(ring):
    out = run(
        ring,
        """
import sys
# A NumPy that cannot be imported, as far as forebay sees it: then a message must not be lost.
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("ml_dtypes"):
            raise ImportError("broken")
sys.meta_path.insert(0, Broken())
sys.modules.pop("ml_dtypes", None)
q = forebay.Producer(NAME + "b", directory=DIRECTORY, slots=4, slot_bytes=4096)
d = forebay.Consumer(NAME + "b", directory=DIRECTORY)
with q.loan({"y": ("int64", (2,)), "x": ("bfloat16", (2,))}) as loan:
    loan.publish()
for _ in range(2):
    try:
        d.recv_numpy(10)
    except forebay.DTypeUnavailable:
        print("refused")
again = d.recv(10)
print(again.sequence, again.attempts)
again.ack()
del again, loan
d.close(); q.discard(); c.close(); p.discard()
""",
    )
    assert out == "refused\nrefused\n1 2\n"


def test_signals_end_the_wait(ring):
    _producer = ring.producer(schema=ONE, slot_bytes=None)
    script = """
import signal, threading, os, time
c = forebay.Consumer(NAME, directory=DIRECTORY, wait="spin")
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    c.recv_numpy()
except KeyboardInterrupt:
    print("ended")
"""
    assert finish(ring.run(script)) == "ended\n"


@pytest.mark.parametrize("wait", ["spin", "adaptive", "block"])
def test_a_wait_lets_other_threads_run(ring, wait):
    producer = ring.producer(schema=ONE, slot_bytes=None)
    consumer = ring.consumer(wait=wait)
    steps = []

    def work():
        # Only another thread of this interpreter can send what is waited for.
        for n in range(50):
            steps.append(n)
            producer.send({"x": pattern(n)})
            time.sleep(0.001)

    thread = threading.Thread(target=work)
    thread.start()
    for n in range(50):
        assert int(consumer.recv_numpy(30)[0]) == n
    thread.join()
    assert steps == list(range(50))


# As much of torch as is looked at; its `left`-th tensor from now on is interrupted.
INTERRUPTED = """
import types
class Made:
    def __init__(self, raw, dtype): self.raw, self.dtype = raw, dtype
    def view(self, shape): return self
def frombuffer(raw, *, dtype):
    global left
    left -= 1
    if left == 0: raise KeyboardInterrupt
    return Made(raw, dtype)
def refuse(*_): raise ValueError("no")
torch = types.ModuleType("torch")
torch.Tensor, torch.frombuffer, torch.empty, torch.int64, torch.float32 = object, frombuffer, refuse, object(), object()
torch.utils = types.SimpleNamespace(dlpack=types.SimpleNamespace(from_dlpack=refuse))
sys.modules["torch"] = torch
"""


def test_ctrl_c_while_many_are_made_is_heard_and_gives_all_back(ring):
    out = run(
        ring,
        INTERRUPTED
        + """
left = 0
send()
c.recv_torch(10)
for interrupted in (1, 3, 4):
    send(4)
    left = interrupted
    try:
        print(len(c.recv_many(4, 10, as_="torch")))
    except KeyboardInterrupt:
        pass
    # Not before here: the exception keeps what it went through.
    print(len(c.held()), sorted([c.recv(10).sequence for _ in range(4)]))
""",
    )
    assert out == "".join(f"0 {[*range(n, n + 4)]}\n" for n in (2, 6, 10))


def test_ctrl_c_while_routes_are_tried_out_is_heard_and_forgets_none(ring):
    out = run(
        ring,
        INTERRUPTED
        + """
send()
left = 1
try:
    c.recv_torch(10)
except KeyboardInterrupt:
    print("interrupted")
print(type(c.recv_torch(10)["x"]).__name__)
""",
    )
    assert out == "interrupted\nMade\n"
