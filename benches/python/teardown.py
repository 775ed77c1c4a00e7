#!/usr/bin/env python3
"""How long the kernel takes to take down a killed producer, by the size of the ring that it had mapped and filled.

    teardown.py [GIB...]      sizes, by default 0 1 2; prints median and maximum of seven deaths each, in ms

From SIGKILL until the process is reaped: its lock is free by then, so this is what the kernel adds to a recovery.
"""

import statistics
import subprocess
import sys
import tempfile
import time

import forebay

DEATHS = 7
VICTIM = """
import sys
import forebay
ring = forebay.Producer("big", directory=sys.argv[1], slots=1, slot_bytes=int(sys.argv[2]), prefault=True)
print("ready", flush=True)
sys.stdin.read()
"""


def death(directory: str, slot_bytes: int) -> float:
    """Kill a producer of such a ring; the time of its end, in ms."""
    command = [sys.executable, "-c", VICTIM, directory, str(slot_bytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as victim:
        victim.stdout.readline()
        start = time.perf_counter()
        victim.kill()
        victim.wait()
        took = time.perf_counter() - start
    # Who takes over removes what the dead one left.
    forebay.Producer("big", directory=directory, slots=1, slot_bytes=slot_bytes).discard()
    return took * 1e3


def main() -> None:
    """Measure and print."""
    for gib in [int(size) for size in sys.argv[1:]] or [0, 1, 2]:
        with tempfile.TemporaryDirectory() as directory:
            times = [death(directory, max(gib << 30, 4096)) for _ in range(DEATHS)]
        print(f"{gib} GiB: median {statistics.median(times):.1f} ms, at most {max(times):.1f} ms")


if __name__ == "__main__":
    main()
