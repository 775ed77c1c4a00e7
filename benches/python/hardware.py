"""What forebay takes beside what this machine takes for its part: the aims for which no rival is needed.

    benches/python/hardware.py [--quick] [--write]

Each figure is a ratio to a floor measured in the same run, alternating, or a share of a core; medians over the rounds, with
the range behind. `--write` puts the table into docs/performance.md, `--quick` shows in half a minute that everything runs.
The binary is the one that `make binary` builds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import forebay

ROOT = Path(__file__).resolve().parent.parent.parent
BINARY = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "forebay"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- hardware -->\n", "<!-- end hardware -->\n"
MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Figure:
    """One row: values of all rounds, and what they should be at most, or at least."""

    what: str
    values: list[float]
    limit: float | None
    unit: str = "×"
    at_least: bool = False

    def row(self) -> str:
        """The row of the table."""
        middle, low, high = statistics.median(self.values), min(self.values), max(self.values)
        met = "" if self.limit is None else "yes" if (middle >= self.limit) == self.at_least else "**no**"
        aim = "stated" if self.limit is None else f"{'≥' if self.at_least else '≤'} {self.limit:g} {self.unit}"
        return f"| {self.what} | {aim} | {middle:.3g} {self.unit} ({low:.3g} to {high:.3g}) | {met} |"


@contextlib.contextmanager
def ring(name: str, **options: Any) -> Iterator[tuple[str, forebay.Producer]]:
    """A ring in a folder of its own, and its producer; nothing of it stays, whatever happens."""
    with tempfile.TemporaryDirectory() as folder:
        producer = forebay.Producer(name, directory=folder, **options)
        try:
            yield folder, producer
        finally:
            with contextlib.suppress(forebay.HandleClosed):
                producer.discard()


def bench(*arguments: str) -> dict[str, Any]:
    """One run of `forebay bench`, polling or as the arguments say, Rust to Rust."""
    fixed = ["--direction", "native", "--kind", "queue", "--consumers", "1", "--read", "none", "--json"]
    done = subprocess.run([BINARY, "bench", *fixed, *arguments], check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def over_size(rounds: int) -> Figure:
    """The hand-over of a gibibyte written in place, beside that of 64 bytes."""

    def once() -> float:
        answer = bench("--size", "64,1GiB", "--wait", "spin", "--write", "in-place", "--time", "500ms")
        small, large = (case["one_way"]["p50"] for case in answer["latencies"])
        return float(large / small)

    return Figure("hand-over of 1 GiB ÷ of 64 B, polling, in place, p50", [once() for _ in range(rounds)], 1.1)


def asleep(rounds: int) -> Figure:
    """Waking a consumer that sleeps, beside a bare futex."""

    def once() -> float:
        answer = bench("--size", "64", "--wait", "block", "--write", "in-place", "--time", "500ms")
        return float(answer["latencies"][0]["one_way"]["p50"] / answer["floors"]["futex"]["p50"])

    return Figure("hand-over to a consumer asleep ÷ bare futex wake, p50", [once() for _ in range(rounds)], 1.1)


def copy_in(size: int, rounds: int) -> Figure:
    """Loan, copy, publish; beside copying the same into shared memory that is there, as many places, as far apart."""
    slots = 4
    field = forebay.Schema("copies", "1.0", {"x": ("uint8", (size,))})
    source = np.full(size, 7, np.uint8)
    with ring("copies", schema=field, slots=slots) as (folder, producer):
        consumer = forebay.Consumer("copies", directory=folder)
        producer.wait_for_consumers(1, timeout_s=10)
        stride = size + 64
        bare = np.frombuffer(mmap.mmap(-1, slots * stride), np.uint8)
        bare[:] = 1

        def ours() -> None:
            loan = producer.loan({"x": ("uint8", (size,))})
            np.copyto(loan["x"].numpy(), source)
            loan.publish()
            consumer.recv(timeout_s=10).ack()

        turn = 0

        def floor() -> None:
            nonlocal turn
            np.copyto(bare[turn * stride : turn * stride + size], source)
            turn = (turn + 1) % slots

        ratios = alternating(ours, floor, rounds, runs=max(4, 64 * MIB // size))
        consumer.close()
    what = f"copies of {size // MIB} MiB into a ring, GB/s ÷ memcpy into shared memory"
    return Figure(what, [1 / ratio for ratio in ratios], 0.95, at_least=True)


def alternating(ours: Callable[[], None], floor: Callable[[], None], rounds: int, runs: int) -> list[float]:
    """Time of `ours` over that of `floor`, one ratio a round."""

    def timed(work: Callable[[], None]) -> float:
        start = time.perf_counter()
        for _ in range(runs):
            work()
        return time.perf_counter() - start

    timed(ours), timed(floor)
    return [timed(ours) / timed(floor) for _ in range(rounds)]


def share_of_a_core(pause_s: float | None, seconds: float) -> float:
    """What a consumer that waits adaptively takes of a core, in percent, while messages come this far apart, or none."""
    with ring("idle", slots=16) as (folder, producer):
        child = os.fork()
        if child == 0:
            os.execv(sys.executable, [sys.executable, __file__, "--consume", folder])
        producer.wait_for_consumers(1, timeout_s=20)
        # The child says by its first message that imports are over; what it used until then is not counted.
        producer.send({"x": np.zeros(8, np.uint8)})
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(pause_s if pause_s else seconds)
            if pause_s:
                producer.send({"x": np.zeros(8, np.uint8)})
        producer.close()
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status) / 10


def consume(folder: str) -> int:
    """The child of `share_of_a_core`: its use of a core, in tenths of a percent."""
    consumer = forebay.Consumer("idle", directory=folder)
    consumer.recv(timeout_s=20)
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    for _ in consumer:
        pass
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return min(250, round(1000 * used / (time.monotonic() - start)))


def objects(name: str) -> list[Path]:
    """The shared memory of the ring of this name, which nobody else uses."""
    return list(Path("/dev/shm").glob(f"forebay.*.{name}.*"))


def attach(rounds: int) -> list[Figure]:
    """Attaching to a ring of 1 GiB: without prefault in ms, with it beside the kernel's mapping of as many pages."""
    slot, name = 16 * MIB, f"large-{os.getpid()}"
    with ring(name, slots=GIB // slot, slot_bytes=slot) as (folder, _):
        data = max(objects(name), key=lambda path: path.stat().st_size)

        def attached(prefault: bool) -> float:
            start = time.perf_counter()
            consumer = forebay.Consumer(name, directory=folder, prefault=prefault)
            taken = time.perf_counter() - start
            consumer.close()
            return taken

        def mapped() -> float:
            with data.open("rb") as file:
                start = time.perf_counter()
                pages = mmap.mmap(
                    file.fileno(), 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ
                )
                taken = time.perf_counter() - start
            pages.close()
            return taken

        bare = [1000 * attached(False) for _ in range(rounds)]
        full = [attached(True) / mapped() for _ in range(rounds)]
    return [
        Figure("attach to 1 GiB without prefault", bare, 2, "ms"),
        Figure("attach to 1 GiB with prefault ÷ the kernel's MAP_POPULATE of it", full, 1.1),
    ]


def memory() -> Figure:
    """What a ring of 64 slots of 64 KiB takes beyond the bound that docs/layout.md states, in KiB."""
    slots, slot, consumers, page, name = 64, 64 << 10, 4, 4096, f"memory-{os.getpid()}"
    schema = forebay.Schema("memory", "1.0", {"x": ("uint8", (slot,))})
    with ring(name, schema=schema, slots=slots, max_consumers=consumers):
        sizes = [path.stat().st_size for path in objects(name)]
    # A descriptor: head, one field, user data; two position entries a slot; a slot word's line; 64 B between slots.
    descriptor = 8 * (16 + 16 + 32) + 2 * 128 + 128 + 64
    bound = slots * (slot + descriptor) + (64 << 10) + 8 * slots * consumers
    rounded = bound + page * len(sizes)
    return Figure("memory of a ring of 64 × 64 KiB ÷ its stated bound", [sum(sizes) / rounded], 1.0)


def figures(quick: bool) -> list[Figure]:
    """All rows."""
    rounds, seconds = (2, 1.0) if quick else (5, 5.0)
    copies = [copy_in(size * MIB, 3 if quick else 15) for size in (1, 16)]
    idle = [share_of_a_core(None, seconds) for _ in range(rounds)]
    steady = [share_of_a_core(0.005, seconds) for _ in range(rounds)]
    return [
        over_size(rounds),
        asleep(rounds),
        *copies,
        Figure("idle consumer, adaptive", idle, 1, "% of a core"),
        Figure("the same, a message every 5 ms", steady, 3, "% of a core"),
        *attach(rounds),
        memory(),
    ]


def main() -> int:
    """Measures, prints, and writes if asked to."""
    parser = argparse.ArgumentParser(description="What forebay takes beside what this machine takes for its part.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--consume", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.consume:
        return consume(arguments.consume)
    rows = ["|  | aim | found | met |", "|---|---|---|---|", *(figure.row() for figure in figures(arguments.quick))]
    print("\n".join(rows))
    if arguments.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(before + BEGIN + "\n".join(rows) + "\n" + END + after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
