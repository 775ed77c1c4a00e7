"""From results to the tables in docs/serve-performance.md."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from jobs import JOBS, Job

# `report` is beside the folders of the benchmarks.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from report import host, markdown

OURS = "forebay"
UNBATCHED = "mosec, unbatched"
PACKAGES = ("mosec", "litserve", "fastapi", "uvicorn", "torch", "tokenizers", "pillow", "numpy")
QUIET, BUSY = 0.5, 2.5  # load for each core, before and at the end: a server and its clients are about two
MIB = 1 << 20

Cells = dict[str, Any]


def machine_before(root: Path, wrk: str | None) -> host.Facts:
    """What the figures were measured on, and with which versions."""
    closed_by = (host.said([wrk, "-v"]).split(" [")[0] or "wrk") if wrk else "benches/serve/load (no wrk there)"
    return {**host.look(root, PACKAGES), "closed_by": closed_by}


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`old` with what was measured anew in its place."""
    parts = {**old, **new, "jobs": dict(old.get("jobs", {}))}
    for job, cells in new["jobs"].items():
        parts["jobs"][job] = {**parts["jobs"].get(job, {}), **cells}
    return parts


# === numbers ===


def duration(us: float | None) -> str:
    if us is None:
        return "–"
    if us >= 1e6:
        return f"{us / 1e6:.1f} s"
    return f"{us / 1e3:.1f} ms" if us >= 1e3 else f"{us:.0f} µs"


def rate(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def at(cells: Cells, name: str, connections: int) -> dict[str, Any]:
    return cells.get(name, {}).get("closed", {}).get(str(connections), {})


def rivals(cells: Cells) -> list[str]:
    return [name for name, cell in cells.items() if name != OURS and "failed" not in cell]


def best(cells: Cells, pick: Callable[[str], float | None], *, least: bool = False) -> tuple[str, float] | None:
    """The best of the rivals, and its figure."""
    found = [(name, value) for name in rivals(cells) if (value := pick(name)) is not None]
    if not found:
        return None
    return (min if least else max)(found, key=lambda pair: pair[1])


def rate_of(cells: Cells, connections: int) -> Callable[[str], float | None]:
    return lambda name: at(cells, name, connections).get("rate")


def tail_of(cells: Cells) -> Callable[[str], float | None]:
    return lambda name: (cells.get(name, {}).get("open", {}).get("us") or {}).get("p99")


def brief(cell: dict[str, Any]) -> str:
    """One line while it runs."""
    if "failed" in cell:
        return f"FAILED: {cell['failed']}"
    rates = ", ".join(f"{connections}: {rate(found['rate'])}/s" for connections, found in cell["closed"].items())
    tail = cell["open"]["us"] or {}
    wrong = sum(found["bad"] for found in cell["closed"].values()) + sum(cell["open"]["errors"].values())
    unanswered = cell["open"]["unanswered"]
    trouble = f", {wrong} bad, {unanswered} unanswered" if wrong or unanswered else ""
    return f"{rates}; p99 at 80 % {duration(tail.get('p99'))}{trouble}"


# === tables ===


def of_job(job: Job, cells: Cells) -> str:
    """What one job's servers do."""
    head = ["", *(f"req/s at {n}" for n in job.concurrency), *(f"p50 / p99 at {n}" for n in job.concurrency)]
    head += ["p50 / p99 at 80 %", "memory", "CPU a request", "start"]
    body = [row(job, name, cell) for name, cell in cells.items() if "failed" not in cell]
    ratios = ["**forebay ÷ the best other**"]
    for n in job.concurrency:
        other, own = best(cells, rate_of(cells, n)), at(cells, OURS, n).get("rate")
        ratios.append(f"**{own / other[1]:.2f} ×** ({other[0]})" if other and own else "–")
    body.append(ratios + [""] * (len(head) - len(ratios)))
    missing = "".join(
        f"\n\n{name} was not measured: {cell['failed']}" for name, cell in cells.items() if "failed" in cell
    )
    return f"### {job.what}\n\n{markdown.table(head, body)}{missing}"


def row(job: Job, name: str, cell: dict[str, Any]) -> list[str]:
    closed = [cell["closed"].get(str(n), {}) for n in job.concurrency]
    words = [name, *(rate(found.get("rate")) for found in closed)]
    words += [both(found.get("us")) for found in closed]
    words.append(f"{both(cell['open'].get('us'))} ({rate(cell['open'].get('offered'))}/s)")
    words.append(f"{cell['memory']['Rss'] / MIB:,.0f} ({cell['memory']['Pss'] / MIB:,.0f}) MiB")
    words += [duration(closed[-1].get("cpu_us")), f"{cell['start_s']:.1f} s"]
    wrong = sum(found.get("bad", 0) for found in closed) + sum(cell["open"]["errors"].values())
    if wrong or cell["open"]["unanswered"]:
        words[0] += f" (**{wrong} bad, {cell['open']['unanswered']} unanswered**)"
    return words


def both(us: dict[str, float] | None) -> str:
    return f"{duration(us['p50'])} / {duration(us['p99'])}" if us else "–"


# === aims ===


def aims(results: dict[str, Any]) -> list[list[str]]:
    """What was aimed at, what was found, whether it is met."""
    found: list[list[str]] = []
    for job in JOBS:
        cells = results["jobs"].get(job.name, {})
        if OURS in cells and "failed" not in cells[OURS] and rivals(cells):
            found += of_cells(job, cells)
    return found + of_singles(results)


def of_cells(job: Job, cells: Cells) -> list[list[str]]:
    rows, last = [], job.concurrency[-1]
    if job.name in {"text", "image"}:
        ratios = {n: against(cells, rate_of(cells, n)) for n in job.concurrency}
        least = min(ratios.values())
        said = ", ".join(f"{ratio:.2f} × at {n}" for n, ratio in ratios.items())
        rows.append(
            [f"{job.name}: throughput beside the best other", "≥ 2 × at every concurrency", said, met(least >= 2)]
        )
    if job.name == "json":
        ratio = at(cells, OURS, last).get("rate", 0) / max(
            rate_of(cells, last)(name) or 1 for name in ("mosec", UNBATCHED)
        )
        rows.append([f"json: throughput at {last} beside mosec", "≥ 1 ×", f"{ratio:.2f} ×", met(ratio >= 1)])
    own, other = (at(cells, name, 1).get("us", {}).get("p50") for name in (OURS, UNBATCHED))
    if own and other:
        said = f"{duration(own)}, mosec {duration(other)}"
        rows.append(
            [f"{job.name}: p50 at concurrency 1, batching on", "≤ mosec without batching", said, met(own <= other)]
        )
    tail, own = best(cells, tail_of(cells), least=True), tail_of(cells)(OURS)
    if tail and own:
        said = f"{duration(own)}, {tail[0]} {duration(tail[1])}: {own / tail[1]:.2f} ×"
        what = f"{job.name}: p99, each at 80 % of its own most"
        rows.append([what, "≤ 0.5 × of the best other", said, met(own <= tail[1] / 2)])
    same = (cells[OURS].get("same") or {}).get("us")
    if tail and same:
        asked = rate(cells[OURS]["same"]["offered"])
        said = f"{duration(same['p99'])} at {asked}/s, {tail[0]} {duration(tail[1])}: {same['p99'] / tail[1]:.2f} ×"
        what = f"{job.name}: p99 at the highest of the others' rates"
        rows.append([what, "≤ 0.5 × of the best other's", said, met(same["p99"] <= tail[1] / 2)])
    return rows


def against(cells: Cells, pick: Callable[[str], float | None]) -> float:
    other, own = best(cells, pick), pick(OURS)
    return own / other[1] if other and own else 0.0


def of_singles(results: dict[str, Any]) -> list[list[str]]:
    """Rows of what concerns forebay alone."""
    singles, rows = results.get("singles", {}), []
    over = singles.get("overhead", {})
    if "asleep_us" in over:
        p50 = over["asleep_us"]["p50"]
        rows.append(["one request, empty forward, everything asleep (p50)", "< 150 µs", duration(p50), met(p50 < 150)])
        said = f"{duration(over['between_us'])} (one after the other: p50 {duration(over['alone_us']['p50'])})"
        rows.append(["the same under load: time between two answers", "< 60 µs", said, met(over["between_us"] < 60)])
    kills = singles.get("kill_ms")
    if isinstance(kills, list):
        said = f"median {median(kills):.1f} ms, longest of {len(kills)} {max(kills):.1f} ms"
        rows.append(
            ["kill -9 of the worker in mid-forward: the client hears", "≤ 200 ms", said, met(max(kills) <= 200)]
        )
    start = singles.get("start_ms", {})
    if "median" in start:
        said = f"median {start['median']:.0f} ms"
        rows.append(["start to ready, without a model", "< 200 ms", said, met(start["median"] < 200)])
    if "binary_bytes" in singles:
        size = singles["binary_bytes"] / 1e6
        rows.append(["size of the binary", "< 25 MB", f"{size:.1f} MB", met(size < 25)])
    soak = results.get("soak")
    if soak:
        grown = soak["late_bytes"] - soak["early_bytes"]
        wrong = sum(soak["errors"].values()) + soak["unanswered"]
        said = f"{soak['minutes']:.1f} min, {soak['answered']:,} answered, {wrong} not; "
        said += f"memory {grown / MIB:+.1f} MiB; {soak['held']:.0f} slots or places held afterwards"
        kept = wrong == 0 and soak["held"] == 0 and grown < 8 * MIB and soak["minutes"] >= 60
        rows.append(["text at 80 % load: memory flat, no slot lost, none unanswered", "an hour", said, met(kept)])
    return rows


def met(yes: bool) -> str:  # noqa: FBT001  a word for it
    return "yes" if yes else "**no**"


# === the page ===


def machine(results: dict[str, Any]) -> str:
    facts = results["facts"]
    rows = {**markdown.host_rows(facts), "closed loop by": facts["closed_by"]}
    said = [markdown.table(["", ""], list(rows.items()))]
    if host.busy(facts, before=QUIET, after=BUSY):
        said.append(markdown.DOUBTFUL)
    if results.get("quick"):
        said.append(markdown.QUICK)
    return "\n\n".join(said)


def parts(results: dict[str, Any]) -> dict[str, str]:
    """The text for each place of the page."""
    rows = aims(results)
    shown = [job for job in JOBS if results["jobs"].get(job.name)]
    return {
        "machine": machine(results),
        "aims": markdown.table(["what", "aim", "found", "met"], rows) if rows else "Nothing yet.",
        "jobs": "\n\n".join(of_job(job, results["jobs"][job.name]) for job in shown) or "Nothing yet.",
    }


def text(results: dict[str, Any]) -> str:
    """All of it, for a terminal."""
    return "\n\n".join(parts(results).values())


def write(path: Path, results: dict[str, Any]) -> None:
    """Fill the page's places."""
    page = path.read_text()
    for key, body in parts(results).items():
        page = markdown.fill(page, "compare-serve", key, body)
    path.write_text(page)
