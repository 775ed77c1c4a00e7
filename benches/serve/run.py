"""`make compare-serve`: forebay serve beside mosec, LitServe and FastAPI, in one run, and the page from it.

    run.py                  everything, in about 12 minutes; writes docs/serve-performance.md
    run.py --quick          short runs, to see that everything works; prints, writes no page
    run.py --only TEXT      only jobs or servers with TEXT in the name, or `singles`, `soak` (may be repeated); prints
    run.py --only TEXT --write      the same into the page, whose other rows stay as they are
    run.py --soak MINUTES   how long the run at 80 % of the load is (default 1)
    run.py --page           measures nothing: the page again, from the results of the last runs

Every server does the same jobs (models.py) and answers the same requests over keep-alive connections. Its answers to
all bodies are compared with a reference before anything is timed. The load generator runs on the same cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import load
import page
import singles
import soak
from jobs import JOBS, Job, bodies
from models import Model
from page import host
from servers import KINDS, OURS, ROOT, TARGET, Kind, Server, running

RESULTS = TARGET / "compare-serve/results.json"
PAGE = ROOT / "docs/serve-performance.md"
SECONDS, QUICK_SECONDS = 2.0, 1.0
SHARE = 0.8  # of the most that a server does, for the tails


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short runs, no page")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="jobs, servers, singles or soak")
    parser.add_argument("--write", action="store_true", help="with --only: into the page all the same")
    parser.add_argument("--soak", type=float, default=1.0, metavar="MINUTES", help="default 1")
    parser.add_argument("--page", action="store_true", help="only the page, from the last results")
    options = parser.parse_args()
    if options.quick and options.write:
        parser.error("a quick run is not for the page")
    return options


def wanted(name: str, group: list[str], only: list[str]) -> bool:
    """Whether `name` is asked for: by itself, or because nothing of its group is."""
    asked = [text for text in only if any(text in member for member in group)]
    return not asked or any(text in name for text in asked)


def reference(job: Job, requests: list[bytes]) -> list[dict[str, list[float]]]:
    """What is right: the job in this process, an item at a time."""
    model = Model(job.name)
    return [model.answers([model.decode(body)])[0] for body in requests]


def check(server: Server, job: Job, right: list[dict[str, list[float]]]) -> None:
    """Every body once, before anything is timed."""
    for body, expected in zip(server.bodies, right, strict=True):
        said = json.loads(server.ask(body.read_bytes()))
        said = said.get("outputs", said)  # as /predict has it
        for name, numbers in expected.items():
            found = said.get(name)
            if found is None or len(found) != len(numbers):
                raise RuntimeError(f"{body.name}: expected {len(numbers)} numbers in {name}, found {str(said)[:200]}")
            off = max(abs(a - b) for a, b in zip(found, numbers, strict=True))
            if not off <= job.tolerance:
                raise RuntimeError(f"{body.name}: {name} is off by {off}, at most {job.tolerance} may be")


def measure(
    job: Job, kind: Kind, requests: list[bytes], right: list[dict[str, list[float]]], seconds: float
) -> dict[str, Any]:
    """One server, one job."""
    with running(job, kind, requests) as server:
        check(server, job, right)
        found: dict[str, Any] = {"start_s": server.start_s, "closed": {}}
        for connections in job.concurrency:
            found["closed"][str(connections)] = load.closed(server, connections, seconds)
        found["memory"] = server.memory()
        found["most"] = load.most(server, job.concurrency[-1], seconds)
        found["open"] = load.at_rate(server, SHARE * found["most"], 2 * seconds)
    return found


def at_same_rate(job: Job, requests: list[bytes], cells: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Ours at the highest of the rates at which the others' tails were measured."""
    rates = [cell["open"]["offered"] for name, cell in cells.items() if name != OURS and "failed" not in cell]
    if not rates or "failed" in cells.get(OURS, {"failed": ""}):
        return {}
    with running(job, KINDS[0], requests) as server:
        load.closed(server, job.concurrency[-1], seconds)
        return load.at_rate(server, max(rates), 2 * seconds)


def run_job(job: Job, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """All servers, one after the other."""
    requests = bodies(job.name)
    right = reference(job, requests)
    found: dict[str, Any] = {}
    for kind in KINDS:
        if not wanted(kind.name, [kind.name for kind in KINDS], options.only):
            continue
        begin = time.monotonic()
        try:
            found[kind.name] = measure(job, kind, requests, right, seconds)
        except (RuntimeError, OSError) as error:
            found[kind.name] = {"failed": str(error)}
        said = page.brief(found[kind.name])
        print(f"{job.name}: {kind.name}: {said} [{time.monotonic() - begin:.0f} s]", flush=True)
    if OURS in found:
        found[OURS]["same"] = at_same_rate(job, requests, found, seconds)
    return found


def run_singles(seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {"binary_bytes": singles.binary_bytes()}
    with tempfile.TemporaryDirectory(prefix="compare-serve-") as folder:
        parts = {
            "overhead": lambda: singles.overhead(2 * seconds),
            "kill_ms": lambda: singles.kills(Path(folder)),
            "start_ms": singles.start_to_ready,
        }
        for name, part in parts.items():
            try:
                found[name] = part()
            except (RuntimeError, OSError) as error:
                found[name] = {"failed": str(error)}
            print(f"singles: {name}: {json.dumps(found[name])[:300]}", flush=True)
    return found


def main() -> None:
    options = arguments()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not options.page:
        fresh = run(options)
        print(page.text(fresh))
        if options.quick or (options.only and not options.write):
            return
        results = page.merged(results, fresh) if options.only else fresh
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1))
    page.write(PAGE, results)
    print(f"{PAGE.relative_to(ROOT)} is written; the raw results are in {RESULTS}")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is asked for."""
    seconds = QUICK_SECONDS if options.quick else SECONDS
    groups = [*(job.name for job in JOBS), "singles", "soak"]
    facts = page.machine_before(ROOT, load.WRK)
    fresh: dict[str, Any] = {"facts": facts, "quick": options.quick, "jobs": {}}
    for job in JOBS:
        if wanted(job.name, groups, options.only):
            fresh["jobs"][job.name] = run_job(job, options, seconds)
    if wanted("singles", groups, options.only):
        fresh["singles"] = run_singles(seconds)
    if wanted("soak", groups, options.only):
        fresh["soak"] = soak.soak(12.0 if options.quick else 60 * options.soak, SHARE)
        print(f"soak: {json.dumps(fresh['soak'])[:400]}", flush=True)
    host.after(facts)
    return fresh


if __name__ == "__main__":
    main()
