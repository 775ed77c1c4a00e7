#!/usr/bin/env python3
"""Runs cargo-mutants on forebay-layout and forebay-ring and compares what survives with ci/mutants.survivors.

    ci/cargo-mutants.py             both crates; ends with 1 if something survives that is not listed with a reason
    ci/cargo-mutants.py --models    shows what unit and ring tests leave to the loom models as well (an hour or more)
    ci/cargo-mutants.py --file reader.rs    only the files whose path ends so; nothing is said about the others

Unit tests come first; what survives them meets the ring tests, then, if asked for, the models. Works in a copy. A
cargo-mutants that is not there is installed into the target directory.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from mutants import ROOT, Tree

VERSION = "27.1.0"
SURVIVORS = ROOT / "ci" / "mutants.survivors"
CONFIG = ROOT / "ci" / "cargo-mutants.toml"


def tool(target: Path) -> str:
    """Where cargo-mutants is; installs it if it is nowhere."""
    own = target / "tools"
    if found := shutil.which("cargo-mutants") or shutil.which("cargo-mutants", path=own / "bin"):
        return found
    install = ["cargo", "install", "cargo-mutants", "--version", VERSION, "--locked", "--root", str(own)]
    subprocess.run(install, check=True)
    return str(own / "bin" / "cargo-mutants")


def listed() -> Counter[str]:
    """The survivors there may be. Each line: how many × name | reason."""
    found: Counter[str] = Counter()
    for number, line in enumerate(SURVIVORS.read_text().splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        entry = re.fullmatch(r"(\d+) × (.+) \| (\S.*)", line)
        if not entry:
            sys.exit(f"{SURVIVORS}:{number}: expected `N × NAME | REASON`")
        found[entry[2]] += int(entry[1])
    return found


def name(line: str) -> str:
    """A mutant's name without the place in its file, which every edit moves."""
    return re.sub(r"^crates/forebay-(layout|ring)/src/(\S+?):\d+:\d+: ", r"\1/\2: ", line.strip())


class Run:
    """One crate in one copy; each pass tries what the passes before let live."""

    def __init__(self, crate: str, target: Path, files: list[str]) -> None:
        self.crate, self.files = crate, files
        self.tool, self.target = tool(target), target / "cargo-mutants" / crate
        shutil.rmtree(self.target / "mutants.out", ignore_errors=True)
        self.tree = Tree(self.target)

    def tries(self, rest: list[str], *more: str, flags: str = "") -> list[str]:
        """One pass; `rest` is for cargo test. Returns the survivors."""
        env = os.environ | {
            "CARGO_TARGET_DIR": str(self.target / ("loom" if flags else "target")),
            "RUSTFLAGS": flags,
            "CARGO_INCREMENTAL": "1",
            "RUST_BACKTRACE": "0",
            "LOOM_MAX_PREEMPTIONS": "2",
            "CARGO_PROFILE_DEV_DEBUG": "0",
            "CARGO_PROFILE_RELEASE_DEBUG": "0",
            "CARGO_PROFILE_RELEASE_LTO": "off",
            "CARGO_PROFILE_RELEASE_OPT_LEVEL": "1",
            "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
        }
        only = [f"--file={file}" for file in self.files]
        command = [self.tool, "mutants", "--in-place", "--iterate", "--colors=never", f"--config={CONFIG}"]
        command += ["--package", self.crate, "--output", str(self.target), *only, *more, "--", *rest]
        done = subprocess.run(command, cwd=self.tree.path, env=env, check=False)
        # 2: some survived, 3: some ran out of time, which counts as noticed.
        if done.returncode not in (0, 2, 3):
            sys.exit(f"cargo-mutants ended with {done.returncode}")
        return (self.target / "mutants.out" / "missed.txt").read_text().splitlines()

    def total(self) -> int:
        """Mutants of this crate that build."""
        out = self.target / "mutants.out"
        names = ("caught", "missed", "timeout", "previously_caught")
        found = {line for n in names if (file := out / f"{n}.txt").exists() for line in file.read_text().splitlines()}
        return len(found)


def main() -> None:
    """See the top."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", action="store_true")
    parser.add_argument("--file", action="append", default=[])
    asked = parser.parse_args()
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
    survivors: Counter[str] = Counter()
    files = [f"**/{file}" for file in asked.file]
    for crate in ("forebay-layout", "forebay-ring"):
        if files and not any(path for file in files for path in (ROOT / "crates" / crate / "src").glob(file)):
            continue
        start, run = time.monotonic(), Run(crate, target, files)
        left = run.tries(["--lib"])
        counts = [f"{len(left)} survived its unit tests"]
        if left and crate == "forebay-ring":
            both = ["--test-package=forebay-ring", "--test-package=ring-tests"]
            left = run.tries(["--lib", "--tests"], *both)
            counts.append(f"{len(left)} the ring tests")
            if left and asked.models:
                left = run.tries(["--lib", "models"], "--profile=release", "--timeout=600", flags="--cfg loom")
                counts.append(f"{len(left)} the models")
        print(f"{crate}: {run.total()} mutants, {', '.join(counts)}, {time.monotonic() - start:.0f} s", flush=True)
        survivors.update(map(name, left))
    known = listed()
    for mutant, n in sorted((survivors - known).items()):
        print(f"new: {n} × {mutant}")
    if not files and not asked.models:
        for mutant, n in sorted((known - survivors).items()):
            print(f"listed, and noticed now: {n} × {mutant}")
    print(f"{survivors.total()} survivors, {(survivors - known).total()} of them without a reason")
    sys.exit(bool(survivors - known))


if __name__ == "__main__":
    main()
