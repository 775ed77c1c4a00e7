"""Texts to padded torch tensors: forebay, the bare Rust loop, and what users have now."""

from __future__ import annotations

import json
import os
import random
import string
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

# One core for each candidate; the pool of the Python package is made when it is first used.
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import tokenizers
import torch

import forebay_ingest
from job import OURS, Job

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "examples/data/tokenizer.json"
CORPUS = ROOT / "examples/data/kjv.txt"
BATCH = 256
CALLS = 20_000
IN_A_ROW = 8


def batched(lines: list[str]) -> list[list[str]]:
    """All whole batches."""
    return [lines[at : at + BATCH] for at in range(0, len(lines) - BATCH + 1, BATCH)]


def corpus() -> list[str]:
    return CORPUS.read_text(encoding="utf-8").splitlines()


def new_words() -> list[str]:
    """Lines of 25 words, none of which comes twice."""
    dice = random.Random(1)
    words = {"".join(dice.choices(string.ascii_lowercase, k=dice.randrange(5, 10))) for _ in range(260_000)}
    ordered = sorted(words)
    dice.shuffle(ordered)
    return [" ".join(ordered[at : at + 25]) for at in range(0, len(ordered), 25)]


OURS_LOADED = forebay_ingest.Tokenizer.from_file(TOKENIZER)
THEIRS = tokenizers.Tokenizer.from_file(str(TOKENIZER))
THEIRS.no_truncation()
THEIRS.enable_padding()


def forebay(texts: list[str]) -> dict[str, torch.Tensor]:
    return OURS_LOADED.encode_batch(texts, truncation=False, threads=1).torch()


def package(texts: list[str]) -> dict[str, torch.Tensor]:
    return tensors(THEIRS.encode_batch(texts))


def package_fast(texts: list[str]) -> dict[str, torch.Tensor]:
    return tensors(THEIRS.encode_batch_fast(texts))


def tensors(encoded: list[tokenizers.Encoding]) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.tensor([e.ids for e in encoded]),
        "attention_mask": torch.tensor([e.attention_mask for e in encoded]),
    }


def over(one: Callable[[list[str]], dict[str, torch.Tensor]], work: list[list[str]]) -> Callable[[], int]:
    """`one` on each batch; it is checked to do what the others do before anything is timed."""
    for texts in work[:3]:
        ours, theirs = one(texts), package(texts)
        if not all(torch.equal(ours[name], theirs[name]) for name in theirs):
            raise AssertionError("forebay and tokenizers give different tensors")
    tokens = sum(OURS_LOADED.encode_batch(texts, truncation=False).token_count for texts in work)

    def all_batches() -> int:
        for texts in work:
            one(texts)
        return tokens

    return all_batches


class Loop:
    """A process that tokenizes the lines of `file` when told to, nothing else: see the example encode_loop."""

    def __init__(self, file: Path, how: str, number: int) -> None:
        program = os.environ.get("FOREBAY_ENCODE_LOOP", ROOT / "target/release/examples/encode_loop")
        command = [program, TOKENIZER, file, how, str(number)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603  ours

    def begin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("once\n")
        self.process.stdin.flush()

    def end(self) -> int:
        assert self.process.stdout is not None
        return int(json.loads(self.process.stdout.readline())["tokens"])


def in_rust(file: Path, how: str, number: int, processes: int = 1) -> Callable[[], int]:
    """So many of these processes at once."""
    loops = [Loop(file, how, number) for _ in range(processes)]

    def once() -> int:
        for loop in loops:
            loop.begin()
        return sum(loop.end() for loop in loops)

    return once


def against_all(what: str, lines: list[str], file: Path, note: str) -> Job:
    work = batched(lines)
    return Job(
        what=what,
        unit="tokens",
        candidates={
            OURS: over(forebay, work),
            "tokenizers encode_batch + torch.tensor": over(package, work),
            "tokenizers encode_batch_fast + torch.tensor": over(package_fast, work),
            "bare encode_fast loop in Rust": in_rust(file, "bare", BATCH),
        },
        aims={"tokenizers encode_batch + torch.tensor": 1.5, "bare encode_fast loop in Rust": 0.95},
        note=note,
    )


def two_cores(lines: list[str]) -> Job:
    def ragged(threads: int) -> Callable[[], int]:
        return lambda: OURS_LOADED.encode_batch(lines, truncation=False, ragged=True, threads=threads).token_count

    return Job(
        what="text: the whole corpus in one call, on two cores",
        unit="tokens",
        candidates={OURS: in_a_row(ragged(2)), "forebay on one core": in_a_row(ragged(1))},
        aims={"forebay on one core": 1.9},
        note="Python's list of strings is gone through by one thread, about a fifth of the time on one core.",
    )


def two_cores_in_rust() -> Job:
    return Job(
        what="text: the same without Python",
        unit="tokens",
        candidates={
            OURS: in_a_row(in_rust(CORPUS, "pool", 2)),
            "forebay on one core": in_a_row(in_rust(CORPUS, "pool", 1)),
            "two processes, one core each": in_a_row(in_rust(CORPUS, "pool", 1, processes=2)),
        },
        aims={"forebay on one core": 1.9},
        note="Two processes share nothing but the machine: what they reach is what its two cores give for this work.",
    )


def in_a_row(call: Callable[[], int]) -> Callable[[], int]:
    """Some 10 ms each: after one call on one core, the other core is asleep and its caches belong to others."""
    return lambda: sum(call() for _ in range(IN_A_ROW))


def empty_calls() -> Job:
    empty: list[str] = []

    def calls() -> int:
        for _ in range(CALLS):
            OURS_LOADED.encode_batch(empty, threads=1)["input_ids"]
        return CALLS

    return Job(
        what="text: a call without texts, array included",
        unit="calls",
        candidates={OURS: calls},
        aims={},
        at_least=500_000,
        note="under 2 µs a call is over 500 k calls a second.",
    )


def jobs() -> list[Job]:
    built = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "compare-ingest"
    built.mkdir(parents=True, exist_ok=True)
    unseen, file = new_words(), built / "new_words.txt"
    file.write_text("\n".join(unseen) + "\n")
    lines = corpus()
    return [
        against_all(
            "text: 256 lines to padded torch tensors, one core",
            lines,
            CORPUS,
            "the corpus is run over again and again, so its words are known; the next job is the other extreme.",
        ),
        against_all(
            "text: the same with words that never come twice",
            unseen,
            file,
            "random letters; more pieces than are remembered, so nothing is ever found.",
        ),
        two_cores(lines),
        two_cores_in_rust(),
        empty_calls(),
    ]
