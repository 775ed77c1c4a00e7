"""Texts to padded torch tensors: forebay, the bare Rust loop, and what users have now."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

# One core for each candidate; the pool of the Python package is made when it is first used.
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import tokenizers
import torch

import forebay_ingest

from job import OURS, Job

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "examples/data/tokenizer.json"
BATCH = 256


def batches() -> list[list[str]]:
    """All whole batches of the bundled corpus."""
    lines = (ROOT / "examples/data/kjv.txt").read_text(encoding="utf-8").splitlines()
    return [lines[at : at + BATCH] for at in range(0, len(lines) - BATCH + 1, BATCH)]


def python_package() -> tokenizers.Tokenizer:
    theirs = tokenizers.Tokenizer.from_file(str(TOKENIZER))
    theirs.no_truncation()
    theirs.enable_padding()
    return theirs


def same(ours: Callable[[list[str]], torch.Tensor], theirs: Callable[[list[str]], torch.Tensor]) -> None:
    """Before anything is timed: the two do the same."""
    for texts in batches()[:3]:
        if not torch.equal(ours(texts), theirs(texts)):
            raise AssertionError("forebay and tokenizers give different ids")


def bare_loop() -> Callable[[], int]:
    """`encode_fast` of the crate on each line, in Rust, nothing else: a process that does it when told to."""
    program = os.environ.get("FOREBAY_BARE_LOOP", ROOT / "target/release/examples/bare_loop")
    process = subprocess.Popen(  # noqa: S603  what `make compare-ingest` has built
        [program, TOKENIZER, ROOT / "examples/data/kjv.txt", str(BATCH)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def once() -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("once\n")
        process.stdin.flush()
        return int(json.loads(process.stdout.readline())["tokens"])

    return once


def jobs() -> list[Job]:
    ours = forebay_ingest.Tokenizer.from_file(TOKENIZER)
    theirs = python_package()
    work = batches()
    whole = [line for texts in work for line in texts]

    def forebay(texts: list[str], threads: int = 1) -> torch.Tensor:
        tensors = ours.encode_batch(texts, truncation=False, threads=threads).torch()
        return tensors["input_ids"]

    def package(texts: list[str]) -> torch.Tensor:
        encoded = theirs.encode_batch(texts)
        torch.tensor([e.attention_mask for e in encoded])
        return torch.tensor([e.ids for e in encoded])

    def package_fast(texts: list[str]) -> torch.Tensor:
        encoded = theirs.encode_batch_fast(texts)
        torch.tensor([e.attention_mask for e in encoded])
        return torch.tensor([e.ids for e in encoded])

    same(forebay, package)
    tokens = sum(int(ours.encode_batch(texts, truncation=False).token_count) for texts in work)

    def over(one: Callable[[list[str]], object]) -> Callable[[], int]:
        def all_batches() -> int:
            for texts in work:
                one(texts)
            return tokens

        return all_batches

    def ragged(threads: int) -> Callable[[], int]:
        # As large a call as a dataset is: what the threads do between batches is not in it.
        return lambda: ours.encode_batch(whole, truncation=False, ragged=True, threads=threads).token_count

    empty: list[str] = []

    def calls() -> int:
        for _ in range(20_000):
            ours.encode_batch(empty, threads=1)["input_ids"]
        return 20_000

    def no_calls() -> int:
        for _ in range(20_000):
            len(empty)
        return 20_000

    return [
        Job(
            what="text: 256 lines to padded torch tensors, one core",
            unit="tokens",
            candidates={
                OURS: over(forebay),
                "tokenizers encode_batch + torch.tensor": over(package),
                "tokenizers encode_batch_fast + torch.tensor": over(package_fast),
                "bare encode_fast loop in Rust": bare_loop(),
            },
            aims={"tokenizers encode_batch + torch.tensor": 1.5, "bare encode_fast loop in Rust": 0.95},
            note="The bare loop makes no tensors; ours reads Python strings and makes them.",
        ),
        Job(
            what="text: the same lines on two cores",
            unit="tokens",
            candidates={OURS: ragged(2), "forebay on one core": ragged(1)},
            aims={"forebay on one core": 1.9},
        ),
        Job(
            what="text: an empty call, array included",
            unit="calls",
            candidates={OURS: calls, "an empty loop in Python": no_calls},
            aims={},
            at_least=500_000,
            note="Under 2 µs a call is 500 k calls a second.",
        ),
    ]
