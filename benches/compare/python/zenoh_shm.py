"""eclipse-zenoh with shared memory: two peers over a Unix socket, messages allocated in a provider's memory.

Its Python API writes into that memory by slices, and gives bytes out of it only as a copy.
"""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import zenoh
from channels import WORDS, Channel, Receiver, Sender
from control import PATIENCE_S, nothing

KEY = "forebay/compare"


def session(plan: SimpleNamespace, side: str) -> Any:
    """One of the two peers; they know each other's address and look for nobody else."""
    config = {
        "mode": "peer",
        "scouting": {"multicast": {"enabled": False}},
        side: {"endpoints": [f"unixsock-stream/{plan.dir}/zenoh"]},
    }
    if side == "connect":
        config["listen"] = {"endpoints": []}
    return zenoh.open(zenoh.Config.from_json5(json.dumps(config)))


class Zenoh(Channel):
    """See above."""

    @staticmethod
    def sender(plan: SimpleNamespace, handle: Any) -> Sender:
        del handle
        opened = session(plan, "listen")
        publisher = opened.declare_publisher(KEY, congestion_control=zenoh.CongestionControl.BLOCK)
        # One message more than can be under way, and room for what the allocator keeps beside each.
        provider = zenoh.shm.ShmProvider.default_backend((plan.slots + 1) * (plan.bytes + 4096))
        policy = zenoh.shm.BlockOn(zenoh.shm.GarbageCollect())
        alloc, put, size = provider.alloc, publisher.put, plan.bytes
        matched = False

        def prepare() -> None:
            nonlocal matched
            begin = time.monotonic()
            while not matched:
                matched = publisher.matching_status.matching
                if not matched and time.monotonic() - begin > PATIENCE_S:
                    raise TimeoutError("no subscriber came")

        def send(first: int, last: int) -> None:
            buffer = alloc(size, policy)
            buffer[:8] = first.to_bytes(8, "little")
            buffer[size - 8 :] = last.to_bytes(8, "little")
            put(buffer)

        return prepare, send, opened.close

    @staticmethod
    def receiver(plan: SimpleNamespace, handle: Any) -> Receiver:
        del handle
        opened = session(plan, "connect")
        subscriber = opened.declare_subscriber(KEY)
        frombuffer = np.frombuffer
        held = opened, subscriber  # a session that nobody holds is closed

        def receive() -> Any:
            return frombuffer(held[1].recv().payload.to_bytes(), WORDS)

        return receive, nothing
