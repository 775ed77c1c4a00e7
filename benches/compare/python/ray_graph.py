"""Ray's compiled graphs: the driver sends, an actor of one method receives, through the graph's shared-memory channels.

Several executions may be under way in the rate phase; each one's result is fetched, as Ray asks for.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from types import SimpleNamespace
from typing import Any

import ray
from channels import message
from control import Control, paced
from meter import Meter
from ray.dag import InputNode

UNDER_WAY = 8


@ray.remote(num_cpus=0)
class Receiver:
    """The other process."""

    def __init__(self, plan: dict[str, Any]) -> None:
        os.sched_setaffinity(0, {plan["receiver_cpu"]})
        told = SimpleNamespace(**plan)
        self.meter = Meter(told, Control(told.dir))

    def take(self, array: Any) -> int:
        self.meter.take(array)
        return 0

    def answer(self) -> dict[str, Any]:
        return self.meter.answer()


class Ray:
    """See above."""

    @staticmethod
    def whole(plan: SimpleNamespace, control: Control) -> dict[str, Any]:
        # What Ray starts would inherit the one core of this process.
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        room = max(plan.slots * (plan.bytes + 4096), 256 << 20)
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=room,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        os.sched_setaffinity(0, {plan.cpu})
        try:
            receiver = Receiver.remote(vars(plan))
            with InputNode() as there:
                graph = receiver.take.bind(there)
            compiled = graph.experimental_compile(_buffer_size_bytes=plan.bytes + 65536)
            array = message(plan)
            under_way: deque[Any] = deque()
            quiet = 2 * (plan.warm + plan.count)
            sent = 0

            def prepare() -> None:
                # A result that is not fetched blocks the graph; before the stamp, so that it is not counted.
                while len(under_way) >= (1 if sent <= quiet else UNDER_WAY):
                    ray.get(under_way.popleft())

            def send(first: int, last: int) -> None:
                nonlocal sent
                array[0] = first
                array[-1] = last
                under_way.append(compiled.execute(array))
                sent += 1

            paced(plan, control, prepare, send)
            while under_way:
                ray.get(under_way.popleft())
            compiled.teardown()
            return ray.get(receiver.answer.remote())
        finally:
            ray.shutdown()
