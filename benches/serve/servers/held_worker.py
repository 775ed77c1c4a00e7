"""A worker whose forward does nothing, or says that it began and never ends: for what the daemon itself takes."""

import os
import signal
from pathlib import Path

import forebay

began = os.environ.get("HOLD")
answer = memoryview(bytes(4 * 32)).cast("f")  # NumPy would be most of the start


def forward(batch):
    if began:
        # Renamed, so that whoever looks sees all of it.
        Path(f"{began}.new").write_text(str(os.getpid()))
        Path(f"{began}.new").rename(began)
        signal.pause()
    return {"y": answer[: len(batch)]}


forebay.Worker("compare").run(forward)
