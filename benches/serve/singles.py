"""What is measured of forebay alone: one request, one death, one start, and size."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any

import load
from jobs import JOBS, bodies
from servers import FOREBAY, KINDS, Server, running

JOB = next(job for job in JOBS if job.name == "json")
SLOW = 50.0  # requests a second: everything is asleep when one comes
KILLS = 10
PATIENCE_S = 20.0


def empty(**more: Any) -> contextlib.AbstractContextManager[Server]:
    """Forebay serve, with a worker that does nothing and loads nothing."""
    return running(JOB, KINDS[0], bodies(JOB.name), program="held_worker.py", **more)


def overhead(seconds: float) -> dict[str, Any]:
    """From the client's write to its read, of an empty forward: asleep, one after the other, and many at once."""
    with empty() as server:
        started = server.start_s
        asleep = load.at_rate(server, SLOW, seconds)
        alone = load.closed(server, 1, seconds)
        many = load.closed(server, 64, seconds)
        half = load.at_rate(server, many["rate"] / 2, seconds)
    return {
        "start_ms": started * 1e3,
        "asleep_us": asleep["us"],
        "alone_us": alone["us"],
        "half_us": half["us"],
        "many": many,
        # What a request adds where nothing waits for anything: the time between two answers.
        "between_us": 1e6 / many["rate"],
    }


def kills(folder: Path, times: int = KILLS) -> list[float]:
    """Milliseconds from kill -9 of the worker, in the middle of its forward, to the client's answer."""
    mark = folder / "began"
    with empty(more={"HOLD": str(mark)}, ready=until_listening) as server:
        return [one_kill(server, mark) for _ in range(times)]


def until_listening(server: Server) -> None:
    begin = time.monotonic()
    while not is_ready(server):
        if server.process.poll() is not None or time.monotonic() - begin > PATIENCE_S:
            raise RuntimeError(f"it is not ready: {server.log.read_text()}")
        time.sleep(0.002)


def is_ready(server: Server) -> bool:
    try:
        with urllib.request.urlopen(f"http://{server.address}/readyz", timeout=5) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False


def one_kill(server: Server, mark: Path) -> float:
    until_listening(server)
    mark.unlink(missing_ok=True)
    heard: list[tuple[float, int]] = []

    def ask() -> None:
        try:
            server.ask(server.bodies[0].read_bytes())
            status = 200
        except urllib.error.HTTPError as error:
            status = error.code
        heard.append((time.monotonic(), status))

    client = threading.Thread(target=ask)
    client.start()
    begin = time.monotonic()
    while not mark.exists():
        if time.monotonic() - begin > PATIENCE_S:
            raise RuntimeError(f"the worker was not asked: {server.log.read_text()}")
        time.sleep(0.001)
    pid = int(mark.read_text())
    time.sleep(0.02)  # asleep in the middle of it
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    client.join(PATIENCE_S)
    if not heard or heard[0][1] != 502:
        raise RuntimeError(f"expected 502 after the worker's death, found {heard}")
    return (heard[0][0] - killed) * 1e3


def start_to_ready(times: int = 5) -> dict[str, float]:
    """Milliseconds from the start of the program to /readyz, with a worker that loads no model."""
    found = []
    for _ in range(times):
        with empty(ready=until_listening) as server:
            found.append(server.start_s * 1e3)
    return {"median": median(found), "max": max(found)}


def binary_bytes() -> int:
    return FOREBAY.stat().st_size
