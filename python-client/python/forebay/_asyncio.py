"""Consumers under asyncio: one reader on the consumer's descriptor wakes whoever waits.

A message is taken only in a step that ends with returning it: there is no await in between, so a cancelled wait has
taken nothing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from forebay._errors import ReceiveTimeout

if TYPE_CHECKING:
    from collections.abc import Callable

    from forebay._native import Consumer, Message

_T = TypeVar("_T")


class Waiters:
    """Who waits for one consumer's descriptor, on one event loop."""

    def __init__(self) -> None:
        """Nobody yet."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fd = -1
        self._futures: list[asyncio.Future[None]] = []

    async def wait(self, consumer: Consumer) -> None:
        """Wait until `try_recv` should be called."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if not self._futures:
            self._loop, self._fd = loop, consumer.fileno()
            loop.add_reader(self._fd, self._wake)
        elif self._loop is not loop:
            raise RuntimeError("this consumer is waited for on another event loop; attach one consumer per loop")
        self._futures.append(future)
        try:
            await future
        finally:
            self._forget(future)

    def _wake(self) -> None:
        for future in self._futures:
            if not future.done():
                future.set_result(None)

    def _forget(self, future: asyncio.Future[None]) -> None:
        if future in self._futures:
            self._futures.remove(future)
        if not self._futures:
            self._stop()

    def _stop(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
        self._loop, self._fd = None, -1

    def close(self) -> None:
        """Let everybody look, and see that the consumer is about to be closed."""
        self._wake()
        self._futures = []
        self._stop()


async def _until(consumer: Consumer, take: Callable[[], _T | None]) -> _T:
    while True:
        found = take()
        if found is not None:
            return found
        waiters: Waiters = consumer._waiters
        await waiters.wait(consumer)


async def recv_async(consumer: Consumer, timeout_s: float | None) -> Message:
    """Wait for the next message; see `Consumer.recv_async`."""
    if timeout_s is None:
        return await _until(consumer, consumer.try_recv)
    try:
        async with asyncio.timeout(timeout_s):
            return await _until(consumer, consumer.try_recv)
    except TimeoutError as e:
        if isinstance(e, ReceiveTimeout):
            raise
        text = f"no message from {consumer.ring!r} in {timeout_s} s"
        timeout = ReceiveTimeout(text)
        timeout.ring, timeout.waited_s = consumer.ring, timeout_s
        raise timeout from None


async def anext_message(consumer: Consumer) -> Message:
    """Wait for the next message of an `async for`; acks the one before."""
    return await _until(consumer, consumer._try_next)
