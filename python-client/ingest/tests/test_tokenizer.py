"""The ids are those of the Python package ``tokenizers``, written where they are wanted."""

import pathlib
import threading

import numpy as np
import pytest
import tokenizers

import forebay_ingest

DATA = pathlib.Path(__file__).resolve().parents[3] / "examples/data"
ADVERSARIAL = [
    "",
    " ",
    "\0",
    "a" * 5000,
    "👩‍👩‍👧‍👦 🇩🇪",
    "שלום עולם",
    "é é",
    "日本語 テキスト",
    "[MASK] [SEP]",
    "\u202eabc",
]


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return (DATA / "kjv.txt").read_text(encoding="utf-8").splitlines()[:512]


@pytest.mark.parametrize("max_length", [8, 128])
def test_ids_and_mask_equal_those_of_the_python_package(lines: list[str], max_length: int) -> None:
    ours = forebay_ingest.Tokenizer.from_file(DATA / "tokenizer.json", max_length=max_length)
    theirs = tokenizers.Tokenizer.from_file(str(DATA / "tokenizer.json"))
    theirs.enable_truncation(max_length)
    theirs.enable_padding(pad_id=ours.pad_id)
    for texts in (lines[:64], lines[64:71], ADVERSARIAL):
        batch = ours.encode_batch(texts)
        expected = theirs.encode_batch(texts)
        assert np.array_equal(batch["input_ids"], np.array([e.ids for e in expected]))
        assert np.array_equal(batch["attention_mask"], np.array([e.attention_mask for e in expected]))


def test_threads_share_one_tokenizer(lines: list[str]) -> None:
    tokenizer = forebay_ingest.Tokenizer.from_file(DATA, max_length=64)
    expected = tokenizer.encode_batch(lines)["input_ids"]
    results: list[bool] = []
    work = [
        threading.Thread(
            target=lambda: results.append(np.array_equal(tokenizer.encode_batch(lines)["input_ids"], expected))
        )
        for _ in range(4)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert results == [True] * 4


def test_widths_and_sides(lines: list[str]) -> None:
    fixed = forebay_ingest.Tokenizer.from_file(DATA, width=32, pad_side="left")
    batch = fixed.encode_batch(["word"])
    assert batch["input_ids"].shape == (1, 32)
    assert batch["attention_mask"][0].tolist() == [0] * 29 + [1] * 3
    assert fixed.tokenize(lines[:5]).token_count > 5
    assert len(fixed.tokenize([])) == 0


def test_what_cannot_be_written_into_is_named() -> None:
    tokens = forebay_ingest.Tokenizer.from_file(DATA).tokenize(["a b c"])
    good = np.empty(tokens.shape, np.int64)
    with pytest.raises(ValueError, match="attention_mask has shape"):
        tokens.write_into(good, np.empty((1, 1), np.int64))
    with pytest.raises(TypeError, match="input_ids is no int64 buffer"):
        tokens.write_into(np.empty(tokens.shape, np.int32), good)
    frozen = good.copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="input_ids is read-only"):
        tokens.write_into(frozen, good)


def test_a_missing_file_and_a_file_that_is_no_tokenizer_are_told_apart(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="cannot read the tokenizer"):
        forebay_ingest.Tokenizer.from_file(tmp_path / "none.json")
    (tmp_path / "tokenizer.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        forebay_ingest.Tokenizer.from_file(tmp_path)
    with pytest.raises(ValueError, match="width is shortest"):
        forebay_ingest.Tokenizer.from_file(DATA, width="shortest")
