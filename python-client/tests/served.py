"""A service whose workers are processes that run a script, and a client in this process that asks them."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time

import numpy as np
import pytest

import forebay

_COUNT = itertools.count()
HEAD = "import forebay, os, sys, time, signal\nimport numpy as np\n"
PATIENCE = 20
# What a client may wait to hear of a death.
SOON = 2.0


class Service:
    """A client in this process, workers in others."""

    def __init__(self, directory) -> None:
        self.name = f"py-{os.getpid()}-w{next(_COUNT)}.0.1"
        self.directory = directory
        self.client = None
        self.workers = []

    def begin(self, script: str, **options):
        self.start(script, **options)
        self.client.accept(timeout_s=PATIENCE)
        assert self.answer().kind == "ready"
        return self.client

    def start(self, script: str, *, ranks=1, environment=None, stdout=subprocess.PIPE, **options):
        options.setdefault("slots", 4)
        options.setdefault("slot_bytes", 1 << 16)
        self.client = forebay.ServiceClient(self.name, directory=self.directory, ranks=ranks, **options)
        for rank in range(ranks):
            environ = {
                **os.environ,
                "FOREBAY_SERVICE": self.name,
                "FOREBAY_MODEL": "model",
                "FOREBAY_DIR": str(self.directory),
                "FOREBAY_RANK": str(rank),
                "FOREBAY_ANSWER_SLOTS": "4",
                "FOREBAY_ANSWER_SLOT_BYTES": "65536",
                **(environment or {}),
            }
            command = [sys.executable, "-u", "-c", HEAD + script]
            worker = subprocess.Popen(command, env=environ, stdout=stdout, stderr=subprocess.PIPE, text=True)
            self.workers.append(worker)

    def answer(self):
        return self.client.recv(PATIENCE)

    def ask(self, x, **options):
        """Ask; a slot is free again only when every rank let go of its batch, which may be after its answer came."""
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                return self.client.send({"x": np.asarray(x)}, **options)
            except forebay.RingFull:
                assert time.monotonic() < give_up
                time.sleep(0.001)

    def rows(self, count):
        """The first answers of `count` items: id to (status, row or error)."""
        found = {}
        while len(found) < count:
            answer = self.answer()
            assert answer.kind in ("result", "part"), answer.failure
            y = answer["y"].numpy().tolist() if "y" in answer else [None] * len(answer)
            for item, row in zip(answer.items, y, strict=True):
                assert item.last
                assert item.id not in found, "an item is answered once"
                found[item.id] = (item.status, row if item.status == "ok" else item.error)
            del answer
        return found

    def leave(self, *, status=0, stderr=""):
        """Drain; the worker ends quietly."""
        self.client.drain()
        with pytest.raises(forebay.ServiceClosed) as closed:
            self.answer()
        assert closed.value.outstanding == 0
        for worker in self.workers:
            out, err = worker.communicate(timeout=PATIENCE)
            assert (worker.returncode, out or "", err) == (status, "", stderr)

    def close(self):
        for worker in self.workers:
            worker.kill()
            worker.communicate()
        if self.client is not None:
            self.client.close()
