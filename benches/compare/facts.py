"""What the figures were measured on, and which versions of whom."""

from __future__ import annotations

import re
import sys
from pathlib import Path

# `report` is beside the folders of the benchmarks.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from report import host

CRATES = ("iceoryx2", "ringfire", "shared_memory", "tonic")
PACKAGES = ("iceoryx2", "numpy", "torch", "pyzmq", "faster-fifo", "grpcio", "spdl", "eclipse-zenoh", "ray")


def look(root: Path) -> host.Facts:
    """Before the first measurement."""
    lock = (root / "benches/compare/rust/Cargo.lock").read_text()
    crates = dict(re.findall(r'name = "([^"]+)"\nversion = "([^"]+)"', lock))
    return {
        **host.look(root, PACKAGES),
        "governor": host.text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "not shown",
        "rustc": host.said(["rustc", "--version"]).removeprefix("rustc ").split(" ")[0],
        "jiffies": jiffies(),
        "stolen": 0.0,
        "crates": {name: crates.get(name, "?") for name in CRATES},
    }


def after(found: host.Facts) -> None:
    """What can only be said later: load, and the share of time that the hypervisor took since."""
    host.after(found)
    (stolen, total), (stolen_then, total_then) = jiffies(), found["jiffies"]
    found["stolen"] = (stolen - stolen_then) / max(total - total_then, 1)


def jiffies() -> tuple[int, int]:
    """Stolen, and all."""
    fields = [int(word) for word in host.text("/proc/stat").splitlines()[0].split()[1:9]]
    return fields[7], sum(fields)
