"""What figures were measured on: processor, system, versions, and how busy it was."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

Facts = dict[str, Any]


def look(root: Path, packages: Iterable[str] = ()) -> Facts:
    """Before the first measurement. Packages that are not installed are left out."""
    return {
        "cpu": field("/proc/cpuinfo", "model name") or platform.machine(),
        "family": field("/proc/cpuinfo", "cpu family"),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": said(["git", "-C", str(root), "rev-parse", "--short", "HEAD"]) or "?",
        "date": time.strftime("%Y-%m-%d"),
        "load_before": os.getloadavg()[0],
        "load_after": os.getloadavg()[0],
        "packages": {name: found for name in packages if (found := version(name))},
    }


def after(facts: Facts) -> None:
    """After the last one."""
    facts["load_after"] = os.getloadavg()[0]


def busy(facts: Facts, *, before: float, after: float) -> bool:
    """Whether the load for each core was above these, that is, other work ran beside it."""
    return bool(facts["load_before"] > before * facts["cores"] or facts["load_after"] > after * facts["cores"])


def version(package: str) -> str:
    """Of an installed package; nothing if it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def text(path: str) -> str:
    """A file of the system; nothing if it cannot be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def field(path: str, name: str) -> str:
    """The first `name : value` of a file."""
    found = re.search(rf"^{name}\s*: (.*)$", text(path), re.MULTILINE)
    return found[1] if found else ""


def said(command: list[str]) -> str:
    """The first line that a program prints, whatever it exits with; nothing if it cannot be started."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip().split("\n")[0]
