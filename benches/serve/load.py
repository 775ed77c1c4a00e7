"""The two load generators: wrk in a closed loop, ours (load/) at a rate, both as one JSON object."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from servers import TARGET, Server

LOAD = TARGET / "compare-serve/load/release/forebay-load"
LUA = Path(__file__).with_name("load.lua")
WRK = shutil.which("wrk")
CONNECTIONS = 256  # of the open loop: what falls due while all are busy waits for one


def closed(server: Server, connections: int, seconds: float) -> dict[str, Any]:
    """Each connection asks again as soon as it was answered: rate, bad answers, microseconds."""
    ask(server, ["--connections", str(connections), "--seconds", str(seconds / 4), "--warmup", "0"])
    before = server.cpu_s()
    if WRK:
        found = by_wrk(server, connections, seconds)
    else:
        found = ask(server, ["--connections", str(connections), "--seconds", str(seconds), "--warmup", "0"])
        found["bad"] = sum(found["errors"].values()) + found["unanswered"]
    answered = found["rate"] * seconds
    found["cpu_us"] = (server.cpu_s() - before) / answered * 1e6 if answered else None
    return found


def by_wrk(server: Server, connections: int, seconds: float) -> dict[str, Any]:
    # Seconds are whole ones to wrk.
    whole = max(1, round(seconds))
    command = [WRK, "-t1", f"-c{connections}", f"-d{whole}s", "--timeout", "10s", "-s", str(LUA)]
    command += [f"http://{server.address}{server.path}", "--", server.content_type, *map(str, server.bodies)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    found["rate"] *= 1.0
    return found


def most(server: Server, connections: int, seconds: float) -> float:
    """Requests a second that it does with a queue, beside the generator of `at_rate`, which costs more than wrk."""
    words = ["--connections", str(connections), "--seconds", str(seconds), "--warmup", "0.2"]
    return ask(server, words)["rate"]


def at_rate(
    server: Server, rate: float, seconds: float, *, warmup: float = 0.5, patience: float = 10.0
) -> dict[str, Any]:
    """Requests fall due at random, so many a second on average; latency counts from then.

    What still waits for a connection or an answer `patience` seconds after the end is unanswered.
    """
    words = ["--rate", str(rate), "--connections", str(CONNECTIONS), "--patience", str(patience)]
    return ask(server, [*words, "--seconds", str(seconds), "--warmup", str(warmup)])


def ask(server: Server, words: list[str]) -> dict[str, Any]:
    command = [str(LOAD), server.address, server.path, "--body", str(server.bodies[0].parent)]
    command += ["--content-type", server.content_type, *words]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
