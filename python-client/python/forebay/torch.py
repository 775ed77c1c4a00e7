"""Messages on a GPU before they are asked for, and results back without waiting. Needs torch; `forebay` does not.

    import forebay, forebay.torch

    consumer = forebay.Consumer("batches", pin=True)
    for batch in forebay.torch.DevicePrefetcher(consumer, "cuda"):
        model(**batch)

Both work on the CPU too, where copies are done at once.
"""

from __future__ import annotations

import collections
import contextlib
import queue
import threading
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch.utils.data import IterableDataset, get_worker_info

from forebay import ForebayError, RingClosed
from forebay._native import _leave_captures_alone

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from forebay import Consumer, Message, Producer, Tensor

__all__ = ["Batch", "DevicePrefetcher", "Replies"]


class Batch(dict[str, torch.Tensor]):
    """The tensors of a message on their device, by name, and what the sender said about it.

    They are views of buffers that are used again: good until the next batch is asked for. Clone what must last longer.
    """

    __slots__ = ("correlation_id", "sequence", "user")

    def __init__(self, tensors: Mapping[str, torch.Tensor], sequence: int, correlation_id: int, user: bytes) -> None:
        """Make one of tensors, and of what its message says."""
        super().__init__(tensors)
        self.sequence, self.correlation_id, self.user = sequence, correlation_id, user


class _Cpu:
    """A device on which everything is done at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def room(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def event(self) -> Any:  # noqa: ANN401 - whatever the device has
        return None

    def copy(self, message: Message, to: dict[str, torch.Tensor], after: Any, ready: Any) -> None:  # noqa: ANN401, ARG002
        for name, view in message.torch().items():
            to[name].copy_(view)

    def wait(self, ready: Any) -> None:  # noqa: ANN401
        """Let the program's next work on the device begin after `ready`."""

    def mark(self, event: Any) -> None:  # noqa: ANN401
        """Let `event` be done when the program's work so far is."""


class _Cuda(_Cpu):
    """A GPU: copies have a stream of their own, events order them and the program's work."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def room(self, nbytes: int) -> torch.Tensor:
        made = super().room(nbytes)
        # Whose memory this was may not be done with it on the program's stream; and copies to it may not be done when it
        # is let go of.
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        made.record_stream(self.stream)
        return made

    def event(self) -> torch.cuda.Event:
        return torch.cuda.Event()  # type: ignore[no-untyped-call]

    def copy(self, message: Message, to: dict[str, torch.Tensor], after: Any, ready: Any) -> None:  # noqa: ANN401
        if after is not None:
            self.stream.wait_event(after)
        # Without a runtime to call, torch copies, on its current stream.
        pinned = next((tensor.pinned for tensor in message.values()), True)
        with contextlib.nullcontext() if pinned else torch.cuda.stream(self.stream):
            message.to(self.device, stream=self.stream, out=to)
        ready.record(self.stream)

    def wait(self, ready: Any) -> None:  # noqa: ANN401
        torch.cuda.current_stream(self.device).wait_event(ready)

    def mark(self, event: Any) -> None:  # noqa: ANN401
        event.record(torch.cuda.current_stream(self.device))


def _dtype(tensor: Tensor | torch.Tensor) -> torch.dtype:
    found: torch.dtype = tensor.dtype if isinstance(tensor, torch.Tensor) else getattr(torch, tensor.dtype)
    return found


class _Set:
    """Buffers for one message: each field's bytes at an address that stays."""

    def __init__(self, side: _Cpu) -> None:
        self.side = side
        self.ready, self.used = side.event(), side.event()
        self.was_used = False
        self.message: Message | None = None
        self.batch: Batch | None = None
        self._flat: dict[str, torch.Tensor] = {}
        self._views: dict[str, torch.Tensor] = {}

    def views(
        self, like: Mapping[str, Tensor] | Mapping[str, torch.Tensor], most: Mapping[str, int]
    ) -> dict[str, torch.Tensor]:
        """Tensors like these in these buffers: the same objects as long as shapes stay the same."""
        for name, tensor in like.items():
            own, dtype = self._views.get(name), _dtype(tensor)
            if own is None or own.dtype != dtype or own.shape != tensor.shape:
                self._views[name] = self._view(name, dtype, tuple(tensor.shape), max(tensor.nbytes, most.get(name, 0)))
        return {name: self._views[name] for name in like}

    def _view(self, name: str, dtype: torch.dtype, shape: tuple[int, ...], most: int) -> torch.Tensor:
        flat = self._flat.get(name)
        if flat is None or flat.numel() < most:
            flat = self._flat[name] = self.side.room(most)
        elements = 1
        for dim in shape:
            elements *= dim
        return flat[: elements * dtype.itemsize].view(dtype).view(shape)


class DevicePrefetcher(IterableDataset[Batch]):
    """Iterates over a ring's messages on a device: the next ones are copied while the current one is computed on.

    Takes the place of a `DataLoader` with `pin_memory` and the `.to(device, non_blocking=True)` in its loop. Buffers
    are allocated once: with a schema for its largest message, without one whenever a larger message comes. A message's
    tensors are therefore at the same addresses every `depth + 1` batches, or always with `static=True`: a CUDA graph
    captured on a batch may be replayed on the next one.

    Leaving the loop keeps what was copied ahead: the next loop goes on with it. `close()` gives it back, and so does leaving a
    `with`; after an exception there the batch that was being computed on is given back too.

    Args:
        consumer: where messages come from. Pinned, a GPU copies from the slots directly; it is not pinned here.
        device: where they go: "cuda", "cuda:1", "cpu", torch.device.
        depth: how many messages are copied ahead, 1 or more. A ring needs more than `depth + 1` slots with ack="used".
        ack: "used": a message is acked, and its slot released, when the next batch is asked for, so that it comes
            again if this process dies while computing. "copied": as soon as it was taken; its slot is free when the
            copy is done.
        static: yield the same tensors every time, at the cost of one copy on the device.
        timeout_s: seconds to wait for a message before ReceiveTimeout; None waits without end.

    """

    def __init__(  # noqa: PLR0913 - options by name
        self,
        consumer: Consumer,
        device: str | int | torch.device = "cuda",
        depth: int = 2,
        *,
        ack: Literal["used", "copied"] = "used",
        static: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        """Take no message yet; the first iteration does."""
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth is {depth}, expected 1 or more")
        if ack not in {"used", "copied"}:
            raise ValueError(f'ack is {ack!r}, expected "used" or "copied"')
        self.consumer, self.depth, self.ack, self.static = consumer, depth, ack, static
        self.device, self.timeout_s = torch.device(device), timeout_s
        self._side: _Cpu | None = None
        self._forget()

    def _forget(self) -> None:
        self._free: list[_Set] = []
        self._ahead: collections.deque[_Set] = collections.deque()
        self._current: _Set | None = None
        self._fixed: _Set | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Keep what a worker process needs: no buffers and no streams."""
        kept = ("consumer", "depth", "ack", "static", "device", "timeout_s")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin anew in another process."""
        self.__dict__.update(state)
        self._side = None
        self._forget()

    def _make_side(self) -> _Cpu:
        if self.device.type == "cpu":
            return _Cpu(self.device)
        if self.device.type != "cuda":
            raise ValueError(f"device is {self.device}, expected cuda or cpu")
        if get_worker_info() is not None:
            raise RuntimeError("a DataLoader worker must not use a GPU; iterate over the DevicePrefetcher itself")
        if self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        return _Cuda(self.device)

    def _start(self) -> _Cpu:
        if self._side is None:
            self._side = self._make_side()
            self._most = self._largest()
            self._free = [_Set(self._side) for _ in range(self.depth + 1)]
        return self._side

    def _largest(self) -> dict[str, int]:
        """Bytes of each field at most, where the schema says so."""
        most: dict[str, int] = {}
        schema = self.consumer.schema
        for field in schema.fields if schema is not None else ():
            size = getattr(torch, field.dtype).itemsize
            for dim in field.max_dims:
                size = 0 if dim is None else size * dim
            most[field.name] = size
        return most

    def _fill(self, message: Message) -> None:
        own = self._free.pop(0)
        try:
            views = own.views(message, self._most)
            own.side.copy(message, views, own.used if own.was_used else None, own.ready)
        except BaseException:
            message.nack()
            self._free.append(own)
            raise
        own.batch = Batch(views, message.sequence, message.correlation_id, message.user)
        if self.ack == "used":
            own.message = message
        else:
            # Its memory lasts until the copy is done, whoever drops it.
            message.ack()
        self._ahead.append(own)

    def _settle(self, *, done: bool = True) -> None:
        """Take the current batch back: the program has told the device all that it does with it."""
        own, self._current = self._current, None
        if own is None:
            return
        own.side.mark(own.used)
        own.was_used = True
        if own.message is not None:
            if done:
                own.message.ack()
            else:
                own.message.nack()
            own.message = None
        self._free.append(own)

    def _look_ahead(self) -> None:
        while self._free and len(self._ahead) < self.depth:
            try:
                message = self.consumer.try_recv()
            except ForebayError:
                # At quota, or the end, or an error: what is there comes first, then `recv` says it.
                return
            if message is None:
                return
            self._fill(message)

    def __iter__(self) -> Iterator[Batch]:
        """Wait for messages until the ring is closed."""
        side = self._start()
        while True:
            self._settle()
            if not self._ahead:
                try:
                    message = self.consumer.recv(self.timeout_s)
                except RingClosed:
                    return
                self._fill(message)
                del message
            own = self._ahead.popleft()
            try:
                self._look_ahead()
            except BaseException:
                self._ahead.appendleft(own)
                raise
            self._current = own
            batch, own.batch = own.batch, None
            assert batch is not None  # noqa: S101 - what is ahead was filled
            side.wait(own.ready)
            yield self._fix(side, batch) if self.static else batch
            del batch

    def _fix(self, side: _Cpu, batch: Batch) -> Batch:
        """Copy the batch to where every batch is, behind the program's work on the one before."""
        if self._fixed is None:
            self._fixed = _Set(side)
        views = self._fixed.views(batch, self._most)
        for name, view in views.items():
            view.copy_(batch[name])
        return Batch(views, batch.sequence, batch.correlation_id, batch.user)

    def close(self) -> None:
        """Give back what was copied ahead, and let the buffers go. The consumer stays open."""
        self._settle()
        for own in self._ahead:
            if own.message is not None:
                own.message.nack()
        self._forget()
        self._side = None

    def __enter__(self) -> Self:
        """As it is."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """Close it. A batch whose computing failed was not used: it goes back to the ring."""
        self._settle(done=kind is None)
        self.close()


class Replies:
    """Sends results back to a ring without waiting for the GPU.

    `send` starts the copies to pinned memory behind what the current stream has to do, and returns. A thread waits for
    them and copies them into a slot: the GPU never writes to one, so nothing writes to it after this process died.

    Replies leave in the order of their sending. What failed is raised by the next call, with a note of how many replies
    behind it were not sent because of it. Use it as a context manager, or call `close()`: at the interpreter's end the thread does not wait for a GPU.

    Args:
        producer: the ring for the results.
        most: replies under way at most; `send` waits for one to leave beyond that.

    """

    def __init__(self, producer: Producer, *, most: int = 64) -> None:
        """Start nothing yet; the first reply that has to wait starts the thread."""
        self.producer = producer
        self._queue: queue.Queue[tuple[Any, dict[str, Any], int, bytes | None] | None] = queue.Queue(most)
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None
        self._lost = 0

    def send(self, arrays: Mapping[str, Any], *, correlation_id: int = 0, user: bytes | None = None) -> None:
        """Send a message of these arrays: torch tensors of a GPU or the CPU, NumPy arrays.

        Args:
            arrays: by name. Those on the CPU are copied at once and may be changed afterwards.
            correlation_id: as in Producer.send.
            user: as in Producer.send.

        """
        self._raise()
        on_gpu = [array for array in arrays.values() if isinstance(array, torch.Tensor) and array.is_cuda]
        if not on_gpu and self._queue.unfinished_tasks == 0:
            whole = {name: self._contiguous(array) for name, array in arrays.items()}
            self.producer.send(whole, correlation_id=correlation_id, user=user)
            return
        ready = []
        held = {name: self._host(array) for name, array in arrays.items()}
        for device in {array.device for array in on_gpu}:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
            ready.append(event)
        self._put(ready, held, correlation_id, user)

    def _put(self, ready: list[Any], held: dict[str, Any], correlation_id: int, user: bytes | None) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="forebay-replies", daemon=True)
            self._thread.start()
        self._queue.put((ready, held, correlation_id, user))

    @staticmethod
    def _contiguous(array: Any) -> Any:  # noqa: ANN401 - torch or NumPy
        return array.detach().contiguous() if isinstance(array, torch.Tensor) else array

    @staticmethod
    def _host(array: Any) -> Any:  # noqa: ANN401 - torch or NumPy
        if not isinstance(array, torch.Tensor):
            return array.copy()
        if not array.is_cuda:
            return array.detach().clone(memory_format=torch.contiguous_format)
        host = torch.empty(array.shape, dtype=array.dtype, pin_memory=True)
        with torch.cuda.device(array.device):
            host.copy_(array.detach(), non_blocking=True)
        return host

    def _run(self) -> None:
        # Waiting must not spoil a graph that another thread captures.
        _leave_captures_alone()
        while (item := self._queue.get()) is not None:
            ready, held, correlation_id, user = item
            try:
                if self._failed is None:
                    for event in ready:
                        event.synchronize()
                    self.producer.send(held, correlation_id=correlation_id, user=user)
                else:
                    self._lost += 1
            except BaseException as e:  # noqa: BLE001 - said by the next call of the program's thread
                self._failed = e
            finally:
                del item, held
                self._queue.task_done()
        self._queue.task_done()

    def _raise(self) -> None:
        if self._failed is None:
            return
        # Whatever is under way belongs to it.
        self._queue.join()
        failed, self._failed = self._failed, None
        lost, self._lost = self._lost, 0
        if lost:
            failed.add_note(f"{lost} replies behind it were not sent")
        raise failed

    def flush(self) -> None:
        """Wait until everything was sent."""
        self._queue.join()
        self._raise()

    def close(self) -> None:
        """Wait until everything was sent, and end the thread. The producer stays open."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join()
        self._raise()

    def __enter__(self) -> Self:
        """As it is."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close it."""
        self.close()
