"""Processes that end in odd ways, and what must not be seen of that."""

from __future__ import annotations

import os
import subprocess

from conftest import shared_memory

# Whatever of these is on stderr, something went wrong that an exit status may hide.
BAD = ("Fatal Python error", "Exception ignored", "panicked", "fatal runtime error", "Segmentation", "Traceback")

# What every script starts with: a ring with two messages received, one of them as a tensor.
PAIR = """
import faulthandler, os, gc, threading, time, atexit, weakref, signal
faulthandler.enable()
import numpy as np
p = forebay.Producer(NAME, directory=DIRECTORY, slots=8, slot_bytes=4096, max_attempts=0)
c = forebay.Consumer(NAME, directory=DIRECTORY)
p.wait_for_consumers(1, 30)
def send(n=1):
    for _ in range(n):
        p.send({"x": np.arange(8)})
"""


def run(ring, script, *, env=None, left=False):
    """Run `PAIR` and `script` to their end; give what they printed. Nothing bad on stderr, nothing left behind."""
    environment = {**os.environ, **(env or {})}
    process = ring.run(PAIR + script, stderr=subprocess.PIPE, env=environment)
    try:
        out, err = process.communicate(timeout=50)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"it hangs: {out}\n{err}") from None
    assert process.returncode == 0, (process.returncode, out, err)
    found = [text for text in BAD if text in err]
    assert not found, err
    if not left:
        assert not [name for name in shared_memory() if f"{ring.name}." in name]
        assert not [path.name for path in ring.directory.iterdir() if path.name.startswith(ring.name)]
    return out
