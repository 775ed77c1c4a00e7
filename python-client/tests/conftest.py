"""Every test has a directory and a ring name of its own, and leaves nothing in /dev/shm."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
from pathlib import Path  # noqa: TC003

import pytest

import forebay
from served import Service

_COUNT = itertools.count()


class Ring:
    """A ring's name and directory; what is made through it is closed at the end of the test."""

    def __init__(self, directory: Path) -> None:
        self.name = f"py-{os.getpid()}-{next(_COUNT)}"
        self.directory = directory
        self._made = []

    def producer(self, **options):
        options.setdefault("slots", 4)
        options.setdefault("slot_bytes", 1 << 16)
        producer = forebay.Producer(self.name, directory=self.directory, **options)
        self._made.append(producer)
        return producer

    def consumer(self, **options):
        options.setdefault("timeout_s", 10.0)
        consumer = forebay.Consumer(self.name, directory=self.directory, **options)
        self._made.append(consumer)
        return consumer

    def pair(self, **options):
        return self.producer(**options), self.consumer()

    def run(self, script: str, **popen) -> subprocess.Popen:
        """A process that runs `script`, which finds the ring in NAME and DIRECTORY."""
        # Started in the background of a shell, this process ignores Ctrl-C and hands that on; what it starts must not.
        head = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        head += f"import forebay, sys\nNAME, DIRECTORY = {self.name!r}, {str(self.directory)!r}\n"
        popen.setdefault("stdout", subprocess.PIPE)
        popen.setdefault("stdin", subprocess.PIPE)
        return subprocess.Popen([sys.executable, "-u", "-c", head + script], text=True, **popen)

    def close(self) -> None:
        for made in reversed(self._made):
            made.close()


def shared_memory() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if "forebay" in name and f"py-{os.getpid()}-" in name}


@pytest.fixture
def ring(tmp_path):
    made = Ring(tmp_path / "rings")
    made.directory.mkdir(mode=0o700)
    yield made
    made.close()
    gc.collect()
    left = [name for name in shared_memory() if f"{made.name}." in name or name.endswith(made.name)]
    if left:
        # What nobody received stays for a successor, by design: be that successor and remove it.
        forebay.Producer(made.name, directory=made.directory, fresh=True, slots=1, slot_bytes=64).discard()
    assert not [name for name in shared_memory() if f"{made.name}." in name]


def finish(process: subprocess.Popen, timeout: float = 30) -> str:
    """Wait for a process to end well and give what it printed."""
    out, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, out
    return out


@pytest.fixture
def service(tmp_path):
    made = Service(tmp_path)
    yield made
    made.close()
    assert os.listdir(tmp_path) == []
