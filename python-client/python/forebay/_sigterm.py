"""Who ends a worker: the daemon that started it, when everything it has for it is answered."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGTERM = signal.SIGTERM


def _pass_over(_number: int, _frame: object) -> None:
    """Take SIGTERM. A function, so that programs started from here have the default again; SIG_IGN is inherited."""


class _Forks:
    """Forked children, such as those of a pool, have the default again: from their first instruction on.

    What comes before they have it waits in the kernel; Python forgets signals that a child gets before its own hooks.
    """

    registered = False
    mask = threading.local()

    @classmethod
    def register(cls) -> None:
        if not cls.registered:
            cls.registered = True
            os.register_at_fork(before=cls.before, after_in_parent=cls.after, after_in_child=cls.in_child)

    @classmethod
    def before(cls) -> None:
        cls.mask.kept = signal.pthread_sigmask(signal.SIG_BLOCK, {SIGTERM})

    @classmethod
    def after(cls) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, cls.mask.kept)

    @classmethod
    def in_child(cls) -> None:
        if signal.getsignal(SIGTERM) is _pass_over:
            signal.signal(SIGTERM, signal.SIG_DFL)
        cls.after()


@contextlib.contextmanager
def sigterm_is_for_the_daemon() -> Iterator[None]:
    """Pass over SIGTERM within, if `forebay serve` started this process and nobody else handles it.

    A service manager may send it to every process of a unit at once. The daemon answers what it has then, for which it
    needs its workers; it ends them afterwards, kills those that stay, and they die with it.
    """
    mine = (
        "FOREBAY_MODEL" in os.environ
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(SIGTERM) is signal.SIG_DFL
    )
    if not mine:
        yield
        return
    _Forks.register()
    signal.signal(SIGTERM, _pass_over)
    try:
        yield
    finally:
        if signal.getsignal(SIGTERM) is _pass_over:
            signal.signal(SIGTERM, signal.SIG_DFL)
