"""What `forebay serve` gives its workers is, bit for bit, what the classes of this package make of the same input."""

import base64
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from forebay_ingest import ImageProcessor, TableEncoder, Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[3]
BINARY = pathlib.Path(os.environ.get("FOREBAY_BIN", ROOT / "target/release/forebay"))
IMAGES = ROOT / "crates/forebay-ingest/tests/data/images"
TOKENIZER = ROOT / "examples/data/tokenizer.json"
NAMES = ["422.jpg", "gradient.png", "lossy.webp", "gray.jpg", "orientation-6.jpg"]
TEXTS = ["The pool above the turbine is full.", "a\u0300 e\u0301 \U0001f469\u200d\U0001f680 שלום", "x", "word " * 600]
PATIENCE_S = 60
# Keeps the tensors of every batch, and answers with how many files it has written.
WORKER = """
import itertools, os, forebay
import numpy as np
numbers = itertools.count(1)
def forward(batch):
    number = next(numbers)
    np.savez(os.path.join(os.environ["SEEN"], f"{number}.npz"), **{name: batch[name].numpy() for name in batch.keys()})
    return {"number": np.full(len(batch), number, np.int64)}
forebay.Worker("same").run(forward)
"""


@contextlib.contextmanager
def served(folder: pathlib.Path, model_input: str):
    """Run the sidecar; yields what posts a body to it and returns the tensors that the worker was given."""
    assert BINARY.exists(), f"{BINARY} is missing; `make binary` builds it"
    (folder / "seen").mkdir()
    (folder / "worker.py").write_text(WORKER)
    command = json.dumps([sys.executable, "worker.py"])
    (folder / "serve.toml").write_text(
        f"[model]\nname = 'same'\n[model.input]\n{model_input}\n"
        f"[server]\nlisten = '127.0.0.1:0'\n[worker]\ncommand = {command}\n"
    )
    environment = os.environ | {"FOREBAY_DIR": str(folder / "rings"), "SEEN": str(folder / "seen")}
    with subprocess.Popen(
        [BINARY, "serve", "--config", "serve.toml"], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        said: list[str] = []
        port = 0
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"listening on http://[\d.]+:(\d+)", line):
                port = int(found[1])
                break
        assert port, "".join(said)
        rest = threading.Thread(target=lambda: said.extend(process.stderr))
        rest.start()
        try:
            until_ready(process, f"http://127.0.0.1:{port}", said)

            def given(body: bytes, kind: str = "application/json") -> dict[str, np.ndarray]:
                request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", body, {"Content-Type": kind})
                with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                    number = np.ravel(json.load(answer)["outputs"]["number"])[0]
                with np.load(folder / f"seen/{number}.npz") as file:
                    return dict(file)

            yield given
        finally:
            process.terminate()
            code = process.wait(PATIENCE_S)
            rest.join()
        assert code == 0, "".join(said)


def until_ready(process: subprocess.Popen, url: str, said: list[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(f"{url}/readyz", timeout=PATIENCE_S):
            return
        assert process.poll() is None, "".join(said)
        assert time.monotonic() < deadline, "".join(said)
        time.sleep(0.005)


def same(given: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert given.keys() == expected.keys()
    for name, array in expected.items():
        assert given[name].dtype == array.dtype
        assert given[name].shape == array.shape
        assert given[name].tobytes() == array.tobytes()


def test_texts_are_those_of_the_tokenizer(tmp_path):
    tokenizer = Tokenizer.from_file(TOKENIZER)
    with served(tmp_path, f"type = 'text'\ntokenizer = '{TOKENIZER}'\nmax_tokens = 128") as given:
        for text in TEXTS:
            batch = tokenizer.encode_batch([text], truncation=True, max_length=128, padding="longest").numpy()
            expected = {name: batch[name] for name in ("input_ids", "attention_mask")}
            same(given(json.dumps({"inputs": text}).encode()), expected)


@pytest.mark.parametrize("kind", ["CLIPImageProcessor", "ViTImageProcessor"])
def test_images_are_those_of_the_processor(tmp_path, kind):
    config = {"image_processor_type": kind, "size": {"height": 40, "width": 32}}
    if kind == "CLIPImageProcessor":
        config |= {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    processor = ImageProcessor.from_config(config)
    with served(tmp_path, "type = 'image'\nprocessor = 'preprocessor_config.json'") as given:
        for name in NAMES:
            image = (IMAGES / name).read_bytes()
            expected = {"pixel_values": processor([image])}
            same(given(image, "application/octet-stream"), expected)
            same(given(json.dumps({"inputs": base64.b64encode(image).decode()}).encode()), expected)


def test_rows_are_those_of_the_encoder(tmp_path):
    schema = {
        "tensors": [
            {"name": "x", "columns": [{"type": "numeric", "path": "a.b", "missing": "nan"}]},
            {"name": "c", "dtype": "u8", "columns": [{"type": "one_hot", "path": "c", "vocabulary": ["p", "q", 3]}]},
            {"name": "h", "columns": [{"type": "hashed", "path": "h", "features": 64, "input": "dict"}]},
        ]
    }
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    encoder = TableEncoder.from_file(tmp_path / "schema.json")
    rows = [{"a": {"b": 1 / 7} if n % 2 else {}, "c": ["p", 3][n % 2], "h": {f"k{n}": n + 0.5}} for n in range(4)]
    with served(tmp_path, "type = 'table'\nschema = 'schema.json'") as given:
        for row in rows:
            batch = encoder.encode([json.dumps(row)])
            expected = {name: np.empty(shape, dtype) for name, (dtype, shape) in batch.fields.items()}
            batch.write_into(expected)
            same(given(json.dumps({"inputs": row}).encode()), expected)
