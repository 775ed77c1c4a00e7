"""The Python half of a pair whose sender is in Rust: `receive.py PLAN`. Prints what it measured, as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from control import SENDER_READY, Control, measure, nothing, plan_of

Ends = tuple[Callable[[], Any], Callable[[], None]]


def forebay_numpy(plan: SimpleNamespace, wait: Literal["spin", "block"] = "spin") -> Ends:
    """A consumer that polls; the array holds the lease."""
    import forebay

    return forebay.Consumer("compare", directory=plan.dir, wait=wait).recv_numpy, nothing


def forebay_block(plan: SimpleNamespace) -> Ends:
    """The same, asleep when the message comes."""
    return forebay_numpy(plan, "block")


def forebay_torch(plan: SimpleNamespace) -> Ends:
    """The same, as a torch tensor by the cheapest route."""
    import torch  # noqa: F401  so that the first message does not pay for it

    import forebay

    return forebay.Consumer("compare", directory=plan.dir, wait="spin").recv_torch, nothing


def forebay_many(plan: SimpleNamespace) -> Ends:
    """Whatever is there, up to 64 messages, in one call."""
    import forebay

    recv_many = forebay.Consumer("compare", directory=plan.dir, wait="spin").recv_many
    there: list[Any] = []

    def receive() -> Any:
        nonlocal there
        if not there:
            there = recv_many(64, as_="numpy")
            there.reverse()
        return there.pop()

    return receive, nothing


def minimal(plan: SimpleNamespace) -> tuple[Any, Callable[[], None]]:
    from floor import Ring

    ring = Ring(str(Path(plan.dir) / "minimal"), plan.bytes, plan.slots)
    return ring, ring.recv


def minimal_numpy(plan: SimpleNamespace) -> Ends:
    """The floor: a wait in C, np.frombuffer."""
    ring, wait = minimal(plan)
    frombuffer, words = np.frombuffer, np.dtype(np.int64)

    def receive() -> Any:
        wait()
        return frombuffer(ring, words)

    return receive, nothing


def minimal_torch(plan: SimpleNamespace) -> Ends:
    """The same, imported by torch the cheapest way there is for a NumPy array."""
    import torch

    ring, wait = minimal(plan)
    frombuffer, words, from_numpy = np.frombuffer, np.dtype(np.int64), torch.from_numpy

    def receive() -> Any:
        wait()
        return from_numpy(frombuffer(ring, words))

    return receive, nothing


def iceoryx2_numpy(plan: SimpleNamespace) -> Ends:
    """A subscriber that polls; the payload as its own memory view, and that as an array, kept with the sample."""
    import ctypes

    import iceoryx2 as iox2

    iox2.set_log_level(iox2.LogLevel.Fatal)
    node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
    builder = node.service_builder(iox2.ServiceName.new(plan.name)).publish_subscribe(iox2.Slice[ctypes.c_uint8])
    builder = builder.enable_safe_overflow(False).history_size(0).max_publishers(1).max_subscribers(1)
    service = builder.subscriber_max_buffer_size(plan.slots).open_or_create()
    poll = service.subscriber_builder().create().receive
    frombuffer, words = np.frombuffer, np.dtype(np.int64)
    held: list[Any] = [node, service, None]

    def receive() -> Any:
        while (sample := poll()) is None:
            pass
        held[2] = sample
        return frombuffer(sample.payload().as_memory_view(), words)

    def release() -> None:
        held[2].delete()

    return receive, release


CANDIDATES: dict[str, Callable[[SimpleNamespace], Ends]] = {
    "forebay-numpy": forebay_numpy,
    "forebay-block": forebay_block,
    "forebay-torch": forebay_torch,
    "forebay-many": forebay_many,
    "minimal-numpy": minimal_numpy,
    "minimal-torch": minimal_torch,
    "iceoryx2-numpy": iceoryx2_numpy,
}


def main() -> None:
    plan = plan_of(sys.argv[1])
    control = Control(plan.dir)
    control.wait(SENDER_READY, 1)
    if plan.receiver == "grpc":
        from grpc_unix import Grpc

        print(json.dumps(Grpc.serve(plan, control, None)))
        return
    receive, release = CANDIDATES[plan.receiver](plan)
    print(json.dumps(measure(plan, control, receive, release)))


if __name__ == "__main__":
    main()
