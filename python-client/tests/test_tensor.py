"""Every dtype, every shape, every way out: all show the same bytes."""

import ctypes
import gc

import ml_dtypes
import numpy as np
import pytest

import forebay

DTYPES = [
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "float8_e4m3fn",
    "float8_e5m2",
    "complex64",
    "complex128",
]
SHAPES = [(), (1,), (7,), (3, 5), (0,), (2, 0, 3), (1, 2, 1, 2, 1, 2, 1, 2)]


def numpy_dtype(name):
    return np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)


def sample(name, shape):
    """Values that every dtype can hold, none of them NaN."""
    size = int(np.prod(shape))
    return (np.arange(size) % 5).astype(numpy_dtype(name)).reshape(shape)


def raw(array):
    return np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_shows_what_was_sent(ring, dtype, shape):
    producer, consumer = ring.pair()
    array = sample(dtype, shape)
    producer.send({"x": array})
    tensor = consumer.recv(10)["x"]
    got = tensor.numpy()
    assert (got.shape, got.dtype, raw(got)) == (shape, array.dtype, raw(array))
    assert (tensor.shape, tensor.dtype, tensor.ndim, tensor.nbytes) == (shape, dtype, len(shape), array.nbytes)
    assert not got.flags.writeable
    if array.size:
        assert got.ctypes.data == tensor.data_ptr
        assert tensor.data_ptr % 64 == 0
    assert tensor.tobytes() == raw(array)
    assert raw(np.asarray(tensor)) == raw(array)


@pytest.mark.parametrize("route", ["exchange", "dlpack", "legacy", "frombuffer", None])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_torch_route_gives_the_same(ring, dtype, route):
    torch = pytest.importorskip("torch")
    if route is not None and route not in forebay.torch_routes()[0]:
        pytest.skip(f"this torch has no route {route}")
    producer, consumer = ring.pair(slots=16)
    for shape in SHAPES:
        array = sample(dtype, shape)
        producer.send({"x": array})
        tensor = consumer.recv(10)["x"]
        got = tensor.torch(route=route)
        assert got.dtype == getattr(torch, dtype)
        assert tuple(got.shape) == shape
        assert got.is_contiguous()
        assert got.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes() == raw(array)
        if array.size:
            assert got.data_ptr() == tensor.data_ptr
        del tensor, got
    gc.collect()
    assert consumer.held() == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_tensors_can_be_sent(ring, dtype):
    torch = pytest.importorskip("torch")
    producer, consumer = ring.pair(slots=16)
    for shape in SHAPES:
        array = sample(dtype, shape)
        made = torch.frombuffer(bytearray(raw(array)) or bytearray(16), dtype=getattr(torch, dtype))
        made = made[: array.size].reshape(shape)
        producer.send({"x": made})
        tensor = consumer.recv(10)["x"]
        assert (tensor.dtype, tensor.shape, tensor.tobytes()) == (dtype, shape, raw(array))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_loan_is_written_in_place_by_torch_and_numpy(ring, dtype):
    torch = pytest.importorskip("torch")
    producer, consumer = ring.pair()
    with producer.loan({"a": (dtype, (3, 4)), "b": (getattr(torch, dtype), (5,))}) as loan:
        loan["a"].numpy()[:] = sample(dtype, (3, 4))
        loan["b"].torch().copy_(torch.zeros(5, dtype=getattr(torch, dtype)))
        sequence = loan.publish(correlation_id=9, user=b"who")
    message = consumer.recv(10)
    assert (message.sequence, message.correlation_id, message.user) == (sequence, 9, b"who")
    assert message["a"].tobytes() == raw(sample(dtype, (3, 4)))
    assert message["b"].tobytes() == bytes(5 * numpy_dtype(dtype).itemsize)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if "float8" not in d])
def test_jax_takes_tensors(ring, dtype):
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    producer, consumer = ring.pair()
    array = sample(dtype, (3, 4))
    producer.send({"x": array})
    got = jax.dlpack.from_dlpack(consumer.recv(10)["x"])
    assert got.shape == (3, 4)
    assert np.asarray(got).dtype == array.dtype
    assert raw(np.asarray(got)) == raw(array)
    producer.send({"x": got})
    assert consumer.recv(10)["x"].tobytes() == raw(array)
    del got


@pytest.mark.parametrize("dtype", [d for d in DTYPES if "float8" not in d and d != "bfloat16"])
def test_buffer_protocol_and_numpy_from_dlpack(ring, dtype):
    producer, consumer = ring.pair()
    array = sample(dtype, (3, 4))
    producer.send({"x": array})
    tensor = consumer.recv(10)["x"]
    view = memoryview(tensor)
    assert (view.shape, view.itemsize, view.readonly, view.c_contiguous) == ((3, 4), array.itemsize, True, True)
    assert view.tobytes() == raw(array)
    assert np.asarray(view).dtype == array.dtype
    imported = np.from_dlpack(tensor)
    assert imported.dtype == array.dtype
    assert raw(imported) == raw(array)
    assert not imported.flags.writeable


@pytest.mark.parametrize(("shape", "given"), [((3, 4), False), ((1, 4), True), ((12,), True)])
def test_who_wants_columns_is_not_given_rows(ring, shape, given):
    producer, consumer = ring.pair()
    producer.send({"x": np.zeros(shape)})
    tensor = consumer.recv(10)["x"]
    view = ctypes.create_string_buffer(256)
    ask, release = ctypes.pythonapi.PyObject_GetBuffer, ctypes.pythonapi.PyBuffer_Release
    ask.argtypes = [ctypes.py_object, ctypes.c_char_p, ctypes.c_int]
    by_columns = 0x40 | 0x10 | 0x08  # PyBUF_F_CONTIGUOUS
    if not given:
        with pytest.raises(BufferError, match="row by row"):
            ask(tensor, view, by_columns)
        return
    assert ask(tensor, view, by_columns) == 0
    release(view)


def test_a_buffer_of_a_dtype_without_format_says_what_to_do(ring):
    producer, consumer = ring.pair()
    producer.send({"x": sample("bfloat16", (2,))})
    with pytest.raises(BufferError, match=r"no format for bfloat16; use \.numpy\(\)"):
        memoryview(consumer.recv(10)["x"])


def test_dlpack_arguments(ring):
    producer, consumer = ring.pair()
    producer.send({"x": np.arange(3)})
    tensor = consumer.recv(10)["x"]
    assert tensor.__dlpack_device__() == (1, 0)
    assert '"dltensor"' in repr(tensor.__dlpack__())
    assert '"dltensor_versioned"' in repr(tensor.__dlpack__(max_version=(1, 0)))
    assert '"dltensor"' in repr(tensor.__dlpack__(max_version=(0, 8)))
    tensor.__dlpack__(dl_device=(1, 0), copy=False)
    with pytest.raises(BufferError, match="dl_device"):
        tensor.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match="stream"):
        tensor.__dlpack__(stream=1)
    copied = np.from_dlpack(tensor, copy=True)
    assert copied.ctypes.data != tensor.data_ptr
    assert copied.tolist() == [0, 1, 2]


def test_a_capsule_that_nobody_takes_lets_go(ring):
    producer, consumer = ring.pair()
    producer.send({"x": np.arange(3)})
    tensor = consumer.recv(10)["x"]
    capsules = [tensor.__dlpack__(), tensor.__dlpack__(max_version=(1, 0))]
    del tensor
    assert len(consumer.held()) == 1
    del capsules
    assert consumer.held() == []


def test_a_copy_is_private_and_writable(ring):
    producer, consumer = ring.pair()
    producer.send({"x": np.arange(3)})
    tensor = consumer.recv(10)["x"].copy()
    assert consumer.held() == []
    tensor.numpy()[:] = 7
    assert tensor.torch().tolist() == [7, 7, 7]
    assert tensor.writable


def test_an_array_asks_for_a_copy_only_where_it_must(ring):
    producer, consumer = ring.pair()
    producer.send({"x": np.arange(3, dtype="int64")})
    tensor = consumer.recv(10)["x"]
    assert np.asarray(tensor, dtype="int64").ctypes.data == tensor.data_ptr
    assert tensor.__array__("float32").dtype == np.float32
    assert tensor.__array__(copy=True).flags.writeable
    with pytest.raises(ValueError, match="copy=False"):
        tensor.__array__("float32", copy=False)


def test_a_writable_ring_lets_a_holder_write(ring):
    producer = ring.producer(writable=True)
    consumer = ring.consumer(writable=True)
    producer.send({"x": np.arange(3, dtype="int64")})
    tensor = consumer.recv(10)["x"]
    assert tensor.writable
    tensor.numpy()[:] += 1
    assert tensor.torch().add_(1).tolist() == [2, 3, 4]


def test_unknown_route_and_unknown_dtype_are_named(ring):
    producer, consumer = ring.pair()
    producer.send({"x": np.arange(3)})
    with pytest.raises(ValueError, match='"pigeon"'):
        consumer.recv(10)["x"].torch(route="pigeon")
    with pytest.raises(ValueError, match="float31"):
        producer.loan({"x": ("float31", (1,))})


def test_without_ml_dtypes_the_error_says_what_to_install(ring):
    producer = ring.producer()
    script = """
sys.modules["ml_dtypes"] = None
c = forebay.Consumer(NAME, directory=DIRECTORY)
tensor = c.recv(10)["x"]
try:
    tensor.numpy()
except forebay.DTypeUnavailable as e:
    assert isinstance(e, TypeError) and "install the package ml_dtypes" in str(e), e
    print("refused")
"""
    from conftest import finish

    process = ring.run(script)
    producer.send({"x": sample("bfloat16", (2,))})
    assert finish(process) == "refused\n"
