"""The Python column of the conformance table.

`runner.py BINARY OUT [--pairwise]` asks `BINARY --list` (forebay-conformance) for the cells, runs in each the Python
test of that name, and writes the cells with their outcome to OUT, one JSON object a line, for `BINARY --merge OUT`. A
behaviour without a function here stays empty, which fails the table.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import subprocess
import sys
import tempfile
import threading

import numpy as np

import forebay

SOON = 20.0
MAX_WORDS = 512
TESTS = {}


def test(function):
    TESTS[function.__name__] = function
    return function


def words(ident: int, count: int) -> np.ndarray:
    """Every word is a function of (message, index)."""
    mixed = (np.arange(count, dtype=np.uint64) ^ np.uint64(ident << 20)) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(31))


def check(message) -> None:
    got = message["words"].numpy()
    assert message.correlation_id == message.sequence
    assert np.array_equal(got, words(message.sequence, got.size)), f"message {message.sequence} is torn"


class Setup:
    """What a test works with: the combination of its cell, and a directory of its own."""

    def __init__(self, cell: dict, directory: str, binary: str) -> None:
        self.kind, self.backing, self.wake = cell["kind"], cell["backing"], cell["wake"]
        self.directory, self.binary, self.made = directory, binary, []
        self.wait = {"eventfd": "adaptive"}.get(self.wake, self.wake)

    def schema(self, dtype: str = "uint64", dims: tuple = (MAX_WORDS,)) -> forebay.Schema:
        return forebay.Schema("ledger", "1.0", {"words": (dtype, dims)})

    def producer(self, **options) -> forebay.Producer:
        base = {"schema": self.schema(), "kind": self.kind, "backing": self.backing, "wait": self.wait}
        base |= {"directory": self.directory, "full_timeout_s": SOON}
        if "classes" not in options:
            base |= {"slots": 8, "slot_bytes": 4096}
        self.made.append(forebay.Producer("conformance", **(base | options)))
        return self.made[-1]

    def consumer(self, **options) -> forebay.Consumer:
        base = {"directory": self.directory, "wait": self.wait, "timeout_s": SOON}
        self.made.append(forebay.Consumer("conformance", **(base | options)))
        return self.made[-1]

    def pair(self, producer: dict | None = None, **consumer):
        made = self.producer(**(producer or {}))
        attached = self.consumer(**consumer)
        made.wait_for_consumers(1, SOON)
        return made, attached

    def publish(self, producer, count: int = 8) -> int:
        ident = producer.stats.published + 1
        with producer.loan({"words": ("uint64", (count,))}) as loan:
            loan["words"].numpy()[...] = words(ident, count)
            assert loan.publish(correlation_id=ident) == ident
        return ident

    def receive(self, consumer):
        """The next message, waited for in the way of this cell; unchecked."""
        if self.wake != "eventfd":
            return consumer.recv(SOON)
        poll = select.poll()
        poll.register(consumer.fileno(), select.POLLIN)
        while (message := consumer.try_recv()) is None:
            assert poll.poll(SOON * 1000), "the descriptor never became readable"
        return message

    def next(self, consumer):
        message = self.receive(consumer)
        check(message)
        return message

    def nothing(self, consumer) -> None:
        raises(forebay.ReceiveTimeout, consumer.recv, 0.001)

    def actor(self, role: str, options: str = "") -> subprocess.Popen:
        told = f"kind={self.kind} backing={self.backing} wait={self.wait} {options}".split()
        actor = subprocess.Popen(
            [self.binary, role, "conformance", *told],
            env=os.environ | {"FOREBAY_DIR": self.directory},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )
        self.made.append(actor)
        assert actor.stdout.readline().startswith("ready")
        return actor

    def close(self) -> None:
        for made in reversed(self.made):
            if isinstance(made, subprocess.Popen):
                made.kill()
                made.wait()
            elif isinstance(made, forebay.Producer):
                # One that a test closed itself is closed.
                with contextlib.suppress(forebay.HandleClosed):
                    made.discard()
            else:
                made.close()


def ask(actor, command: str, start: str) -> None:
    actor.stdin.write(command + "\n")
    line = actor.stdout.readline()
    assert line.startswith(start), f"{command}: {line!r}, expected {start!r}"


def raises(error, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except error as e:
        return e
    raise AssertionError(f"{error.__name__} was not raised")


@test
def hands_over_every_word_in_place(s):
    p, c = s.pair()
    for count in (0, 1, 7, 8, 9, 511, 512):
        s.publish(p, count)
        tensor = s.next(c)["words"]
        start, end = c.data_range
        assert tensor.shape == (count,) and (count == 0 or start <= tensor.data_ptr < end)
        del tensor
    p.drain(SOON)


@test
def delivers_first_deliveries_in_the_order_of_publishing(s):
    p, c = s.pair()
    for turn in range(20):
        for _ in range(5):
            s.publish(p)
        for i in range(1, 6):
            message = s.next(c)
            assert (message.sequence, message.attempts) == (turn * 5 + i, 0)
            del message


@test
def wakes_a_consumer_that_sleeps(s):
    p, c = s.pair()
    failed = []

    def take():
        try:
            for i in range(1, 51):
                assert s.next(c).sequence == i
        except BaseException as e:  # noqa: BLE001
            failed.append(e)

    thread = threading.Thread(target=take)
    thread.start()
    for _ in range(50):
        s.publish(p)
        p.drain(SOON)
    thread.join(SOON)
    assert not failed and not thread.is_alive(), failed


@test
def wakes_a_producer_that_waits_for_a_slot(s):
    p, c = s.pair({"slots": 1}, quota=1)
    thread = threading.Thread(target=lambda: [s.publish(p, 512) for _ in range(50)])
    thread.start()
    for i in range(1, 51):
        assert s.next(c).sequence == i
    thread.join(SOON)
    assert not thread.is_alive()


@test
def keeps_a_held_message_while_the_ring_goes_on(s):
    p, c = s.pair()
    s.publish(p, 512)
    message = s.next(c)
    kept = message["words"].numpy()
    assert message.ack()
    del message
    for _ in range(50):
        s.publish(p, 512)
        s.next(c)
    c.close()
    p.close()
    assert np.array_equal(kept, words(1, 512))


@test
def takes_slots_back_in_any_order(s):
    p, c = s.pair()
    for turn in range(10):
        kept = []
        for _ in range(7):
            s.publish(p, 64)
            kept.append(s.next(c))
        while kept:
            check(kept.pop((turn * 5 + 3) % len(kept)))
    p.drain(SOON)
    assert p.stats.outstanding == 0


@test
def gives_each_message_to_whom_the_kind_says(s):
    p = s.producer()
    consumers = [s.consumer(), s.consumer()]
    p.wait_for_consumers(2, SOON)
    s.publish(p)
    s.publish(p)
    each = 1 if s.kind == "queue" else 2
    got = [[s.next(c).sequence for _ in range(each)] for c in consumers]
    assert got == ([[1], [2]] if s.kind == "queue" else [[1, 2], [1, 2]]), got


@test
def carries_every_dtype_rank_and_empty_tensors(s):
    p, c = s.pair({"schema": None, "slot_bytes": 1 << 16})
    names = ["bool", *(f"{u}int{b}" for u in ("", "u") for b in (8, 16, 32, 64))]
    names += ["float16", "float32", "float64", "complex64", "complex128"]
    names += ["bfloat16", "float8_e4m3fn", "float8_e5m2"]
    for name in names:
        for shape in ((), (3,), (0, 4), (2, 1, 2), (1, 2, 1, 2, 1, 2, 1, 2)):
            with p.loan({"x": (name, shape)}) as loan:
                loan.publish()
            tensor = s.receive(c)["x"]
            assert (tensor.dtype, tensor.shape) == (name, shape)
            del tensor


@test
def carries_user_data_and_several_tensors(s):
    schema = forebay.Schema("pair", "1.0", {"a": ("uint64", (8,)), "b": ("float32", (2, 2))})
    p, c = s.pair({"schema": schema})
    for size in (0, 1, 256):
        arrays = {"b": np.full((2, 1), size, np.float32), "a": words(size, size % 8)}
        p.send(arrays, correlation_id=2**64 - 1 - size, user=bytes(size))
        message = s.receive(c)
        assert (message.user or b"", message.correlation_id) == (bytes(size), 2**64 - 1 - size)
        assert list(message) == ["a", "b"] and np.array_equal(message["b"].numpy(), arrays["b"])
        assert np.array_equal(message["a"].numpy(), arrays["a"])
        del message
    raises(ValueError, p.send, arrays, user=bytes(257))


@test
def takes_the_smallest_slot_that_fits_then_the_next_one_up(s):
    p, c = s.pair({"classes": [(2, 512), (2, 2048), (1, 4096)], "when_full": "fail"}, quota=2)
    kept = []
    for count in (256, 64, 64, 64, 64):
        s.publish(p, count)
        kept.append(s.next(c))
    assert [message.slot for message in kept] == [2, 0, 1, 3, 4]
    raises(forebay.RingFull, s.publish, p, 1)


@test
def refuses_a_message_larger_than_the_largest_slot(s):
    p, _ = s.pair()
    raises(forebay.FieldsMismatch, s.publish, p, 513)
    p.discard()
    p = s.producer(schema=None, slot_bytes=1000)
    raises(forebay.MessageTooLarge, p.loan, {"x": ("uint8", (1001,))})


@test
def refuses_another_schema_with_a_difference(s):
    s.producer()
    for dtype, dims in (("float32", (512,)), ("uint64", (512, 1))):
        e = raises(forebay.SchemaMismatch, s.consumer, schema=s.schema(dtype, dims))
        assert "words" in str(e) and "+" in str(e) and "-" in str(e), e
    s.consumer(schema=s.schema())


@test
def fails_at_once_when_full_and_says_who_holds_what(s):
    p, c = s.pair({"slots": 2, "when_full": "fail"}, quota=2, label="hoarder")
    s.publish(p)
    s.publish(p)
    kept = [s.next(c), s.next(c)]
    assert "hoarder" in str(raises(forebay.RingFull, s.publish, p))
    kept.clear()
    s.publish(p)


@test
def drops_the_oldest_and_counts_it(s):
    p, c = s.pair({"slots": 4, "when_full": "drop-oldest"})
    s.publish(p, 64)
    kept = s.next(c)
    for _ in range(20):
        s.publish(p, 64)
    got = []
    while (message := c.try_recv()) is not None:
        check(message)
        got.append(message.sequence)
    assert (got, p.stats.dropped) == ([19, 20, 21], 17)
    check(kept)


@test
def stops_at_the_quota_and_lists_what_is_held(s):
    p, c = s.pair(quota=2)
    for _ in range(3):
        s.publish(p)
    kept = [s.next(c), s.next(c)]
    raises(forebay.QuotaExceeded, c.recv, 0.001)
    assert [lease.sequence for lease in c.held()] == [1, 2]
    kept.pop(0)
    assert s.next(c).sequence == 3


@test
def says_closed_once_everything_was_received(s):
    p, c = s.pair()
    for _ in range(5):
        s.publish(p)
    p.close()
    assert [s.next(c).sequence for _ in range(5)] == [1, 2, 3, 4, 5]
    raises(forebay.RingClosed, s.receive, c)
    c.close()
    raises(forebay.HandleClosed, c.try_recv)


@test
def serves_a_ring_of_one_consumer(s):
    p, c = s.pair({"max_consumers": 1})
    assert "all 1 places are taken" in str(raises(forebay.AttachRefused, s.consumer))
    for i in range(1, 51):
        s.publish(p)
        assert s.next(c).sequence == i


@test
def brings_back_what_was_nacked(s):
    p, c = s.pair()
    s.publish(p)
    message = s.next(c)
    assert message.nack()
    s.nothing(c)
    del message
    message = s.next(c)
    assert (message.sequence, message.attempts, message.ack()) == (1, 1, True)
    del message
    s.nothing(c)


@test
def brings_back_what_was_not_acked(s):
    p, c = s.pair(ack="manual")
    s.publish(p)
    s.next(c)
    message = s.next(c)
    assert (message.sequence, message.attempts) == (1, 1)


@test
def hands_dead_letters_to_the_producer(s):
    p, c = s.pair({"max_attempts": 2})
    for _ in range(3):
        s.publish(p)
    for _ in range(4):
        message = s.next(c)
        if message.sequence == 2:
            message.nack()
        del message
    p.drain(SOON)
    (letter,) = p.take_dead_letters()
    assert (letter.sequence, letter.attempts, letter.correlation_id) == (2, 2, 2)
    assert np.array_equal(letter.tensors["words"].numpy(), words(2, 8))


@test
def keeps_messages_while_nobody_is_attached(s):
    p = s.producer()
    for _ in range(5):
        s.publish(p)
    c = s.consumer()
    assert [s.next(c).sequence for _ in range(5)] == [1, 2, 3, 4, 5]


@test
def a_killed_consumer_costs_no_message_and_no_slot(s):
    # The victim checks words by another formula, so it only says that it has the message by dying with it.
    p = s.producer(schema=None)
    victim = s.actor("consumer", "lazy=true")
    ask(victim, "attach", "attached")
    c = s.consumer()
    p.wait_for_consumers(2, SOON)
    p.send({"words": rust_words(1, 64)}, correlation_id=1)
    ask(victim, "take", "got seq=1 attempts=0")
    victim.kill()
    victim.wait()
    message = s.receive(c)
    assert (message.sequence, message.attempts) == (1, 1 if s.kind == "queue" else 0)
    del message
    p.drain(SOON)


@test
def a_killed_producer_costs_nothing_it_published(s):
    feeder = s.actor("producer", "slots=16")
    c = s.consumer(reconnect=False)
    ask(feeder, "wait 1", "ok")
    ask(feeder, "publish 10 512", "published 10")
    feeder.kill()
    feeder.wait()
    for i in range(1, 11):
        message = s.receive(c)
        assert message.sequence == i and np.array_equal(message["words"].numpy(), rust_words(i, 512))
        del message
    raises(forebay.PeerDied, s.receive, c)
    if s.backing == "posix":
        p = s.producer(slots=16)
        assert (p.takeover.epoch, p.takeover.last_sequence) == (2, 10)


def rust_words(ident: int, count: int) -> np.ndarray:
    """As `forebay_testkit::ledger::word`."""
    with np.errstate(over="ignore"):
        mixed = (np.uint64(ident << 20) ^ np.arange(count, dtype=np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        mixed = mixed * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(31))


def run(cell: dict, binary: str) -> dict:
    cell |= {"language": "python"}
    function = TESTS.get(cell["behaviour"])
    if cell["outcome"] == "none" or function is None:
        return cell
    cell["test"] = function.__name__
    with tempfile.TemporaryDirectory(prefix="forebay-py-") as directory:
        setup = Setup(cell, directory, binary)
        try:
            function(setup)
            cell["outcome"] = "pass"
        except Exception as e:  # noqa: BLE001
            cell |= {"outcome": "fail", "detail": f"{type(e).__name__}: {e}"}
        finally:
            gc.collect()
            setup.close()
    return cell


def main() -> int:
    binary, out, *options = sys.argv[1:]
    binary = os.path.abspath(binary)
    listed = subprocess.run([binary, "--list", *options], check=True, capture_output=True, text=True).stdout
    cells = [run(json.loads(line), binary) for line in listed.splitlines()]
    with open(out, "w") as file:
        file.writelines(json.dumps(cell) + "\n" for cell in cells)
    failed = [cell for cell in cells if cell["outcome"] not in ("pass", "none")]
    for cell in failed:
        print(cell["behaviour"], cell["kind"], cell["backing"], cell["wake"], cell["detail"], file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
