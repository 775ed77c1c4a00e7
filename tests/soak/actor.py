"""The Python half of the kill soak: a zygote that has imported torch and forebay, and forks victims on command.

    actor.py LEDGER    the first line of stdin says where the ledger's words are; each further one asks for a victim

A victim attaches a real consumer or producer after the fork, holds torch views through something like a forward pass,
and is killed anywhere in it. What it does it notes in the same words as the native victims (`ledger.rs`).
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

import forebay

MASK = (1 << 64) - 1


class Book:
    """The ledger: plain stores of aligned words into a shared file, which outlive their writer."""

    def __init__(self, path: str, layout: dict[str, int]) -> None:
        with Path(path).open("r+b") as file:
            self.words = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
        self.at = layout

    def ring(self, ring: int) -> int:
        return self.at["header_words"] + ring * self.at["ring_words"]

    def life(self, life: int) -> int:
        return self.at["lives_at"] + life * self.at["life_words"]

    def cell(self, ring: int, cell: int) -> int:
        return self.at["cells_at"] + (ring * self.at["cells"] + cell) * self.at["cell_words"]


def payload(message_id: int, count: int) -> torch.Tensor:
    """All words of a message, as the native victims compute them."""
    first = np.uint64(message_id * 0x9E3779B97F4A7C15 & MASK)
    mixed = np.arange(count, dtype=np.uint64) * np.uint64(0xBF58476D1CE4E5B9) + first
    return torch.from_numpy((mixed ^ (mixed >> np.uint64(29))).view(np.int64))


def user(message_id: int) -> bytes:
    return message_id.to_bytes(8, "little") if (message_id >> 32) % 4 == 0 else b""


class WrongError(Exception):
    """Something that must not be."""


class Victim:
    """One life, in its own process."""

    def __init__(self, book: Book, order: dict) -> None:
        self.book, self.order, self.words, self.at = book, order, book.words, book.at
        self.life, self.ring = book.life(order["life"]), book.ring(order["ring"])
        self.dice = random.Random(order["seed"])  # noqa: S311
        self.name, self.queue = order["name"], order["kind"] == "queue"
        self.schema = None
        if order["schema"]:
            self.schema = forebay.Schema("soak", (1, 0), {"words": ("int64", (order["words"],))})

    def set(self, word: str, value: int) -> None:
        self.words[self.life + self.at[word]] = value

    def get(self, word: str) -> int:
        return self.words[self.life + self.at[word]]

    def of_ring(self, word: str) -> int:
        return self.words[self.ring + self.at[word]]

    def enter(self, queue: str, broadcast: str | None = None) -> None:
        state = self.order["states"][queue if self.queue or broadcast is None else broadcast]
        self.set("state", state)
        if state == self.order["aim"]:
            # The supervisor shoots whoever it sees in the state that lacks kills.
            time.sleep(self.dice.random() * 0.002)

    def dawdle(self, most_s: float) -> None:
        time.sleep(most_s * self.dice.random() ** 4)

    def fail(self, what: str) -> None:
        text = f"{self.name} (Python): {what}".encode()[: 8 * self.at["failure_words"]]
        padded = text + bytes(-len(text) % 8)
        for i in range(len(padded) // 8):
            self.words[self.life + self.at["failure_text"] + i] = int.from_bytes(padded[8 * i : 8 * i + 8], "little")
        self.set("failure", len(text))

    # === consumers ===

    def consume(self) -> None:
        manual = self.dice.random() < 0.5
        start = time.monotonic_ns()
        self.enter("attaching", "joining")
        consumer = None
        while consumer is None:
            try:
                consumer = forebay.Consumer(
                    self.name,
                    timeout_s=1.0,
                    ack="manual" if manual else "auto",
                    wait=self.dice.choice(["block", "adaptive"]),
                    directory=self.order["directory"],
                    schema=self.schema,
                    label="soak.py",
                )
            except (forebay.RingNotFound, forebay.PeerSilent):
                pass
            except forebay.AttachRefused as e:
                if "places are taken" not in str(e):
                    raise
                time.sleep(0.002)
            if consumer is None and self.of_ring("ring_finish"):
                return
        self.set("admitted_at", self.of_ring("ring_intent") + 1)
        self.set("member", consumer.index + 1)
        self.set("entry_ns", time.monotonic_ns() - start)
        held: list[tuple] = []
        left = self.dice.randrange(4, 60)
        while left > 0 and self.get("records") < self.at["records_max"] - 8:
            before = self.of_ring("ring_published")
            self.enter("claiming", "receiving")
            try:
                message = consumer.try_recv()
                if message is None:
                    self.enter("parked", "member parked")
                    message = consumer.recv(0.001 + 0.1 * self.dice.random())
            except forebay.ReceiveTimeout:
                self.is_up_to(before)
                while held:
                    self.settle(held, 0, manual)
                if self.of_ring("ring_finish") >= 2:  # noqa: PLR2004
                    break
                continue
            except forebay.RingClosed:
                self.is_up_to(before)
                self.set("saw_end", 1)
                break
            left -= 1
            held.append(self.note(message))
            del message
            if len(held) >= 3 or self.dice.random() < 0.75:  # noqa: PLR2004
                self.settle(held, self.dice.randrange(len(held)), manual)
        self.leave(consumer, held)

    def is_up_to(self, before: int) -> None:
        last = max(self.get("last"), self.get("admitted_at") - 1)
        if not self.queue and before > last:
            raise WrongError(f"MISSING: was told that there is nothing more after {last}, and {before} was published")

    def note(self, message: forebay.Message) -> tuple:
        message_id = message.correlation_id
        cell, nonce = message_id & 0xFFFFFFFF, message_id >> 32
        record = 0
        if self.queue:
            number = self.get("records")
            record = self.life + self.at["first_record"] + number * self.at["record_words"]
            self.words[record] = cell | message.attempts << 40 | message.slot << 48
            self.words[record + 1] = time.monotonic_ns()
            self.words[record + 2] = 0
            self.words[record + 3] = nonce
            self.set("records", number + 1)
        else:
            last = self.get("last")
            if self.get("first") == 0:
                self.set("first", cell)
            elif cell != last + 1:
                raise WrongError(f"GAP: received message {cell} after {last}")
            self.set("last", cell)
        if message.user != user(message_id):
            raise WrongError(f"message {cell} has user data {message.user!r}")
        view = message["words"].torch()
        expected = payload(message_id, view.numel())
        self.check(view, expected, message_id)
        self.set("received", self.get("received") + 1)
        self.enter("holding", "member holding")
        self.forward(view)
        return message, view, expected, message_id, record

    def forward(self, view: torch.Tensor) -> None:
        """Something like a forward pass: reads the view for a while, through views of it."""
        until = time.monotonic() + 0.004 * self.dice.random() ** 3
        weights = torch.ones(16, 16)
        total = torch.zeros(16)
        while True:
            head = view[: view.numel() // 16 * 16].view(-1, 16)
            total += (head.to(torch.float32) * 1e-18 @ weights).sum(0) if head.numel() else 0
            if time.monotonic() > until:
                return

    def check(self, view: torch.Tensor, expected: torch.Tensor, message_id: int) -> None:
        if not torch.equal(view, expected):
            at = int((view != expected).nonzero()[0])
            raise WrongError(f"TORN: word {at} of message {message_id & 0xFFFFFFFF} is {int(view[at]):#x}")
        self.set("checked", self.get("checked") + view.numel())

    def advance(self, record: int, *stages: str) -> None:
        if self.queue:
            for stage in stages:
                self.words[record + 2] |= self.at[stage]

    def settle(self, held: list[tuple], which: int, manual: bool) -> None:  # noqa: FBT001
        # Popped here, so that the references of this frame are the last ones.
        message, view, expected, message_id, record = held.pop(which)
        self.check(view, expected, message_id)
        self.advance(record, "checked_again")
        choice = self.dice.random()
        if not self.queue:
            self.enter("member releasing")
            del message, view
        elif choice < 0.1:  # noqa: PLR2004
            self.advance(record, "nacking")
            self.enter("nacking")
            message.nack()
            del message, view
            self.advance(record, "nacked", "released")
        elif manual or choice < 0.5:  # noqa: PLR2004
            self.advance(record, "acking")
            self.enter("acking")
            if not message.ack():
                raise WrongError("an ack of a held message says that it was nacked")
            self.advance(record, "acked")
            del message
            self.enter("acked, holding")
            self.dawdle(0.002)
            self.check(view, expected, message_id)
            self.enter("releasing")
            del view
            self.advance(record, "released")
        else:
            self.advance(record, "acking")
            self.enter("releasing")
            del message, view
            self.advance(record, "acked", "released")

    def leave(self, consumer: forebay.Consumer, held: list[tuple]) -> None:
        records = [one[4] for one in held]
        for _message, view, expected, message_id, record in held:
            self.check(view, expected, message_id)
            self.advance(record, "nacking")
        _message = view = expected = None
        self.enter("leaving", "member leaving")
        consumer.close()
        held.clear()
        for record in records:
            self.advance(record, "nacked", "released")
        self.set("member", 0)

    # === producers ===

    def produce(self) -> None:
        start = time.monotonic_ns()
        there = self.of_ring("ring_there")
        self.enter("taking over" if there else "creating")
        producer = forebay.Producer(
            self.name,
            directory=self.order["directory"],
            kind=self.order["kind"],
            backing=self.order["backing"],
            slots=self.order["slots"],
            slot_bytes=self.order["words"] * 8,
            max_consumers=self.order["max_consumers"],
            max_attempts=self.order["max_attempts"],
            schema=self.schema,
            label="soak.py",
        )
        self.set("entry_ns", time.monotonic_ns() - start)
        base = self.of_ring("ring_base")
        if producer.takeover is None:
            raise WrongError("LOST: the ring that a predecessor left is gone")
        self.check_takeover(producer.takeover, base)
        for number in range(self.dice.randrange(20, 400)):
            if self.of_ring("ring_finish"):
                break
            self.publish(producer, base, number)
        self.enter("closing")
        producer.suspend()

    def check_takeover(self, takeover: forebay.Takeover, base: int) -> None:
        published, intent = max(self.of_ring("ring_published"), base), max(self.of_ring("ring_intent"), base)
        found = base + takeover.last_sequence
        if not published <= found <= intent:
            raise WrongError(f"LOST: took over up to message {found}, {published} was published ({intent} begun)")
        if takeover.last_sequence:
            nonce = self.words[self.book.cell(self.order["ring"], found) + self.at["cell_intent"]]
            if takeover.last_user != user(found | nonce << 32):
                raise WrongError(f"took over user data {takeover.last_user!r} of message {found}")
            if found > published:
                self.published(found, nonce)

    def published(self, cell: int, nonce: int) -> None:
        at = self.book.cell(self.order["ring"], cell)
        self.words[at + self.at["cell_time"]] = time.monotonic_ns()
        self.words[at + self.at["cell_published"]] = nonce
        self.words[self.ring + self.at["ring_published"]] = cell

    def publish(self, producer: forebay.Producer, base: int, number: int) -> None:
        count = self.dice.randrange(1, self.order["words"] + 1)
        self.enter("loaning")
        try:
            try:
                loan = producer.loan({"words": ("int64", (count,))}, timeout_s=0)
            except forebay.RingFull:
                self.enter("waiting for a slot")
                loan = producer.loan({"words": ("int64", (count,))}, timeout_s=0.05)
        except forebay.RingFull:
            return
        cell = base + producer.stats.published + 1
        if cell + 2 >= self.at["cells"]:
            time.sleep(0.01)
            return
        nonce = (self.order["life"] + 1) << 12 | number & 0xFFF
        message_id = cell | nonce << 32
        self.enter("writing")
        loan["words"].torch().copy_(payload(message_id, count))
        if self.dice.random() < 0.02:  # noqa: PLR2004
            self.enter("abandoning a loan")
            loan.discard()
            return
        at = self.book.cell(self.order["ring"], cell)
        self.words[at + self.at["cell_intent"]] = nonce
        self.words[self.ring + self.at["ring_intent"]] = cell
        self.enter("publishing")
        sequence = loan.publish(correlation_id=message_id, user=user(message_id))
        if base + sequence != cell:
            raise WrongError(f"published sequence {sequence} as message {cell}")
        if self.words[at + self.at["cell_published"]]:
            raise WrongError(f"REUSED: message {cell} was published before")
        self.published(cell, nonce)


def live(book: Book, order: dict, parent: int) -> int:
    """The child's life; returns how it ended, as `ledger.rs` numbers it."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        return 3
    victim = Victim(book, order)
    try:
        victim.produce() if order["role"] == "producer" else victim.consume()
    except BaseException as e:  # noqa: BLE001
        victim.fail(f"{type(e).__name__}: {e}")
        return 3
    return 2


def reap(book: Book, lives: dict[int, int]) -> None:
    while lives:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        book.words[book.life(lives.pop(pid)) + book.at["status"]] = status | 1 << 32


def main() -> None:
    torch.set_num_threads(1)
    stdin = os.fdopen(0, "rb", buffering=0)
    buffer = b""
    book, states, lives = None, {}, {}
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}", flush=True)  # noqa: T201
    gc.collect()
    gc.freeze()
    while True:
        if book is not None:
            reap(book, lives)
        if not select.select([stdin], [], [], 0.002)[0]:
            continue
        chunk = stdin.read(1 << 16)
        if not chunk:
            break
        buffer += chunk
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            order = json.loads(line)
            if book is None:
                states = order.pop("states")
                book = Book(sys.argv[1], order)
                continue
            order["states"] = states
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                os._exit(live(book, order, parent))
            lives[pid] = order["life"]
            book.words[book.life(order["life"]) + book.at["pid"]] = pid
    for pid in lives:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
