"""Messages on their way to a GPU, on a CUDA runtime without one, where the test decides when a copy is done."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fake_gpu import build

PRODUCER = 'producer = forebay.Producer(NAME, directory=DIRECTORY, slots=2, slot_bytes=1 << 14, when_full="fail")'
HEAD = """
import gc, sys, time
sys.path.insert(0, {tests!r})
import numpy as np
import fake_gpu
from fake_gpu import *

NAME, DIRECTORY = {name!r}, {directory!r}
fake = Fake()
{producer}
consumer = forebay.Consumer(NAME, directory=DIRECTORY, quota=2)

def send(value, n=1000):
    return producer.send({{"x": np.full(n, value, np.int32)}})

def full():
    try:
        send(-1)
    except forebay.RingFull:
        return True
    consumer.recv()
    return False

def wait_for(what):
    start = time.monotonic()
    while not what():
        assert time.monotonic() - start < 20, "not in time"
        time.sleep(0.001)

def array(n=1000):
    return Array(fake, (n,))
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def run(ring, library):
    """Run a script with the fake, and a ring of two slots."""

    def run(script: str, *, torch: bool = False, producer: bool = True) -> str:
        tests = str(Path(__file__).parent)
        head = "import torch\n" if torch else ""
        head += "import forebay\n" + HEAD.format(
            tests=tests, name=ring.name, directory=str(ring.directory), producer=PRODUCER if producer else ""
        )
        environment = os.environ | {"FOREBAY_CUDART": str(library), "FOREBAY_LIBTORCH": str(library)}
        done = subprocess.run(
            [sys.executable, "-u", "-W", "error", "-c", head + script],
            env=environment,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_a_message_goes_to_the_gpu_and_its_slot_stays_until_it_is_there(run):
    run("""
assert consumer.pin() and consumer.pinned
fake.hold(1)
outs = [array(), array()]
for value, out in zip((5, 6), outs):
    send(value)
    message = consumer.recv()
    assert message["x"].pinned
    assert message.to("cuda", stream=7, out={"x": out}) == {"x": out}
    del message
assert consumer.in_flight == 2 and full()
assert consumer.stats.acked == 2
fake.run(7, 2)
wait_for(lambda: not full())
fake.run(7, 2)
wait_for(lambda: consumer.in_flight == 0)
assert [set(out.ints()) for out in outs] == [{5}, {6}]
assert fake.count(PAGEABLE) == fake.count(SPOILT) == fake.count(TORN) == 0
""")


def test_a_view_of_a_pinned_slot_notes_the_current_stream_at_its_end(run):
    run(
        """
import threading
assert consumer.pin("cuda:0")
fake.hold(1)
send(1)
kept = consumer.recv()
send(2)
view = consumer.recv().torch()["x"]
# The program copies on a stream of its own, and lets the view go there.
fake.set_current_stream(31)
part = view[10:20]
del view
assert fake.waiting(31) == 0 and fake.waiting(0) == 0
del part
wait_for(lambda: fake.waiting(31) + fake.waiting(0) == 2)
assert full()
fake.run(0, 9)
assert full(), "the stream of its making is past it, that of its end is not"
fake.run(31, 9)
wait_for(lambda: not full())
""",
        torch=True,
    )


def test_arrays_and_buffers_of_a_pinned_slot_note_it_too(run):
    run(
        """
assert consumer.pin()
fake.hold(1)
makes = {
    21: lambda m: torch.from_numpy(m["x"].numpy()),
    22: lambda m: torch.from_numpy(m.numpy()["x"]),
    23: lambda m: memoryview(m["x"]),
    24: lambda m: torch.from_dlpack(m["x"]),
}
import warnings
warnings.simplefilter("ignore")
for stream, make in makes.items():
    fake.set_current_stream(1)
    send(stream)
    view = make(consumer.recv())
    fake.set_current_stream(stream)
    assert view[3] == stream or stream == 23
    del view
    wait_for(lambda: fake.waiting(1) == fake.waiting(stream) == 1)
    fake.run(1, 9)
    assert consumer.in_flight == 1
    fake.run(stream, 9)
    wait_for(lambda: consumer.in_flight == 0)
""",
        torch=True,
    )


def test_a_view_that_ends_on_a_thread_unknown_to_python_asks_nothing_there(run):
    run("""
import ctypes
assert consumer.pin()
fake.hold(1)
fake.set_current_stream(5)
send(1)
capsule = consumer.recv()["x"].__dlpack__()
fake.set_current_stream(6)
get = ctypes.pythonapi.PyCapsule_GetPointer
get.argtypes, get.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
managed = get(capsule, b"dltensor")
rename = ctypes.pythonapi.PyCapsule_SetName
rename.argtypes, rename.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_int
used = b"used_dltensor"
assert rename(capsule, used) == 0
deleter = ctypes.cast(managed + 56, ctypes.POINTER(ctypes.c_void_p))[0]
libc = ctypes.CDLL(None)
thread = ctypes.c_ulong()
assert libc.pthread_create(ctypes.byref(thread), None, ctypes.c_void_p(deleter), ctypes.c_void_p(managed)) == 0
assert libc.pthread_join(thread, None) == 0
wait_for(lambda: fake.waiting(5) == 1)
assert fake.waiting(6) == fake.waiting(0) == 0
fake.run(5, 1)
wait_for(lambda: consumer.in_flight == 0)
""")


def test_other_streams_are_named_by_record_stream_in_any_spelling(run):
    run("""
class Torch:
    cuda_stream, device_index = 41, 0
class Protocol:
    def __cuda_stream__(self): return (0, 42)
class CuPy:
    ptr = 43
assert consumer.pin()
fake.hold(1)
send(1)
message = consumer.recv()
for stream in (Torch(), Protocol(), CuPy(), 44, 44):
    message.record_stream(stream)
del message
wait_for(lambda: [fake.waiting(stream) for stream in range(40, 46)] == [0, 1, 1, 1, 1, 0])
for stream in (41, 42, 43, 44):
    assert consumer.in_flight == 1
    fake.run(stream, 1)
wait_for(lambda: consumer.in_flight == 0)
send(2)
message = consumer.recv()
for wrong, error in (("x", TypeError), (object(), TypeError)):
    try:
        message.record_stream(wrong)
    except error as e:
        assert "no stream" in str(e)
    else:
        raise AssertionError(wrong)
try:
    message.to("cuda:1", stream=Torch(), out={})
except ValueError as e:
    assert "device 0, expected 1" in str(e), e
else:
    raise AssertionError
""")


def test_a_captured_graph_survives_receiving_and_is_refused_as_a_target(run):
    run("""
assert consumer.pin()
fake.hold(1)
send(1)
consumer.recv().to(stream=1, out={"x": array()})
send(2)
fake.begin_capture(2)
message = consumer.recv()
try:
    message.to(stream=2, out={"x": array()})
except forebay.DeviceError as e:
    assert "capturing" in str(e) and e.code is None
else:
    raise AssertionError
fake.run(1, 9)
wait_for(lambda: consumer.in_flight == 0)
assert consumer.try_recv() is None
assert fake.end_capture(2) == 1 and fake.count(SPOILT) == 0
""")


def test_what_cannot_be_a_target_is_refused_by_name(run):
    run("""
consumer.pin()
send(1)
message = consumer.recv()
for out, error, text in [
    ({"y": array()}, forebay.NoSuchField, "y"),
    ({"x": array(999)}, ValueError, "has 3996 bytes, the tensor 4000"),
    ({"x": Array(fake, (1000,), strides=(8,))}, ValueError, "not contiguous"),
    ({"x": object()}, ValueError, "__cuda_array_interface__"),
]:
    try:
        message.to(stream=1, out=out)
    except error as e:
        assert text in str(e), e
    else:
        raise AssertionError(text)
for device in ("tpu", "cuda:x", 1.5):
    try:
        message.to(device)
    except ValueError as e:
        assert "expected" in str(e)
    else:
        raise AssertionError(device)
try:
    message.to("cuda:9", stream=1, out={"x": array()})
except forebay.DeviceError as e:
    assert e.code == 101, e
else:
    raise AssertionError
""")


def test_a_refusal_is_said_once_and_everything_works_unpinned(run):
    run("""
import warnings
fake.fail(FAIL_REGISTER, 801, 3)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    assert not consumer.pin() and not consumer.pin()
    assert not forebay.Consumer(NAME, directory=DIRECTORY, pin=True).pinned
assert len(said) == 1 and "801" in str(said[0].message) and "not pinned" in str(said[0].message)
send(9)
out = array()
consumer.recv().to(stream=3, out={"x": out})
wait_for(lambda: consumer.in_flight == 0)
assert set(out.ints()) == {9} and fake.count(PAGEABLE) == 1
fake.read_only(0)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    assert not consumer.pin()
assert "attach with writable" in str(said[0].message), said[0].message
assert consumer.pin() is False
""")


def test_pinned_rings_pickle_and_close_and_are_unregistered(run):
    run("""
import pickle
assert consumer.pin()
again = pickle.loads(pickle.dumps(forebay.Consumer(NAME, directory=DIRECTORY, pin=True)))
assert again.pinned
wait_for(lambda: fake.count(REGISTERED) == 2)
fake.hold(1)
send(1)
message = (consumer.try_recv() or again.try_recv())
message.to(stream=1, out={"x": array()})
del message
again.close(); consumer.close()
del again, consumer
gc.collect()
time.sleep(0.05)
assert fake.count(REGISTERED) >= 1, "a copy is in flight"
fake.run(1, 9)
wait_for(lambda: fake.count(REGISTERED) == 0)
assert fake.count(TORN) == 0
""")


@pytest.mark.parametrize("end", ["", "import os; os._exit(0)", "consumer.close()", "sys.exit(0)"])
def test_a_process_may_end_with_copies_in_flight(run, ring, end):
    # The ring outlives the process that receives.
    producer = ring.producer(slots=2, slot_bytes=1 << 14)
    producer.send({"x": bytes(100)})
    run(
        f"""
assert consumer.pin()
fake.hold(1)
message = consumer.recv()
view = message["x"].numpy()
message.to(stream=1, out={{"x": Array(fake, (100,), "|u1")}})
assert consumer.in_flight == 1
{end}
""",
        producer=False,
    )
    # What was not acked comes again, and no slot stays behind.
    again = ring.consumer()
    assert again.recv(10.0).attempts == 1
    gc.collect()
    producer.drain(10.0)
    for _ in range(3):
        producer.send({"x": bytes(100)}, timeout_s=10.0)
        again.recv(10.0)


def test_a_forked_child_does_not_touch_its_parents_device(run):
    run("""
import os
assert consumer.pin()
fake.hold(1)
send(1)
message = consumer.recv()
message.to(stream=1, out={"x": array()})
child = os.fork()
if child == 0:
    # Nothing of the fake is asked here: its lock may have been held when this was forked, as CUDA's own may.
    sends, records = lambda: message.to(stream=1, out={}), lambda: message.record_stream(1)
    for call in (consumer.try_recv, consumer.pin, sends, records):
        try:
            call()
        except forebay.ForkedError:
            continue
        os._exit(1)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
fake.run(1, 9)
wait_for(lambda: consumer.in_flight == 0)
""")


def test_the_prefetchers_own_way_to_a_gpu_by_a_torch_that_pretends(run):
    run(
        """
import forebay.torch

class OnGpu(torch.Tensor):
    is_cuda = property(lambda self: True)

class Stream:
    device_index = 0
    def __init__(self, handle=7): self.cuda_stream = handle
    def wait_event(self, event): told.append(("wait", self.cuda_stream, event.number))

class Event:
    made = 0
    def __init__(self): Event.made += 1; self.number = Event.made
    def record(self, stream): told.append(("record", stream.cuda_stream, self.number))

told = []
torch.cuda.Stream = lambda device: Stream()
torch.cuda.Event = Event
torch.cuda.current_stream = lambda device=None: Stream(8)
torch.cuda.current_device = lambda: 0
def room(self, nbytes):
    return torch.empty(nbytes, dtype=torch.uint8).as_subclass(OnGpu)
forebay.torch._Cuda.room = room

assert consumer.pin()
fake.hold(1)
loader = iter(forebay.torch.DevicePrefetcher(consumer, "cuda", depth=1, ack="copied", timeout_s=20))
send(1); send(2)
batch = next(loader)
assert batch["x"].shape == (1000,) and fake.waiting(7) == 4 and full()
assert consumer.in_flight == 2, "two slots are kept until they were copied"
fake.run(7, 2)
assert set(batch["x"].tolist()) == {1}
wait_for(lambda: not full())
fake.run(7, 9)
# Into the buffers of the first: not before the program's work on it is through.
wait_for(lambda: consumer.in_flight == 0)
send(3)
batch = next(loader)
assert set(batch["x"].tolist()) == {2}
fake.run(7, 9)
assert set(next(loader)["x"].tolist()) == {3}
used = told.index(("record", 8, 2))
assert told[used + 1] == ("wait", 7, 2), told
assert told[0] == ("record", 7, 1) and ("wait", 8, 1) in told
""",
        torch=True,
    )


def test_new_tensors_are_made_for_the_stream_that_writes_them(run):
    run(
        """
import contextlib
class OnGpu(torch.Tensor):
    is_cuda = property(lambda self: True)

made = []
def empty(shape, *, dtype, device):
    made.append((str(device), current[-1]))
    return real(shape, dtype=dtype).as_subclass(OnGpu)
@contextlib.contextmanager
def stream(of):
    current.append(of.handle)
    yield
    current.pop()
class External:
    def __init__(self, handle, device): self.handle, self.device = handle, device
current, real = [None], torch.empty
torch.empty, torch.cuda.stream, torch.cuda.ExternalStream = empty, stream, External
forebay.torch_routes()
made.clear()
assert consumer.pin()
fake.set_current_stream(3)
send(5)
message = consumer.recv()
there = message.to("cuda:0")
assert set(there["x"].tolist()) == {5} and there["x"].dtype == torch.int32
there = message.to("cuda:2", stream=9)
assert set(there["x"].tolist()) == {5}
assert made == [("cuda:0", None), ("cuda:2", 9)], made
try:
    message.to("cuda:0", stream=9, out={"x": real(1000, dtype=torch.int32)})
except ValueError as e:
    assert "not on a GPU" in str(e)
else:
    raise AssertionError
""",
        torch=True,
    )


def test_a_thread_that_waits_for_results_spoils_no_graph_of_another(run):
    run("""
import ctypes, threading
from forebay._native import _leave_captures_alone
event, answers = ctypes.c_void_p(), []
assert fake.library.cudaEventCreateWithFlags(ctypes.byref(event), 2) == 0

def ask(leaves):
    if leaves:
        _leave_captures_alone()
    answers.append(fake.library.cudaEventQuery(event))

def on_a_thread(leaves):
    fake.begin_capture(1)
    thread = threading.Thread(target=ask, args=(leaves,))
    thread.start()
    thread.join()
    return fake.end_capture(1)

assert on_a_thread(True) == 1 and answers == [0]
assert on_a_thread(False) == 0 and answers == [0, 900], "the fake notices who does not"
""")


def test_to_look_at_a_tensor_is_not_to_read_it(run):
    run("""
assert consumer.pin()
fake.hold(1)
send(1)
message = consumer.recv()
for tensor in message.values():
    assert tensor.pinned and tensor.shape == (1000,) and tensor.nbytes == 4000
message.to(stream=7, out={"x": array()})
del message, tensor
assert consumer.in_flight == 1
fake.run(7, 9)
wait_for(lambda: consumer.in_flight == 0)
assert fake.waiting(0) == 0
""")
