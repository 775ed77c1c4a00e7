"""The page by which sender and receiver keep in step, outside of what is measured; the same as `rust/src/control.rs`.

Also what every process of a pair does the same way: reading its plan, pinning itself, pacing, timing, answering.
"""

from __future__ import annotations

import json
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

DONE, SENDER_READY, RECEIVER_READY = 0, 16, 32
PATIENCE_S = 60.0
NAP_S = 20e-6  # with the kernel's slack, 70 µs
now = time.monotonic_ns


def plan_of(text: str) -> SimpleNamespace:
    """What this process is told; it is pinned to its core on the way."""
    plan = SimpleNamespace(**json.loads(text))
    os.sched_setaffinity(0, {plan.cpu})
    return plan


class Control:
    """The page, mapped."""

    def __init__(self, folder: str) -> None:
        with (Path(folder) / "control").open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 4096)
        self.words = memoryview(self._map).cast("Q")

    def set(self, word: int, value: int) -> None:
        self.words[word] = value

    def wait(self, word: int, value: int, *, nap: bool = False) -> None:
        """Wait until `word` is at least `value`: busy, or asleep for short times."""
        words, looks, start = self.words, 0, time.monotonic()
        while words[word] < value:
            looks += 1
            if nap:
                time.sleep(NAP_S)
            if looks % 1024 == 0 and time.monotonic() - start > PATIENCE_S:
                raise TimeoutError("the other process does not answer")


def times(taken: list[int]) -> dict[str, int]:
    """What is said of a distribution."""
    taken.sort()

    def at(share: float) -> int:
        return taken[min(int(len(taken) * share), len(taken) - 1)]

    return {"p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "max": taken[-1]}


def paced(
    plan: SimpleNamespace, control: Control, prepare: Callable[[], None], send: Callable[[int, int], None]
) -> None:
    """Send the messages of the two latency phases, one in flight, and then those of the rate.

    This process is busy between two messages, so that it is warm when it sends. But where the candidate has a thread of
    its own in it (`plan.threads`), that thread needs the core and the interpreter: then this one sleeps.
    """
    messages = 2 * (plan.warm + plan.count)
    for number in range(messages):
        control.wait(DONE, number, nap=plan.threads)
        prepare()
        until = now() + plan.gap_ns
        while (stamp := now()) < until:
            pass
        send(stamp, number)
    control.wait(DONE, messages, nap=plan.threads)
    if plan.rate_count:
        for number in range(plan.warm + plan.rate_count):
            prepare()
            send(1, number)
        control.wait(DONE, messages + 1, nap=plan.threads)


def measure(
    plan: SimpleNamespace, control: Control, receive: Callable[[], Any], release: Callable[[], None]
) -> dict[str, Any]:
    """Receive all of them: `receive()` waits and gives an array of 64-bit words, `release()` ends its use."""
    control.set(RECEIVER_READY, 1)
    done = 0
    answer: dict[str, Any] = {}
    for phase in ("have", "touch"):
        taken = []
        touch = phase == "touch"
        for message in range(plan.warm + plan.count):
            array = receive()
            if touch:
                int(array[0]), int(array[-1])
            end = now()
            stamp, number = int(array[0]), int(array[-1])
            if number != done:
                raise ValueError(f"message {number} came in place of {done}")
            if message >= plan.warm:
                taken.append(end - stamp)
            del array
            release()
            done += 1
            control.set(DONE, done)
        answer[phase] = times(taken)
    answer["rate"] = None
    if plan.rate_count:
        for _ in range(plan.warm + 1):
            array = receive()
            del array
            release()
        begin = now()
        for _ in range(plan.rate_count - 2):
            array = receive()
            del array
            release()
        array = receive()
        span = now() - begin
        if int(array[-1]) != plan.warm + plan.rate_count - 1:
            raise ValueError(f"the last message was {int(array[-1])}: some are missing")
        del array
        release()
        answer["rate"] = (plan.rate_count - 1) / (span / 1e9)
        control.set(DONE, done + 1)
    return answer


def nothing() -> None:
    """What releases an array that is a copy, or that releases itself."""
