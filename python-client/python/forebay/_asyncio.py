"""Consumers under asyncio: one reader on the consumer's descriptor wakes whoever waits.

A message is taken only in a step that ends with returning it: there is no await in between, so a cancelled wait has
taken nothing.

The reader stays registered from one wait to the next, because registering takes longer than a wake: until it is called
while nobody waits, another loop waits, or the consumer is closed or collected. The loop watches a duplicate of the
consumer's descriptor, which is closed only after it was taken out of the loop: so its number never means another file
there.
"""

from __future__ import annotations

import asyncio
import os
import stat
import weakref
from typing import TYPE_CHECKING, TypeVar

from forebay._errors import QuotaExceeded, ReceiveTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from forebay._native import Consumer, Message

_T = TypeVar("_T")

QUOTA_PATIENCE_S = 1.0  # without a timeout, a consumer that holds all it may waits so long for a release
QUOTA_LOOK_S = 0.001


class Descriptor:
    """A duplicate of a descriptor, closed once, and not if its number means something else by then."""

    def __init__(self, of: int) -> None:
        """Duplicate `of`."""
        self.number = os.dup(of)
        self._identity = self._look()

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = os.fstat(self.number)
        except OSError:
            return None
        return found.st_dev, found.st_ino, stat.S_IFMT(found.st_mode)

    def close(self) -> None:
        """Close it, unless somebody else did."""
        if self._look() == self._identity is not None:
            os.close(self.number)
        self._identity = None


class Waiters:
    """Who waits for one consumer's descriptor, on one event loop at a time."""

    def __init__(self, consumer: Consumer) -> None:
        """Nobody yet."""
        self._consumer = weakref.ref(consumer)
        self._loop: asyncio.AbstractEventLoop | None = None  # where the reader is registered
        self._descriptor: Descriptor | None = None
        self._futures: list[asyncio.Future[None]] = []
        self._pid = os.getpid()
        # Not at exit: the loop may be gone by then, and closes with the process.
        weakref.finalize(consumer, self.close).atexit = False

    def enter(self, consumer: Consumer) -> asyncio.Future[None]:
        """Done when `try_recv` should be called."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._register(consumer, loop)
        future: asyncio.Future[None] = loop.create_future()
        self._futures.append(future)
        return future

    def leave(self, future: asyncio.Future[None]) -> None:
        """Wait no more."""
        if future in self._futures:
            self._futures.remove(future)

    def _register(self, consumer: Consumer, loop: asyncio.AbstractEventLoop) -> None:
        before = self._loop
        if before is not None and not before.is_closed():
            if self._futures:
                raise RuntimeError("this consumer is waited for on another event loop; attach one consumer per loop")
            self._unregister(before)
        self._loop, self._futures = None, []
        if self._descriptor is None:
            self._descriptor = Descriptor(consumer.fileno())
        loop.add_reader(self._descriptor.number, self._wake, loop)
        self._loop = loop

    def _unregister(self, loop: asyncio.AbstractEventLoop) -> None:
        # Without a descriptor, who closed it takes it out.
        if self._descriptor is not None:
            number = self._descriptor.number
            _in(loop, lambda: loop.remove_reader(number))

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        futures, consumer = self._futures, self._consumer()
        if not futures or consumer is None or loop is not self._loop:
            # Nobody is there to look, and the descriptor stays readable until somebody does.
            self._unregister(loop)
            if loop is self._loop:
                self._loop = None
            return
        consumer._silence()
        self._futures = []
        for future in futures:
            if not future.done():
                future.set_result(None)

    def close(self) -> None:
        """Let everybody look, and see that the consumer is closed; let the descriptor go."""
        loop, futures, descriptor = self._loop, self._futures, self._descriptor
        self._loop, self._futures, self._descriptor = None, [], None
        if descriptor is None or self._pid != os.getpid():
            # In a forked child the loop is not ours, and what it watches is still the parent's.
            return

        def end() -> None:
            for future in futures:
                if not future.done():
                    future.set_result(None)
            if loop is not None:
                loop.remove_reader(descriptor.number)
            descriptor.close()

        if loop is None or loop.is_closed() or not _in(loop, end):
            descriptor.close()


def _in(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> bool:
    """Call it now if that is this thread's business, else soon; False if the loop is closed."""
    if loop.is_running() and loop is not asyncio._get_running_loop():
        try:
            loop.call_soon_threadsafe(call)
        except RuntimeError:
            return False
    elif loop.is_closed():
        return False
    else:
        call()
    return True


async def _until(consumer: Consumer, take: Callable[[], _T | None], timeout_s: float | None = None) -> _T:
    loop = asyncio.get_running_loop()
    deadline = None if timeout_s is None else loop.time() + timeout_s
    give_up: float | None = None
    while True:
        try:
            found = take()
        except QuotaExceeded:
            # Other tasks may let go of what this consumer holds: as in `recv`.
            now = loop.time()
            if give_up is None:
                give_up = now + QUOTA_PATIENCE_S if deadline is None else deadline
            if now >= give_up:
                raise
            await asyncio.sleep(min(QUOTA_LOOK_S, give_up - now))
            continue
        if found is not None:
            return found
        give_up = None
        waiters: Waiters = consumer._waiters
        future = waiters.enter(consumer)
        try:
            if deadline is None:
                await future
            else:
                async with asyncio.timeout_at(deadline):
                    await future
        except TimeoutError:
            timeout = ReceiveTimeout(f"no message from {consumer.ring!r} in {timeout_s} s")
            timeout.ring, timeout.waited_s = consumer.ring, timeout_s or 0.0
            raise timeout from None
        finally:
            waiters.leave(future)


def recv_async(consumer: Consumer, timeout_s: float | None) -> Coroutine[Any, Any, Message]:
    """Wait for the next message; see `Consumer.recv_async`."""
    return _until(consumer, consumer.try_recv, timeout_s)


def anext_message(consumer: Consumer) -> Coroutine[Any, Any, Message]:
    """Wait for the next message of an `async for`; acks the one before."""
    return _until(consumer, consumer._try_next)
