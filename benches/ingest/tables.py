"""Hashed features and rows of JSON lines, beside scikit-learn and the json module."""

from __future__ import annotations

import json
import random
from typing import Any

import forebay_ingest
import numpy as np
from job import OURS, Job
from sklearn.feature_extraction import FeatureHasher

ROWS = 20_000
NAMES = 20
FEATURES = 2**18


def rows() -> list[dict[str, float]]:
    """Return rows of a vocabulary in which few names are frequent, as in logs; each name an object of its own."""
    chosen = random.Random(1)
    return [
        {f"item{int(chosen.paretovariate(0.6)) % 100_000}_{i}": chosen.random() for i in range(NAMES)}
        for _ in range(ROWS)
    ]


def hashed(kind: str, samples: list[Any], note: str) -> Job:
    """Compare the hashers on Python objects."""
    theirs = FeatureHasher(FEATURES, input_type=kind)
    ours = forebay_ingest.FeatureHasher(FEATURES, input_type=kind)
    expected, found = theirs.transform(samples), ours.transform(samples)
    if (expected != found).nnz:
        raise AssertionError(f"hashed features of {kind} differ")

    def work(hasher: Any) -> int:
        hasher.transform(samples)
        return ROWS * NAMES

    return Job(
        what=f"hashed features of Python objects ({kind})",
        unit="names",
        candidates={OURS: lambda: work(ours), "scikit-learn": lambda: work(theirs)},
        aims={"scikit-learn": 10.0},
        note=note,
    )


def hashed_lines(samples: list[dict[str, float]]) -> Job:
    """Compare the ways from JSON lines to hashed features."""
    text = "\n".join(json.dumps({"features": sample}) for sample in samples).encode()
    column = {"type": "hashed", "path": "features", "features": FEATURES}
    encoder = forebay_ingest.TableEncoder.from_config(
        {"tensors": [{"name": "x", "layout": "sparse", "indices": "i32", "columns": [column]}]}
    )
    hasher = FeatureHasher(FEATURES, dtype=np.float32)

    def ours() -> Any:
        return encoder.encode(text).arrays()["x"].scipy()

    def theirs() -> Any:
        return hasher.transform([json.loads(line)["features"] for line in text.split(b"\n")])

    if abs(ours() - theirs()).max() > 1e-6:
        raise AssertionError("hashed features of JSON lines differ")

    def count(work: Any) -> int:
        work()
        return ROWS * NAMES

    return Job(
        what="hashed features of JSON lines",
        unit="names",
        candidates={OURS: lambda: count(ours), "json + scikit-learn": lambda: count(theirs)},
        aims={"json + scikit-learn": 10.0},
    )


def table() -> Job:
    """Compare the ways from JSON lines to numbers and one-hot columns."""
    chosen = random.Random(2)
    labels = [f"label{i}" for i in range(20)]
    ignored = "what nobody asks for " * 5
    people = [
        {
            "id": i,
            "text": ignored,
            "age": chosen.randrange(90),
            "at": {"x": chosen.random(), "y": 2.5},
            "label": chosen.choice(labels),
        }
        for i in range(ROWS)
    ]
    text = "\n".join(map(json.dumps, people)).encode()
    columns: list[dict[str, Any]] = [{"type": "numeric", "path": path} for path in ("age", "at.x", "at.y")]
    columns.append({"type": "one_hot", "path": "label", "vocabulary": labels})
    encoder = forebay_ingest.TableEncoder.from_config({"tensors": [{"name": "x", "columns": columns}]})
    places = {label: 3 + at for at, label in enumerate(labels)}

    def ours() -> Any:
        return encoder.encode(text).arrays()["x"]

    def theirs() -> Any:
        out = np.zeros((ROWS, 3 + len(labels)), np.float32)
        for row, line in enumerate(text.split(b"\n")):
            person = json.loads(line)
            out[row, 0], out[row, 1], out[row, 2] = person["age"], person["at"]["x"], person["at"]["y"]
            out[row, places[person["label"]]] = 1
        return out

    if not np.array_equal(ours(), theirs()):
        raise AssertionError("tables differ")

    def count(work: Any) -> int:
        work()
        return ROWS

    return Job(
        what="JSON lines to numbers and one-hot columns",
        unit="rows",
        candidates={OURS: lambda: count(ours), "json + NumPy": lambda: count(theirs)},
        aims={},
    )


def jobs() -> list[Job]:
    """Return the jobs of tables."""
    samples = rows()
    pairs = [list(sample.items()) for sample in samples]
    names = [list(sample) for sample in samples]
    walk = "Most of the time is going through Python's lists and dicts, which no library can do on two cores."
    return [
        hashed_lines(samples),
        hashed("string", names, walk),
        hashed("dict", samples, walk),
        hashed("pair", pairs, walk),
        table(),
    ]
