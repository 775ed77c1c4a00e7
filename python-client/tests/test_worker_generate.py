"""Workers that generate: answers in parts, items that come and go between two steps, on one rank or more."""

from __future__ import annotations

import time

import pytest

import forebay
from served import PATIENCE

COUNTER = """
class Counter:
    "Counts from 1 to what an item says; -1 cannot begin, 100 fails at 3."
    def __init__(self):
        self.live = 0
    def admit(self, batch):
        x = batch["x"].numpy()
        if (x < 0).any():
            raise ValueError("cannot count to less than nothing")
        self.live += len(x)
        return [{"at": 0, "to": int(to)} for to in x]
    def step(self, states):
        if any(s["to"] == 100 and s["at"] == 3 for s in states):
            raise RuntimeError("lost count")
        for s in states:
            s["at"] += 1
            time.sleep(0.002) if s["to"] > 50 else None
        return {"y": [s["at"] for s in states], "live": [self.live] * len(states)}, [s["at"] == s["to"] for s in states]
    def drop(self, state):
        assert not state.get("dropped")
        state["dropped"] = True
        self.live -= 1
forebay.Worker().generate(Counter())
"""


class Stream:
    """What came for each item."""

    def __init__(self, service) -> None:
        self.service, self.rows, self.ends, self.live, self.failures = service, {}, {}, [], []

    def take(self):
        answer = self.service.answer()
        if answer.kind == "failed":
            self.failures.append((answer.request, answer.failure))
            return
        y = answer["y"].numpy().tolist() if "y" in answer else [None] * len(answer)
        if "live" in answer:
            self.live += answer["live"].numpy().tolist()
        for item, row in zip(answer.items, y, strict=True):
            assert item.id not in self.ends, "nothing comes after the last row"
            if row is not None:
                self.rows.setdefault(item.id, []).append(row)
            if item.last:
                self.ends[item.id] = (item.status, item.error)

    def until(self, done):
        give_up = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < give_up
            self.take()


def test_items_are_admitted_and_dropped_between_steps(service):
    client = service.begin(COUNTER)
    stream = Stream(service)
    long = service.ask([1_000_000], ids=[1])
    stream.until(lambda: len(stream.rows.get(1, ())) >= 3)
    service.ask([2, 5], ids=[2, 3])
    stream.until(lambda: len(stream.ends) == 2)
    assert stream.rows[2] == [1, 2]
    assert stream.rows[3] == [1, 2, 3, 4, 5]
    assert max(stream.live) == 3, "they ran together"
    assert 1 not in stream.ends
    client.cancel(long, [1])
    stream.until(lambda: 1 in stream.ends)
    assert stream.ends == {1: ("cancelled", None), 2: ("ok", None), 3: ("ok", None)}
    assert stream.rows[1] == list(range(1, len(stream.rows[1]) + 1)), "nothing is lost or doubled"
    # With nothing to do it waits, and begins again; a drain lets it finish what it began.
    service.ask([3], ids=[1])
    client.drain()
    stream.rows.clear(), stream.ends.clear()
    stream.until(lambda: stream.ends)
    assert stream.rows == {1: [1, 2, 3]}
    service.leave()


def test_a_generating_item_fails_alone(service):
    service.begin(COUNTER)
    stream = Stream(service)
    service.ask([6, -1, 100, 7], ids=[1, 2, 3, 4])
    stream.until(lambda: len(stream.ends) == 4)
    assert stream.ends == {
        1: ("ok", None),
        2: ("error", "ValueError: cannot count to less than nothing"),
        3: ("error", "RuntimeError: lost count"),
        4: ("ok", None),
    }
    assert stream.rows == {1: [1, 2, 3, 4, 5, 6], 3: [1, 2, 3], 4: [1, 2, 3, 4, 5, 6, 7]}
    service.ask([1], ids=[5])
    stream.until(lambda: 5 in stream.ends)
    assert stream.live[-1] == 1, "every state was dropped"


def test_items_that_admit_says_fail_fail_alone(service):
    script = COUNTER.replace(
        '            raise ValueError("cannot count to less than nothing")',
        '            [batch.fail(i, ValueError("too little")) for i in (x < 0).nonzero()[0].tolist()]',
    )
    service.begin(script)
    stream = Stream(service)
    service.ask([2, -1, 1], ids=[1, 2, 3])
    stream.until(lambda: len(stream.ends) == 3)
    assert stream.ends == {1: ("ok", None), 2: ("error", "ValueError: too little"), 3: ("ok", None)}
    assert stream.live[-1] == 1, "states of the batch that was begun anew were dropped"


@pytest.mark.parametrize("where", ["cannot count to less than nothing", "lost count"])
def test_the_end_of_a_ring_of_the_models_own_is_an_error_of_its_items(service, where):
    kind = "ValueError" if where.startswith("cannot") else "RuntimeError"
    service.begin("import forebay\n" + COUNTER.replace(f'{kind}("{where}")', 'forebay.ServiceClosed("another")'))
    stream = Stream(service)
    service.ask([2, -1 if kind == "ValueError" else 100], ids=[1, 2])
    stream.until(lambda: len(stream.ends) == 2)
    assert stream.ends == {1: ("ok", None), 2: ("error", "ServiceClosed: another")}
    service.ask([1], ids=[3])
    stream.until(lambda: 3 in stream.ends)


def test_the_rows_of_a_step_that_do_not_fit_a_slot_together_come_in_parts(service):
    # 40,000 bytes a row, a slot has 65,536.
    script = COUNTER.replace('return {"y":', 'return {"wide": np.zeros((len(states), 5000)), "y":')
    service.begin(script)
    stream = Stream(service)
    service.ask([3, 2, 3], ids=[1, 2, 3])
    stream.until(lambda: len(stream.ends) == 3)
    assert stream.ends == dict.fromkeys((1, 2, 3), ("ok", None))
    assert stream.rows == {1: [1, 2, 3], 2: [1, 2], 3: [1, 2, 3]}
    service.leave()


def test_a_deadline_ends_a_generating_item(service):
    service.begin(COUNTER)
    stream = Stream(service)
    service.ask([1_000_000], ids=[1], deadline=time.monotonic() + 0.2)
    stream.until(lambda: stream.ends)
    assert stream.ends == {1: ("cancelled", None)}
    assert stream.rows[1]
    service.leave()


def test_a_generating_worker_that_leaves_answers_first(service):
    script = COUNTER.replace('raise RuntimeError("lost count")', 'sys.exit("enough")')
    service.begin(script)
    stream = Stream(service)
    service.ask([100, 200], ids=[1, 2])
    stream.until(lambda: len(stream.ends) == 2)
    assert stream.ends == {1: ("error", "SystemExit: enough"), 2: ("error", "SystemExit: enough")}
    with pytest.raises(forebay.ServiceClosed):
        service.answer()


def test_a_generating_worker_killed_in_mid_stream_is_heard_of(service):
    service.begin(COUNTER)
    stream = Stream(service)
    service.ask([1_000_000], ids=[1])
    stream.until(lambda: len(stream.rows.get(1, ())) >= 3)
    service.workers[0].kill()
    with pytest.raises(forebay.PeerDied) as died:
        stream.until(lambda: False)
    assert died.value.outstanding == 1
    assert stream.rows[1] == list(range(1, len(stream.rows[1]) + 1))


# Of items that count to 77 a step says once more than fits a slot.
TOO_WIDE = COUNTER.replace(
    '        return {"y":',
    """        if any(s["to"] == 77 and s["at"] == 3 for s in states):
            return {"y": np.zeros((len(states), 100_000))}, [s["at"] == s["to"] for s in states]
        return {"y":""",
)


def test_a_step_that_cannot_be_sent_fails_its_items_and_lets_go_of_them(service):
    service.begin(TOO_WIDE)
    stream = Stream(service)
    service.ask([3, 77, 5], ids=[1, 2, 3])
    stream.until(lambda: len(stream.ends) == 3)
    assert {status for status, _ in stream.ends.values()} == {"error"}
    assert all("MessageTooLarge" in error for _, error in stream.ends.values())
    assert stream.rows == {1: [1, 2], 2: [1, 2], 3: [1, 2]}
    stream.rows.clear(), stream.ends.clear()
    # Of the same id: what is let go of is the state that failed.
    service.ask([4], ids=[2])
    stream.until(lambda: stream.ends)
    assert stream.ends == {2: ("ok", None)}
    assert stream.rows == {2: [1, 2, 3, 4]}
    assert stream.live[-1] == 1, "every other state was dropped"


RANKED = """
log = open(os.path.join(os.environ["FOREBAY_DIR"], "rank" + os.environ["FOREBAY_RANK"]), "w", buffering=1)
"""


def ranked(script):
    """Each rank writes down what it does."""
    states = "print([(s['to'], s['at']) for s in states], file=log)"
    return RANKED + script.replace("        for s in states:", f"        {states}\n        for s in states:", 1)


def same_steps(tmp_path):
    """What every rank wrote down."""
    logs = [tmp_path / f"rank{rank}" for rank in range(2)]
    first, second = (log.read_text().splitlines() for log in logs)
    for log in logs:
        log.unlink()
    assert first == second, "every rank did the same steps"
    return first


def test_ranks_let_go_alike_of_what_only_the_first_one_could_not_send(service, tmp_path):
    service.begin(ranked(TOO_WIDE), ranks=2)
    stream = Stream(service)
    service.ask([3, 77, 5], ids=[1, 2, 3])
    stream.until(lambda: len(stream.ends) == 3)
    assert all("MessageTooLarge" in error for _, error in stream.ends.values())
    stream.rows.clear(), stream.ends.clear()
    service.ask([4], ids=[2])
    stream.until(lambda: stream.ends)
    assert stream.rows == {2: [1, 2, 3, 4]}
    assert stream.live[-1] == 1, "every other state was dropped"
    service.client.drain()
    with pytest.raises(forebay.ServiceClosed):
        service.answer()
    for worker in service.workers:
        assert worker.wait(PATIENCE) == 0
    assert same_steps(tmp_path)[-4:] == [f"[(4, {at})]" for at in range(4)]


def test_ranks_generate_alike(service, tmp_path):
    client = service.begin(ranked(COUNTER), ranks=2)
    stream = Stream(service)
    long = service.ask([1_000_000], ids=[1])
    stream.until(lambda: len(stream.rows.get(1, ())) >= 2)
    for round_ in range(10):
        service.ask([2 + round_ % 3, 4], ids=[10 + 2 * round_, 11 + 2 * round_])
        stream.take()
    refused = service.ask([-1], ids=[50])
    service.ask([100], ids=[51])
    stream.until(lambda: 1 in stream.ends and 51 in stream.ends)
    # With several ranks a step that raises fails all that were in it.
    assert stream.failures == [(refused, ("ValueError", "cannot count to less than nothing"))]
    assert stream.ends[51] == stream.ends[1] == ("error", "RuntimeError: lost count")
    assert client.outstanding == 0
    long = service.ask([1_000_000], ids=[1])
    stream.rows.clear(), stream.ends.clear()
    stream.until(lambda: len(stream.rows.get(1, ())) >= 2)
    client.cancel(long)
    stream.until(lambda: stream.ends)
    assert stream.ends == {1: ("cancelled", None)}
    service.ask([3], ids=[60])
    client.drain()
    stream.until(lambda: 60 in stream.ends)
    with pytest.raises(forebay.ServiceClosed):
        service.answer()
    for worker in service.workers:
        assert worker.wait(PATIENCE) == 0
    assert len(same_steps(tmp_path)) > 10
