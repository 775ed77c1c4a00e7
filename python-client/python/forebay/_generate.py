"""Continuous batching: between two steps of a model new items begin and finished ones end."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, NoReturn, Protocol

from forebay._errors import ServiceClosed, ServiceError
from forebay._serving import GONE, Leaks, fail, fields, log

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, TypeAlias

    from forebay._native import Batch, ServiceServer
    from forebay._serving import Outputs

    State: TypeAlias = Any


class Generator(Protocol):
    """What `Worker.generate` calls: a model that answers step by step, any number of items at a time."""

    def admit(self, batch: Batch) -> Sequence[State]:
        """Begin with the items of a batch; one state for each. Copy what is kept of its tensors."""

    def step(self, states: Sequence[State]) -> tuple[Outputs, Sequence[bool]]:
        """Go on by one step: outputs with a row for each state, and for each whether it is finished.

        If it raises, it must leave the states as they were: it is called again with each of them alone.
        """

    def drop(self, state: State) -> None:
        """Let go of a state: it is finished, failed, cancelled, or its deadline is over. Called once for each."""


class Active:
    """An item that is being generated."""

    __slots__ = ("deadline", "id", "request", "state")

    def __init__(self, request: int, item: int, deadline: float | None, state: State) -> None:
        """One item of a request."""
        self.request, self.id, self.deadline, self.state = request, item, deadline, state


class Generation:
    """The loop of `Worker.generate`."""

    def __init__(self, server: ServiceServer, model: Generator, names: tuple[str, ...], max_states: int) -> None:
        """Nothing is active yet."""
        if server.ranks > 1:
            raise ServiceError("generate() works with one rank; step by step, several would admit at different times")
        self._server, self._model, self._names, self._max = server, model, names, max_states
        self._active: list[Active] = []
        self._leaks = Leaks(server)
        self._ended: ServiceClosed | None = None

    def run(self) -> NoReturn:
        """Go on until the client is gone."""
        try:
            while True:
                self._take()
                self._sweep()
                if self._active:
                    self._step()
                else:
                    self._leaks.look()
        finally:
            # Whatever ends it: what was begun is let go of, and answered if anybody still listens.
            self._abandon()

    def _take(self) -> None:
        """Admit what there is; wait for it only when there is nothing else to do."""
        if self._ended is not None:
            if not self._active:
                raise self._ended
            return
        try:
            if not self._active:
                self._admit(self._server.recv())
            while len(self._active) < self._max and (batch := self._server.try_recv()) is not None:
                self._admit(batch)
        except ServiceClosed as e:
            self._ended = e

    def _admit(self, batch: Batch) -> None:
        if batch.unwanted():
            self._server.give_up(batch)
            return
        try:
            self._begin(batch)
        except GONE:
            raise
        except Exception as e:  # noqa: BLE001 - said to the client
            if len(batch) == 1:
                fail(self._server, batch, e)
                return
        except BaseException as e:
            fail(self._server, batch, e)
            raise
        else:
            return
        for row in range(len(batch)):
            self._admit(batch.rows(row, row + 1))

    def _begin(self, batch: Batch) -> None:
        states = self._model.admit(batch)
        if len(states) != len(batch):
            for state in states:
                self._drop(state)
            raise ValueError(f"admit returned {len(states)} states for {len(batch)} items; return one for each")
        for item, state in zip(batch.items, states, strict=True):
            deadline = min(filter(None, (item.deadline, batch.deadline)), default=None)
            self._active.append(Active(batch.request, item.id, deadline, state))

    def _sweep(self) -> None:
        """Drop what nobody wants any more."""
        now, server = time.monotonic(), self._server
        gone = [
            a
            for a in self._active
            if (a.deadline is not None and a.deadline < now) or server.is_cancelled(a.request, a.id)
        ]
        if gone:
            self._end(gone, cancelled=list(range(len(gone))))

    def _step(self) -> None:
        active = list(self._active)
        started = time.monotonic_ns()
        try:
            self._one_step(active, started)
        except GONE:
            raise
        except Exception as e:  # noqa: BLE001 - said to the client
            if len(active) == 1:
                self._fail(active, e)
                return
        else:
            return
        for one in active:
            try:
                self._one_step([one], time.monotonic_ns())
            except GONE:
                raise
            except Exception as e:  # noqa: BLE001 - said to the client
                self._fail([one], e)

    def _one_step(self, active: list[Active], started: int) -> None:
        outputs, finished = self._model.step([a.state for a in active])
        ended = time.monotonic_ns()
        if len(finished) != len(active):
            raise ValueError(f"step said of {len(finished)} states whether they are finished, expected {len(active)}")
        rows = [(a.id, bool(last)) for a, last in zip(active, finished, strict=True)]
        try:
            self._server.part(rows, fields(outputs, self._names), started_ns=started, ended_ns=ended)
        except GONE:
            raise
        except Exception as e:  # noqa: BLE001 - the states went on, so these items cannot be retried
            self._fail(active, e)
            return
        over = {a.id for a, (_, last) in zip(active, rows, strict=True) if last}
        if over:
            self._let_go([a for a in active if a.id in over])

    def _fail(self, active: list[Active], error: Exception) -> None:
        log.warning("a step of %d items failed", len(active), exc_info=error)
        self._end(active, errors=dict.fromkeys(range(len(active)), error))

    def _end(self, active: list[Active], **how: Any) -> None:  # noqa: ANN401 - arguments of `part`
        self._server.part([(a.id, True) for a in active], {}, **how)
        self._let_go(active)

    def _let_go(self, active: list[Active]) -> None:
        ids = {a.id for a in active}
        self._active = [a for a in self._active if a.id not in ids]
        for a in active:
            self._drop(a.state)

    def _drop(self, state: State) -> None:
        try:
            self._model.drop(state)
        except Exception as e:  # noqa: BLE001 - it is gone for us in any case
            log.warning("drop failed", exc_info=e)

    def _abandon(self) -> None:
        active = self._active
        if active:
            try:
                error = sys.exception()
                self._end(active, errors=dict.fromkeys(range(len(active)), error or "the worker left"))
            except Exception:  # noqa: BLE001 - nobody listens any more
                self._let_go(active)
