"""Continuous batching: between two steps of a model new items begin and finished ones end."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, TypeAlias

from forebay._errors import ServiceClosed
from forebay._serving import Leaks, fail, log, send_rows

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


class ItemFailed(Exception):  # noqa: N818 - never leaves this file
    """`admit` said of an item that it failed: of which kind, and a text."""

    def __init__(self, said: str) -> None:
        """Take apart what `Batch.fail` put together."""
        super().__init__(said)
        kind, _, text = said.partition(": ")
        self.said = kind, text


class Made(NamedTuple):
    """What a step gave, and when it ran."""

    outputs: Outputs
    finished: list[bool]
    started_ns: int
    ended_ns: int


class Active:
    """An item that is being generated."""

    __slots__ = ("deadline", "id", "is_told", "request", "state")

    def __init__(self, request: int, item: int, deadline: float | None, state: State) -> None:
        """One item of a request."""
        self.request, self.id, self.deadline, self.state = request, item, deadline, state
        self.is_told = False  # its last answer went out, its state is still there


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
                    self._end(gone)
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
            if a.is_told
            or (a.deadline is not None and a.deadline < now)
            or (cancelled and (a.request, a.id) in cancelled)
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
                fail(self._server, batch, e.said if isinstance(e, ItemFailed) else e)
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
        if self._server.rank == 0:

            def send(start: int, stop: int, rows: dict[str, Any]) -> None:
                items = [(a.id, last) for a, last in zip(active[start:stop], made.finished[start:stop], strict=True)]
                self._server.part(items, rows, started_ns=made.started_ns, ended_ns=made.ended_ns)
                for a, (_, last) in zip(active[start:stop], items, strict=True):
                    a.is_told = last

            def refuse(start: int, stop: int, error: BaseException) -> None:
                # The states went on, so these items cannot be tried again. They are let go of after the next decision:
                # of what cannot be sent only this rank knows, and all must go on with the same states.
                self._refuse(active[start:stop], error)

            send_rows(len(active), made.outputs, self._names, send, refuse)
        over = [a for a, last in zip(active, made.finished, strict=True) if last]
        if over:
            self._let_go(over)

    def _fail(self, active: list[Active], error: Exception) -> None:
        self._refuse(active, error)
        self._let_go(active)

    def _refuse(self, active: list[Active], error: BaseException) -> None:
        if isinstance(error, Exception):
            log.warning("a step of %d items failed", len(active), exc_info=error)
        self._tell(active, error)

    def _end(self, active: list[Active]) -> None:
        self._tell(active, None)
        self._let_go(active)

    def _tell(self, active: list[Active], error: BaseException | str | None) -> None:
        """Answer for the last time: as failed, or without an error as cancelled."""
        told = [a for a in active if not a.is_told]
        if self._server.rank == 0 and told:
            places = range(len(told))
            errors = None if error is None else dict.fromkeys(places, error)
            cancelled = list(places) if error is None else None
            self._server.part([(a.id, True) for a in told], {}, errors=errors, cancelled=cancelled)
        for a in told:
            a.is_told = True

    def _let_go(self, active: list[Active]) -> None:
        # Not by id: an item that was told of its end may have a successor of the same id already.
        gone = set(active)
        self._active = [a for a in self._active if a not in gone]
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
            error = sys.exception() or "the worker left"
            # Perhaps nobody listens any more.
            with contextlib.suppress(Exception):
                self._tell(active, error)
            self._let_go(active)
