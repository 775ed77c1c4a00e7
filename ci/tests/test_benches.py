"""The Python benchmarks run and say a time of every operation."""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_every_operation_of_the_python_client_is_timed() -> None:
    command = [sys.executable, ROOT / "benches/python/operations.py", "--quick"]
    before = set(os.listdir("/dev/shm"))
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    left = {name for name in set(os.listdir("/dev/shm")) - before if ".one." in name or ".eight." in name}
    assert not left
    rows = re.findall(r"^(\S.*?)  +(\d+)", said, re.MULTILINE)
    assert len(rows) == 24, said
    assert all(int(ns) > 0 for _, ns in rows), said


def test_what_forebay_takes_beside_the_hardware_is_measured_and_judged() -> None:
    sys.path.insert(0, str(ROOT / "benches/python"))
    import hardware

    before = set(os.listdir("/dev/shm"))
    memory = hardware.memory()
    assert 0.5 < memory.values[0] <= 1
    bare, full = hardware.attach(1)
    assert bare.values[0] > 0
    assert full.values[0] > 0
    left = {name for name in set(os.listdir("/dev/shm")) - before if f"-{os.getpid()}." in name}
    assert not left
    least = hardware.Figure("rate", [1.0, 3.0, 2.0], 2.5, "GB/s", at_least=True)
    assert least.row() == "| rate | ≥ 2.5 GB/s | 2 GB/s (1 to 3) | **no** |"
    assert hardware.Figure("time", [1.0], 2).row().endswith("| yes |")
