"""The ids are those of the Python package ``tokenizers``, written where they are wanted."""

import base64
import gc
import pathlib
import subprocess
import sys
import threading
from collections.abc import Mapping

import numpy as np
import pytest
import tokenizers
from interrupted import after_ctrl_c

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
    with pytest.raises(ValueError, match="input_ids cannot be written into"):
        tokens.write_into(frozen, good)


def test_a_missing_file_and_a_file_that_is_no_tokenizer_are_told_apart(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="cannot read the tokenizer"):
        forebay_ingest.Tokenizer.from_file(tmp_path / "none.json")
    (tmp_path / "tokenizer.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        forebay_ingest.Tokenizer.from_file(tmp_path)
    with pytest.raises(ValueError, match="width is shortest"):
        forebay_ingest.Tokenizer.from_file(DATA, width="shortest")


@pytest.fixture(scope="module")
def minilm() -> forebay_ingest.Tokenizer:
    return forebay_ingest.Tokenizer.from_file(DATA)


def test_a_batch_is_a_mapping_of_arrays_that_keep_their_memory(minilm) -> None:
    batch = minilm.encode_batch(["In the beginning", "God"])
    assert isinstance(batch, Mapping)
    assert list(batch) == batch.keys() == ["input_ids", "attention_mask"]
    assert len(batch) == 2
    assert "input_ids" in batch
    assert "labels" not in batch
    assert batch.get("labels") is None
    with pytest.raises(KeyError, match="labels"):
        batch["labels"]
    ids = batch["input_ids"]
    assert ids is batch["input_ids"]
    assert ids.flags.owndata or ids.base is not None
    expected = ids.tolist()
    assert dict(batch.items())["attention_mask"].sum() == batch.token_count
    del batch
    gc.collect()
    assert ids.tolist() == expected
    assert (ids.dtype, ids.flags.writeable, ids.flags.c_contiguous) == (np.int64, True, True)


def test_torch_tensors_share_the_memory_of_the_arrays(minilm) -> None:
    torch = pytest.importorskip("torch")
    batch = minilm.encode_batch(["In the beginning", "God"])
    tensors = batch.torch()
    assert tensors["input_ids"].dtype == torch.int64
    tensors["input_ids"][0, 0] = 7
    assert batch["input_ids"][0, 0] == 7
    assert tensors["input_ids"].data_ptr() == batch["input_ids"].ctypes.data


def test_ragged_rows_are_what_varlen_attention_takes(minilm, lines) -> None:
    texts = ["", *lines[:50]]
    padded, ragged = minilm.encode_batch(texts), minilm.encode_batch(texts, ragged=True)
    ends = ragged["cu_seqlens"]
    assert (ends.dtype, ends.shape, ends[0]) == (np.int32, (52,), 0)
    assert np.array_equal(np.diff(ends), padded["attention_mask"].sum(axis=1))
    assert np.array_equal(ragged["input_ids"], padded["input_ids"][padded["attention_mask"] == 1])
    assert ragged.max_seqlen == padded["input_ids"].shape[1]
    assert ragged.waste == 0


def test_plans_waste_little_and_hold_every_text(minilm, lines) -> None:
    batches = minilm.encode_planned(lines, max_rows=64, max_tokens=2048)
    assert sorted(item for batch in batches for item in batch.item_of_row) == list(range(len(lines)))
    assert all(batch.padded_count <= 2048 and batch.rows <= 64 for batch in batches)
    as_they_come = minilm.encode_batch(lines)
    wasted = 1 - sum(b.token_count for b in batches) / sum(b.padded_count for b in batches)
    assert wasted < 0.1 < as_they_come.waste
    for batch in batches[::5]:
        again = minilm.encode_batch([lines[item] for item in batch.item_of_row])
        assert np.array_equal(batch["input_ids"], again["input_ids"])
    in_order = minilm.encode_planned(lines, max_rows=10, keep_order=True)
    assert [item for batch in in_order for item in batch.item_of_row] == list(range(len(lines)))


def test_what_does_not_fit_becomes_further_rows(minilm, lines) -> None:
    batch = minilm.encode_batch(["word", " ".join(lines[:3])], max_length=16, stride=4, offsets=True)
    assert batch.item_of_row[:2] == [0, 1]
    assert set(batch.item_of_row) == {0, 1}
    assert batch.rows > 4
    before, after = batch["input_ids"][1], batch["input_ids"][2]
    assert before[11:15].tolist() == after[1:5].tolist()
    assert batch["offset_mapping"][2, 1, 0] > 0


def test_a_text_that_is_none_is_named_or_reported(minilm) -> None:
    texts = ["good", 3, "\ud800", "good"]
    with pytest.raises(
        forebay_ingest.IngestError, match="text 1 cannot be tokenized: it is int, expected str"
    ) as caught:
        minilm.encode_batch(texts)
    assert caught.value.index == 1
    assert isinstance(caught.value, ValueError)
    batch = minilm.encode_batch(texts, on_error="report")
    assert list(batch.errors) == [1, 2]
    assert "no Unicode text" in batch.errors[2]
    assert batch["attention_mask"].sum(axis=1).tolist() == [3, 0, 0, 3]
    refused = "a" + " " * 500_001
    with pytest.raises(forebay_ingest.IngestError, match="white-space") as caught:
        minilm.encode_batch(["good", refused], ["good", "good"])
    assert caught.value.index == 1
    with pytest.raises(TypeError, match="texts is one string"):
        minilm.encode_batch("good")
    with pytest.raises(ValueError, match="pairs has 1 texts, expected 2"):
        minilm.encode_batch(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="on_error is 'skip'|on_error is \"skip\""):
        minilm.encode_batch(["a"], on_error="skip")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"padding": "shortest"}, "padding is shortest"),
        ({"truncation": "both"}, "truncation is both"),
        ({"max_length": 2}, "max_length 2 is too small"),
        ({"max_length": 8, "stride": 6}, "overlap of 6 tokens is too large"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of is 0"),
        ({"threads": 0}, "0 threads"),
    ],
)
def test_options_that_do_not_fit_are_refused(minilm, options, text) -> None:
    with pytest.raises(ValueError, match=text):
        minilm.encode_batch(["a"], **options)


def test_normalization_before_and_special_tokens_as_text() -> None:
    plain = forebay_ingest.Tokenizer.from_file(DATA)
    nfkc = forebay_ingest.Tokenizer.from_file(DATA, normalize="NFKC")
    assert nfkc.encode_batch(["ﬁ"])["input_ids"].tolist() == plain.encode_batch(["fi"])["input_ids"].tolist()
    assert plain.encode_batch(["[MASK]"])["input_ids"].tolist() == [[101, 103, 102]]
    as_text = forebay_ingest.Tokenizer.from_file(DATA, special_in_text=False)
    assert 103 not in as_text.encode_batch(["[MASK]"])["input_ids"]
    assert as_text.token_to_id("[MASK]") == 103


def test_no_thread_count_changes_anything(minilm, lines) -> None:
    expected = minilm.encode_batch(lines, threads=1)["input_ids"]
    for threads in (2, 5, None):
        assert np.array_equal(minilm.encode_batch(lines, threads=threads)["input_ids"], expected)
    assert np.array_equal(minilm.encode_batch(iter(lines))["input_ids"], expected)


def test_a_tiktoken_file_that_is_none_is_told(tmp_path) -> None:
    path = tmp_path / "x.tiktoken"
    path.write_text("IQ== 0\nnot base64\n")
    with pytest.raises(ValueError, match=r"line 2 is .*not base64"):
        forebay_ingest.Tokenizer.from_tiktoken(path, "cl100k_base")
    path.write_text("IQ== 0\n")
    with pytest.raises(ValueError, match="no token for the byte 0x00"):
        forebay_ingest.Tokenizer.from_tiktoken(path, "cl100k_base")
    with pytest.raises(ValueError, match="expected gpt2"):
        forebay_ingest.Tokenizer.from_tiktoken(path, "gpt9")
    with pytest.raises(ValueError, match="neither name nor pattern"):
        forebay_ingest.Tokenizer.from_tiktoken(path)
    ranks = [bytes([byte]) for byte in range(256)] + [b"ab", b"abc"]
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ranks)))
    ours = forebay_ingest.Tokenizer.from_tiktoken(path, pattern=r"\w+|\W+", special_tokens={"<end>": 300})
    assert ours.encode_batch(["abcab <end>"])["input_ids"].tolist() == [[257, 256, 32, 300]]
    with pytest.raises(ValueError, match="pattern cannot be used"):
        forebay_ingest.Tokenizer.from_tiktoken(path, pattern="(")


# How many MiB more a pair takes at its most than one that is short.
MEMORY = """
import resource, sys
import forebay_ingest
tokenizer = forebay_ingest.Tokenizer.from_file(sys.argv[1])
def rows(first, second, **options):
    batch = tokenizer.encode_batch([first], [second], max_length=128, threads=1, **options)
    return batch["input_ids"].tolist()
rows("a b", "c d", offsets=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
long = "a b " * 2_000, "c d " * 2_000
assert rows(*long, offsets=True) == rows(*long)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_offsets_of_a_long_pair_take_memory_for_its_texts_only() -> None:
    command = [sys.executable, "-c", MEMORY, str(DATA)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stderr
    # By the product of both lengths it was 366.
    assert int(done.stdout) < 100


# Words that never come twice, as a known one is found too fast: 96 MiB take half a minute on one core.
NOISE = """
import forebay_ingest
tokenizer = forebay_ingest.Tokenizer.from_file(sys.argv[1])
letters = bytes(b"abcdefghijklmnopqrstuvwxyz      "[byte % 32] for byte in range(256))
texts = [os.urandom(1 << 16).translate(letters).decode("ascii") for _ in range(96 * 16)]
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_a_long_call(threads: int) -> None:
    call = f"tokenizer.encode_batch(texts[:16 * times], truncation=False, ragged=True, threads={threads})"
    assert after_ctrl_c(NOISE, call, 96, str(DATA)) < 0.25
