"""A pair of which both halves are in Python: `pair.py PLAN`.

This process starts the other one, as the rivals that inherit their channel want it, and prints what the receiver
measured, as JSON.

Usually this process sends and the other receives; SPDL wants it the other way round (`spdl_arena.py`).
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from control import RECEIVER_READY, SENDER_READY, Control, measure, paced, plan_of

# Where each candidate's class is.
CANDIDATES = {
    "forebay-spin": ("channels", "ForebaySpin"),
    "forebay-send": ("channels", "ForebaySend"),
    "forebay-block": ("channels", "ForebayBlock"),
    "iceoryx2": ("channels", "Iceoryx2"),
    "pyzmq": ("channels", "Zmq"),
    "mp-queue": ("channels", "Queue"),
    "mp-pipe": ("channels", "Pipe"),
    "mp-shared-memory": ("channels", "SharedMemory"),
    "faster-fifo": ("channels", "FasterFifo"),
    "torch-queue": ("channels", "TorchQueue"),
    "grpc": ("grpc_unix", "Grpc"),
    "spdl": ("spdl_arena", "Spdl"),
    "zenoh": ("zenoh_shm", "Zenoh"),
    "ray": ("ray_graph", "Ray"),
}


def channel_class(plan: SimpleNamespace) -> Any:
    module, name = CANDIDATES[plan.candidate]
    return getattr(importlib.import_module(module), name)


def other(plan: SimpleNamespace, handle: Any) -> None:
    """The receiving process."""
    os.sched_setaffinity(0, {plan.receiver_cpu})
    control = Control(plan.dir)
    made = channel_class(plan)
    control.wait(SENDER_READY, 1)
    if hasattr(made, "serve"):
        answer = made.serve(plan, control, handle)
    else:
        receive, release = made.receiver(plan, handle)
        answer = measure(plan, control, receive, release)
    (Path(plan.dir) / "answer").write_text(json.dumps(answer))


def main() -> None:
    plan = plan_of(sys.argv[1])
    control = Control(plan.dir)
    made = channel_class(plan)
    if hasattr(made, "whole"):
        print(json.dumps(made.whole(plan, control)))
        return
    context = multiprocessing.get_context("spawn")
    handle = made.make(plan, context)
    process = context.Process(target=other, args=(plan, handle))
    process.start()
    try:
        prepare, send, close = made.sender(plan, handle)
        control.set(SENDER_READY, 1)
        control.wait(RECEIVER_READY, 1)
        paced(plan, control, prepare, send)
        process.join(60)
        close()
    finally:
        process.kill()
    print((Path(plan.dir) / "answer").read_text())


if __name__ == "__main__":
    main()
