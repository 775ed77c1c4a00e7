"""`forebay serve` with workers as users write them: what a client is told when they do wrong, and that it goes on."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 60
TENSORS = """
[model]
name = "double"
[model.input]
type = "tensors"
tensors = [{ name = "x", dtype = "float32", shape = [2] }]
"""
HEAD = "import forebay, os, sys, time\nimport numpy as np\n"


class Served:
    """The binary, running, and what one asks it."""

    def __init__(self, folder: Path, worker: str, model: str, more: str) -> None:
        binary = Path(os.environ.get("FOREBAY_BIN", REPOSITORY / "target/debug/forebay"))
        assert binary.exists(), f"{binary} is missing: make binary, or set FOREBAY_BIN"
        (folder / "worker.py").write_text(HEAD + worker)
        command = json.dumps([sys.executable, "-u", "worker.py"])
        config = f"{model}\n[server]\nlisten = '127.0.0.1:0'\n[worker]\ncommand = {command}\n{more}"
        (folder / "serve.toml").write_text(config)
        self.lines: list[str] = []
        environment = {**os.environ, "FOREBAY_DIR": str(folder / "rings")}
        self.process = subprocess.Popen(
            [binary, "serve", "--config", "serve.toml"], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
        )
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        self.port = int(self.until(lambda: self._find(r"listening on http://[\d.]+:(\d+)")))
        self.until(lambda: self.ask("GET", "/readyz")[0] == 200)

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line)

    def _find(self, pattern: str) -> str | None:
        found = re.search(pattern, "".join(self.lines))
        return found and found[1]

    def until(self, holds):
        deadline = time.monotonic() + PATIENCE
        while not (found := holds()):
            assert self.process.poll() is None, "".join(self.lines)
            assert time.monotonic() < deadline, "".join(self.lines)
            time.sleep(0.005)
        return found

    def exchange(
        self, method: str, path: str, content: bytes | None, headers: dict[str, str]
    ) -> tuple[int, object, bytes]:
        """Status, headers and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, object]:
        content = None if body is None else json.dumps(body).encode()
        status, _, answer = self.exchange(method, path, content, {"content-type": "application/json"})
        text = answer.decode()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def infer(self, *rows: list[float]) -> tuple[int, object]:
        flat = [number for row in rows for number in row]
        tensor = {"name": "x", "datatype": "FP32", "shape": [len(rows), 2], "data": flat}
        return self.ask("POST", "/v2/models/double/infer", {"inputs": [tensor]})

    def doubles(self, *rows: list[float]) -> None:
        """It is as healthy as ever."""
        status, answer = self.infer(*rows)
        assert status == 200, answer
        assert answer["outputs"][0]["data"] == [2 * number for row in rows for number in row]

    def worker(self) -> dict:
        return self.ask("GET", "/status")[1]["workers"][0]

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(PATIENCE) == 0, "".join(self.lines)
        self.reader.join()
        self.process.stderr.close()


@pytest.fixture
def serve(tmp_path):
    running = []

    def serve(worker: str, model: str = TENSORS, more: str = "") -> Served:
        running.append(Served(tmp_path, worker, model, more))
        return running[-1]

    yield serve
    for served in running:
        served.close()


WORKER = """
def forward(batch):
    x = batch["x"].numpy()
    first = x[:, 0].tolist()
    {bad}
    return {{"y": x * 2}}
forebay.Worker().run(forward)
"""


def test_an_item_on_which_the_model_raises_fails_alone(serve) -> None:
    served = serve(WORKER.format(bad="if -1 in first: raise ValueError('a negative one')\n    time.sleep(0.02)"))
    rows = [[float(i), 1.0] for i in range(12)]
    rows[5][0] = -1.0
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(served.infer, rows))
    assert [status for status, _ in answers] == [200] * 5 + [500] + [200] * 6, answers
    assert "ValueError" in str(answers[5][1])
    assert "a negative one" in str(answers[5][1])
    served.doubles([1, 2], [3, 4])


def test_an_item_that_is_alone_in_its_batch_fails_alone(serve) -> None:
    bad = "if -1 in first: raise ValueError('a negative one')"
    served = serve(WORKER.format(bad=bad), more="[batch]\nmax_items = 1\n")
    failed = {"error": {"type": "model_failed", "message": "ValueError: a negative one"}}
    status, answer = served.ask("POST", "/predict", {"inputs": [[1, 2], [-1, 0], [3, 4]]})
    assert status == 200, answer
    assert answer["outputs"] == [{"y": [2, 4]}, failed, {"y": [6, 8]}]
    # v2 has no place for it among the rows.
    status, answer = served.infer([1, 2], [-1, 0])
    assert (status, answer["item"], answer["error"]) == (500, 1, failed["error"]["message"])
    # All of them, or the only one.
    for inputs in ([[-1, 0], [-1, 1]], [[-1, 0]]):
        status, answer = served.ask("POST", "/predict", {"inputs": inputs})
        assert (status, answer["error"]["type"]) == (500, "model_failed"), answer
        assert "ValueError: a negative one" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("if -1 in first: return {'y': x[:1].repeat(3, 0)}", "rows"),
        ("if -1 in first: return {'y': np.array(['a'] * len(x))}", "format"),
        ("if -1 in first: return {'y': np.zeros((len(x), 1 << 20), np.float32)}", "slot"),
        ("if -1 in first: return None", "None"),
        ("if -1 in first: x *= 2", "read-only"),
    ],
)
def test_what_cannot_be_sent_is_said_and_leaves_the_worker_alive(serve, bad, said) -> None:
    served = serve(WORKER.format(bad=bad))
    pids = served.worker()["pids"]
    status, answer = served.infer([-1.0, 0.0])
    assert status == 500, answer
    assert said in str(answer)
    served.doubles([1, 2])
    assert served.worker()["pids"] == pids


def test_large_answers_that_came_to_share_a_batch_arrive(serve) -> None:
    # 600,000 bytes a row, and a slot has 1 MiB.
    served = serve(WORKER.format(bad="return {'y': x[:, :1].repeat(150_000, 1)}"))
    status, answer = served.infer([1.0, 0.0], [2.0, 0.0])
    assert status == 200, answer
    assert answer["outputs"][0]["data"] == [1.0] * 150_000 + [2.0] * 150_000


def test_nans_and_infinities_come_back_as_they_were(serve) -> None:
    served = serve(WORKER.format(bad="if not np.isfinite(x).all(): return {'y': x}"))
    # A NaN with a payload, one that signals, a negative one, both infinities, the negative zero.
    words = struct.pack("<6I", 0x7FC12345, 0x80000000, 0x7F800001, 0x7F800000, 0xFFC00001, 0xFF800000)
    tensor = {"name": "x", "datatype": "FP32", "shape": [3, 2], "parameters": {"binary_data_size": len(words)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    length = "inference-header-content-length"
    sent = {"content-type": "application/octet-stream", length: str(len(head))}
    status, headers, body = served.exchange("POST", "/v2/models/double/infer", head + words, sent)
    assert status == 200, body
    assert body[int(headers[length]) :] == words


def test_json_has_no_nans_and_infinities(serve) -> None:
    served = serve(WORKER.format(bad=""))
    for word in (float("nan"), float("inf"), -float("inf")):
        status, answer = served.infer([word, 1.0])
        assert status == 400, answer
        assert "not JSON" in str(answer)
    # One that its type has no room for.
    assert served.infer([1e39, 1.0])[0] == 422
    status, answer = served.infer([3e38, 1.0])
    assert status == 200, answer
    assert answer["outputs"][0]["data"] == [None, 2.0]
    served.doubles([1e38, -0.5])


def test_the_client_hears_of_a_kill_within_200_ms(serve, tmp_path) -> None:
    served = serve(WORKER.format(bad="if -1 in first: open('waiting', 'w'); time.sleep(60)"))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lambda: (served.infer([-1.0, 0.0]), time.monotonic()))
        served.until((tmp_path / "waiting").exists)
        os.kill(served.worker()["pids"][0], signal.SIGKILL)
        killed = time.monotonic()
        (status, text), heard = answer.result(PATIENCE)
    assert status == 502, text
    assert heard - killed < 0.2
    served.doubles([1, 2])
    assert served.worker()["restarts"] == 1


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ("time.sleep(60)", 502),
        ("os._exit(3)", 502),
        # It says so before it leaves.
        ("sys.exit(3)", 500),
    ],
)
def test_a_worker_that_hangs_or_leaves_is_started_again(serve, bad, expected) -> None:
    served = serve(WORKER.format(bad=f"if -1 in first: {bad}"), more="batch_timeout_s = 0.5\n")
    status, answer = served.infer([-1.0, 0.0])
    assert status == expected, answer
    served.doubles([1, 2])
    assert served.worker()["restarts"] == 1


def test_a_worker_that_writes_to_read_only_memory_is_started_again(serve) -> None:
    pytest.importorskip("torch")
    served = serve(WORKER.format(bad="if -1 in first: import torch; batch['x'].torch().add_(1)"))
    status, answer = served.infer([-1.0, 0.0])
    assert status == 502, answer
    served.doubles([1, 2])
    assert served.worker()["restarts"] == 1


def test_a_request_whose_body_is_on_its_way_is_answered_after_sigterm(serve) -> None:
    served = serve(WORKER.format(bad=""))
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    body = json.dumps({"inputs": [tensor]}).encode()
    head = f"POST /v2/models/double/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", served.port), PATIENCE) as upload:
        upload.sendall(head + body[:10])
        served.until(lambda: "forebay_in_flight_requests 1" in served.ask("GET", "/metrics")[1])
        served.process.terminate()
        served.until(lambda: served._find(r"(stopping)"))
        upload.sendall(body[10:])
        assert upload.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert served.process.wait(PATIENCE) == 0


def test_sigterm_to_every_process_at_once_cuts_off_nothing(serve, tmp_path) -> None:
    """As service managers send it."""
    slow = "if -1 in first: open('waiting', 'w')\n    while -1 in first and not os.path.exists('go'): time.sleep(0.002)"
    served = serve(WORKER.format(bad=slow))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.infer, [-1.0, 3.0])
        served.until((tmp_path / "waiting").exists)
        os.kill(served.worker()["pids"][0], signal.SIGTERM)
        served.process.terminate()
        served.until(lambda: served._find(r"(stopping)"))
        (tmp_path / "go").touch()
        status, said = answer.result(PATIENCE)
    assert status == 200, said
    assert said["outputs"][0]["data"] == [-2, 6]
    assert served.process.wait(PATIENCE) == 0


def test_what_a_worker_starts_is_ended_by_sigterm(serve) -> None:
    started = """
    import multiprocessing, subprocess
    if -1 in first:
        forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        forked.start()
        forked.terminate()
        forked.join()
        program = subprocess.Popen(["sleep", "60"])
        program.terminate()
        assert (forked.exitcode, program.wait()) == (-15, -15), forked.exitcode
"""
    serve(WORKER.format(bad=started)).doubles([-1, 3])


THREADS = """
def forward(batch):
    return {"y": np.full_like(batch["x"].numpy(), float(os.environ.get("OMP_NUM_THREADS", -1)))}
forebay.Worker("double").run(forward)
"""


@pytest.mark.parametrize(
    ("more", "threads"),
    [
        ("count = 1\n", -1),
        ("count = 2\n", max(len(os.sched_getaffinity(0)) // 2, 1)),
        ("count = 2\nenv = { OMP_NUM_THREADS = '5' }\n", 5),
    ],
)
def test_several_workers_share_the_cores_unless_told_otherwise(serve, monkeypatch, more, threads) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    status, answer = serve(THREADS, more=more).infer([1, 2])
    assert status == 200, answer
    assert answer["outputs"][0]["data"] == [threads, threads]


def test_a_worker_that_keeps_every_batch_is_started_again(serve) -> None:
    served = serve("kept = []\n" + WORKER.format(bad="kept.append(batch['x'])"))
    for number in range(12):
        served.doubles([number, 1])
    assert served.worker()["restarts"] >= 1


IMAGES = """
[model]
name = "brightness"
[model.input]
type = "image"
processor = "preprocessor_config.json"
"""
BRIGHTNESS = """
def forward(batch):
    return {"y": batch["pixel_values"].numpy().mean(axis=(1, 2, 3), keepdims=False).reshape(len(batch), 1)}
forebay.Worker().run(forward)
"""


def png(width: int, height: int, rows: bytes) -> bytes:
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def webp(width: int, height: int) -> bytes:
    bits = (width - 1) | (height - 1) << 14
    body = b"\x2f" + struct.pack("<I", bits) + bytes(16)
    chunk = b"VP8L" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def test_images_that_cannot_be_used_are_refused_and_cost_nothing(serve, tmp_path) -> None:
    config = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "do_normalize": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    served = serve(BRIGHTNESS, IMAGES)
    white = png(1, 1, b"\0\xff")

    def predict(image: bytes) -> tuple[int, str]:
        status, _, body = served.exchange("POST", "/predict", image, {"content-type": "image/png"})
        return status, body.decode()

    assert predict(white)[0] == 200
    before = served.worker()["restarts"], served.ask("GET", "/status")[1]["process"]["rss_bytes"]
    cases = [
        (png(20_000, 20_000, b"\0"), 422, "20000"),
        (webp(16_383, 16_383), 422, "16383"),
        (b"", 400, "image"),
        (b"no image at all", 422, "not an image"),
        (white[:40], 422, "damaged"),
        (png(4, 4, b"\0"), 422, "damaged"),
    ]
    for image, expected, said in cases:
        status, text = predict(image)
        assert status == expected, text
        assert said in text
    status, text = predict(white)
    assert status == 200
    assert json.loads(re.search(r"\[([-\d.e]+)\]", text)[1]) == pytest.approx(1.0)
    after = served.worker()["restarts"], served.ask("GET", "/status")[1]["process"]["rss_bytes"]
    assert after[0] == before[0]
    assert after[1] < before[1] + (64 << 20)


TEXTS = f"""
[model]
name = "spell"
generate = true
[model.input]
type = "text"
tokenizer = "{REPOSITORY}/examples/data/tokenizer.json"
[[model.parameters]]
name = "max_new_tokens"
dtype = "int64"
default = 20
"""
SPELLER = """
class Speller:
    # Says the prompt again, token by token.
    def admit(self, batch):
        ids, mask, most = (batch[name].numpy() for name in ("input_ids", "attention_mask", "max_new_tokens"))
        return [[list(row[kept == 1][1:-1]), int(n)] for row, kept, n in zip(ids, mask, most)]
    def step(self, states):
        tokens = []
        for state in states:
            tokens.append(int(state[0].pop(0)))
            state[1] -= 1
        time.sleep(0.002)
        return {"token": np.array(tokens)}, [not s[0] or s[1] == 0 for s in states]
    def drop(self, state):
        pass
forebay.Worker().generate(Speller())
"""


def events(text: str) -> list[dict]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def test_text_is_streamed_as_it_is_made(serve) -> None:
    served = serve(SPELLER, TEXTS)
    prompts = ["in the beginning god created the heaven", "unbelievable", "and the earth was without form"]
    ask = lambda prompt: served.ask("POST", "/generate_stream", {"inputs": prompt})  # noqa: E731
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(ask, prompts))
    for prompt, (status, text) in zip(prompts, answers, strict=True):
        assert status == 200
        parts = events(text)
        assert "".join(part.get("text", "") for part in parts) == prompt
        assert "stop" in json.dumps(parts[-2:]), parts[-2:]
    cut = {"inputs": prompts[0], "parameters": {"max_new_tokens": 2}}
    status, text = served.ask("POST", "/generate_stream", cut)
    assert "length" in json.dumps(events(text)[-2:]), text


def test_a_text_that_cannot_begin_ends_alone(serve) -> None:
    bad = "        if mask.sum() > 8: raise ValueError('too much to say')\n"
    script = SPELLER.replace("        return [[list", bad + "        return [[list", 1)
    served = serve(script, TEXTS, "[batch]\nmax_items = 1\n")
    prompts = ["unbelievable", "in the beginning god created the heaven", "waters"]
    status, answer = served.ask("POST", "/generate", {"inputs": prompts})
    assert status == 200, answer
    failed = {"type": "model_failed", "message": "ValueError: too much to say"}
    assert [item.get("error") for item in answer["outputs"]] == [None, failed, None]
    assert [item["text"] for item in answer["outputs"]] == [prompts[0], "", prompts[2]]
    status, answer = served.ask("POST", "/generate", {"inputs": prompts[1]})
    assert (status, answer["error"]["type"]) == (500, "model_failed"), answer


RANKS = """
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
def forward(batch):
    x = batch["x"].torch().clone() * (0.5 + dist.get_rank())
    dist.all_reduce(x)
    return {"y": x}
forebay.Worker().run(forward)
"""


def test_ranks_compute_together_and_end_together(serve) -> None:
    served = serve(RANKS, more="ranks = 2\nbackoff_s = 0.01\n")
    served.doubles([1, 2], [3, 4])
    before = served.worker()["pids"]
    assert len(before) == 2
    os.kill(before[1], signal.SIGKILL)
    # That the next group serves is shown without torch, which takes its time to load, in the engine's own tests.
    served.until(lambda: served.worker()["restarts"] == 1 and not set(before) & set(served.worker()["pids"]))


GENERATING = f"""
[model]
name = "echo"
generate = true
[model.input]
type = "text"
tokenizer = "{REPOSITORY / "examples/data/tokenizer.json"}"
max_tokens = 32
"""

# Each rank says what it made; rank 0 answers.
ECHO = """
log = open("rank" + os.environ["RANK"], "w", buffering=1)
class Echo:
    "Gives back the tokens of the prompt, one a step, without those around it."
    def admit(self, batch):
        rows = zip(batch["input_ids"].numpy().tolist(), batch["attention_mask"].numpy().sum(axis=1).tolist())
        return [ids[1 : count - 1] for ids, count in rows]
    def step(self, states):
        time.sleep(0.002)
        tokens = [state.pop(0) for state in states]
        print(tokens, file=log)
        return {"token": tokens}, [not state for state in states]
    def drop(self, state):
        pass
forebay.Worker().generate(Echo())
"""


def test_ranks_that_generate_do_the_same_steps_and_come_again_together(serve, tmp_path) -> None:
    served = serve(ECHO, GENERATING, "ranks = 2\nbackoff_s = 0.001\n")
    prompts = ["in the beginning", "let there be light and there was light", "the earth", "waters"]

    def generate(prompt: str) -> tuple[int, object]:
        return served.ask("POST", "/generate", {"inputs": prompt})

    for _ in range(2):
        with ThreadPoolExecutor(len(prompts)) as pool:
            answers = list(pool.map(generate, prompts))
        assert [status for status, _ in answers] == [200] * len(prompts), answers
        assert [answer["outputs"]["text"] for _, answer in answers] == prompts
        first, second = (tmp_path / f"rank{rank}" for rank in range(2))
        assert len(first.read_text().splitlines()) >= 8
        # Rank 0 answers, whether or not the other one is as far.
        served.until(lambda one=first, other=second: other.read_text().count("\n") >= one.read_text().count("\n"))
        assert first.read_text() == second.read_text()
        worker = served.worker()
        os.kill(worker["pids"][1], signal.SIGKILL)
        served.until(lambda restarts=worker["restarts"]: served.worker()["restarts"] == restarts + 1)
        served.until(lambda: served.ask("GET", "/readyz")[0] == 200)
