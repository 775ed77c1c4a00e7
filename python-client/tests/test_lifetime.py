"""A view keeps what it shows: delete, collect, slice, pass on, close, kill, overwrite, compare."""

import gc
import threading
import weakref

import numpy as np
import pytest

from conftest import finish

WORDS = 512


def pattern(sequence):
    """Every word is a function of (sequence, index), so a slot that changed under a view shows."""
    return np.arange(WORDS, dtype="int64") * 1_000_003 + sequence


def overwrite(producer, consumer, times=64):
    """Publish and receive many times, so that every free slot is used again and again."""
    for _ in range(times):
        producer.send({"x": np.full(WORDS, -1, dtype="int64")})
        assert consumer.recv(10)["x"].numpy()[0] == -1


def derive_numpy_slice(tensor):
    return tensor.numpy()[3:7]


def derive_numpy_strided(tensor):
    return tensor.numpy()[3:103:25][::-1][::-1]


def derive_memoryview(tensor):
    return memoryview(tensor)[3:7]


def derive_torch_view(tensor):
    return tensor.torch().view(2, WORDS // 2)[0, 3:7]


def derive_numpy_of_torch_view(tensor):
    return tensor.torch().view(2, WORDS // 2)[0, 3:7].numpy()


def derive_torch_of_numpy(tensor):
    import torch

    return torch.utils.dlpack.from_dlpack(tensor.__dlpack__())[3:7]


def derive_torch_storage(tensor):
    import torch

    storage = tensor.torch().untyped_storage()
    return torch.tensor([], dtype=torch.int64).set_(storage)[3:7]


def derive_frombuffer(tensor):
    return tensor.torch(route="frombuffer")[3:7]


def derive_legacy(tensor):
    return tensor.torch(route="legacy")[3:7]


def derive_from_dlpack(tensor):
    return np.from_dlpack(tensor)[3:7]


def derive_jax(tensor):
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    return jax.dlpack.from_dlpack(tensor)


DERIVED = [
    derive_numpy_slice,
    derive_numpy_strided,
    derive_memoryview,
    derive_torch_view,
    derive_numpy_of_torch_view,
    derive_torch_of_numpy,
    derive_torch_storage,
    derive_frombuffer,
    derive_legacy,
    derive_from_dlpack,
    derive_jax,
]


def values(kept):
    flat = np.asarray(kept)
    return flat[3:7].tolist() if flat.shape == (WORDS,) else flat.tolist()


def expected(derive, sequence):
    at = slice(3, 103, 25) if derive is derive_numpy_strided else slice(3, 7)
    return pattern(sequence)[at].tolist()


@pytest.fixture(params=DERIVED, ids=lambda derive: derive.__name__.removeprefix("derive_"))
def derive(request):
    if "torch" in request.param.__name__ or request.param in {derive_frombuffer, derive_legacy}:
        pytest.importorskip("torch")
    return request.param


def test_a_view_survives_everything_it_was_made_of(ring, derive):
    producer, consumer = ring.pair()
    sequence = producer.send({"x": pattern(1)})
    message = consumer.recv(10)
    tensor = message["x"]
    kept = derive(tensor)
    del message, tensor
    gc.collect()
    overwrite(producer, consumer)
    assert values(kept) == expected(derive, 1)
    assert [lease.sequence for lease in consumer.held()] == [sequence]
    del kept
    gc.collect()
    assert consumer.held() == []


def test_a_view_survives_its_consumer(ring, derive):
    producer, consumer = ring.pair()
    other = ring.consumer()
    producer.send({"x": pattern(2)})
    message = consumer.recv(10) if (found := consumer.try_recv()) is None else found
    message.ack()
    kept = derive(message["x"])
    del message
    consumer.close()
    del consumer
    gc.collect()
    overwrite(producer, other)
    assert values(kept) == expected(derive, 2)


def test_a_view_survives_its_producers_close(ring, derive):
    producer, consumer = ring.pair()
    producer.send({"x": pattern(3)})
    kept = derive(consumer.recv(10)["x"])
    producer.close()
    consumer.close()
    ring._made.clear()
    del producer, consumer
    gc.collect()
    assert values(kept) == expected(derive, 3)


def test_a_view_survives_its_producers_death_and_its_successor(ring, derive):
    script = f"""
import numpy as np
p = forebay.Producer(NAME, directory=DIRECTORY, slots=4, slot_bytes=1 << 16)
p.send({{"x": np.arange({WORDS}, dtype="int64") * 1_000_003 + 4}})
print("sent")
sys.stdin.read()
"""
    process = ring.run(script)
    assert process.stdout.readline() == "sent\n"
    consumer = ring.consumer()
    message = consumer.recv(10)
    message.ack()
    kept = derive(message["x"])
    del message
    process.kill()
    process.wait()
    gc.collect()
    assert values(kept) == expected(derive, 4)
    successor = ring.producer()
    assert successor.takeover.last_sequence == 1
    successor.wait_for_consumers(1, 30)
    overwrite(successor, consumer)
    assert values(kept) == expected(derive, 4)
    del kept
    process.stdout.close()
    process.stdin.close()


def test_threads_drop_the_last_view(ring):
    pytest.importorskip("torch")
    producer, consumer = ring.pair(slots=8)
    for _ in range(40):
        producer.send({"x": pattern(5)})
        tensor = consumer.recv(10)["x"]
        views = [tensor.torch()[1:], tensor.numpy()[1:], memoryview(tensor), tensor.torch(route="legacy")]
        del tensor
        gate = threading.Barrier(len(views))

        def drop(box, gate=gate):
            gate.wait()
            assert int(np.asarray(box[0])[0]) in {5, 1_000_008}
            box.clear()

        threads = [threading.Thread(target=drop, args=([view],)) for view in views]
        del views
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        del threads, thread, drop
        gc.collect()
        assert consumer.held() == []


def test_leases_end_in_any_order(ring):
    producer, consumer = ring.pair(slots=8)
    for n in range(6):
        producer.send({"x": pattern(n)})
    views = {n: consumer.recv(10)["x"].numpy() for n in range(6)}
    for n in (3, 0, 5, 1):
        del views[n]
        producer.send({"x": np.full(WORDS, -1, dtype="int64")})
        assert consumer.recv(10)["x"].numpy()[0] == -1
        for kept, view in views.items():
            assert (view == pattern(kept)).all()
    assert [lease.sequence for lease in consumer.held()] == [3, 5]


def test_every_pointer_lies_in_the_mapped_slots(ring):
    producer, consumer = ring.pair()
    start, end = consumer.data_range
    producer.send({"x": pattern(1), "y": np.ones(3)})
    message = consumer.recv(10)
    for tensor in message.values():
        assert start <= tensor.data_ptr < end
        assert tensor.numpy().ctypes.data == tensor.data_ptr


def test_objects_are_collected(ring):
    producer, consumer = ring.pair()
    producer.send({"x": pattern(1)})
    message = consumer.recv(10)
    tensor = message["x"]
    refs = [weakref.ref(message), weakref.ref(tensor)]
    array = tensor.numpy()
    del message, tensor
    gc.collect()
    assert refs[0]() is None
    assert refs[1]() is not None  # the array's base
    del array
    gc.collect()
    assert refs[1]() is None


def test_a_given_back_slot_waits_for_its_last_view(ring):
    producer = ring.producer(slots=1)
    loan = producer.loan({"x": ("int64", (4,))})
    view = loan["x"].numpy()
    loan.discard()
    assert producer.stats.loaned == 1
    view[:] = 1
    del view
    del loan
    gc.collect()
    assert producer.send({"x": np.zeros(4)}) == 1


def test_views_of_a_published_loan_stay_mapped_past_the_producer(ring):
    producer = ring.producer()
    loan = producer.loan({"x": ("int64", (4,))})
    tensor, view = loan["x"], loan["x"].numpy()
    view[:] = 5
    loan.publish()
    for use in (tensor.numpy, tensor.torch, tensor.copy, tensor.tobytes, tensor.__dlpack__, lambda: memoryview(tensor)):
        with pytest.raises(ValueError, match="no longer ours to write"):
            use()
    producer.discard()
    del producer, loan
    ring._made.clear()
    gc.collect()
    assert view.tolist() == [5, 5, 5, 5]


def test_nothing_is_left_when_the_interpreter_exits_with_views(ring):
    producer, consumer = ring.pair()
    script = """
c = forebay.Consumer(NAME, directory=DIRECTORY)
kept = c.recv(10)["x"].numpy()
print(int(kept[0]))
"""
    consumer.close()
    process = ring.run(script)
    producer.send({"x": pattern(7)})
    assert finish(process) == "7\n"
