#!/usr/bin/env python3
"""What each operation of the Python client costs when nobody has to wait, beside the bare call that it stands for.

    operations.py [--rounds N] [--quick]      prints a table: median ns of one operation, and its ratio to the bare call

Producer and consumer live in one process, so no cache line travels and nobody sleeps but in the two wakes under asyncio.
All operations take turns in every round: what the machine does meanwhile meets all of them alike.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch

import forebay

SLOTS = 64
RUN = SLOTS // 2
EIGHT = [f"t{i}" for i in range(8)]
ROUTES = ("exchange", "dlpack", "legacy", "frombuffer")
now = time.perf_counter_ns

# One round of an operation: RUN times it, and the ns that took.
Round = Callable[[], int]


class Ring:
    """A ring of messages of these tensors, both ends in this process."""

    def __init__(self, directory: str, name: str, tensors: list[str]) -> None:
        fields = {tensor: ("float32", (16, 64)) for tensor in tensors}
        schema = forebay.Schema(name, "1.0", fields)
        self.producer = forebay.Producer(name, directory=directory, slots=SLOTS, schema=schema)
        self.consumer = forebay.Consumer(name, directory=directory)
        self.producer.wait_for_consumers(1)
        self.message = {tensor: np.zeros((16, 64), np.float32) for tensor in tensors}

    def fill(self) -> None:
        """Publishes as many messages as one round takes."""
        for _ in range(RUN):
            self.producer.send(self.message)

    def close(self) -> None:
        """Ends both ends; nothing stays."""
        self.consumer.close()
        self.producer.discard()

    def messages(self) -> list[forebay.Message]:
        """As many messages."""
        self.fill()
        return [self.consumer.recv(0) for _ in range(RUN)]


def received(ring: Ring, take: Callable[[forebay.Message], Any]) -> Round:
    """From `recv()` to what `take` makes of the message."""

    def once() -> int:
        ring.fill()
        recv = ring.consumer.recv
        start = now()
        kept = [take(recv(0)) for _ in range(RUN)]
        took = now() - start
        assert len(kept) == RUN
        return took

    return once


def held(ring: Ring, take: Callable[[forebay.Tensor], Any]) -> Round:
    """What `take` makes of a tensor that is there."""

    def once() -> int:
        tensors = [message[0] for message in ring.messages()]
        start = now()
        kept = [take(tensor) for tensor in tensors]
        took = now() - start
        assert len(kept) == RUN
        return took

    return once


def bare(make: Callable[[], Any]) -> Round:
    """A call that needs no ring."""

    def once() -> int:
        start = now()
        kept = [make() for _ in range(RUN)]
        took = now() - start
        assert len(kept) == RUN
        return took

    return once


def direct(ring: Ring, receive: Callable[[], Any]) -> Round:
    """A call that waits and gives arrays; each is dropped before the next."""

    def once() -> int:
        ring.fill()
        start = now()
        for _ in range(RUN):
            receive()
        return now() - start

    return once


def many(ring: Ring, as_: Literal["message", "numpy", "torch"]) -> Round:
    """`recv_many`: one call for all messages."""

    def once() -> int:
        ring.fill()
        start = now()
        kept: list[Any] = ring.consumer.recv_many(RUN, 0, as_=as_)
        took = now() - start
        assert len(kept) == RUN
        return took

    return once


def loaned(ring: Ring, shape: tuple[int, ...]) -> Round:
    """`loan()`, an array of its slot, `publish()`; nothing is written."""
    fields = {"x": ("float32", shape)}

    def once() -> int:
        start = now()
        for _ in range(RUN):
            loan = ring.producer.loan(fields)
            loan["x"].numpy()
            loan.publish()
        took = now() - start
        assert len([ring.consumer.recv(0) for _ in range(RUN)]) == RUN
        return took

    return once


def sent(ring: Ring) -> Round:
    """`send()`: the copy into the slot included."""

    def once() -> int:
        start = now()
        ring.fill()
        took = now() - start
        assert len([ring.consumer.recv(0) for _ in range(RUN)]) == RUN
        return took

    return once


def bare_wake(loop: asyncio.AbstractEventLoop) -> Round:
    """An eventfd that a reader of the loop waits for: from the write until the waiting coroutine runs."""
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    futures: list[asyncio.Future[None]] = []

    def ready() -> None:
        os.eventfd_read(fd)
        futures.pop().set_result(None)

    async def waiter() -> int:
        futures.append(loop.create_future())
        await futures[0]
        return now()

    async def wait() -> int:
        total = 0
        loop.add_reader(fd, ready)
        for _ in range(RUN):
            task = loop.create_task(waiter())
            await asyncio.sleep(0)
            start = now()
            os.eventfd_write(fd, 1)
            total += await task - start
        loop.remove_reader(fd)
        return total

    return lambda: loop.run_until_complete(wait())


def wake(ring: Ring, loop: asyncio.AbstractEventLoop) -> Round:
    """`recv_async`: from `publish()` until the waiting coroutine has its message, the publishing included."""
    fields = {"x": ("float32", (16, 64))}

    async def waiter() -> int:
        await ring.consumer.recv_async()
        return now()

    async def wait() -> int:
        total = 0
        for _ in range(RUN):
            task = loop.create_task(waiter())
            # Two rounds of the loop: the first wait of a round of this benchmark finds the descriptor readable once.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            loan = ring.producer.loan(fields)
            start = now()
            loan.publish()
            total += await task - start
        return total

    return lambda: loop.run_until_complete(wait())


def operations(one: Ring, eight: Ring, loop: asyncio.AbstractEventLoop) -> Iterator[tuple[str, Round, str]]:
    """Name, round, and the name of the bare call it is held against."""
    data = np.zeros((16, 64), np.float32).tobytes()
    array = np.zeros((16, 64), np.float32)
    numpy = "np.frombuffer(...).reshape(...)"
    dlpack, frombuffer = "torch.from_dlpack(ndarray)", "torch.frombuffer(...).reshape(...)"
    wake_of = "asyncio: add_reader on an eventfd"
    yield numpy, bare(lambda: np.frombuffer(data, np.float32).reshape(16, 64)), ""
    yield dlpack, bare(lambda: torch.from_dlpack(array)), ""
    buffer = bytearray(data)
    yield frombuffer, bare(lambda: torch.frombuffer(buffer, dtype=torch.float32).reshape(16, 64)), ""
    yield "send(), 4 KiB copied", sent(one), ""
    yield "loan(), array, publish()", loaned(one, (16, 64)), ""
    yield "recv()", received(one, lambda message: message), ""
    yield f"recv_many({RUN}), each", many(one, "message"), ""
    yield "recv_numpy()", direct(one, one.consumer.recv_numpy), numpy
    yield "recv_torch()", direct(one, one.consumer.recv_torch), dlpack
    yield f'recv_many({RUN}, as_="numpy"), each', many(one, "numpy"), numpy
    yield f'recv_many({RUN}, as_="torch"), each', many(one, "torch"), dlpack
    yield 'recv()["x"]', received(one, lambda message: message["x"]), ""
    yield 'recv()["x"].numpy()', received(one, lambda message: message["x"].numpy()), numpy
    yield 'recv()["x"].torch()', received(one, lambda message: message["x"].torch()), dlpack
    yield "tensor.numpy()", held(one, lambda tensor: tensor.numpy()), numpy
    for route in ROUTES:
        name = f"tensor.torch(route={route!r})"
        yield name, held(one, lambda tensor, route=route: tensor.torch(route=route)), dlpack
    yield "recv().torch(), eight tensors", received(eight, lambda message: message.torch()), dlpack
    yield "recv().numpy(), eight tensors", received(eight, lambda message: message.numpy()), numpy
    yield wake_of, bare_wake(loop), ""
    yield "recv_numpy(), eight tensors", direct(eight, eight.consumer.recv_numpy), numpy
    yield "asyncio: recv_async(), publish() included", wake(one, loop), wake_of


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Costs of the Python client's operations.")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="three rounds: shows that everything runs")
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory() as directory:
        rings = Ring(directory, "one", ["x"]), Ring(directory, "eight", EIGHT)
        table = list(operations(*rings, loop))
        times: dict[str, list[float]] = {name: [] for name, _, _ in table}
        gc.disable()
        for number in range(rounds + rounds // 10 + 1):
            for name, once, _ in table:
                took = once()
                # The first rounds warm caches, clocks and allocators.
                if number > rounds // 10:
                    times[name].append(took / RUN)
        for ring in rings:
            ring.close()
        medians = {name: statistics.median(found) for name, found in times.items()}
        print(f"{'operation':44} {'ns':>8} {'ratio':>6}")
        for name, _, against in table:
            ratio = f"{medians[name] / medians[against]:6.2f} x {against}" if against else ""
            print(f"{name:44} {medians[name]:8.0f} {ratio}".rstrip())
    loop.close()


if __name__ == "__main__":
    main()
