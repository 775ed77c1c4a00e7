"""From results to tables, and the tables into docs/performance.md."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import aims
import plot
from candidates import Candidate, Job
from numbers_of import Answers, duration, have, per_second, rate, ratios, size_name, spread, times, touch, values

# `report` is beside the folders of the benchmarks.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from report import markdown

FEWEST_ROUNDS = 5
QUIET = 0.3  # load for each core
BUSY = 1.5  # a pair is a load of one for each core
STOLEN = 0.01
DRIFT = 1.25


def write(docs: Path, results: dict[str, Any], jobs: Sequence[Job]) -> None:
    """Fill the page and draw the plots beside it."""
    path = docs / "performance.md"
    text = markdown.fill(path.read_text(), "compare", "machine", machine(results))
    text = markdown.fill(text, "compare", "aims", stands(results))
    for job in jobs:
        cells = results["jobs"].get(job.key)
        if cells:
            picture = f"performance-{job.key}.svg"
            (docs / picture).write_text(plot.svg(f"{job.title}, one way", lines(job, cells)))
            body = f"![{job.title}: one way over size]({picture})\n\n{job_tables(job, cells)}"
            text = markdown.fill(text, "compare", job.key, body)
    path.write_text(text)


def tables(results: dict[str, Any], jobs: Sequence[Job]) -> str:
    """All of it, for a terminal."""
    parts = [machine(results)]
    parts += [
        f"## {job.title}\n\n{job_tables(job, results['jobs'][job.key])}" for job in jobs if job.key in results["jobs"]
    ]
    return "\n\n".join([*parts, stands(results)])


def stands(results: dict[str, Any]) -> str:
    """The aims, and what was found."""
    lines = aims.rows(results)
    return markdown.table(["", "aim", "found", "met"], lines) if lines else ""


# === tables ===


def job_tables(job: Job, cells: dict[str, Any]) -> str:
    """The tables of one job, ratios first."""
    sizes = sorted(int(size) for size in cells)
    there = [c for c in job.candidates if any(c.name in cells[str(size)]["answers"] for size in sizes)]
    timed = [c for c in there if not c.rate_only]
    by = {size: cells[str(size)]["answers"] for size in sizes}

    def against(candidate: Candidate) -> str:
        return job.references.get(candidate.waits) or next(iter(job.references.values()))

    def rows(chosen: Sequence[Candidate], cell: Callable[[Candidate, Answers], str]) -> list[list[str]]:
        return [[c.label, *(cell(c, by[size]) for size in sizes)] for c in chosen]

    head = ["", *map(size_name, sizes)]
    who = [[c.label, c.waits, c.payload, c.result] for c in there]
    rivals = [c for c in timed if c.name != against(c)]
    fed = [size for size in sizes if any(values(by[size], c.name, rate) for c in there)]
    parts = [
        (
            "One way, as a multiple of forebay's",
            head,
            rows(rivals, lambda c, a: spread(ratios(a, c.name, against(c), have), times)),
        ),
    ]
    if job.floor:
        above = [c for c in timed if c.name != job.floor]
        cell = lambda c, a: spread(ratios(a, c.name, job.floor, have), times)  # noqa: E731
        parts.append(("One way, as a multiple of the floor's", head, rows(above, cell)))
    rate_head = ["", *map(size_name, fed)]

    def rate_rows(cell: Callable[[Candidate, Answers], str]) -> list[list[str]]:
        return [[c.label, *(cell(c, by[size]) for size in fed)] for c in there]

    parts += [
        (
            "Messages a second, lossless, as a multiple of forebay's (more is better)",
            rate_head,
            rate_rows(lambda c, a: spread(ratios(a, c.name, against(c), rate), times)),
        ),
        ("One way, p50", head, rows(timed, lambda c, a: spread(values(a, c.name, have), duration))),
        (
            "One way, p99 (median of the pairs)",
            head,
            rows(timed, lambda c, a: spread(p99(a, c), duration)),
        ),
        (
            "The same with the first and the last word read, p50",
            head,
            rows(timed, lambda c, a: spread(values(a, c.name, touch), duration)),
        ),
        ("Messages a second, lossless", rate_head, rate_rows(lambda c, a: spread(values(a, c.name, rate), per_second))),
        ("Who does what", ["", "receiver", "payload", "receiver has"], who),
    ]
    text = "\n\n".join(f"**{title}**\n\n{markdown.table(columns, body)}" for title, columns, body in parts if body)
    return text + failures(job, by)


def p99(answers: Answers, candidate: Candidate) -> list[float]:
    """One number: tails differ too much from pair to pair for a range to say anything."""
    found = values(answers, candidate.name, lambda answer: answer["have"]["p99"] if "have" in answer else None)
    return [median(found)] if found else []


def failures(job: Job, by: dict[int, Answers]) -> str:
    """What could not be measured, and why."""
    said = {
        f"- {candidate.label}, {size_name(size)}: {answer['failed']}"
        for candidate in job.candidates
        for size, answers in by.items()
        for answer in answers.get(candidate.name, [])
        if "failed" in answer
    }
    return "\n\nNot measured:\n\n" + "\n".join(sorted(said)) if said else ""


def machine(results: dict[str, Any]) -> str:
    """Where and with what."""
    facts = results["facts"]
    rows = [
        ["machine", f"{facts['cpu']} (family {facts['family']}), {facts['cores']} cores, Linux {facts['kernel']}"],
        ["governor", facts["governor"]],
        ["load before and after", f"{facts['load_before']:.2f}, {facts['load_after']:.2f}"],
        ["date, commit", f"{facts['date']}, {facts['commit']}"],
        [
            "pairs",
            f"{results['rounds']} of fresh processes for each figure"
            + (" (quick: not to be quoted)" if results["quick"] else ""),
        ],
        ["Rust, CPython", f"{facts['rustc']}, {facts['python']}"],
        ["crates", ", ".join(f"{name} {version}" for name, version in facts["crates"].items())],
        ["packages", ", ".join(f"{name} {version}" for name, version in facts["packages"].items())],
    ]
    doubts = doubts_of(results)
    return markdown.table(["", ""], rows) + ("\n\n**Doubtful:** " + "; ".join(doubts) + "." if doubts else "")


def doubts_of(results: dict[str, Any]) -> list[str]:
    """What speaks against believing the figures."""
    facts, found = results["facts"], []
    if results["quick"]:
        found.append("this was a quick run")
    if results["rounds"] < FEWEST_ROUNDS:
        found.append(f"there were only {results['rounds']} pairs")
    if facts["load_before"] > QUIET * facts["cores"]:
        found.append(f"the load was {facts['load_before']:.1f} on {facts['cores']} cores before it began")
    if facts["load_after"] > BUSY * facts["cores"]:
        found.append(
            f"the load was {facts['load_after']:.1f} on {facts['cores']} cores at its end: other work ran beside it"
        )
    if facts["stolen"] > STOLEN:
        found.append(f"the hypervisor took {100 * facts['stolen']:.1f} % of the time")
    floor = values(results["jobs"].get("rust-rust", {}).get("64", {}).get("answers", {}), "minimal", have)
    if floor and max(floor) > DRIFT * min(floor):
        found.append(f"the floor itself was between {duration(min(floor))} and {duration(max(floor))}")
    return found


def lines(job: Job, cells: dict[str, Any]) -> list[plot.Line]:
    """Median p50 over size, one line a candidate."""
    drawn = []
    for candidate in job.candidates:
        points = []
        for size in sorted(cells, key=int):
            found = values(cells[size]["answers"], candidate.name, have)
            if found and not candidate.rate_only:
                points.append((float(size), median(found)))
        if len(points) > 1:
            own = candidate.name in job.references.values()
            drawn.append(plot.Line(candidate.label.replace("`", ""), points, own, candidate.name == job.floor))
    return drawn
