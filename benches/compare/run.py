"""`make compare`: the same jobs through forebay and its rivals, alternating, and docs/performance.md from it.

    run.py                      everything, 5 pairs each; writes the page
    run.py --quick              2 pairs, two sizes, few messages: to see that everything runs; prints, writes no page
    run.py --only NAME          one job or candidate (may be repeated), with forebay and the floor of its job; prints
    run.py --only JOB --write   the same into the page, whose other jobs stay as they are
    run.py --page               only writes the page again, from the results of the last run

A round runs every candidate of a job once, in an order that turns from round to round, each in fresh processes. Ratios
are taken within a round; the page shows their median over rounds and the range.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import facts
import page
from candidates import JOBS, Candidate, Job
from pairs import PairError, Programs, run

ROOT = Path(__file__).resolve().parents[2]
BUILT = Path(sys.prefix).parent  # the environment is target/compare/venv
RESULTS = BUILT / "results.json"
QUICK_SIZES = (64, 1 << 20)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 pairs, two sizes, few messages, no page")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a job or a candidate")
    parser.add_argument("--skip", action="append", default=[], metavar="NAME", help="a candidate to leave out")
    parser.add_argument("--write", action="store_true", help="with --only: into the page all the same")
    parser.add_argument("--pairs", type=int, default=5, help="rounds; default 5")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page from the last results")
    parser.add_argument("--cpus", default="0,1", help="cores of sender and receiver; default 0,1")
    options = parser.parse_args()
    if options.quick and options.write:
        parser.error("a quick run is not for the page")
    return options


def programs() -> Programs:
    """What `make compare` has built, and the C extension, which is built here."""
    source, built = ROOT / "benches/compare/python/floor.c", BUILT / "floor.so"
    if not built.exists() or built.stat().st_mtime < source.stat().st_mtime:
        include = sysconfig.get_paths()["include"]
        command = [os.environ.get("CC", "cc"), "-O3", "-shared", "-fPIC", f"-I{include}", source, "-o", built]
        subprocess.run(command, check=True)  # noqa: S603  as above
    return Programs(BUILT / "rust/release/forebay-compare", Path(sys.executable), BUILT)


def chosen(job: Job, names: list[str]) -> list[Candidate]:
    """The candidates of a job that are wanted, with what they are compared to."""
    if not names or job.key in names:
        return list(job.candidates)
    if not any(candidate.name in names for candidate in job.candidates):
        return []
    wanted = {*names, job.floor, *job.references.values()}
    return [candidate for candidate in job.candidates if candidate.name in wanted]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    built = programs()
    cpus = tuple(int(cpu) for cpu in options.cpus.split(","))
    rounds = 2 if options.quick else options.pairs
    results: dict[str, Any] = {"facts": facts.look(ROOT), "quick": options.quick, "rounds": rounds, "jobs": {}}
    if options.write and RESULTS.exists():
        results["jobs"] = json.loads(RESULTS.read_text())["jobs"]
    begin = time.monotonic()
    for job in JOBS:
        candidates = [candidate for candidate in chosen(job, options.only) if candidate.name not in options.skip]
        if candidates:
            results["jobs"].pop(job.key, None)
        for size, full in job.efforts.items() if candidates else ():
            if options.quick and size not in QUICK_SIZES:
                continue
            effort = full.quick() if options.quick else full
            cell = (
                results["jobs"].setdefault(job.key, {}).setdefault(str(size), {"effort": asdict(effort), "answers": {}})
            )
            here = [candidate for candidate in candidates if size in candidate.sizes]
            for turn in range(rounds):
                shift = turn % len(here)
                for candidate in here[shift:] + here[:shift]:
                    try:
                        answer = run(built, job, candidate, size, effort, cpus)
                    except PairError as e:
                        answer = {"failed": str(e)}
                    cell["answers"].setdefault(candidate.name, []).append(answer)
                    progress(begin, job, candidate, size, answer)
            facts.after(results["facts"])
            if options.write or not (options.quick or options.only):
                RESULTS.write_text(json.dumps(results, indent=1))
    return results


def progress(begin: float, job: Job, candidate: Candidate, size: int, answer: dict[str, Any]) -> None:
    said = answer.get("failed") or f"p50 {answer['have']['p50']} ns, {answer['rate'] or 0:.0f}/s"
    print(f"{time.monotonic() - begin:6.0f} s  {job.key:14} {candidate.name:18} {size:>9} B  {said}", flush=True)


def main() -> None:
    options = arguments()
    results = json.loads(RESULTS.read_text()) if options.page else measure(options)
    if not options.page and (options.quick or (options.only and not options.write)):
        print(page.tables(results, JOBS))
        return
    page.write(ROOT / "docs", results, JOBS)
    print(f"docs/performance.md and its plots are written; the raw results are in {RESULTS}")


if __name__ == "__main__":
    main()
