"""From rates to the table in docs/ingest/README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

# `report` is beside the folders of the benchmarks.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from report import host, markdown

PACKAGES = ("numpy", "torch", "tokenizers", "torchvision", "pillow", "transformers", "scikit-learn")
QUIET, BUSY = 1.0, 1.5  # load for each core, before and at the end, beyond which something else ran


def ratios(job: dict[str, Any], rival: str) -> list[float]:
    """Ours ÷ the rival's, round by round."""
    rates = job["rates"]
    return [ours / theirs for ours, theirs in zip(rates[job["ours"]], rates[rival], strict=True)]


def spread(values: Sequence[float], unit: str = "") -> str:
    middle, low, high = median(values), min(values), max(values)
    return f"{middle:.2f}{unit} ({low:.2f}–{high:.2f})"


def per_second(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.2f} {letter}"
    return f"{value:.1f}"


def rows(jobs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row for each rival of each job, and one for an aim that is no ratio."""
    found = []
    for job in jobs:
        own = median(job["rates"][job["ours"]])
        what = job["what"]
        if job["at_least"]:
            met = "yes" if own >= job["at_least"] else "**no**"
            rate = f"{per_second(own)} {job['unit']}/s"
            found.append([what, rate, "", "", "", f"≥ {per_second(job['at_least'])} {job['unit']}/s", met])
            continue
        for rival, rates in job["rates"].items():
            if rival == job["ours"]:
                continue
            times = ratios(job, rival)
            aim = job["aims"].get(rival)
            met = "" if aim is None else ("yes" if median(times) >= aim else "**no**")
            found.append(
                [
                    what,
                    f"{per_second(own)} {job['unit']}/s",
                    rival,
                    f"{per_second(median(rates))}/s",
                    f"{spread(times)} ×",
                    "" if aim is None else f"≥ {aim:g} ×",
                    met,
                ]
            )
    return found


def machine(facts: host.Facts) -> str:
    rows = markdown.table(["", ""], list(markdown.host_rows(facts).items()))
    return f"{rows}\n\n{markdown.DOUBTFUL}" if host.busy(facts, before=QUIET, after=BUSY) else rows


def text(facts: host.Facts, jobs: Sequence[dict[str, Any]]) -> str:
    """All of it, for a terminal and for the page."""
    head = ["what", "forebay", "compared with", "it does", "forebay ÷ it", "aim", "met"]
    notes = "".join(f"\n- {job['what']}: {job['note']}" for job in jobs if job["note"])
    quick = f"\n\n{markdown.QUICK}" if any(job["quick"] for job in jobs) else ""
    return f"{machine(facts)}{quick}\n\n{markdown.table(head, rows(jobs))}" + (f"\n{notes}" if notes else "")


def write(path: Path, facts: host.Facts, jobs: Sequence[dict[str, Any]]) -> None:
    """Fill the page's one place."""
    path.write_text(markdown.fill(path.read_text(), "compare-ingest", "table", text(facts, jobs)))
