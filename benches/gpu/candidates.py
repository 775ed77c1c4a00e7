"""The ways from one process's memory to a GPU that `make gpu` compares, set up as their own docs advise.

Each has a sender, which runs in a process of its own, and a receiver. A message is `nbytes` bytes, its first eight the
time just before it was handed over; all other bytes are written once, before the clock runs, except where a way has no
memory of its own to keep them in. forebay's sender writes in place; the others' copy out of an array, as users' do.

    receiver.next()   the next message's tensor on the device, its copy begun; and what must be kept until it is done
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import time
from collections.abc import Iterator
from multiprocessing import shared_memory
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import forebay
import numpy as np
import torch
import torch.multiprocessing  # what makes tensors travel

SLOTS = 4
PORTABLE = 1


def stamp(memory: Any) -> None:
    """Writes the time into the first eight bytes."""
    struct.pack_into("<Q", memory, 0, time.monotonic_ns())


class Way:
    """One candidate."""

    name = ""
    note = ""

    def __init__(self, nbytes: int, device: torch.device, folder: Path, pace: Any) -> None:
        """`pace` is a connection: the receiver says on it how many more messages it wants."""
        self.nbytes, self.device, self.folder, self.pace = nbytes, device, folder, pace
        self.cuda = device.type == "cuda"

    def why_not(self) -> str:
        return ""

    # === the sender ===

    def send(self) -> None:
        """Sends messages as they are asked for, until 0 are."""
        with self.source() as one:
            while count := self.pace.recv():
                for _ in range(count):
                    one()

    @contextlib.contextmanager
    def source(self) -> Iterator[Any]:
        raise NotImplementedError
        yield

    # === the receiver ===

    def open(self) -> None:
        self.room = [torch.empty(self.nbytes, dtype=torch.uint8, device=self.device) for _ in range(SLOTS)]
        self.turn = 0

    def target(self) -> torch.Tensor:
        self.turn = (self.turn + 1) % SLOTS
        return self.room[self.turn]

    def next(self) -> torch.Tensor:
        raise NotImplementedError

    def close(self) -> None:
        self.room = []


class Forebay(Way):
    name = "forebay, pinned"
    pins = True

    @contextlib.contextmanager
    def source(self) -> Iterator[Any]:
        options = {"slots": SLOTS, "slot_bytes": max(self.nbytes, 64), "backing": "memfd", "writable": True}
        with forebay.Producer("gpu", directory=self.folder, full_timeout_s=120.0, **options) as producer:
            fields = {"x": ("uint8", (self.nbytes,))}
            # Every slot's bytes, once.
            for _ in range(SLOTS):
                loan = producer.loan(fields)
                loan["x"].numpy()[:] = 7
                loan.publish()

            def one() -> None:
                loan = producer.loan(fields)
                stamp(loan["x"].numpy())
                loan.publish()

            yield one
            self.pace.recv()

    def open(self) -> None:
        super().open()
        self.consumer = forebay.Consumer("gpu", directory=self.folder, timeout_s=120.0, quota=SLOTS, writable=True)
        if self.pins and self.cuda and not self.consumer.pin(self.device):
            raise RuntimeError("not pinned; the warning above says why")
        for _ in range(SLOTS):
            self.consumer.recv(120.0)

    def next(self) -> torch.Tensor:
        message = self.consumer.recv(120.0)
        to = self.target()
        if self.cuda:
            message.to(self.device, out={"x": to})
        else:
            to.copy_(message["x"].torch())
        return to

    def close(self) -> None:
        super().close()
        self.consumer.close()
        self.pace.send(0)


class Unpinned(Forebay):
    name = "forebay, unpinned"
    pins = False


class Queue(Way):
    """A tensor that came through torch's own queue lies in shared memory that is not pinned."""

    name = "torch.multiprocessing, pageable .to"
    pins = False

    @contextlib.contextmanager
    def source(self) -> Iterator[Any]:
        source = torch.full((self.nbytes,), 7, dtype=torch.uint8)

        def one() -> None:
            stamp(source.numpy())
            # What torch.multiprocessing.Queue does: into shared memory, whose descriptor is sent.
            shared = source.clone().share_memory_()
            self.pace.send_bytes(ForkingPickler.dumps(shared))

        yield one
        self.pace.recv()

    def next(self) -> torch.Tensor:
        tensor = pickle.loads(self.pace.recv_bytes())
        if self.pins and self.cuda:
            tensor = tensor.pin_memory()
            self.kept = (*getattr(self, "kept", ())[-SLOTS:], tensor)
        return self.target().copy_(tensor, non_blocking=self.pins)

    def close(self) -> None:
        super().close()
        self.pace.send(0)


class QueuePinned(Queue):
    name = "torch.multiprocessing, pin_memory() + non_blocking"
    pins = True


class Endless(torch.utils.data.IterableDataset):
    """A dataset whose samples are ready."""

    def __init__(self, nbytes: int, count: int) -> None:
        self.nbytes, self.count = nbytes, count

    def __iter__(self) -> Iterator[torch.Tensor]:
        source = torch.full((self.nbytes,), 7, dtype=torch.uint8)
        for _ in range(self.count):
            stamp(source.numpy())
            yield source.clone()


class Loader(Way):
    name = "DataLoader(pin_memory=True, num_workers=1)"
    note = "its worker sends ahead (prefetch_factor 2), so its time from hand-over holds its own queue"

    @contextlib.contextmanager
    def source(self) -> Iterator[Any]:
        # The worker is the loader's own process.
        yield lambda: None

    def open(self) -> None:
        super().open()
        dataset = Endless(self.nbytes, 1 << 40)
        self.loader = iter(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1, pin_memory=self.cuda))

    def next(self) -> torch.Tensor:
        tensor = next(self.loader)
        self.kept = (*getattr(self, "kept", ())[-SLOTS:], tensor)
        return self.target().copy_(tensor, non_blocking=True)

    def close(self) -> None:
        super().close()
        self.loader._shutdown_workers()  # noqa: SLF001 - it offers no other end


class ByHand(Way):
    """Shared memory with a flag byte for each slot, registered through ctypes."""

    name = "multiprocessing.shared_memory + cudaHostRegister"
    note = "nothing protects a slot from a second writer, a crash or an early release"

    def _shared(self, *, create: bool) -> shared_memory.SharedMemory:
        size = SLOTS * (self.nbytes + 4096)
        name = f"forebay-gpu-{self.folder.name}"
        return shared_memory.SharedMemory(name, create=create, size=size if create else 0)

    def why_not(self) -> str:
        place = os.statvfs("/dev/shm")  # noqa: S108 - where it lies
        free = place.f_bavail * place.f_bsize
        needed = SLOTS * (self.nbytes + 4096)
        return "" if free > needed else f"shared memory has {free >> 20} MiB free, it needs {needed >> 20}"

    @contextlib.contextmanager
    def source(self) -> Iterator[Any]:
        shared = self._shared(create=True)
        flags = np.frombuffer(shared.buf, np.uint8, SLOTS * 64)[::64]
        slots = np.frombuffer(shared.buf, np.uint8, SLOTS * self.nbytes, SLOTS * 4096).reshape(SLOTS, self.nbytes)
        flags[:], slots[:] = 0, 7
        source = np.full(self.nbytes, 7, np.uint8)
        views, turn = [flags, slots], 0
        del flags, slots
        self.pace.send("made")

        def one() -> None:
            nonlocal turn
            flags, slots = views
            while flags[turn]:
                time.sleep(0)
            stamp(source)
            slots[turn] = source
            flags[turn] = 1
            turn = (turn + 1) % SLOTS

        yield one
        self.pace.recv()
        views.clear()
        shared.close()
        shared.unlink()

    def open(self) -> None:
        super().open()
        assert self.pace.recv() == "made"
        self.shared = self._shared(create=False)
        self.flags = np.frombuffer(self.shared.buf, np.uint8, SLOTS * 64)[::64]
        flat = np.frombuffer(self.shared.buf, np.uint8, SLOTS * self.nbytes, SLOTS * 4096)
        self.slots = torch.from_numpy(flat).view(SLOTS, self.nbytes)
        self.at, self.waiting = 0, []
        if self.cuda:
            start = np.frombuffer(self.shared.buf, np.uint8).ctypes.data
            status = torch.cuda.cudart().cudaHostRegister(start, len(self.shared.buf), PORTABLE)
            assert int(status) == 0, f"cudaHostRegister answered {status}"

    def _release(self, most: int) -> None:
        while len(self.waiting) > most or (self.waiting and (not self.cuda or self.waiting[0][1].query())):
            slot, event = self.waiting.pop(0)
            if self.cuda:
                event.synchronize()
            self.flags[slot] = 0

    def next(self) -> torch.Tensor:
        self._release(SLOTS - 1)
        while not self.flags[self.at]:
            self._release(SLOTS - 1)
        to = self.target().copy_(self.slots[self.at], non_blocking=True)
        event = torch.cuda.Event() if self.cuda else None
        if event is not None:
            event.record()
        self.waiting.append((self.at, event))
        self.at = (self.at + 1) % SLOTS
        return to

    def close(self) -> None:
        self._release(0)
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaHostUnregister(self.slots.data_ptr() - SLOTS * 4096)
        super().close()
        self.flags = self.slots = None
        with contextlib.suppress(BufferError):
            self.shared.close()
        self.pace.send(0)


class Zmq(Way):
    name = "ZeroMQ (ipc), zero-copy receive, pageable .to"

    def why_not(self) -> str:
        try:
            import zmq  # noqa: F401
        except ImportError:
            return "pyzmq is not installed"
        return ""

    @contextlib.contextmanager
    def source(self) -> Iterator[Any]:
        import zmq

        socket = zmq.Context.instance().socket(zmq.PUSH)
        socket.set_hwm(SLOTS)
        socket.bind(f"ipc://{self.folder}/zmq")
        source = np.full(self.nbytes, 7, np.uint8)

        def one() -> None:
            stamp(source)
            socket.send(source, copy=True)

        yield one
        self.pace.recv()
        socket.close(0)

    def open(self) -> None:
        import zmq

        super().open()
        self.socket = zmq.Context.instance().socket(zmq.PULL)
        self.socket.set_hwm(SLOTS)
        self.socket.connect(f"ipc://{self.folder}/zmq")

    def next(self) -> torch.Tensor:
        frame = self.socket.recv(copy=False)
        source = torch.from_numpy(np.frombuffer(frame.buffer, np.uint8))
        return self.target().copy_(source)

    def close(self) -> None:
        super().close()
        self.socket.close(0)
        self.pace.send(0)


WAYS: list[type[Way]] = [Forebay, Unpinned, Queue, QueuePinned, Loader, ByHand, Zmq]


def is_right(tensor: torch.Tensor) -> bool:
    """Whether a message is what was sent."""
    rest = tensor[8:]
    return bool((rest == 7).all())


def stamped(tensor: torch.Tensor) -> int:
    """The time a message carries; it must have arrived."""
    return int(tensor[:8].cpu().view(torch.int64))
