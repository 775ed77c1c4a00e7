"""The Python side of `forebay bench`: the other process of one measurement, told by one JSON argument what to do.

Receives as a user would (receive, make the array or tensor, look at the clock) or sends, one message at a time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

import forebay

PATIENCE_S = 30.0
now = time.monotonic_ns


def reply_ring(order: dict[str, Any]) -> forebay.Producer | None:
    """The ring of replies: small, and always received by polling."""
    if order["reply"] is None:
        return None
    return forebay.Producer(order["reply"], directory=order["dir"], slots=8, slot_bytes=64, max_consumers=1)


def importer(direction: str) -> Callable[[forebay.Tensor], Any]:
    if direction == "torch":
        import torch  # noqa: F401, PLC0415  so that the first message does not pay for it

        return lambda tensor: tensor.torch()
    return lambda tensor: tensor.numpy()


def receive(order: dict[str, Any]) -> dict[str, Any]:
    take = importer(order["direction"])
    back = reply_ring(order)
    small = np.zeros(8, np.uint8)
    reads = order["read"] == "all"
    times: Counter[int] = Counter()
    messages = first = last = 0
    consumer = forebay.Consumer(order["ring"], directory=order["dir"], wait=order["wait"])
    while True:
        message = consumer.recv(timeout_s=PATIENCE_S)
        tensor = take(message["x"])
        if reads:
            tensor.sum()
        # The last message carries nothing, and no time.
        stamp = message.correlation_id
        if stamp == 0:
            break
        if back is not None:
            taken = now() - stamp
            if messages >= order["warm"]:
                times[max(taken, 1)] += 1
            del tensor, message
            back.send({"x": small}, correlation_id=stamp)
        else:
            del tensor, message
            last = now()
            first = first or last
        messages += 1
    if back is not None:
        back.discard()
    return {"times": sorted(times.items()), "messages": messages, "span_ns": last - first}


def send(order: dict[str, Any]) -> dict[str, Any]:
    payload = np.zeros(order["bytes"], np.uint8)
    producer = forebay.Producer(
        order["ring"],
        directory=order["dir"],
        slots=4,
        slot_bytes=max(order["bytes"], 64),
        max_consumers=1,
    )
    replies = forebay.Consumer(order["reply"], directory=order["dir"], wait="spin")
    producer.wait_for_consumers(1, timeout_s=PATIENCE_S)
    copies = order["write"] == "copy"
    times: Counter[int] = Counter()
    for message in range(order["messages"] + order["warm"]):
        if order["nap_ns"]:
            end = now() + order["nap_ns"]
            while now() < end:
                pass
        stamp = now()
        if copies:
            producer.send({"x": payload}, correlation_id=stamp)
        else:
            producer.loan({"x": (np.uint8, payload.shape)}).publish(correlation_id=stamp)
        replies.recv(timeout_s=PATIENCE_S)
        if message >= order["warm"]:
            times[max(now() - stamp, 1)] += 1
    producer.drain(timeout_s=PATIENCE_S)
    producer.discard()
    return {"times": sorted(times.items()), "messages": 0, "span_ns": 0}


def main() -> None:
    order = json.loads(sys.argv[1])
    if order["cpu"] is not None:
        os.sched_setaffinity(0, {order["cpu"]})
    print(json.dumps(receive(order) if order["receives"] else send(order)))


if __name__ == "__main__":
    main()
