"""What the figures were measured on, and which versions of whom."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from pairs import Programs

CRATES = ("iceoryx2", "ringfire", "shared_memory", "tonic")
PACKAGES = ("iceoryx2", "numpy", "torch", "pyzmq", "faster-fifo", "grpcio", "spdl", "eclipse-zenoh", "ray")


def look(root: Path, programs: Programs) -> dict[str, Any]:
    del programs
    lock = (root / "benches/compare/rust/Cargo.lock").read_text()
    crates = dict(re.findall(r'name = "([^"]+)"\nversion = "([^"]+)"', lock))
    return {
        "cpu": field("/proc/cpuinfo", "model name") or platform.machine(),
        "family": field("/proc/cpuinfo", "cpu family"),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "governor": text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "not shown",
        "python": platform.python_version(),
        "rustc": said(["rustc", "--version"]).removeprefix("rustc ").split(" ")[0],
        "commit": said(["git", "-C", str(root), "rev-parse", "--short", "HEAD"]),
        "date": time.strftime("%Y-%m-%d"),
        "load_before": os.getloadavg()[0],
        "load_after": os.getloadavg()[0],
        "jiffies": jiffies(),
        "stolen": 0.0,
        "crates": {name: crates.get(name, "?") for name in CRATES},
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def after(found: dict[str, Any]) -> None:
    """What can only be said later: load, and the share of time that the hypervisor took since."""
    found["load_after"] = os.getloadavg()[0]
    (stolen, total), (stolen_then, total_then) = jiffies(), found["jiffies"]
    found["stolen"] = (stolen - stolen_then) / max(total - total_then, 1)


def jiffies() -> tuple[int, int]:
    """Stolen, and all."""
    fields = [int(word) for word in text("/proc/stat").splitlines()[0].split()[1:9]]
    return fields[7], sum(fields)


def text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def field(path: str, name: str) -> str:
    found = re.search(rf"^{name}\s*: (.*)$", text(path), re.MULTILINE)
    return found[1] if found else ""


def said(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "?"
