"""Runs every example as its README says: real processes, from the root of the repository."""

import os
import pathlib
import subprocess
import sys
import uuid

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
FOREBAY = pathlib.Path(os.environ.get("FOREBAY_BIN", TARGET / "release/forebay"))
CORPUS = ROOT / "examples/data/kjv.txt"
TIMEOUT_S = 120


@pytest.fixture
def ring(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a ring in a directory of this test's own; nothing of it may be left afterwards."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv("FOREBAY_DIR", str(tmp_path))
    return f"example-{uuid.uuid4().hex[:8]}"


def start(*command: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(*processes: "subprocess.Popen[str]") -> list[str]:
    outputs = []
    try:
        for process in processes:
            output, _ = process.communicate(timeout=TIMEOUT_S)
            outputs.append(output)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
    return outputs


def left_behind(ring: str) -> list[str]:
    return [name for name in os.listdir("/dev/shm") if f".{ring}." in name]


def test_tokio_producer_feeds_a_torch_consumer(ring: str) -> None:
    producer = start(TARGET / "debug" / "tokio_producer", ring)
    consumer = start(sys.executable, "examples/tokio_producer/consumer.py", ring)
    assert "received all 200 requests" in finish(consumer, producer)[0]
    assert left_behind(ring) == []


def test_python_producer_feeds_a_rust_consumer(ring: str) -> None:
    consumer = start(TARGET / "debug" / "python_to_rust", ring)
    producer = start(sys.executable, "examples/python_to_rust/producer.py", ring)
    assert "received all 101 messages" in finish(consumer, producer)[0]
    assert left_behind(ring) == []


def test_four_broadcast_ranks_see_every_batch(ring: str) -> None:
    ranks = start(sys.executable, "examples/broadcast_ranks/ranks.py", ring)
    assert "4 ranks saw all 50 batches" in finish(ranks)[0]
    assert left_behind(ring) == []


def test_a_dataloader_is_fed_from_a_ring(ring: str) -> None:
    lines = sum(1 for line in CORPUS.read_text().splitlines() if line.strip())
    feed = start(FOREBAY, "feed", CORPUS, "--tokenizer", "examples/data/tokenizer.json", "--ring", ring)
    train = start(sys.executable, "examples/dataloader/train.py", ring, lines)
    outputs = finish(train, feed)
    assert f"two workers received {lines} rows" in outputs[0]
    assert left_behind(ring) == [], outputs[1]
