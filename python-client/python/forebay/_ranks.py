"""How the ranks of a service stay together: they must do the same with every batch, or their collectives do not match.

Each rank has a ring of words, `NAME.r<rank>`: after a batch it says whether its model raised. Nobody waits for these,
but a rank whose own model raised: it goes on only if all others' did, and otherwise ends the service. The ring `NAME.l`
is rank 0's while it generates: before each step it says what the others are to admit and to drop.
"""

from __future__ import annotations

import contextlib
import struct
import time
from typing import TYPE_CHECKING, Final, NoReturn

from forebay._errors import PeerDied, ReceiveTimeout, RingClosed
from forebay._native import Consumer, Producer

if TYPE_CHECKING:
    from os import PathLike

    from forebay._native import ServiceServer

# A rank that raised waits so long for the others to say whether they did.
AGREE_S: Final = 10.0
# Loading a model may take long, and not equally long on each rank.
MEET_S: Final = 1800.0
# A rank that rank 0 left without a word waits so long to hear that the client is gone: many times what that takes.
HEAR_OF_IT_S: Final = 2.0
# Words that a rank may be ahead of another: many more than there are batches under way.
_WORDS: Final = 256
_DECISION: Final = struct.Struct("<IB")
_MOST_DROPPED: Final = 4096


class Ranks:
    """What one rank says to the others, and hears from them."""

    def __init__(self, server: ServiceServer, directory: str | PathLike[str] | None) -> None:
        """Make this rank's rings; the others' are found by `meet`."""
        service, rank = server.service, server.rank
        self._server, self._service, self.rank, self._ranks = server, service, rank, server.ranks
        self._directory = directory
        self._words = self._ring(f"{service}.r{rank}", when_full="drop-oldest", slots=_WORDS, slot_bytes=64)
        self._decisions: Producer | Consumer | None = None
        if rank == 0:
            self._decisions = self._ring(f"{service}.l", slots=8, slot_bytes=8 * _MOST_DROPPED)
        self._others: dict[int, Consumer] = {}

    def _ring(self, name: str, **options: object) -> Producer:
        return Producer(
            name,
            kind="broadcast",
            backing="memfd",
            max_consumers=self._ranks - 1,
            directory=self._directory,
            **options,  # type: ignore[arg-type]
        )

    def meet(self) -> None:
        """Wait for all others to come as far as this."""
        for rank in range(self._ranks):
            if rank != self.rank:
                self._others[rank] = self._attach(f"{self._service}.r{rank}")
        if self._decisions is None:
            self._decisions = self._attach(f"{self._service}.l")
        self._words.wait_for_consumers(self._ranks - 1, timeout_s=MEET_S)
        if isinstance(self._decisions, Producer):
            self._decisions.wait_for_consumers(self._ranks - 1, timeout_s=MEET_S)

    def _attach(self, ring: str) -> Consumer:
        return Consumer(ring, directory=self._directory, timeout_s=MEET_S)

    def say(self, what: int, *, raised: bool) -> None:
        """Say how it went with a batch, or a step; if this rank's model raised, go on only if all others' did.

        Raises:
            SystemExit: the ranks went apart.

        """
        self._words.send({}, correlation_id=what, user=b"raised" if raised else None)
        if not raised:
            return
        give_up = time.monotonic() + AGREE_S
        for rank, words in self._others.items():
            found = self._word(words, what, give_up)
            if found != "raised":
                raise SystemExit(
                    f"forebay worker: the model raised on rank {self.rank}, rank {rank} {found}; the ranks would go on "
                    f"with different batches, so service {self._service!r} ends"
                )

    @staticmethod
    def _word(words: Consumer, what: int, give_up: float) -> str:
        while True:
            try:
                word = words.recv(timeout_s=max(0.0, give_up - time.monotonic()))
            except ReceiveTimeout:
                return f"did not end within {AGREE_S:g} s"
            except (PeerDied, RingClosed):
                return "is gone"
            if word.correlation_id == what:
                return "raised" if word.user else "did not"

    def decide(self, admit: int, drop: list[int], *, end: bool) -> None:
        """As rank 0: tell the others how many batches to admit and which items to drop, or that this is the end."""
        if not isinstance(self._decisions, Producer):
            raise TypeError("only rank 0 decides")
        first, rest = drop[:_MOST_DROPPED], drop[_MOST_DROPPED:]
        ids = struct.pack(f"<{len(first)}Q", *first)
        fields = {"drop": memoryview(ids).cast("Q")} if first else {}
        self._decisions.send(
            fields, user=_DECISION.pack(0 if rest else admit, (2 if rest else 0) | end), timeout_s=None
        )
        if rest:
            self.decide(admit, rest, end=end)

    def hear(self) -> tuple[int, list[int], bool]:
        """As another rank: wait for what rank 0 decided.

        Raises:
            ServiceClosed, PeerDied: the client is gone, and rank 0 left because of that.
            SystemExit: rank 0 left, or died, for another reason.

        """
        if not isinstance(self._decisions, Consumer):
            raise TypeError("rank 0 decides")
        dropped: list[int] = []
        while True:
            try:
                word = self._decisions.recv()
            except RingClosed:
                self._hear_of_the_client()
                self._left_by_rank_0()
            except PeerDied:
                self._left_by_rank_0()
            admit, flags = _DECISION.unpack(word.user)
            if "drop" in word:
                dropped += memoryview(word["drop"]).cast("B").cast("Q").tolist()
            if not flags & 2:
                return admit, dropped, bool(flags & 1)

    def _hear_of_the_client(self) -> None:
        # Rank 0 left in order, as a rule because the client is gone: it only heard first. This raises what rank 0 heard.
        give_up = time.monotonic() + HEAR_OF_IT_S
        with contextlib.suppress(ReceiveTimeout):
            while True:
                # What was asked in the end is nobody's any more.
                self._server.recv(timeout_s=max(0.0, give_up - time.monotonic()))

    def _left_by_rank_0(self) -> NoReturn:
        raise SystemExit(
            f"forebay worker: rank 0 of service {self._service!r} left, rank {self.rank} cannot go on without it; look "
            "at what rank 0 says"
        )

    def close(self) -> None:
        """Leave the others."""
        for ring in (self._words, self._decisions, *self._others.values()):
            if ring is not None:
                ring.close()
