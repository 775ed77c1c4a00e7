"""A CUDA runtime without a device, built from tests/cuda/fake_cudart.rs, for processes that the tests start.

Its streams are numbers, its devices' memory is this process's, and copies wait in their stream until `run`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "tests/cuda/fake_cudart.rs"
REGISTERED, UNREGISTERED, COPIED, SPOILT, TORN, PAGEABLE, QUERIES, EVENTS, FLAGS = range(9)
FAIL_REGISTER, FAIL_COPY, FAIL_QUERY, FAIL_RECORD, FAIL_DEVICE = range(5)


def build(folder: Path) -> Path:
    """Build the library, or skip the test where there is no compiler."""
    rustc = shutil.which(os.environ.get("RUSTC", "rustc"))
    if rustc is None or not SOURCE.exists():
        pytest.skip("no rustc to build the fake CUDA runtime with")
    library = folder / "libcudart.so.fake"
    command = [
        rustc,
        "--edition",
        "2024",
        "--crate-type",
        "cdylib",
        "-C",
        "panic=abort",
        "-o",
        str(library),
        str(SOURCE),
    ]
    subprocess.run(command, check=True)
    return library


class Fake:
    """The library that FOREBAY_CUDART names, in this process."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(os.environ["FOREBAY_CUDART"])
        for name, arguments, result in [
            ("reset", [], None),
            ("hold", [ctypes.c_int], None),
            ("run", [ctypes.c_size_t, ctypes.c_int64], ctypes.c_int64),
            ("waiting", [ctypes.c_size_t], ctypes.c_int64),
            ("fail", [ctypes.c_int, ctypes.c_int, ctypes.c_uint32], None),
            ("read_only", [ctypes.c_int], None),
            ("count", [ctypes.c_size_t], ctypes.c_int64),
            ("begin_capture", [ctypes.c_size_t], None),
            ("end_capture", [ctypes.c_size_t], ctypes.c_int),
            ("alloc", [ctypes.c_size_t], ctypes.c_size_t),
            ("set_current_stream", [ctypes.c_size_t], None),
        ]:
            function = getattr(self.library, f"fake_{name}")
            function.argtypes, function.restype = arguments, result
            setattr(self, name, function)


class Array:
    """Memory of a fake device, as CuPy's and Numba's arrays show theirs."""

    def __init__(self, fake: Fake, shape: tuple[int, ...], typestr: str = "<i4", **says) -> None:
        nbytes = int(typestr[2:])
        for dim in shape:
            nbytes *= dim
        self.at, self.nbytes = fake.alloc(nbytes), nbytes
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": typestr,
            "data": (self.at, False),
            "strides": None,
            "version": 3,
            **says,
        }

    def bytes(self) -> bytes:
        return ctypes.string_at(self.at, self.nbytes)

    def ints(self) -> list[int]:
        return list((ctypes.c_int32 * (self.nbytes // 4)).from_buffer_copy(self.bytes()))
