"""Ids are those of the Python packages, over tokenizers that people use and texts that are hard."""

import pathlib

import numpy as np
import pytest
import tokenizers
from hard_texts import CORPUS, FIXED, megabyte, mixed
from vocabularies import fetched, of_hugging_face, plain

import forebay_ingest

# WordPiece; byte-level BPE; the same after NFKC; byte-fallback BPE; Unigram after sentencepiece's nmt_nfkc.
NAMES = ["minilm", "deepseek", "claude", "llama2", "unigram"]
TEXTS = [*FIXED, *mixed(300), *CORPUS[:200]]


@pytest.fixture(scope="module", params=NAMES)
def both(request: pytest.FixtureRequest) -> tuple[forebay_ingest.Tokenizer, tokenizers.Tokenizer, pathlib.Path]:
    path = of_hugging_face(request.param)
    return forebay_ingest.Tokenizer.from_file(path), plain(path), path


def rows(batch: forebay_ingest.Batch) -> list[list[int]]:
    ids, ends = batch["input_ids"].tolist(), batch["cu_seqlens"].tolist()
    return [ids[begin:end] for begin, end in zip(ends, ends[1:], strict=False)]


@pytest.mark.parametrize("special", [True, False])
def test_ids(both, special: bool) -> None:
    ours, theirs, _ = both
    batch = ours.encode_batch(TEXTS, ragged=True, truncation=False, add_special_tokens=special)
    expected = [e.ids for e in theirs.encode_batch(TEXTS, add_special_tokens=special)]
    for text, found, ids in zip(TEXTS, rows(batch), expected, strict=True):
        assert found == ids, repr(text[:80])


def test_a_line_of_a_megabyte(both) -> None:
    ours, theirs, _ = both
    line = megabyte()
    assert ours.encode_batch([line], ragged=True, truncation=False)["input_ids"].tolist() == theirs.encode(line).ids
    cut = ours.encode_batch([line], max_length=64)["input_ids"].tolist()
    theirs.enable_truncation(64)
    assert cut == [theirs.encode(line).ids]
    theirs.no_truncation()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_length", [9, 32])
def test_truncation_and_padding(both, side: str, max_length: int) -> None:
    _, theirs, path = both
    ours = forebay_ingest.Tokenizer.from_file(path, truncation_side=side, pad_side=side)
    theirs.enable_truncation(max_length, direction=side)
    theirs.enable_padding(direction=side, pad_id=ours.pad_id, pad_to_multiple_of=8)
    for texts in (TEXTS[:40], TEXTS[300:307]):
        batch = ours.encode_batch(texts, max_length=max_length, pad_to_multiple_of=8)
        expected = theirs.encode_batch(texts)
        assert np.array_equal(batch["input_ids"], np.array([e.ids for e in expected]))
        assert np.array_equal(batch["attention_mask"], np.array([e.attention_mask for e in expected]))
    theirs.no_truncation()
    theirs.no_padding()


@pytest.mark.parametrize("strategy", ["longest_first", "only_first", "only_second"])
def test_pairs(both, strategy: str) -> None:
    ours, theirs, _ = both
    first, second = CORPUS[:60], CORPUS[100:160]
    theirs.enable_truncation(48, strategy=strategy)
    theirs.enable_padding(pad_id=ours.pad_id)
    batch = ours.encode_batch(first, second, max_length=48, truncation=strategy, on_error="report")
    for row, pair in enumerate(zip(first, second, strict=True)):
        try:
            expected = theirs.encode(*pair)
        except Exception:  # noqa: BLE001  that is what the package raises
            assert row in batch.errors
            continue
        length = len(expected.ids)
        assert batch["input_ids"][row, :length].tolist() == expected.ids
        assert batch["token_type_ids"][row, :length].tolist() == expected.type_ids
    theirs.no_truncation()
    theirs.no_padding()


def test_offsets_count_characters(both) -> None:
    ours, theirs, _ = both
    batch = ours.encode_batch(TEXTS, ragged=True, truncation=False, offsets=True)
    expected = [list(offset) for e in theirs.encode_batch(TEXTS) for offset in e.offsets]
    assert batch["offset_mapping"].tolist() == expected


def test_decoding_at_once_and_one_by_one(both) -> None:
    ours, theirs, _ = both
    for text in TEXTS[:150]:
        ids = theirs.encode(text).ids
        for skip in (True, False):
            expected = theirs.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip_special_tokens=skip) == expected
            stream = ours.decode_stream(skip_special_tokens=skip)
            parts = [stream.push(token) for token in ids]
            assert "".join(part for part in [*parts, stream.finish()] if part) == expected


@pytest.mark.parametrize("name", ["r50k_base", "p50k_base", "cl100k_base", "o200k_base"])
def test_tiktoken(name: str) -> None:
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    from tiktoken import load
    from tiktoken_ext import openai_public

    path = fetched(name)
    # Pattern and special tokens are the package's own; only the file is from elsewhere.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: load.load_tiktoken_bpe(str(path)))
        theirs = tiktoken.Encoding(**openai_public.ENCODING_CONSTRUCTORS[name]())
    for special_in_text in (False, True):
        ours = forebay_ingest.Tokenizer.from_tiktoken(path, name, special_in_text=special_in_text)
        batch = ours.encode_batch([*TEXTS, megabyte()], ragged=True)
        for text, found in zip([*TEXTS, megabyte()], rows(batch), strict=True):
            expected = theirs.encode(text, allowed_special="all") if special_in_text else theirs.encode_ordinary(text)
            assert found == expected, repr(text[:80])
            if len(text) < 1000:
                assert ours.decode(expected, skip_special_tokens=False) == theirs.decode(expected)
