"""fork, spawn, forkserver, DataLoader."""

import gc
import multiprocessing as mp
import os
import threading
import warnings

import numpy as np
import pytest

import worker

# Other tests of this process may have started threads (JAX, torch); the children here only run Python of ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*fork.*:RuntimeWarning"),
]


def test_a_forked_child_may_not_use_its_parents_objects(ring):
    producer, consumer = ring.pair()
    producer.send({"x": np.arange(4)})
    message = consumer.recv(10)
    tensor = message["x"]
    context = mp.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=worker.use_parents_objects, args=(consumer, producer, message, tensor, answers))
    process.start()
    raised = answers.get()
    process.join()
    assert process.exitcode == 0
    assert [name for name, text in raised.items() if text is None] == []
    assert all("parent process" in text for text in raised.values())
    # Nothing of it disturbed the parent: it still holds the message, and the ring goes on.
    assert tensor.numpy().tolist() == [0, 1, 2, 3]
    assert len(consumer.held()) == 1
    del message, tensor
    gc.collect()
    assert consumer.held() == []
    producer.send({"x": np.arange(4)})
    assert consumer.recv(10).sequence == 2


def test_a_forked_child_that_just_exits_disturbs_nothing(ring):
    producer, consumer = ring.pair()
    producer.send({"x": np.arange(4)})
    tensor = consumer.recv(10)["x"]
    for leave in (lambda: os._exit(0), lambda: (gc.collect(), os._exit(0))):
        pid = os.fork()
        if pid == 0:
            del tensor, consumer, producer
            leave()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert consumer.held()[0].sequence == 1
    assert producer.consumers == 1
    assert tensor.numpy().tolist() == [0, 1, 2, 3]


def test_a_forked_child_attaches_anew_by_copying(ring):
    producer, consumer = ring.pair()
    context = mp.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=worker.receive_copy, args=(consumer, answers))
    process.start()
    producer.wait_for_consumers(2, 30)
    consumer.close()
    producer.send({"x": np.array([5])})
    assert answers.get() == 5
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_consumer_goes_to_another_process_by_pickling(ring, method):
    producer, consumer = ring.pair()
    context = mp.get_context(method)
    answers = context.SimpleQueue()
    process = context.Process(target=worker.receive, args=(consumer, answers))
    process.start()
    producer.wait_for_consumers(2, 30)
    consumer.close()
    producer.send({"x": np.array([6])})
    assert answers.get() == 6
    process.join()
    assert process.exitcode == 0


# torch warns where there are fewer cores than workers.
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_dataloader_is_fed_from_a_ring(ring, method):
    pytest.importorskip("torch")
    from torch.utils.data import DataLoader

    producer = ring.producer(slots=8)
    consumer = ring.consumer()
    loader = DataLoader(
        worker.RingDataset(consumer), batch_size=None, num_workers=2, multiprocessing_context=mp.get_context(method)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about this machine's two cores
        batches = iter(loader)
    # The parent's own consumer takes nothing, so that the workers get all of it.
    producer.wait_for_consumers(3, 60)
    consumer.close()

    def publish():
        for n in range(20):
            producer.send({"x": np.array([n])})
        producer.close()

    thread = threading.Thread(target=publish)
    thread.start()
    assert sorted(int(batch[0]) for batch in batches) == list(range(20))
    thread.join()


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "asyncio", "ml_dtypes"])
def test_importing_forebay_imports_little(ring, name):
    from conftest import finish

    assert finish(ring.run(f"print({name!r} in sys.modules)")) == "False\n"


def test_it_works_without_numpy_or_torch(ring):
    from conftest import finish

    process = ring.run("""
for name in ("numpy", "torch", "jax"):
    sys.modules[name] = None
p = forebay.Producer(NAME + "-own", directory=DIRECTORY, slots=2, slot_bytes=4096)
c = forebay.Consumer(NAME + "-own", directory=DIRECTORY)
p.send({"x": b"abc"})
with p.loan({"y": ("uint8", (2,))}) as loan:
    memoryview(loan["y"])[:] = b"de"
    first = c.recv(10)
    assert memoryview(first["x"]).tobytes() == b"abc" == first["x"].tobytes()
    del first
    loan.publish()
assert bytes(c.recv(10)["y"]) == b"de"
try:
    c2 = c.recv(0)
except TimeoutError:
    print("fine")
""")
    assert finish(process) == "fine\n"


def test_another_system_is_refused_at_import(ring):
    from conftest import finish

    process = ring.run("""
for name in [name for name in sys.modules if name.startswith("forebay")]:
    del sys.modules[name]
sys.platform = "darwin"
try:
    import forebay
except ImportError as e:
    print(e)
""")
    assert "runs on Linux only, this is darwin" in finish(process)
