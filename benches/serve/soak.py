"""The text job at a share of the most it does, for long: what was answered, and what was left of it.

What a machine does in a second changes within an hour by more than the fifth that is left free, where others have a
part of it. So the long run is one of parts, and before each the most is found anew; the server is the same throughout.
"""

from __future__ import annotations

import contextlib
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from statistics import median
from typing import Any

import load
from jobs import JOBS, bodies
from servers import KINDS, Server, running

JOB = next(job for job in JOBS if job.name == "text")
PART_S, MOST_S = 300.0, 10.0
PATIENCE_S = 60.0  # for what waits at the end of a part; latency counts from when it fell due all the same
HELD = ("forebay_ring_slots_used", "forebay_running_items", "forebay_queued_items", "forebay_in_flight_requests")


def soak(seconds: float, share: float) -> dict[str, Any]:
    parts = max(1, round(seconds / PART_S))
    each = seconds / parts
    with running(JOB, KINDS[0], bodies(JOB.name)) as server:
        rounds = []
        with watched(server, each / 6) as memory:
            for number in range(parts):
                rate = share * load.most(server, JOB.concurrency[-1], min(MOST_S, each / 6))
                if number == 0:  # caches, pools and allocators have what they need
                    load.at_rate(server, rate, min(10.0, each / 6))
                    memory.clear()
                found = load.at_rate(server, rate, each, warmup=0.0, patience=PATIENCE_S)
                rounds.append(found)
                print(f"soak: {number + 1} of {parts}: {brief(found)}", flush=True)
        held = until_idle(server)
        after = server.memory()
    third = max(1, len(memory) // 3)
    ends = [median(part) for part in (memory[:third], memory[-third:])]
    errors: Counter[str] = Counter()
    for found in rounds:
        errors.update(found["errors"])
    return {
        "minutes": seconds / 60,
        "answered": sum(found["answered"] for found in rounds),
        "errors": dict(errors),
        "unanswered": sum(found["unanswered"] for found in rounds),
        "rates": [found["offered"] for found in rounds],
        "p50_us": [found["us"] and found["us"]["p50"] for found in rounds],
        "p99_us": [found["us"] and found["us"]["p99"] for found in rounds],
        "early_bytes": ends[0],
        "late_bytes": ends[1],
        "after": after,
        "held": held,
    }


def brief(found: dict[str, Any]) -> str:
    late = f"p99 {found['us']['p99'] / 1e3:.1f} ms" if found["us"] else "nothing came"
    wrong = sum(found["errors"].values()) + found["unanswered"]
    return f"{found['offered']:.0f} a second, {found['answered']:,} answered, {wrong} not, {late}"


@contextlib.contextmanager
def watched(server: Server, every_s: float) -> Iterator[list[int]]:
    """Memory of the server, looked at every so often."""
    memory: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every_s):
            memory.append(server.memory()["Pss"])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield memory
    finally:
        over.set()
        thread.join()


def until_idle(server: Server, patience_s: float = 10.0) -> float:
    """What of HELD is not given back: 0, or what it is when patience ends."""
    end = time.monotonic() + patience_s
    while (held := held_now(server)) > 0 and time.monotonic() < end:
        time.sleep(0.1)
    return held


def held_now(server: Server) -> float:
    with urllib.request.urlopen(f"http://{server.address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = {name: [line for line in lines if line.startswith((f"{name} ", f"{name}{{"))] for name in HELD}
    missing = [name for name, of_it in found.items() if not of_it]
    if missing:
        raise RuntimeError(f"/metrics has no {', '.join(missing)}")
    return sum(float(line.rsplit(" ", 1)[1]) for of_it in found.values() for line in of_it)
