"""gRPC over a Unix socket, grpcio on both sides: the receiver is the server. A latency is of one unary call each, a rate of
unary calls of which 16 are under way. The messages are bytes without a protobuf envelope, which is the least gRPC can do."""

from __future__ import annotations

import threading
from collections import deque
from concurrent import futures
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
from channels import WORDS, Channel, Sender, message
from control import DONE, RECEIVER_READY, Control, nothing, now, times

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
METHOD = "/forebay.Compare/Take"
UNDER_WAY = 16


class Meter:
    """What `control.measure` does, for who is called with each message."""

    def __init__(self, plan: SimpleNamespace, control: Control) -> None:
        self.plan, self.control = plan, control
        self.taken: list[list[int]] = [[], []]
        self.done = self.begin = self.span = 0
        self.wrong: str | None = None
        self.finished = threading.Event()
        self.lock = threading.Lock()

    def take(self, request: bytes) -> None:
        plan = self.plan
        array = np.frombuffer(request, WORDS)
        each = plan.warm + plan.count
        phase, message = divmod(self.done, each)
        if phase == 1:
            int(array[0]), int(array[-1])
        end = now()
        if phase < 2:
            if int(array[-1]) != self.done:
                self.wrong = f"message {int(array[-1])} came in place of {self.done}"
                self.finished.set()
            if message >= plan.warm:
                self.taken[phase].append(end - int(array[0]))
            self.done += 1
            self.control.set(DONE, self.done)
            if self.done == 2 * each and not plan.rate_count:
                self.finished.set()
            return
        # Calls that are under way at the same time may arrive in any order: they are counted.
        with self.lock:
            self.done += 1
            rate = self.done - 2 * each
            if rate == plan.warm + 1:
                self.begin = end
            if rate == plan.warm + plan.rate_count:
                self.span = end - self.begin
                self.control.set(DONE, 2 * each + 1)
                self.finished.set()

    def answer(self) -> dict[str, Any]:
        if self.wrong:
            raise ValueError(self.wrong)
        rate = (self.plan.rate_count - 1) / (self.span / 1e9) if self.plan.rate_count else None
        return {"have": times(self.taken[0]), "touch": times(self.taken[1]), "rate": rate}


class Grpc(Channel):
    """See above."""

    @staticmethod
    def serve(plan: SimpleNamespace, control: Control, handle: Any) -> dict[str, Any]:
        del handle
        meter = Meter(plan, control)

        def take(request: bytes, context: Any) -> bytes:
            del context
            meter.take(request)
            return b""

        server = grpc.server(futures.ThreadPoolExecutor(max_workers=4), options=OPTIONS)
        handlers = {"Take": grpc.unary_unary_rpc_method_handler(take)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("forebay.Compare", handlers),))
        server.add_insecure_port(f"unix:{plan.dir}/grpc")
        server.start()
        control.set(RECEIVER_READY, 1)
        meter.finished.wait(300)
        server.stop(grace=5).wait()
        return meter.answer()

    @staticmethod
    def sender(plan: SimpleNamespace, handle: Any) -> Sender:
        del handle
        channel = grpc.insecure_channel(f"unix:{plan.dir}/grpc", options=OPTIONS)
        call = channel.unary_unary(METHOD)
        array = message(plan)
        paced = 2 * (plan.warm + plan.count)
        sent = 0
        under_way: deque[Any] = deque()

        def send(first: int, last: int) -> None:
            nonlocal sent
            array[0] = first
            array[-1] = last
            if sent < paced:
                call(array.tobytes(), wait_for_ready=True)
            else:
                if len(under_way) == UNDER_WAY:
                    under_way.popleft().result()
                under_way.append(call.future(array.tobytes()))
            sent += 1

        def close() -> None:
            for one in under_way:
                one.result()
            channel.close()

        return nothing, send, close
