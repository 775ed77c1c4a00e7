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
    assert len(rows) == 18, said
    assert all(int(ns) > 0 for _, ns in rows), said
