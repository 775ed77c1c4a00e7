"""SPDL's shared-memory arena, through `iterate_in_subprocess` as its documentation says.

The other process is the one that makes the arrays, this one iterates. The pool of segments is the arena that hands
views out without copying.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

from channels import Channel, message
from control import DONE, RECEIVER_READY, SENDER_READY, Control, measure, nothing, now


def source(plan: SimpleNamespace) -> Iterator[Any]:
    """The messages, paced like everybody's; runs in the other process."""
    os.sched_setaffinity(0, {plan.cpu})
    control = Control(plan.dir)
    control.set(SENDER_READY, 1)
    control.wait(RECEIVER_READY, 1)
    array = message(plan)
    messages = 2 * (plan.warm + plan.count)
    for number in range(messages):
        control.wait(DONE, number, nap=True)
        until = now() + plan.gap_ns
        while (stamp := now()) < until:
            pass
        array[0] = stamp
        array[-1] = number
        yield array
    control.wait(DONE, messages, nap=True)
    for number in range(plan.warm + plan.rate_count if plan.rate_count else 0):
        array[-1] = number
        yield array


class Spdl(Channel):
    """See above."""

    @staticmethod
    def whole(plan: SimpleNamespace, control: Control) -> dict[str, Any]:
        from spdl.pipeline import SharedMemorySegmentPool, iterate_in_subprocess

        pool = SharedMemorySegmentPool(max(plan.bytes, 4096) + 4096, plan.slots + 2)
        stream = iterate_in_subprocess(partial(source, plan), buffer_size=plan.slots, arena=pool)
        os.sched_setaffinity(0, {plan.receiver_cpu})
        iterator = iter(stream)
        return measure(plan, control, partial(next, iterator), nothing)
