"""What is taken from results, and how it is written."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

Answers = dict[str, list[dict[str, Any]]]  # candidate: one answer a round
Pick = Callable[[dict[str, Any]], float | None]


def have(answer: dict[str, Any]) -> float | None:
    return answer["have"]["p50"] if "have" in answer else None


def touch(answer: dict[str, Any]) -> float | None:
    return answer["touch"]["p50"] if "touch" in answer else None


def rate(answer: dict[str, Any]) -> float | None:
    return answer.get("rate")


def values(answers: Answers, name: str, pick: Pick) -> list[float]:
    """What `pick` finds in each round that did not fail."""
    return [found for answer in answers.get(name, []) if (found := pick(answer)) is not None]


def ratios(answers: Answers, name: str, reference: str, pick: Pick) -> list[float]:
    """`name` ÷ `reference`, round by round."""
    pairs = zip(answers.get(name, []), answers.get(reference, []), strict=False)
    both = [(pick(one), pick(other)) for one, other in pairs]
    return [one / other for one, other in both if one is not None and other]


def spread(found: list[float], show: Callable[[float], str]) -> str:
    """Median, and the range where there is one."""
    if not found:
        return "-"
    low, high = show(min(found)), show(max(found))
    return show(median(found)) if low == high else f"{show(median(found))} ({low} to {high})"


def times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"


def duration(ns: float) -> str:
    if ns < 10_000:
        return f"{ns:.0f} ns"
    return f"{ns / 1e3:.1f} µs" if ns < 1_000_000 else f"{ns / 1e6:.1f} ms"


def per_second(number: float) -> str:
    if number >= 1e6:
        return f"{number / 1e6:.1f} M"
    return f"{number / 1e3:.0f} k" if number >= 10_000 else f"{number:.0f}"


def size_name(size: int) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"
