"""gRPC over a Unix socket, grpcio on both sides: the receiver is the server.

A latency is of one unary call each, a rate of unary calls of which 16 are under way. The messages are bytes without a
protobuf envelope, which is the least gRPC can do.
"""

from __future__ import annotations

from collections import deque
from concurrent import futures
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
from channels import WORDS, Channel, Sender, message
from control import RECEIVER_READY, Control, nothing
from meter import Meter

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
METHOD = "/forebay.Compare/Take"
UNDER_WAY = 16


class Grpc(Channel):
    """See above."""

    @staticmethod
    def serve(plan: SimpleNamespace, control: Control, handle: Any) -> dict[str, Any]:
        del handle
        meter = Meter(plan, control)

        def take(request: bytes, context: Any) -> bytes:
            del context
            meter.take(np.frombuffer(request, WORDS))
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
