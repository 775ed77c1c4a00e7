"""`make compare-ingest`: ingest through forebay and through what users have now, alternating, and the table from it.

    run.py                  every part, 7 rounds each; writes the table into docs/ingest/README.md
    run.py --quick          2 rounds of short runs, to see that everything works; prints, writes no page
    run.py --only TEXT      only parts or jobs whose name has TEXT in it (may be repeated); prints
    run.py --only TEXT --write      the same into the page, whose other rows stay as they are
    run.py --page           measures nothing: the page again, from the results of the last runs

A round runs every candidate of a job once, in an order that turns from round to round. Ratios are taken within a round;
the table shows their median and range over the rounds. Each part (`text`, `images`, …) runs in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import page
from job import OURS, Job
from page import host

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("text", "images", "tables", "numeric")
RESULTS = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "compare-ingest/results.json"
FULL, QUICK = (7, 0.5), (2, 0.05)  # rounds, and seconds that a candidate runs in each


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 short rounds, no page")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="parts or jobs with it in the name")
    parser.add_argument("--write", action="store_true", help="with --only: into the page all the same")
    parser.add_argument("--rounds", type=int, default=0, help=f"default {FULL[0]}")
    parser.add_argument("--page", action="store_true", help="only the page, from the last results")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick and options.write:
        parser.error("a quick run is not for the page")
    return options


# === one part, in its own process ===


def rate(candidate: Any, seconds: float) -> float:
    """Units a second, over as many calls as take `seconds`."""
    units, begin = 0, time.perf_counter()
    while True:
        units += candidate()
        taken = time.perf_counter() - begin
        if taken >= seconds:
            return units / taken


def measure(job: Job, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Units a second of each candidate, round by round."""
    names = list(job.candidates)
    for candidate in job.candidates.values():
        candidate()  # caches, threads, pages
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            found[name].append(rate(job.candidates[name], seconds))
    return found


def run_part(part: str, options: argparse.Namespace) -> None:
    """Writes one JSON line for each job."""
    rounds, seconds = QUICK if options.quick else FULL
    for job in importlib.import_module(part).jobs():
        if wanted(part, job.what, options.only):
            answer = {
                "part": part,
                "what": job.what,
                "unit": job.unit,
                "aims": job.aims,
                "at_least": job.at_least,
                "note": job.note,
                "ours": OURS,
                "rates": measure(job, options.rounds or rounds, seconds),
                "quick": options.quick,
            }
            print(json.dumps(answer), flush=True)


def wanted(part: str, what: str, only: list[str]) -> bool:
    return not only or any(text == part or text in what for text in only)


# === all of them ===


def main() -> None:
    options = arguments()
    if options.part:
        run_part(options.part, options)
        return
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"jobs": []}
    if not options.page:
        facts = host.look(ROOT, page.PACKAGES)
        fresh = [job for part in PARTS for job in started(part, options)]
        host.after(facts)
        kept = [job for job in results["jobs"] if job["what"] not in {new["what"] for new in fresh}]
        everything = not options.only
        results = {"facts": facts, "jobs": fresh if everything else in_order(kept + fresh)}
        print(page.text(facts, fresh))
        if options.quick or (options.only and not options.write):
            return
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1))
    page.write(ROOT / "docs/ingest/README.md", results["facts"], results["jobs"])
    print(f"docs/ingest/README.md is written; the raw results are in {RESULTS}")


def in_order(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(jobs, key=lambda job: PARTS.index(job["part"]))


def started(part: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The answers of one part's process."""
    if not (Path(__file__).with_name(f"{part}.py")).exists():
        print(f"{part}: not there yet")
        return []
    command = [sys.executable, __file__, "--part", part]
    command += ["--quick"] if options.quick else []
    command += ["--rounds", str(options.rounds)] if options.rounds else []
    command += [word for text in options.only for word in ("--only", text)]
    if options.only and part not in options.only and all(text in PARTS for text in options.only):
        # Another part's name is no job of this one: it is not even loaded.
        return []
    print(f"{part} …", flush=True)
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)  # noqa: S603  ourselves
    if done.returncode != 0:
        print(f"{part} failed with status {done.returncode}; its message is above")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


if __name__ == "__main__":
    main()
