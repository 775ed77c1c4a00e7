"""What both loops of a `Worker` need: outputs as fields, failures, leaks."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING, Any, TypeAlias

from forebay._errors import MessageTooLarge, PeerDied, ServiceClosed, ServiceError
from forebay._native import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from forebay._native import Batch, ServiceServer

# An array, a list of numbers, a dict or a tuple of these: NumPy and torch need not be installed to say so.
Outputs: TypeAlias = Any

log = logging.getLogger("forebay.worker")
GONE = (PeerDied, ServiceClosed)


def fields(outputs: Outputs, names: tuple[str, ...]) -> dict[str, Any]:
    """Give what a model returned as fields with names."""
    if isinstance(outputs, dict):
        return outputs
    if isinstance(outputs, tuple):
        if len(outputs) != len(names):
            raise TypeError(
                f"{len(outputs)} arrays were returned, the worker has names for {len(names)}: {', '.join(names)}; "
                "return a dict, or pass names="
            )
        return dict(zip(names, outputs, strict=True))
    if outputs is None:
        raise TypeError("None was returned, expected a dict of arrays; is there a return at the end?")
    if not isinstance(outputs, (list, bytes, bytearray, memoryview)) and not hasattr(outputs, "shape"):
        if isinstance(outputs, str) or not hasattr(outputs, "keys"):
            raise TypeError(f"a {type(outputs).__name__} was returned, expected a dict of arrays")
        # Such as the outputs of transformers' models; not all of these are dicts.
        return {name: outputs[name] for name in outputs.keys()}  # noqa: SIM118 - nor iterate
    if len(names) != 1:
        raise TypeError(f"one array was returned, the worker has names for {len(names)}; return a dict")
    return {names[0]: outputs}


def send_rows(
    count: int,
    outputs: Outputs,
    names: tuple[str, ...],
    send: Callable[[int, int, dict[str, Any]], None],
    refuse: Callable[[int, int, BaseException], None],
) -> None:
    """Send what a model returned for `count` items by `send(start, stop, fields)`: at once, or in halves that fit.

    What cannot be sent is refused. Raises only if there is nobody to send to, or to leave.
    """
    left = [(0, count, outputs)]
    while left:
        start, stop, rows = left.pop()
        try:
            rows = fields(rows, names)
            send(start, stop, rows)
        except GONE:
            raise
        except MessageTooLarge as e:
            halves = _halves(start, stop, rows, e)
            left += halves
            if not halves:
                refuse(start, stop, e)
        except Exception as e:  # noqa: BLE001 - whatever is wrong with it, it is answered
            refuse(start, stop, e)
        except BaseException as e:
            for first, last, _ in ((start, stop, rows), *left):
                refuse(first, last, e)
            raise


def _halves(
    start: int, stop: int, rows: dict[str, Any], error: MessageTooLarge
) -> list[tuple[int, int, dict[str, Any]]]:
    """Halve rows that do not fit a slot together, the first half last; nothing, if a single one would not either."""
    count = stop - start
    middle = count // 2
    try:
        if count == 1 or error.needed_bytes > count * error.largest_bytes:
            return []
        return [
            (start + middle, stop, {name: _cut(value, middle, count) for name, value in rows.items()}),
            (start, start + middle, {name: _cut(value, 0, middle) for name, value in rows.items()}),
        ]
    except Exception:  # noqa: BLE001 - what cannot be cut stays whole, and is too large
        return []


def _cut(rows: Any, start: int, stop: int) -> Any:  # noqa: ANN401 - an array
    return (rows.numpy() if isinstance(rows, Tensor) else rows)[start:stop]


def fail(server: ServiceServer, batch: Batch, error: BaseException | tuple[str, str]) -> None:
    """Tell the client, unless the batch was answered already."""
    if isinstance(error, Exception):
        log.warning("a batch of %d items failed", len(batch), exc_info=error)
    if server.rank != 0:
        server.finish(batch)
        return
    try:
        server.fail(batch, error)
    except ServiceError as e:
        if isinstance(e, ServiceClosed):
            raise


class Leaks:
    """Notices that tensors of old batches are kept, until no request could come any more."""

    def __init__(self, server: ServiceServer) -> None:
        """Nothing is kept yet."""
        self._server = server
        self._normal = 0  # what the collector could not free the last time

    def look(self) -> None:
        """Collect garbage if it has taken all slots but one; leave if all are taken for good."""
        held, slots = self._server.held
        if held < max(1, slots - 1) or held <= self._normal < slots or self._server.outstanding:
            return
        gc.collect()
        self._normal, slots = self._server.held
        if self._normal >= slots:
            raise SystemExit(
                f"forebay worker: tensors of {slots} answered batches are kept, service {self._server.service!r} has "
                "room for no more; keep .copy() (torch: .clone()) of what forward is to remember"
            )
