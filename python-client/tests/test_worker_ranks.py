"""Workers on several ranks: each sees every batch, rank 0 answers, the death of one ends the service."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest

import forebay
from served import HEAD, PATIENCE, SOON

RANKS = """
rank = int(os.environ["FOREBAY_RANK"])
seen = []
def forward(batch):
    x = batch["x"].numpy()
    seen.append(int(x[0]))
    if x[0] == 13:
        raise ValueError("unlucky")
    if x[0] == 14 and rank == 1:
        raise ValueError("only here")
    return {"y": [len(seen) * 1000 + sum(seen)] * len(x)}
forebay.Worker("model").run(forward)
"""


def test_every_rank_sees_each_batch_in_order_and_rank_0_answers(service):
    client = service.begin(RANKS, ranks=2)
    total = 0
    for value in range(10):
        number = service.ask([value, value])
        client.cancel(number)
        total += value
        assert service.answer()["y"].numpy().tolist() == [(value + 1) * 1000 + total] * 2
    service.leave()


def test_the_death_of_any_rank_ends_the_service(service):
    service.begin(RANKS, ranks=3)
    service.ask([1])
    assert service.answer().kind == "result"
    service.workers[2].kill()
    killed = time.monotonic()
    with pytest.raises(forebay.PeerDied, match="2 of 3 ranks"):
        service.answer()
    assert time.monotonic() - killed < SOON


def test_a_batch_that_makes_every_rank_raise_fails_and_all_go_on(service):
    service.begin(RANKS, ranks=2)
    for value in (1, 13, 2):
        service.ask([value, value])
    assert service.answer()["y"].numpy().tolist() == [1001, 1001]
    assert service.answer().failure == ("ValueError", "unlucky")
    assert service.answer()["y"].numpy().tolist() == [3016, 3016]
    service.client.drain()
    with pytest.raises(forebay.ServiceClosed):
        service.answer()
    for worker in service.workers:
        assert worker.wait(PATIENCE) == 0


def test_a_batch_that_makes_one_rank_raise_ends_the_service(service):
    service.begin(RANKS, ranks=3)
    service.ask([14])
    assert service.answer().kind == "result"
    with pytest.raises(forebay.PeerDied, match="2 of 3 ranks"):
        service.answer()
    _, err = service.workers[1].communicate(timeout=PATIENCE)
    assert service.workers[1].returncode == 1
    assert "ValueError: only here" in err
    assert "the model raised on rank 1, rank 0 did not; the ranks would go on with different batches" in err


ENDLESS = """
class Endless:
    def admit(self, batch):
        return [None] * len(batch)
    def step(self, states):
        time.sleep(0.001)
        return {"y": [0] * len(states)}, [False] * len(states)
    def drop(self, state):
        pass
"""


def test_generating_ranks_all_say_that_the_client_died(service, tmp_path):
    # Rank 0 heard of it; the others got a traceback, because rank 0 had left.
    name = f"py-{os.getpid()}-killed-ranks"
    client = f"""
client = forebay.ServiceClient({name!r}, directory={str(tmp_path)!r}, slots=2, ranks=2)
client.accept(20)
client.recv(20)
client.send({{"x": np.zeros(1)}})
client.recv(20)
print("generating", flush=True)
while True:
    client.recv(20)
"""
    worker = (
        ENDLESS
        + f"""
forebay.Worker({name!r}, directory={str(tmp_path)!r}, rank=int(sys.argv[1])).generate(Endless())
"""
    )
    environ = {key: value for key, value in os.environ.items() if not key.startswith("FOREBAY_")}
    for script, rank in ((client, ""), (worker, "0"), (worker, "1")):
        command = [sys.executable, "-u", "-c", HEAD + script, rank]
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        service.workers.append(process)
    client, *ranks = service.workers
    assert client.stdout.readline() == "generating\n"
    client.kill()
    client.wait()
    text = 'forebay worker: the other end of service ".*" died; [01] requests are unanswered; begin a new service\n'
    for rank in ranks:
        _, err = rank.communicate(timeout=PATIENCE)
        assert rank.returncode == 1
        assert re.fullmatch(text, err)


def test_generating_ranks_all_end_quietly_when_the_client_closes(service):
    service.begin(ENDLESS + "forebay.Worker().generate(Endless())", ranks=3)
    service.ask([1])
    assert service.answer().kind == "part"
    service.client.close()
    for worker in service.workers:
        assert (worker.communicate(timeout=PATIENCE), worker.returncode) == (("", ""), 0)


def test_a_generating_rank_that_rank_0_left_says_so(service):
    service.begin(ENDLESS + "forebay.Worker().generate(Endless())", ranks=2)
    service.ask([1])
    assert service.answer().kind == "part"
    service.workers[0].kill()
    _, err = service.workers[1].communicate(timeout=PATIENCE)
    assert service.workers[1].returncode == 1
    assert re.fullmatch("forebay worker: rank 0 of service '.*' left, rank 1 cannot go on without it; .*\n", err)


def test_a_generating_rank_whose_rank_0_was_killed_says_so_though_the_client_leaves_then(service):
    service.begin(ENDLESS + "forebay.Worker().generate(Endless())", ranks=2)
    service.ask([1])
    assert service.answer().kind == "part"
    service.workers[0].kill()
    service.workers[0].wait()
    service.client.close()
    _, err = service.workers[1].communicate(timeout=PATIENCE)
    assert service.workers[1].returncode == 1
    assert re.fullmatch("forebay worker: rank 0 of service '.*' left, rank 1 cannot go on without it; .*\n", err)
