"""From what `run.py` found to the figures in docs/gpu.md."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Any

# `report` is beside the folders of the benchmarks.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from report import host, markdown

PLAIN = "a plain copy from pinned memory"
OURS = "forebay, pinned"
LOADER = "DataLoader(pin_memory=True, num_workers=1)"


def facts(root: Path, device: Any) -> host.Facts:
    """What the figures were measured on."""
    import torch

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    return {**host.look(root), "gpu": gpu, "torch": torch.__version__, "cuda": torch.version.cuda or "-"}


def size(nbytes: int) -> str:
    for bits, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if nbytes >= 1 << bits:
            return f"{nbytes >> bits} {name}"
    return f"{nbytes} B"


def values(results: dict[str, Any], way: str, nbytes: int, what: str) -> list[float]:
    """What was found, round by round."""
    rows = (one for one in results["found"] if one["way"] == way and one["bytes"] == nbytes)
    return [one[what] for one in rows if what in one]


def ratios(results: dict[str, Any], over: str, nbytes: int) -> list[float]:
    """Ours ÷ another's GB/s within each round."""
    ours, theirs = (values(results, way, nbytes, "gb_s") for way in (OURS, over))
    return [a / b for a, b in zip(ours, theirs, strict=False)]


def grid(results: dict[str, Any], what: str, digits: int) -> str:
    """A row for each way, a column for each size: the median over the rounds."""
    sizes = sorted({one["bytes"] for one in results["found"]})
    ways = [PLAIN, *results["ways"]] if what == "gb_s" else results["ways"]

    def cell(way: str, nbytes: int) -> str:
        found = values(results, way, nbytes, what)
        return f"{median(found):.{digits}f}" if found else "–"

    rows = [[way, *(cell(way, nbytes) for nbytes in sizes)] for way in ways]
    return markdown.table(["", *(size(nbytes) for nbytes in sizes)], rows)


def spread(found: list[float]) -> str:
    return f"{median(found):.2f} ({min(found):.2f}–{max(found):.2f})" if found else "–"


def verdict(holds: bool) -> str:  # noqa: FBT001
    return "yes" if holds else "**no**"


def aims(results: dict[str, Any]) -> str:
    sizes = sorted({one["bytes"] for one in results["found"]})
    rows = []
    for nbytes in (n for n in sizes if n >= 4 << 20):
        found = ratios(results, PLAIN, nbytes)
        if found:
            what = f"GB/s at {size(nbytes)} ÷ a plain pinned copy's"
            rows.append([what, spread(found), "≥ 0.95", verdict(median(found) >= 0.95)])
    for nbytes in sizes:
        found = ratios(results, LOADER, nbytes)
        if found:
            what = f"GB/s at {size(nbytes)} ÷ DataLoader's with pin_memory"
            rows.append([what, spread(found), "≥ 2", verdict(median(found) >= 2)])
    took = results["launch_us"]
    rows.append(["hand-over + launch, 64 KiB", f"{took:.1f} µs", "≤ 15 µs", verdict(took <= 15)])
    own = results["overlap"]
    what = (
        f"loop with a forward of {own['forward_ms']:.2f} ms and a copy of {own['copy_ms']:.2f} ms ÷ the forward alone"
    )
    rows.append([what, f"{own['speed']:.3f}", "≥ 0.95", verdict(own["speed"] >= 0.95)])
    return markdown.table(["aim", "found", "wanted", "reached"], rows)


def text(results: dict[str, Any]) -> str:
    own = results["facts"]
    lines = [
        f"{own['gpu']}, {own['cpu']} ({own['cores']} cores), Linux {own['kernel']}, torch {own['torch']}, CUDA "
        f"{own['cuda']}; commit {own['commit']}, {own['date']}. Medians over "
        f"{1 + max(one['round'] for one in results['found'])} rounds; ratios within a round, and their range.",
        aims(results),
        "Sustained, GB/s:",
        grid(results, "gb_s", 1),
        "From hand-over to usable on the GPU, one message at a time, µs (median):",
        grid(results, "us", 0),
        "CPU time of the receiving thread, ms for each GiB (a copy on the host takes about 100):",
        grid(results, "cpu_ms_gib", 1),
    ]
    notes = [f"- {way}: {note}" for way, note in results["notes"].items()]
    seen = {(one["way"], one["bytes"]): one["why_not"] for one in results["found"] if "why_not" in one}
    notes += [f"- {way} at {size(nbytes)} was left out: {why}" for (way, nbytes), why in seen.items()]
    return "\n\n".join([*lines, "\n".join(notes)])


def write(path: Path, results: dict[str, Any]) -> None:
    """Puts the figures into the page's place."""
    path.write_text(markdown.fill(path.read_text(), "gpu", "figures", text(results)))
