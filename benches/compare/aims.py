"""What forebay aims at beside floor and rivals, and whether it is there.

Ratios of one run, except for rates into Python, which are limited by the interpreter and therefore numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from numbers_of import Answers, have, per_second, rate, ratios, spread, times, values

SMALL, LARGE = "64", str(64 << 20)


@dataclass(frozen=True)
class Aim:
    """One line: `limit` is the most, or the least where `at_least`."""

    what: str
    job: str
    limit: float
    find: Callable[[dict[str, Answers]], list[float]]
    at_least: bool = False
    show: Callable[[float], str] = times


def one_way(name: str, reference: str) -> Callable[[dict[str, Answers]], list[float]]:
    return lambda by: ratios(by[SMALL], name, reference, have)


def worst(name: str, reference: str) -> Callable[[dict[str, Answers]], list[float]]:
    """The size at which `name` is furthest behind."""
    return lambda by: max((ratios(answers, name, reference, have) for answers in by.values()), key=median)


def faster(name: str, reference: str) -> Callable[[dict[str, Answers]], list[float]]:
    return lambda by: ratios(by[SMALL], name, reference, rate)


def over_size(by: dict[str, Answers]) -> list[float]:
    """A large message ÷ a small one: medians, since they are of different rounds."""
    large, small = (values(by[size], "forebay", have) for size in (LARGE, SMALL))
    return [median(large) / median(small)] if large and small else []


def torch_bound(by: dict[str, Answers]) -> list[float]:
    """`forebay-torch` ÷ (1.25 of the floor's array + 1.1 of what torch's import adds to it), round by round."""
    found = []
    for own, array, tensor in zip(
        *(by[SMALL].get(name, []) for name in ("forebay-torch", "minimal-numpy", "minimal-torch")), strict=False
    ):
        a, b, c = have(own), have(array), have(tensor)
        if a is not None and b is not None and c is not None:
            found.append(a / (1.25 * b + 1.1 * max(c - b, 0)))
    return found


def per_s(name: str) -> Callable[[dict[str, Answers]], list[float]]:
    return lambda by: values(by[SMALL], name, rate)


AIMS = (
    Aim("Rust to Rust, 64 B, one way ÷ the floor's", "rust-rust", 1.15, one_way("forebay", "minimal")),
    Aim("the same ÷ ringfire's", "rust-rust", 1.0, one_way("forebay", "ringfire")),
    Aim("the same ÷ iceoryx2's", "rust-rust", 0.25, one_way("forebay", "iceoryx2")),
    Aim("64 MiB ÷ 64 B", "rust-rust", 1.1, over_size),
    Aim("64 B messages a second ÷ the floor's", "rust-rust", 0.6, faster("forebay", "minimal"), at_least=True),
    Aim("the same ÷ ringfire's", "rust-rust", 2.0, faster("forebay", "ringfire"), at_least=True),
    Aim("the same ÷ iceoryx2's", "rust-rust", 20.0, faster("forebay", "iceoryx2"), at_least=True),
    Aim(
        "Rust to NumPy, worst size, one way ÷ the floor's", "rust-python", 1.25, worst("forebay-numpy", "minimal-numpy")
    ),
    Aim("the same ÷ iceoryx2's", "rust-python", 0.2, worst("forebay-numpy", "iceoryx2-numpy")),
    Aim("Rust to torch, 64 B, ÷ (1.25 of the floor + 1.1 of torch's import)", "rust-python", 1.0, torch_bound),
    Aim(
        "64 B messages a second to NumPy", "rust-python", 1.5e6, per_s("forebay-numpy"), at_least=True, show=per_second
    ),
    Aim("the same with `recv_many`", "rust-python", 4e6, per_s("forebay-many"), at_least=True, show=per_second),
)


def rows(results: dict[str, Any]) -> list[Sequence[str]]:
    """A line for each aim that this run says something about."""
    lines = []
    for aim in AIMS:
        cells = results["jobs"].get(aim.job, {})
        by = {size: cell["answers"] for size, cell in cells.items()}
        try:
            found = aim.find(by)
        except (KeyError, ValueError):
            found = []
        if found:
            middle = median(found)
            met = middle >= aim.limit if aim.at_least else middle <= aim.limit
            sign = "≥" if aim.at_least else "≤"
            lines.append(
                [aim.what, f"{sign} {aim.show(aim.limit)}", spread(found, aim.show), "yes" if met else "**no**"]
            )
    return lines
