"""Scaling, norms and nearest rows, beside NumPy and scikit-learn; and what a call costs that has nothing to do.

Not `numbers.py`, as the feature is called: that is a module of Python's own, which NumPy imports.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import forebay_ingest
import numpy as np
import sklearn.preprocessing
from job import OURS, Job

ELEMENTS = 1_000_000
ROWS, COLUMNS, NEAREST = 1_000_000, 384, 10
CALLS = 20_000


def counted(work: Callable[[], Any], units: int) -> Callable[[], int]:
    """Return work as a candidate."""

    def candidate() -> int:
        work()
        return units

    return candidate


def scaling(rng: np.random.Generator) -> list[Job]:
    """Compare ways to standard scaling."""
    flat = rng.normal(5, 3, ELEMENTS)
    table = rng.normal(5, 3, (ELEMENTS // 100, 100))

    def plain(x: Any) -> Any:
        return (x - x.mean(0)) / x.std(0)

    np.testing.assert_allclose(forebay_ingest.scale(flat), plain(flat), rtol=1e-9, atol=1e-12)
    sklearn_scale = sklearn.preprocessing.StandardScaler().fit_transform
    return [
        Job(
            what="standard scaling, 1 M f64",
            unit="elements",
            candidates={
                OURS: counted(lambda: forebay_ingest.scale(flat), ELEMENTS),
                "NumPy": counted(lambda: plain(flat), ELEMENTS),
                "scikit-learn": counted(lambda: sklearn_scale(flat[:, None]), ELEMENTS),
            },
            aims={"NumPy": 2.0},
        ),
        Job(
            what="standard scaling, 10,000 × 100 f64",
            unit="elements",
            candidates={
                OURS: counted(lambda: forebay_ingest.scale(table), ELEMENTS),
                "NumPy": counted(lambda: plain(table), ELEMENTS),
                "scikit-learn": counted(lambda: sklearn_scale(table), ELEMENTS),
            },
            aims={"NumPy": 2.0},
        ),
    ]


def nearest(rng: np.random.Generator) -> list[Job]:
    """Compare ways to the nearest rows of a matrix of 1.5 GB."""
    matrix = rng.random((ROWS, COLUMNS), np.float32)
    matrix -= 0.5
    query = matrix[7].copy()

    def plain() -> Any:
        scores = matrix @ query
        best = np.argpartition(-scores, NEAREST)[:NEAREST]
        return best[np.argsort(-scores[best])]

    if not np.array_equal(forebay_ingest.top_k(matrix, query, NEAREST)[0], plain()):
        raise AssertionError("nearest rows differ")
    return [
        Job(
            what="top 10 of 1 M × 384 f32",
            unit="rows",
            candidates={
                OURS: counted(lambda: forebay_ingest.top_k(matrix, query, NEAREST), ROWS),
                "NumPy": counted(plain, ROWS),
            },
            aims={"NumPy": 1.0},
            note="NumPy with the OpenBLAS of its wheel; it makes an array of all scores, forebay does not.",
        )
    ]


def norms(rng: np.random.Generator) -> list[Job]:
    """Compare ways to rows of length 1."""
    rows = rng.normal(size=(100_000, COLUMNS)).astype(np.float32)
    return [
        Job(
            what="L2 normalization, 100,000 × 384 f32",
            unit="rows",
            candidates={
                OURS: counted(lambda: forebay_ingest.l2_normalize(rows), len(rows)),
                "NumPy": counted(lambda: rows / np.linalg.norm(rows, axis=1, keepdims=True), len(rows)),
                "scikit-learn": counted(lambda: sklearn.preprocessing.normalize(rows), len(rows)),
            },
            aims={},
        )
    ]


def calls() -> list[Job]:
    """Measure calls that have next to nothing to do, beside the cheapest of NumPy's."""
    row = np.ones((1, 8))
    out = np.empty_like(row)
    scaler = forebay_ingest.StandardScaler().fit(row)
    matrix = np.ones((4, 8), np.float32)

    def repeat(work: Callable[[], Any]) -> Callable[[], int]:
        def candidate() -> int:
            for _ in range(CALLS):
                work()
            return CALLS

        return candidate

    return [
        Job(
            what="calls on 8 numbers: StandardScaler.transform",
            unit="calls",
            candidates={
                OURS: repeat(lambda: scaler.transform(row, out)),
                "NumPy, one addition": repeat(lambda: np.add(row, 1, out)),
            },
            aims={},
            note="The aim is below 2 µs a call: more than 500,000 calls/s.",
        ),
        Job(
            what="calls on 8 numbers: top_k",
            unit="calls",
            candidates={
                OURS: repeat(lambda: forebay_ingest.top_k(matrix, matrix[0], 2)),
                "NumPy, matmul + argsort": repeat(lambda: np.argsort(matrix @ matrix[0])),
            },
            aims={},
            note="The aim is below 2 µs a call: more than 500,000 calls/s.",
        ),
    ]


def jobs() -> list[Job]:
    """Return the jobs of numbers."""
    rng = np.random.default_rng(1)
    return [*scaling(rng), *norms(rng), *nearest(rng), *calls()]
