"""`Worker`: the loop around a ServiceServer that calls a model.

Every request is answered exactly once, whatever the model does: with what it returned, with what it raised, or as
cancelled. Nothing is printed in normal operation; what a model raises is logged by the logger "forebay.worker".
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING

from forebay._errors import MessageTooLarge, PeerDied, ServiceClosed
from forebay._generate import Generation
from forebay._native import ServiceServer
from forebay._ranks import Ranks
from forebay._serving import GONE, Leaks, fail, fields, send_rows
from forebay._sigterm import sigterm_is_for_the_daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from forebay._generate import Generator
    from forebay._native import Batch
    from forebay._serving import Outputs


@contextlib.contextmanager
def _until_left() -> Iterator[None]:
    """End quietly when the client drains, at whatever point, and with a message when it died."""
    try:
        yield
    except ServiceClosed:
        return
    except PeerDied as e:
        raise SystemExit(f"forebay worker: {e}") from None


class Worker:
    """Serves one model to one client, such as `forebay serve`.

        def forward(batch):
            return {"embedding": model(**batch.torch())}

        forebay.Worker("embedder").run(forward)

    Started by `forebay serve` it finds everything in its environment, and leaves SIGTERM to the daemon while it runs, unless
    the program handles it; started by hand, `name` is the service's name.

    Args:
        name: the model, or the service; None: $FOREBAY_SERVICE.
        names: names of the fields when forward returns a tuple, or (one name) a bare array. Default: "output".
        directory: where the client listens; None: as ServiceServer.
        rank: this process's rank; None: $FOREBAY_RANK, else 0.
        answer_slots, answer_slot_bytes: as ServiceServer; None: $FOREBAY_ANSWER_SLOTS, $FOREBAY_ANSWER_SLOT_BYTES, else
            8 and 1 MiB.
        writable: whether forward writes into a batch's tensors, which the client must allow.
        timeout_s: seconds to wait for the client.
        wait: "adaptive", "spin" or "block".

    """

    def __init__(  # noqa: PLR0913 - keyword arguments of a constructor
        self,
        name: str | None = None,
        *,
        names: Sequence[str] = ("output",),
        directory: str | os.PathLike[str] | None = None,
        rank: int | None = None,
        answer_slots: int | None = None,
        answer_slot_bytes: int | None = None,
        writable: bool = False,
        timeout_s: float | None = 10.0,
        wait: str = "adaptive",
    ) -> None:
        """Remember it; nothing is attached before `run` or `generate`."""
        self.service = _service(name)
        self._names = tuple(names)
        self._options: dict[str, Any] = {
            "directory": directory,
            "rank": _number("FOREBAY_RANK", 0) if rank is None else rank,
            "answer_slots": _number("FOREBAY_ANSWER_SLOTS", 8) if answer_slots is None else answer_slots,
            "answer_slot_bytes": (
                _number("FOREBAY_ANSWER_SLOT_BYTES", 1 << 20) if answer_slot_bytes is None else answer_slot_bytes
            ),
            "writable": writable,
            "timeout_s": timeout_s,
            "wait": wait,
        }

    def run(self, forward: Callable[[Batch], Outputs], warmup: Callable[[], object] | None = None) -> None:
        """Answer batches until the client drains; blocks.

        `forward` gets a Batch and returns a dict of arrays with a row for each item. An item may fail alone:
        `batch.fail(3, error)`. When forward raises, it is called again with halves of the batch, so that only the items
        that make it raise fail; with several ranks the whole batch fails. A result that cannot be sent (rows, dtype,
        size of a row) fails its batch with a text that names found and expected; one whose rows do not fit a slot
        together goes in parts.

        Args:
            forward: the model.
            warmup: called once before the client is told that this worker is ready.

        Raises:
            SystemExit: with status 1: the client died, forward keeps the tensors of all batches there is room for, or
                it raised on some ranks and not on others.

        """
        with sigterm_is_for_the_daemon(), _until_left(), self._attached(warmup) as (server, ranks):
            leaks = Leaks(server)
            while True:
                batch = server.recv()
                self._one(server, ranks, forward, batch)
                del batch
                leaks.look()

    def generate(self, model: Generator, warmup: Callable[[], object] | None = None, *, max_states: int = 256) -> None:
        """Answer items step by step (continuous batching) until the client drains; blocks.

        Between two steps new items are admitted, and finished, cancelled and overdue ones dropped; the rows of a step
        go out as one part. Waits for requests only when it has no state.

        Args:
            model: see Generator.
            warmup: as in run.
            max_states: no request is taken while so many items are being worked on.

        Raises:
            SystemExit: with status 1: the client died.

        """
        with sigterm_is_for_the_daemon(), _until_left(), self._attached(warmup) as (server, ranks):
            Generation(server, ranks, model, self._names, max_states).run()

    @contextlib.contextmanager
    def _attached(self, warmup: Callable[[], object] | None) -> Iterator[tuple[ServiceServer, Ranks | None]]:
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(ServiceServer(self.service, **self._options))
            ranks = None
            if server.ranks > 1:
                ranks = Ranks(server, self._options["directory"])
                stack.callback(ranks.close)
            if warmup is not None:
                try:
                    warmup()
                except GONE as e:
                    # Of a ring of its own: not this service's client that left.
                    raise RuntimeError(f"warmup failed: {e}") from e
            if ranks is not None:
                ranks.meet()
            server.ready(_framework())
            yield server, ranks

    def _one(
        self, server: ServiceServer, ranks: Ranks | None, forward: Callable[[Batch], Outputs], batch: Batch
    ) -> None:
        if batch.unwanted():
            server.give_up(batch)
            return
        started = time.monotonic_ns()
        try:
            outputs = forward(batch)
        except Exception as e:  # noqa: BLE001 - said to the client
            if len(batch) == 1 or ranks is not None:
                fail(server, batch, e)
                if ranks is not None:
                    ranks.say(batch.request, raised=True)
                return
        except BaseException as e:
            fail(server, batch, e)
            raise
        else:
            self._send(server, batch, outputs, started)
            if ranks is not None:
                ranks.say(batch.request, raised=False)
            return
        self._split(server, forward, batch)

    def _send(self, server: ServiceServer, batch: Batch, outputs: Outputs, started: int) -> None:
        if server.rank != 0:
            server.finish(batch)
            return
        ended = time.monotonic_ns()
        try:
            server.answer(batch, fields(outputs, self._names), started_ns=started, ended_ns=ended)
        except GONE:
            raise
        except MessageTooLarge:
            self._send_in_parts(server, batch, outputs, started, ended)
        except Exception as e:  # noqa: BLE001 - whatever is wrong with it, the batch is answered
            fail(server, batch, e)
        except BaseException as e:
            fail(server, batch, e)
            raise

    def _send_in_parts(self, server: ServiceServer, batch: Batch, outputs: Outputs, started: int, ended: int) -> None:
        """Answer with what does not fit a slot: items may share a batch only because they came at the same time."""

        def part(start: int, stop: int) -> Batch:
            return batch if stop - start == len(batch) else batch._part(start, stop)  # noqa: SLF001 - ours

        def send(start: int, stop: int, rows: dict[str, Any]) -> None:
            server.answer(part(start, stop), rows, started_ns=started, ended_ns=ended)

        def refuse(start: int, stop: int, error: BaseException) -> None:
            fail(server, part(start, stop), error)

        send_rows(len(batch), outputs, self._names, send, refuse)

    def _split(self, server: ServiceServer, forward: Callable[[Batch], Outputs], batch: Batch) -> None:
        """Find the items that make forward raise: at most twice as many calls as there are items."""
        middle = len(batch) // 2
        parts = [batch.rows(middle, len(batch)), batch.rows(0, middle)]
        while parts:
            part = parts.pop()
            started = time.monotonic_ns()
            try:
                outputs = forward(part)
            except Exception as e:  # noqa: BLE001 - said to the client
                if len(part) == 1:
                    fail(server, part, e)
                else:
                    middle = len(part) // 2
                    parts += [part.rows(middle, len(part)), part.rows(0, middle)]
            except BaseException as e:
                for left in (part, *parts):
                    fail(server, left, e)
                raise
            else:
                self._send(server, part, outputs, started)


def _service(name: str | None) -> str:
    """Which service to attach to."""
    service, model = os.environ.get("FOREBAY_SERVICE"), os.environ.get("FOREBAY_MODEL")
    if service is None:
        if name is None:
            raise ValueError("which service? pass its name, set FOREBAY_SERVICE, or let `forebay serve` start this")
        return name
    if name is not None and name != service and model is not None and name != model:
        raise ValueError(
            f"this worker is for {name!r}, it was started for model {model!r}; check the daemon's configuration"
        )
    return service


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise ValueError(f"{variable} is {text!r}, expected a whole number") from None


def _framework() -> str:
    """Say what the client is told about this worker."""
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    for module in ("torch", "jax", "tensorflow", "onnxruntime", "numpy"):
        found = sys.modules.get(module)
        if found is not None:
            return f"{module} {getattr(found, '__version__', '')}".strip() + f", {python}"
    return python
