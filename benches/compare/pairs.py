"""Starts one pair of processes for one candidate and one size, and returns what its receiver measured."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from candidates import Candidate, Effort, Job

HERE = Path(__file__).resolve().parent
SHM = Path("/dev/shm")  # noqa: S108  that is the point
PATIENCE_S = 300


class PairError(Exception):
    """A pair did not end as it should."""


@dataclass(frozen=True)
class Programs:
    """What was built for the comparison."""

    rust: Path  # forebay-compare
    python: Path  # the interpreter of the environment
    modules: Path  # where floor.so is


def run(
    programs: Programs, job: Job, candidate: Candidate, size: int, effort: Effort, cpus: tuple[int, int]
) -> dict[str, Any]:
    """One pair."""
    before = leftovers()
    with tempfile.TemporaryDirectory(dir=SHM, prefix="forebay-compare-") as folder:
        (Path(folder) / "control").write_bytes(bytes(4096))
        plan = {
            "candidate": candidate.sender or candidate.name,
            "receiver": candidate.name,
            "dir": folder,
            "name": Path(folder).name,
            "bytes": size,
            "slots": effort.slots,
            "gap_ns": job.gap_ns,
            "warm": effort.warm,
            "count": 1 if candidate.rate_only else effort.count,
            "rate_count": effort.rate,
            "threads": candidate.threads,
            "receiver_cpu": cpus[1],
        }
        first = json.dumps(plan | {"cpu": cpus[0]})
        second = json.dumps(plan | {"cpu": cpus[1]})
        if job.kind == "python":
            commands = [[programs.python, HERE / "python/pair.py", first]]
        elif job.kind == "mixed":
            commands = [[programs.rust, "send", first], [programs.python, HERE / "python/receive.py", second]]
        else:
            commands = [[programs.rust, "send", first], [programs.rust, "recv", second]]
        try:
            return together(commands, programs)
        finally:
            for path in leftovers() - before:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def leftovers() -> set[Path]:
    """What iceoryx2, zenoh, the `shared_memory` crate and Ray leave behind; and forebay whose producer was killed."""
    ray = Path("/tmp/ray").glob("session_*")  # noqa: S108  where it puts them
    return {
        *SHM.glob("iox2_*"),
        *SHM.glob("forebay.*.compare.*"),
        *SHM.glob("*.zenoh"),
        *SHM.glob("forebay-compare-*-flag"),
        *ray,
    }


def together(commands: list[list[Any]], programs: Programs) -> dict[str, Any]:
    """Run all of them side by side; the last one prints the answer."""
    environment = os.environ | {"PYTHONPATH": str(programs.modules), "PYTHONWARNINGS": "ignore"}
    processes = [
        subprocess.Popen(  # noqa: S603  what was just built
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        for command in commands
    ]
    try:
        answer, why = processes[-1].communicate(timeout=PATIENCE_S)
        if processes[-1].returncode:
            raise PairError(last_line(why))
        for process in processes[:-1]:
            _, why = process.communicate(timeout=PATIENCE_S)
            if process.returncode:
                raise PairError(last_line(why))
        return json.loads(answer.splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise PairError(f"not done in {PATIENCE_S} s") from None
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it says nothing"
