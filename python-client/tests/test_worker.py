"""Workers as users write them: real processes that serve a model, and die."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import forebay
from served import HEAD, PATIENCE, SOON


def test_a_worker_serves_says_nothing_and_leaves_after_a_drain(service):
    script = """
def forward(batch):
    assert len(batch) == len(batch.ids)
    return {"y": batch["x"].numpy() * 2}
forebay.Worker("model").run(forward, warmup=lambda: forward)
"""
    client = service.begin(script)
    for value in range(50):
        number = service.ask([value, value + 1])
        answer = service.answer()
        assert (answer.kind, answer.request) == ("result", number)
        assert answer["y"].numpy().tolist() == [2 * value, 2 * value + 2]
        now = time.monotonic_ns()
        assert now - int(PATIENCE * 1e9) < answer.started_ns < answer.ended_ns < now
    # What was asked before a drain is answered.
    for value in range(4):
        service.ask([value])
    client.drain()
    assert [service.answer()["y"].numpy().tolist() for _ in range(4)] == [[0], [2], [4], [6]]
    service.leave()


def test_the_bad_items_of_a_batch_are_found_and_the_others_succeed(service):
    script = """
calls = 0
def forward(batch):
    global calls
    calls += 1
    x = batch["x"].numpy()
    if (x < 0).any():
        raise ValueError(f"{x.min()} is negative")
    batch.fail(0, "the first is never good") if len(batch) == 8 else None
    return {"y": np.stack([x, np.full(len(x), calls)], axis=1)}
forebay.Worker().run(forward)
"""
    service.begin(script)
    x = np.arange(16)
    x[3], x[9] = -3, -9
    service.ask(x, ids=list(range(100, 116)))
    found = service.rows(16)
    # One answer for each half that was good: none of 8, three of 4 and fewer.
    for i, value in enumerate(x.tolist()):
        status, row = found[100 + i]
        if value < 0:
            assert (status, row) == ("error", f"ValueError: {value} is negative")
        else:
            assert (status, row[0]) == ("ok", value)
    calls = max(row[1] for status, row in found.values() if status == "ok")
    assert calls <= 2 * 16, "bounded"
    assert service.client.outstanding == 0
    # A batch of one that raises fails as a whole.
    service.ask([-1])
    assert service.answer().failure == ("ValueError", "-1 is negative")
    service.client.drain()
    assert "ValueError: -3 is negative" in service.workers[0].communicate(timeout=PATIENCE)[1], "it is logged"
    with pytest.raises(forebay.ServiceClosed):
        service.answer()


def test_an_item_fails_alone_when_forward_says_so(service):
    script = """
def forward(batch):
    batch.fail(1, KeyError("no such user"))
    return batch["x"].numpy() + 1
forebay.Worker(names=["y"]).run(forward)
"""
    service.begin(script)
    service.ask([1, 2, 3], ids=[1, 2, 3])
    assert service.rows(3) == {1: ("ok", 2), 2: ("error", "KeyError: 'no such user'"), 3: ("ok", 4)}
    service.leave()


def test_what_cannot_be_sent_fails_its_batch_with_found_and_expected(service):
    script = """
wrong = [
    lambda n: {"y": np.zeros(n + 1)},
    lambda n: np.float32(3),
    lambda n: None,
    lambda n: {"y": np.zeros((n, 100_000))},
    lambda n: {"y": np.array(["text"] * n)},
    lambda n: (np.zeros(n), np.zeros(n)),
    lambda n: 17.5,
    lambda n: "text",
    lambda n: {"y": [None] * n},
    lambda n: {"y": np.zeros(n), "forebay.items": np.zeros(n)},
]
def forward(batch):
    return wrong[int(batch["x"].numpy()[0])](len(batch))
forebay.Worker().run(forward)
"""
    service.begin(script)
    texts = [
        "has 4 rows, expected 3",
        "scalar, expected 3 rows",
        "None was returned",
        "take 2400000 bytes, a slot .* has room for 81",
        'field "y" has elements',
        "2 arrays were returned, the worker has names for 1",
        "a float was returned",
        "a str was returned",
        'field "y"',
        "given twice",
    ]
    for index, text in enumerate(texts):
        service.ask([index, 0, 0])
        kind, found = service.answer().failure
        assert kind in ("FieldsMismatch", "TypeError", "MessageTooLarge", "ValueError"), (index, kind)
        assert re.search(text, found), (index, found)
    assert service.client.outstanding == 0
    assert service.workers[0].poll() is None


def test_rows_that_do_not_fit_a_slot_together_come_in_parts(service):
    script = """
calls = 0
def forward(batch):
    global calls
    calls += 1
    batch.fail(3, ValueError("bad"))
    x = batch["x"].numpy()
    # 40,000 bytes a row, a slot has 65,536.
    return {"y": np.stack([x, np.full(len(x), calls)], axis=1), "list": x.tolist(), "own": batch["x"],
            "wide": np.repeat(x[:, None], 10_000, axis=1)}
forebay.Worker().run(forward)
"""
    service.begin(script)
    service.ask(np.arange(5, dtype=np.float32), ids=[0, 1, 2, 3, 4])
    found = {}
    while len(found) < 5:
        answer = service.answer()
        assert answer.kind == "part", answer.failure
        arrays = answer.numpy()
        assert arrays["wide"].shape == (len(answer), 10_000)
        for row, item in enumerate(answer.items):
            found[item.id] = item.error
            assert arrays["y"][row].tolist() == [item.id, 1], "forward is called once"
            assert arrays["list"][row] == arrays["own"][row] == arrays["wide"][row, -1] == item.id
        del arrays, answer
    assert found == {0: None, 1: None, 2: None, 3: "ValueError: bad", 4: None}
    assert service.client.outstanding == 0
    service.leave()


def test_tuples_lists_and_torch_are_fine(service):
    pytest.importorskip("torch")
    script = """
import torch
@torch.inference_mode()
def forward(batch):
    x = batch.torch()["x"]
    return x.t().contiguous().t() * 2, [float(i) for i in range(len(batch))], batch["x"], (x > 2).numpy()
forebay.Worker(names=("y", "index", "same", "large")).run(forward)
"""
    service.begin(script)
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    service.ask(x)
    answer = service.answer().numpy()
    np.testing.assert_array_equal(answer["y"], x * 2)
    np.testing.assert_array_equal(answer["same"], x)
    np.testing.assert_array_equal(answer["large"], x > 2)
    assert answer["index"].tolist() == [0, 1, 2]
    del answer
    service.leave()


def test_a_client_hears_at_once_of_a_worker_killed_in_mid_forward(service):
    script = """
def forward(batch):
    if batch["x"].numpy()[0] == 1:
        sys.stdout.write("in forward\\n")
        time.sleep(1000)
    return {"y": batch["x"]}
forebay.Worker().run(forward)
"""
    client = service.begin(script)
    service.ask([0])
    service.ask([1])
    service.ask([2])
    worker = service.workers[0]
    assert worker.stdout.readline() == "in forward\n"
    worker.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    assert service.answer()["y"].numpy().tolist() == [0], "what it had answered comes first"
    with pytest.raises(forebay.PeerDied) as died:
        service.answer()
    assert died.value.outstanding == 2
    assert time.monotonic() - killed < SOON
    with pytest.raises(forebay.PeerDied):
        client.try_recv()
    assert not client.is_alive


def test_a_worker_that_writes_to_read_only_memory_dies_and_is_heard_of(service):
    pytest.importorskip("torch")
    script = """
import torch
def forward(batch):
    x = batch.torch()["x"]
    x += 1
    return {"y": x}
forebay.Worker().run(forward)
"""
    service.begin(script)
    service.ask([1.0])
    with pytest.raises(forebay.PeerDied):
        service.answer()
    assert service.workers[0].wait(PATIENCE) == -signal.SIGSEGV


def test_a_writable_service_lets_forward_write(service):
    pytest.importorskip("torch")
    script = """
import torch
def forward(batch):
    x = batch.torch()["x"]
    x += 1
    return {"y": x}
forebay.Worker(writable=True).run(forward)
"""
    service.begin(script, writable=True)
    service.ask([1.0, 2.0])
    assert service.answer()["y"].numpy().tolist() == [2.0, 3.0]
    service.leave()


def test_a_worker_ends_when_its_client_dies(service, tmp_path):
    name = f"py-{os.getpid()}-killed"
    client = f"""
client = forebay.ServiceClient({name!r}, directory={str(tmp_path)!r}, slots=2)
client.accept(20)
client.recv(20)
client.send({{"x": np.zeros(1)}})
print("asked", flush=True)
time.sleep(1000)
"""
    worker = f"""
def forward(batch):
    print("in forward", flush=True)
    while not batch.cancelled(0):
        time.sleep(0.01)
    return {{"y": batch["x"]}}
forebay.Worker({name!r}, directory={str(tmp_path)!r}).run(forward)
"""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("FOREBAY_")}
    for script in (client, worker):
        command = [sys.executable, "-u", "-c", HEAD + script]
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        service.workers.append(process)
    client, worker = service.workers
    assert client.stdout.readline() == "asked\n"
    assert worker.stdout.readline() == "in forward\n"
    client.kill()
    client.wait()
    killed = time.monotonic()
    _, err = worker.communicate(timeout=PATIENCE)
    assert time.monotonic() - killed < SOON + 1
    assert worker.returncode == 1
    # It may have answered, to nobody, before it noticed.
    text = 'forebay worker: the other end of service ".*" died; [01] requests are unanswered; begin a new service\n'
    assert re.fullmatch(text, err)


def test_a_running_forward_sees_that_its_items_are_cancelled(service):
    script = """
def forward(batch):
    sys.stdout.write("in forward\\n")
    while not batch.cancelled(1):
        time.sleep(0.001)
    assert not batch.cancelled(0)
    return {"y": [int(batch.cancelled(i)) for i in range(2)]}
forebay.Worker().run(forward)
"""
    client = service.begin(script)
    number = service.ask([0, 0], ids=[8, 9])
    assert service.workers[0].stdout.readline() == "in forward\n"
    client.cancel(number, [9])
    assert service.answer()["y"].numpy().tolist() == [0, 1]
    service.leave()


def test_batches_that_nobody_wants_are_given_up_unseen(service):
    script = """
def forward(batch):
    x = batch["x"].numpy()
    assert x[0] != 666
    if x[0] == 1:
        sys.stdout.write("in forward\\n")
        time.sleep(0.2)
    return {"y": x}
forebay.Worker().run(forward)
"""
    client = service.begin(script)
    service.ask([1], ids=[1])
    assert service.workers[0].stdout.readline() == "in forward\n"
    number = service.ask([666, 666], ids=[2, 3])
    client.cancel(number)
    service.ask([666], ids=[4], deadline=time.monotonic() - 0.001)
    service.ask([7], ids=[5], deadline=time.monotonic() + 100)
    found = service.rows(5)
    assert found == {1: ("ok", 1), 2: ("cancelled", None), 3: ("cancelled", None), 4: ("cancelled", None), 5: ("ok", 7)}
    service.leave()


def test_a_worker_that_keeps_every_batch_says_so_and_leaves(service):
    script = """
kept = []
def forward(batch):
    kept.append(batch["x"].numpy())
    return {"y": kept[-1]}
forebay.Worker().run(forward)
"""
    service.begin(script)
    for value in range(4):
        service.ask([value])
    assert [service.answer()["y"].numpy().tolist() for _ in range(4)] == [[0], [1], [2], [3]]
    with pytest.raises(forebay.ServiceClosed):
        service.answer()
    _, err = service.workers[0].communicate(timeout=PATIENCE)
    assert service.workers[0].returncode == 1
    assert "tensors of 4 answered batches are kept" in err


def test_tensors_in_cycles_are_collected_before_a_worker_gives_up(service):
    script = """
import gc
gc.disable()
class Loop: pass
def forward(batch):
    loop = Loop()
    loop.me, loop.x = loop, batch["x"].numpy()
    return {"y": loop.x}
forebay.Worker().run(forward)
"""
    service.begin(script)
    for value in range(20):
        service.ask([value])
        assert service.answer()["y"].numpy().tolist() == [value]
    service.leave()


@pytest.mark.parametrize(
    ("raised", "status"), [("SystemExit(7)", 7), ("KeyboardInterrupt()", -signal.SIGINT), ("BaseException()", 1)]
)
def test_a_forward_that_wants_to_leave_answers_first(service, raised, status):
    script = f"""
signal.signal(signal.SIGINT, signal.default_int_handler)
def forward(batch):
    raise {raised}
forebay.Worker().run(forward)
"""
    service.begin(script)
    service.ask([1, 2, 3])
    assert service.answer().failure[0] == raised.split("(")[0]
    with pytest.raises(forebay.ServiceClosed) as closed:
        service.answer()
    assert closed.value.outstanding == 0
    assert service.workers[0].wait(PATIENCE) == status


def test_a_failing_warm_up_ends_the_worker_before_it_is_ready(service):
    script = """
def warmup():
    raise RuntimeError("no weights")
forebay.Worker().run(None, warmup)
"""
    service.start(script)
    _, err = service.workers[0].communicate(timeout=PATIENCE)
    assert service.workers[0].returncode == 1
    assert err.endswith("RuntimeError: no weights\n")


def test_a_ring_that_ends_while_a_worker_warms_up_is_not_its_client_that_leaves(service):
    script = """
def warmup():
    raise forebay.ServiceClosed("weights")
forebay.Worker().run(None, warmup)
"""
    service.start(script)
    _, err = service.workers[0].communicate(timeout=PATIENCE)
    assert service.workers[0].returncode == 1
    assert err.endswith("RuntimeError: warmup failed: weights\n")


def test_a_worker_refuses_what_it_was_not_started_for(monkeypatch):
    monkeypatch.setenv("FOREBAY_SERVICE", "embedder.0.1")
    monkeypatch.setenv("FOREBAY_MODEL", "embedder")
    assert forebay.Worker().service == forebay.Worker("embedder").service == "embedder.0.1"
    assert forebay.Worker("embedder.0.1").service == "embedder.0.1"
    with pytest.raises(ValueError, match="started for model 'embedder'"):
        forebay.Worker("classifier")
    monkeypatch.setenv("FOREBAY_RANK", "one")
    with pytest.raises(ValueError, match="FOREBAY_RANK is 'one'"):
        forebay.Worker()
    monkeypatch.delenv("FOREBAY_SERVICE")
    monkeypatch.delenv("FOREBAY_RANK")
    assert forebay.Worker("by.hand").service == "by.hand"
    with pytest.raises(ValueError, match="FOREBAY_SERVICE"):
        forebay.Worker()


def test_a_result_on_a_gpu_is_copied_into_the_slot(service):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    script = """
import torch
def forward(batch):
    x = batch.torch()["x"].cuda() * 2
    strided = x.t().contiguous().t()[:, ::2]
    return {"y": x, "strided": strided, "half": x.to(torch.bfloat16), "grad": x.clone().requires_grad_() + 1}
forebay.Worker().run(forward)
"""
    service.begin(script)
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    for _ in range(20):
        service.ask(x)
        found = service.answer().torch()
        assert {name: tensor.device.type for name, tensor in found.items()} == dict.fromkeys(found, "cpu")
        np.testing.assert_array_equal(found["y"].numpy(), x * 2)
        np.testing.assert_array_equal(found["strided"].numpy(), x[:, ::2] * 2)
        np.testing.assert_array_equal(found["grad"].numpy(), x * 2 + 1)
        assert found["half"].dtype == torch.bfloat16
        assert torch.equal(found["half"].float(), torch.from_numpy(x * 2))
        del found
    service.leave()
