"""What the tests of DataLoader and multiprocessing run in other processes; importable, so that spawn can pickle it."""

from __future__ import annotations

import copy

import numpy as np

import forebay

try:
    from torch.utils.data import IterableDataset
except ImportError:
    IterableDataset = object


class RingDataset(IterableDataset):
    """Messages of a ring; the consumer is attached where it is iterated over."""

    def __init__(self, consumer):
        self.consumer = consumer

    def __iter__(self):
        # Under fork the dataset is the parent's, and copying it attaches anew; under spawn pickling has.
        for message in copy.copy(self.consumer):
            with message:
                batch = message["x"].torch().clone()
            # Acked before it is handed on: DataLoader may not ask this worker again before another one answers, and
            # that one is told of the ring's end only once nothing can come back to it.
            yield batch


def use_parents_objects(consumer, producer, message, tensor, answers):
    """Call everything in a forked child and report what each call raised."""
    uses = {
        "recv": lambda: consumer.recv(0),
        "try_recv": consumer.try_recv,
        "held": consumer.held,
        "fileno": consumer.fileno,
        "iterate": lambda: next(iter(consumer)),
        "send": lambda: producer.send({"x": np.zeros(1)}),
        "loan": lambda: producer.loan({}),
        "drain": lambda: producer.drain(0),
        "stats": lambda: producer.stats,
        "numpy": tensor.numpy,
        "torch": tensor.torch,
        "copy": tensor.copy,
        "dlpack": tensor.__dlpack__,
        "tensor": lambda: message["x"].numpy(),  # noqa: PLW0108 - making the tensor is part of it
    }
    raised = {}
    for name, use in uses.items():
        try:
            use()
            raised[name] = None
        except forebay.ForkedError as e:
            raised[name] = str(e)
    consumer.close()
    producer.close()
    answers.put(raised)


def receive(consumer, answers):
    """Receive one message in a process that got the consumer by pickling."""
    message = consumer.recv(30)
    answers.put(int(message["x"].numpy()[0]))


def receive_copy(consumer, answers):
    """Receive one message in a forked process, with a copy of the parent's consumer."""
    other = copy.copy(consumer)
    answers.put(int(other.recv(30)["x"].numpy()[0]))
    other.close()
