"""Continuous batching: between two steps of a model new items begin and finished ones end."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, TypeAlias

from forebay._errors import ServiceClosed
from forebay._serving import GONE, Leaks, fail, fields, log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forebay._native import Batch, ServiceServer
    from forebay._ranks import Ranks
    from forebay._serving import Outputs

State: TypeAlias = Any


class Generator(Protocol):
    """What `Worker.generate` calls: a model that answers step by step, any number of items at a time."""

    def admit(self, batch: Batch) -> Sequence[State]:
        """Begin with the items of a batch; one state for each. Copy what is kept of its tensors.

        When it raises, or calls `batch.fail`, it is called again with each item alone, and those fail that it does so for;
        with several ranks all of them.
        """

    def step(self, states: Sequence[State]) -> tuple[Outputs, Sequence[bool]]:
        """Go on by one step: outputs with a row for each state, and for each whether it is finished.

        If it raises, it must leave the states as they were: it is called again with each of them alone. With several
        ranks all of these items fail.
        """

    def drop(self, state: State) -> None:
        """Let go of a state: it is finished, failed, cancelled, or its deadline is over. Called once for each."""


class ItemFailed(Exception):  # noqa: N818 - its name is read by clients
    """`admit` said of an item that it failed."""


class Made(NamedTuple):
    """What a step gave, and when it ran."""

    outputs: Outputs
    finished: list[bool]
    started_ns: int
    ended_ns: int


class Active:
    """An item that is being generated."""

    __slots__ = ("deadline", "id", "request", "state")

    def __init__(self, request: int, item: int, deadline: float | None, state: State) -> None:
        """One item of a request."""
        self.request, self.id, self.deadline, self.state = request, item, deadline, state


class Generation:
    """The loop of `Worker.generate`."""

    def __init__(
        self, server: ServiceServer, ranks: Ranks | None, model: Generator, names: tuple[str, ...], max_states: int
    ) -> None:
        """Nothing is active yet."""
        self._server, self._ranks, self._model, self._names, self._max = server, ranks, model, names, max_states
        self._active: list[Active] = []
        self._leaks = Leaks(server)
        self._ended: ServiceClosed | None = None
        self._words = 0  # said to the other ranks

    def run(self) -> NoReturn:
        """Go on until the client is gone."""
        try:
            while True:
                batches, gone = self._decide()
                while batches:
                    self._admit(batches.pop(0))
                if gone:
                    self._end(gone, cancelled=list(range(len(gone))))
                if self._active:
                    self._step()
                else:
                    self._leaks.look()
        finally:
            # Whatever ends it: what was begun is let go of, and answered if anybody still listens.
            self._abandon()

    def _decide(self) -> tuple[list[Batch], list[Active]]:
        """Find out what to admit and what to drop before the next step; rank 0 does so for all."""
        if self._ranks is not None and self._server.rank != 0:
            admit, drop, end = self._ranks.hear()
            if end:
                # Nothing comes any more: this raises.
                self._server.recv()
            ids = set(drop)
            return [self._server.recv() for _ in range(admit)], [a for a in self._active if a.id in ids]
        batches = self._take()
        now = time.monotonic()
        cancelled = set(self._server.cancelled())
        gone = [
            a
            for a in self._active
            if (a.deadline is not None and a.deadline < now) or (cancelled and (a.request, a.id) in cancelled)
        ]
        over = self._ended is not None and not self._active and not batches
        if self._ranks is not None:
            self._ranks.decide(len(batches), [a.id for a in gone], end=over)
        if over and self._ended is not None:
            raise self._ended
        return batches, gone

    def _take(self) -> list[Batch]:
        """Take what there is; wait for it only when there is nothing else to do."""
        batches: list[Batch] = []
        room = self._max - len(self._active)
        try:
            if not self._active and self._ended is None:
                batches.append(self._server.recv())
            while (
                self._ended is None and sum(map(len, batches)) < room and (batch := self._server.try_recv()) is not None
            ):
                batches.append(batch)
        except ServiceClosed as e:
            self._ended = e
        return batches

    def _admit(self, batch: Batch) -> None:
        if batch.unwanted():
            self._server.give_up(batch)
            return
        try:
            self._begin(batch)
        except Exception as e:  # noqa: BLE001 - said to the client
            if len(batch) == 1 or self._ranks is not None:
                fail(self._server, batch, e)
                self._say(raised=True)
                return
        except BaseException as e:
            fail(self._server, batch, e)
            raise
        else:
            if self._server.rank != 0:
                self._server.finish(batch)
            self._say(raised=False)
            return
        for row in range(len(batch)):
            self._admit(batch.rows(row, row + 1))

    def _say(self, *, raised: bool) -> None:
        if self._ranks is not None:
            self._words += 1
            self._ranks.say(self._words, raised=raised)

    def _begin(self, batch: Batch) -> None:
        states = self._model.admit(batch)
        if len(states) != len(batch):
            for state in states:
                self._drop(state)
            raise ValueError(f"admit returned {len(states)} states for {len(batch)} items; return one for each")
        if failures := batch._failures:
            # As if it had raised: each item is admitted alone then, and those that failed are told so.
            for state in states:
                self._drop(state)
            raise ItemFailed(failures[0][1])
        for item, state in zip(batch.items, states, strict=True):
            deadline = min(filter(None, (item.deadline, batch.deadline)), default=None)
            self._active.append(Active(batch.request, item.id, deadline, state))

    def _step(self) -> None:
        active = list(self._active)
        try:
            made = self._compute(active)
        except Exception as e:  # noqa: BLE001 - said to the client
            if len(active) == 1 or self._ranks is not None:
                self._fail(active, e)
                self._say(raised=True)
                return
        else:
            self._deliver(active, made)
            self._say(raised=False)
            return
        for one in active:
            try:
                made = self._compute([one])
            except Exception as e:  # noqa: BLE001 - said to the client
                self._fail([one], e)
            else:
                self._deliver([one], made)

    def _compute(self, active: list[Active]) -> Made:
        """Go on by one step. Whatever is raised here is the model's."""
        started = time.monotonic_ns()
        outputs, finished = self._model.step([a.state for a in active])
        ended = time.monotonic_ns()
        if len(finished) != len(active):
            raise ValueError(f"step said of {len(finished)} states whether they are finished, expected {len(active)}")
        return Made(outputs, [bool(last) for last in finished], started, ended)

    def _deliver(self, active: list[Active], made: Made) -> None:
        """Answer with what a step made. Raises only if there is nobody to answer."""
        rows = [(a.id, last) for a, last in zip(active, made.finished, strict=True)]
        try:
            if self._server.rank == 0:
                outputs = fields(made.outputs, self._names)
                self._server.part(rows, outputs, started_ns=made.started_ns, ended_ns=made.ended_ns)
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
        if self._server.rank == 0:
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
