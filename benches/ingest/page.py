"""From rates to the table in docs/ingest/README.md, between markers.

The place for KEY is what lies between `<!-- compare-ingest KEY -->` and `<!-- end KEY -->`.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

PACKAGES = ("numpy", "torch", "tokenizers", "torchvision", "pillow", "transformers", "scikit-learn")
BUSY = 1.5  # load for each core at the end, beyond which something else ran


def machine_before(root: Path) -> dict[str, Any]:
    """What the figures were measured on, and with which versions."""
    return {
        "cpu": field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": said(["git", "-C", str(root), "rev-parse", "--short", "HEAD"]),
        "date": time.strftime("%Y-%m-%d"),
        "load_before": os.getloadavg()[0],
        "packages": {name: version(name) for name in PACKAGES if version(name)},
    }


def machine_after(facts: dict[str, Any]) -> None:
    facts["load_after"] = os.getloadavg()[0]


def version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def field(path: str, name: str) -> str:
    try:
        found = re.search(rf"^{name}\s*: (.*)$", Path(path).read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""


def said(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "?"


# === tables ===


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


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    def line(words: Sequence[str]) -> str:
        return "| " + " | ".join(words) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, body)])


def machine(facts: dict[str, Any]) -> str:
    lines = [
        ["machine", f"{facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']}"],
        ["date, commit", f"{facts['date']}, {facts['commit']}"],
        ["load before and after", f"{facts['load_before']:.2f}, {facts['load_after']:.2f}"],
        ["CPython, packages", ", ".join([facts["python"], *(f"{n} {v}" for n, v in facts["packages"].items())])],
    ]
    doubt = ""
    if facts["load_before"] > facts["cores"] or facts["load_after"] > BUSY * facts["cores"]:
        doubt = "\n\n**Doubtful:** other work ran beside it; ratios hold better than rates."
    return table(["", ""], lines) + doubt


def text(facts: dict[str, Any], jobs: Sequence[dict[str, Any]]) -> str:
    """All of it, for a terminal and for the page."""
    head = ["what", "forebay", "compared with", "it does", "forebay ÷ it", "aim", "met"]
    notes = "".join(f"\n- {job['what']}: {job['note']}" for job in jobs if job["note"])
    quick = "\n\n**A quick run, not to be quoted.**" if any(job["quick"] for job in jobs) else ""
    return f"{machine(facts)}{quick}\n\n{table(head, rows(jobs))}" + (f"\n{notes}" if notes else "")


def write(path: Path, facts: dict[str, Any], jobs: Sequence[dict[str, Any]]) -> None:
    """Fill the page's one place."""
    pattern = re.compile(r"(<!-- compare-ingest table -->\n).*?(<!-- end table -->)", re.DOTALL)
    page = path.read_text()
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"{path} has not exactly one place for the table")
    path.write_text(pattern.sub(lambda found: f"{found[1]}{text(facts, jobs)}\n{found[2]}", page))
