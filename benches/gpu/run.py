"""`make gpu`: from one process's memory to a GPU, by forebay and by what users have now, and the page from it.

    run.py                  every way and size, 3 rounds; prints
    run.py --write          the same into docs/gpu.md, between its markers
    run.py --quick          1 short round of two sizes, to see that everything works; writes no page
    run.py --only TEXT      only ways whose name has TEXT in it
    run.py --device cpu     without a GPU: tries the harness, measures nothing worth having, writes no page

A round runs every way once at each size, in an order that turns from round to round, beside a plain copy from pinned
memory; ratios are taken within a round. Each message is looked at once before the clock runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import forebay
import page
import torch
from candidates import SLOTS, WAYS, Forebay, Way, is_right, stamped
from forebay.torch import DevicePrefetcher

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "gpu/results.json"
SIZES = [1 << power for power in (16, 18, 20, 22, 24, 26, 28, 30)]
OVERLAP_BYTES, OVERLAP_STEPS = 64 << 20, 60
PATIENCE_S = 180.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="largest message in bytes (default 1 GiB)")
    options = parser.parse_args()
    if options.write and (options.quick or options.device == "cpu" or options.only):
        parser.error("the page takes a whole run on a GPU only")
    return options


# === one way at one size ===


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def send(of: type[Way], nbytes: int, device: str, folder: str, pace: Any) -> None:
    torch.set_num_threads(1)
    of(nbytes, torch.device(device), Path(folder), pace).send()


class Running:
    """A way with its sender, in a process that ends with it."""

    def __init__(self, of: type[Way], nbytes: int, device: torch.device) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="forebay-gpu-")
        Path(self.folder.name).chmod(0o700)
        context = multiprocessing.get_context("forkserver")
        # Made before there is a device in this process, and with torch imported: senders start at once.
        context.set_forkserver_preload(["candidates"])
        mine, theirs = context.Pipe()
        self.way = of(nbytes, device, Path(self.folder.name), mine)
        given = (of, nbytes, str(device), self.folder.name, theirs)
        self.process = context.Process(target=send, args=given, daemon=True)
        self.process.start()
        theirs.close()

    def __enter__(self) -> Way:
        self.way.open()
        return self.way

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            # The loop of the sender ends, then what is behind it.
            self.way.pace.send(0)
            self.way.close()
            self.process.join(PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.folder.cleanup()


def measure(of: type[Way], nbytes: int, device: torch.device, seconds: float) -> dict[str, float]:
    """Microseconds from hand-over to usable on the device, GB/s sustained, and host CPU time for each GiB."""
    with Running(of, nbytes, device) as way:
        way.pace.send(1)
        first = way.next()
        synchronize(device)
        assert is_right(first), f"{of.name}: a message of {nbytes} bytes arrived wrong"

        times, until = [], time.perf_counter() + seconds
        while len(times) < 5 or time.perf_counter() < until:
            way.pace.send(1)
            tensor = way.next()
            synchronize(device)
            arrived = time.monotonic_ns()
            times.append((arrived - stamped(tensor)) / 1e3)

        # As many as take a while, asked for at once: the sender runs as far ahead as its way lets it.
        count = max(3 * SLOTS, min(20_000, int(len(times) * 2)))
        way.pace.send(count)
        for _ in range(SLOTS):
            way.next()
        synchronize(device)
        begin, used = time.perf_counter(), time.thread_time()
        for _ in range(count - SLOTS):
            tensor = way.next()
        synchronize(device)
        taken, used = time.perf_counter() - begin, time.thread_time() - used
        assert is_right(tensor), f"{of.name}: a message of {nbytes} bytes arrived wrong at speed"
        moved = (count - SLOTS) * nbytes
        return {
            "us": statistics.median(times), "us_p99": sorted(times)[int(len(times) * 0.99)],
            "gb_s": moved / taken / 1e9, "cpu_ms_gib": used * 1e3 / (moved / 2**30),
        }  # fmt: skip


def plain(nbytes: int, device: torch.device, seconds: float) -> float:
    """GB/s of copies from pinned memory and nothing else."""
    cuda = device.type == "cuda"
    source = torch.full((nbytes,), 7, dtype=torch.uint8, pin_memory=cuda)
    room = [torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(SLOTS)]
    count, taken = SLOTS, 0.0
    while taken < seconds:
        count *= 2
        synchronize(device)
        begin = time.perf_counter()
        for to in itertools.islice(itertools.cycle(room), count):
            to.copy_(source, non_blocking=True)
        synchronize(device)
        taken = time.perf_counter() - begin
    return count * nbytes / taken / 1e9


# === what else is asked of forebay ===


def launch(device: torch.device, count: int) -> float:
    """Median microseconds of CPU from a message that is there to its copy begun: `try_recv` and `to`."""
    with Running(Forebay, 1 << 16, device) as way:
        assert isinstance(way, Forebay)
        times = []
        for _ in range(count):
            way.pace.send(1)
            to = way.target()
            time.sleep(0.0005)
            begin = time.perf_counter_ns()
            message = way.consumer.try_recv()
            if message is not None and way.cuda:
                message.to(device, out={"x": to})
            took = time.perf_counter_ns() - begin
            if message is None:
                message = way.consumer.recv(PATIENCE_S)
                continue
            times.append(took / 1e3)
            synchronize(device)
        return statistics.median(times)


def overlap(device: torch.device) -> dict[str, float]:
    """An inference loop whose forward takes as long as the copy: its speed beside that of the forward alone."""
    cuda = device.type == "cuda"
    edge = 2048 if cuda else 64
    work = torch.randn(edge, edge, device=device, dtype=torch.float16 if cuda else torch.float32)

    def forward(times: int) -> None:
        for _ in range(times):
            torch.mm(work, work)

    def taken(what: Any) -> float:
        synchronize(device)
        begin = time.perf_counter()
        what()
        synchronize(device)
        return time.perf_counter() - begin

    nbytes = OVERLAP_BYTES if cuda else 1 << 20
    copy = nbytes / (plain(nbytes, device, 0.2) * 1e9)
    taken(lambda: forward(10))
    times = max(1, round(copy / (taken(lambda: forward(100)) / 100)))
    alone = taken(lambda: [forward(times) for _ in range(OVERLAP_STEPS)])
    with Running(Forebay, nbytes, device) as way:
        assert isinstance(way, Forebay)
        way.pace.send(OVERLAP_STEPS + 4)
        batches = iter(DevicePrefetcher(way.consumer, device, depth=2, ack="copied", timeout_s=PATIENCE_S))
        for _ in range(4):
            next(batches)
            forward(times)

        def loop() -> None:
            for _ in range(OVERLAP_STEPS):
                next(batches)
                forward(times)

        together = taken(loop)
    return {"copy_ms": copy * 1e3, "forward_ms": alone / OVERLAP_STEPS * 1e3, "speed": alone / together}


# === all of it ===


def main() -> None:
    options = arguments()
    if options.device != "cpu" and not torch.cuda.is_available():
        print("no GPU here (torch.cuda.is_available() is False): nothing is measured, docs/gpu.md stays as it is")
        sys.exit(0)
    device = torch.device(options.device if options.device == "cpu" else "cuda:0")
    if device.type == "cpu":
        torch.set_num_threads(1)
    sizes = [size for size in (SIZES[:3:2] if options.quick else SIZES) if size <= options.most]
    rounds, seconds = (1, 0.05) if options.quick else (options.rounds or 3, 0.3)
    ways = [way for way in WAYS if not options.only or any(text in way.name for text in options.only)]
    facts = page.facts(ROOT, device)
    found: list[dict[str, Any]] = []
    for turn in range(rounds):
        for nbytes in sizes:
            rate = plain(nbytes, device, seconds / 2)
            found.append({"way": page.PLAIN, "bytes": nbytes, "round": turn, "gb_s": rate})
            shift = turn % len(ways)
            for way in ways[shift:] + ways[:shift]:
                why = way(nbytes, device, Path(tempfile.gettempdir()), None).why_not()
                one = {"way": way.name, "bytes": nbytes, "round": turn}
                found.append(one | ({"why_not": why} if why else measure(way, nbytes, device, seconds)))
                print(json.dumps(found[-1]), flush=True)
    results = {
        "facts": facts, "found": found, "ways": [way.name for way in WAYS],
        "notes": {way.name: way.note for way in WAYS if way.note},
        "launch_us": launch(device, 20 if options.quick else 1000), "overlap": overlap(device),
    }  # fmt: skip
    print(page.text(results))
    if options.write:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1))
        page.write(ROOT / "docs/gpu.md", results)
        print(f"docs/gpu.md is written; the raw results are in {RESULTS}")


if __name__ == "__main__":
    assert forebay.__version__
    main()
