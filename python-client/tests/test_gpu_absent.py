"""The real CUDA runtime, on a machine without a GPU or with one: what is said, and that everything works."""

from __future__ import annotations

import ctypes.util
import pathlib
import subprocess
import sys
import sysconfig
import warnings

import numpy as np
import pytest

import forebay


def runtime() -> str | None:
    """libcudart as PyPI's packages bring it."""
    packages = pathlib.Path(sysconfig.get_paths()["purelib"])
    found = sorted(packages.glob("nvidia/**/lib/libcudart.so.*"))
    return str(found[0]) if found else None


def has_gpu() -> bool:
    return pathlib.Path("/proc/driver/nvidia/version").exists() or ctypes.util.find_library("cuda") is not None


without_gpu = pytest.mark.skipif(has_gpu(), reason="there is an NVIDIA driver here")


def test_without_a_runtime_pin_says_so_and_all_else_works(ring):
    producer = ring.producer()
    done = ring.run("""
import warnings
consumer = forebay.Consumer(NAME, directory=DIRECTORY)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    assert not consumer.pin() and not consumer.pin() and not consumer.pinned
assert len(said) == 1, said
assert "no CUDA runtime in this process" in str(said[0].message), said[0].message
assert "torch" not in sys.modules
message = consumer.recv(20.0)
try:
    message.record_stream(0)
except forebay.DeviceError as e:
    assert "FOREBAY_CUDART" in str(e)
print(message["x"].tobytes()[0], consumer.in_flight)
""")
    producer.wait_for_consumers(1, 20.0)
    producer.send({"x": np.full(10, 7, np.uint8)})
    out, _ = done.communicate(timeout=30)
    assert (done.returncode, out.split()) == (0, ["7", "0"])


@without_gpu
@pytest.mark.skipif(runtime() is None, reason="no CUDA runtime is installed (nvidia-cuda-runtime)")
def test_the_real_runtime_without_a_driver_is_answered_with_its_code(ring):
    producer = ring.producer()
    done = ring.run(f"""
import ctypes, warnings
ctypes.CDLL({runtime()!r})
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    consumer = forebay.Consumer(NAME, directory=DIRECTORY, pin=True)
assert not consumer.pinned and len(said) == 1
text = str(said[0].message)
assert "CUDA error 35" in text and "driver" in text, text
message = consumer.recv(20.0)
try:
    message.to("cuda", stream=0, out={{}})
except forebay.DeviceError as e:
    assert e.code == 35, e
else:
    raise AssertionError
print(message["x"].tobytes()[0])
""")
    producer.wait_for_consumers(1, 20.0)
    producer.send({"x": np.full(10, 8, np.uint8)})
    out, _ = done.communicate(timeout=30)
    assert (done.returncode, out.split()) == (0, ["8"])


@without_gpu
def test_with_torch_but_no_gpu_the_cpu_is_as_good(ring):
    torch = pytest.importorskip("torch")
    producer, consumer = ring.pair()
    producer.send({"x": np.arange(10, dtype=np.int64)})
    message = consumer.recv(20.0)
    there = message.to("cpu")
    assert torch.equal(there["x"], torch.arange(10))
    with pytest.raises(ValueError, match="neither stream nor out"):
        message.to(torch.device("cpu"), stream=1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert not consumer.pin("cuda:0")
    assert [str(w.message) for w in said if "not pinned" not in str(w.message)] == []
    with pytest.raises((forebay.DeviceError, RuntimeError, AssertionError)):
        message.to("cuda")


def test_importing_the_torch_helpers_shadows_nothing():
    script = "import forebay.torch, torch, sys; assert forebay.torch is not torch and hasattr(torch, 'Tensor')"
    script += "; from forebay.torch import DevicePrefetcher; assert forebay.torch.DevicePrefetcher is DevicePrefetcher"
    pytest.importorskip("torch")
    subprocess.run([sys.executable, "-c", script], check=True, timeout=50)
