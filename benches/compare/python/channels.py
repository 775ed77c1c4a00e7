"""Candidates from Python to Python, each set up as its own documentation advises.

A class each, with

    make(plan, context)     before the other process starts; what it returns is passed to that process
    sender(plan, handle)    → prepare(), send(first, last), close()
    receiver(plan, handle)  → receive() → array of 64-bit words, release()

`prepare` runs before the stamp: who copies has the message ready in private memory then. Who loans stamps in place.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import shared_memory
from types import SimpleNamespace
from typing import Any

import numpy as np
from control import nothing

WORDS = np.dtype(np.int64)
Sender = tuple[Callable[[], None], Callable[[int, int], None], Callable[[], None]]
Receiver = tuple[Callable[[], Any], Callable[[], None]]


def message(plan: SimpleNamespace) -> Any:
    """A message in private memory."""
    return np.full(plan.bytes // 8, 7, WORDS)


class Channel:
    """What most have in common: nothing to make beforehand."""

    @staticmethod
    def make(plan: SimpleNamespace, context: Any) -> Any:
        del plan, context


class ForebaySpin(Channel):
    """forebay, polling; loaned and written in place."""

    wait = "spin"

    @staticmethod
    def sender(plan: SimpleNamespace, handle: Any) -> Sender:
        del handle
        import forebay

        schema = forebay.Schema("compare", (1, 0), {"x": (np.int64, plan.bytes // 8)})
        producer = forebay.Producer("compare", directory=plan.dir, schema=schema, slots=plan.slots, max_consumers=1)
        fields = {"x": (WORDS, (plan.bytes // 8,))}
        loan_of = producer.loan

        def send(first: int, last: int) -> None:
            loan = loan_of(fields)
            array = loan["x"].numpy()
            array[0] = first
            array[-1] = last
            loan.publish()

        return nothing, send, producer.discard

    @classmethod
    def receiver(cls, plan: SimpleNamespace, handle: Any) -> Receiver:
        del handle
        import forebay

        recv = forebay.Consumer("compare", directory=plan.dir, wait=cls.wait).recv
        return lambda: recv()["x"].numpy(), nothing


class ForebayBlock(ForebaySpin):
    """The same with a consumer that sleeps."""

    wait = "block"


class ForebaySend(ForebaySpin):
    """forebay, polling; copied in by `send`."""

    @staticmethod
    def sender(plan: SimpleNamespace, handle: Any) -> Sender:
        del handle
        import forebay

        schema = forebay.Schema("compare", (1, 0), {"x": (np.int64, plan.bytes // 8)})
        producer = forebay.Producer("compare", directory=plan.dir, schema=schema, slots=plan.slots, max_consumers=1)
        array = message(plan)
        fields = {"x": array}
        put = producer.send

        def send(first: int, last: int) -> None:
            array[0] = first
            array[-1] = last
            put(fields)

        return nothing, send, producer.discard


class Iceoryx2(Channel):
    """iceoryx2, polling; loaned and written in place through the payload's memory view."""

    @staticmethod
    def service(plan: SimpleNamespace) -> Any:
        import ctypes

        import iceoryx2 as iox2

        iox2.set_log_level(iox2.LogLevel.Fatal)
        node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
        builder = node.service_builder(iox2.ServiceName.new(plan.name)).publish_subscribe(iox2.Slice[ctypes.c_uint8])
        builder = builder.enable_safe_overflow(False).history_size(0).max_publishers(1).max_subscribers(1)
        return node, builder.subscriber_max_buffer_size(plan.slots).open_or_create()

    @classmethod
    def sender(cls, plan: SimpleNamespace, handle: Any) -> Sender:
        del handle
        import iceoryx2 as iox2

        node, service = cls.service(plan)
        factory = service.publisher_builder().initial_max_slice_len(plan.bytes)
        publisher = factory.backpressure_strategy(iox2.BackpressureStrategy.RetryUntilDelivered).create()
        frombuffer, size = np.frombuffer, plan.bytes
        held = [node, service]

        def send(first: int, last: int) -> None:
            sample = publisher.loan_slice_uninit(size)
            array = frombuffer(sample.payload().as_memory_view(), WORDS)
            array[0] = first
            array[-1] = last
            sample.assume_init().send()

        return nothing, send, held.clear

    @classmethod
    def receiver(cls, plan: SimpleNamespace, handle: Any) -> Receiver:
        del handle
        node, service = cls.service(plan)
        poll = service.subscriber_builder().create().receive
        frombuffer = np.frombuffer
        held: list[Any] = [node, service, None]

        def receive() -> Any:
            while (sample := poll()) is None:
                pass
            held[2] = sample
            return frombuffer(sample.payload().as_memory_view(), WORDS)

        def release() -> None:
            held[2].delete()

        return receive, release


class Zmq(Channel):
    """pyzmq, PUSH to PULL over ipc, without pyzmq's own copies; libzmq copies through the socket."""

    @staticmethod
    def sender(plan: SimpleNamespace, handle: Any) -> Sender:
        del handle
        import zmq

        context = zmq.Context()
        socket = context.socket(zmq.PUSH)
        socket.bind(f"ipc://{plan.dir}/zmq")
        small = plan.bytes <= 65536
        array = message(plan)

        def prepare() -> None:
            nonlocal array
            if not small:
                # libzmq sends from the array itself, later: one that was sent must not be written again.
                array = message(plan)

        def send(first: int, last: int) -> None:
            array[0] = first
            array[-1] = last
            socket.send(array, copy=small)

        return prepare, send, lambda: context.destroy(linger=0)

    @staticmethod
    def receiver(plan: SimpleNamespace, handle: Any) -> Receiver:
        del handle
        import zmq

        context = zmq.Context()
        socket = context.socket(zmq.PULL)
        socket.connect(f"ipc://{plan.dir}/zmq")
        recv, frombuffer = socket.recv, np.frombuffer
        copy = plan.bytes <= 65536
        return lambda: frombuffer(recv(copy=copy), WORDS), nothing


class Queue(Channel):
    """multiprocessing.Queue of NumPy arrays, which it pickles."""

    @staticmethod
    def make(plan: SimpleNamespace, context: Any) -> Any:
        return context.Queue(plan.slots)

    @staticmethod
    def sender(plan: SimpleNamespace, handle: Any) -> Sender:
        array = None

        def prepare() -> None:
            # The feeder thread pickles later: an array that was put must not be written again.
            nonlocal array
            array = message(plan)

        def send(first: int, last: int) -> None:
            array[0] = first
            array[-1] = last
            handle.put(array)

        return prepare, send, handle.close

    @staticmethod
    def receiver(plan: SimpleNamespace, handle: Any) -> Receiver:
        del plan
        return handle.get, nothing


class Pipe(Channel):
    """multiprocessing.Pipe, bytes in and out, received into one buffer that is used again."""

    @staticmethod
    def make(plan: SimpleNamespace, context: Any) -> Any:
        del plan
        return context.Pipe(duplex=False)

    @staticmethod
    def sender(plan: SimpleNamespace, handle: Any) -> Sender:
        array = message(plan)
        view = memoryview(array).cast("B")
        send_bytes = handle[1].send_bytes

        def send(first: int, last: int) -> None:
            array[0] = first
            array[-1] = last
            send_bytes(view)

        return nothing, send, nothing

    @staticmethod
    def receiver(plan: SimpleNamespace, handle: Any) -> Receiver:
        array = message(plan)
        view = memoryview(array).cast("B")
        into = handle[0].recv_bytes_into

        def receive() -> Any:
            into(view)
            return array

        return receive, nothing


class SharedMemory(Channel):
    """multiprocessing.shared_memory, one place, with a semaphore for "full" and one for "empty"; written in place."""

    @staticmethod
    def make(plan: SimpleNamespace, context: Any) -> Any:
        memory = shared_memory.SharedMemory(create=True, size=plan.bytes)
        return memory, context.Semaphore(0), context.Semaphore(1)

    @staticmethod
    def sender(plan: SimpleNamespace, handle: Any) -> Sender:
        memory, full, empty = handle
        array = np.frombuffer(memory.buf, WORDS, plan.bytes // 8)

        def send(first: int, last: int) -> None:
            empty.acquire()
            array[0] = first
            array[-1] = last
            full.release()

        return nothing, send, memory.unlink

    @staticmethod
    def receiver(plan: SimpleNamespace, handle: Any) -> Receiver:
        memory, full, empty = handle
        frombuffer, words = np.frombuffer, plan.bytes // 8

        def receive() -> Any:
            full.acquire()
            return frombuffer(memory.buf, WORDS, words)

        return receive, empty.release


class FasterFifo(Channel):
    """faster-fifo: a queue in shared memory, which pickles what is put."""

    @staticmethod
    def make(plan: SimpleNamespace, context: Any) -> Any:
        del context
        from faster_fifo import Queue as Fifo

        return Fifo(max_size_bytes=plan.slots * (plan.bytes + 1024))

    @staticmethod
    def sender(plan: SimpleNamespace, handle: Any) -> Sender:
        array = message(plan)
        put = handle.put

        def send(first: int, last: int) -> None:
            array[0] = first
            array[-1] = last
            put(array, timeout=60)

        return nothing, send, nothing

    @staticmethod
    def receiver(plan: SimpleNamespace, handle: Any) -> Receiver:
        del plan
        get = handle.get
        return lambda: get(timeout=60), nothing


class TorchQueue(Channel):
    """torch.multiprocessing.Queue: tensors travel as descriptors of shared memory.

    Each message is a tensor of its own, since one that was sent belongs to both processes.
    """

    @staticmethod
    def make(plan: SimpleNamespace, context: Any) -> Any:
        del context
        import torch.multiprocessing as mp

        return mp.get_context("spawn").Queue(plan.slots)

    @staticmethod
    def sender(plan: SimpleNamespace, handle: Any) -> Sender:
        import torch

        tensor = None

        def prepare() -> None:
            nonlocal tensor
            tensor = torch.full((plan.bytes // 8,), 7, dtype=torch.int64)

        def send(first: int, last: int) -> None:
            tensor[0] = first
            tensor[-1] = last
            handle.put(tensor)

        return prepare, send, handle.close

    @staticmethod
    def receiver(plan: SimpleNamespace, handle: Any) -> Receiver:
        del plan
        import torch  # noqa: F401  so that the first message does not pay for it

        return handle.get, nothing
