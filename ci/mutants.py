#!/usr/bin/env python3
"""Makes one fault of ci/mutants.list at a time in a copy of the ring, and says which test notices it.

    ci/mutants.py [REGEX]       those whose line matches; their rows of the table in docs/protocol.md are written
    --no-baseline               takes for granted that no layer fails without a fault

The layers are tried in order until one fails: for a fault of what is done the unit and ring tests, then the models; for
one of how it is ordered the models alone, since nothing else can see it. Ends with 1 if a fault survives or cannot be
made, or if a layer fails without one. CARGO_TARGET_DIR is respected.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "ci" / "mutants.list"
PAGE = ROOT / "docs" / "protocol.md"
BEGIN, END = "<!-- mutants: written by ci/mutants.py -->\n", "<!-- mutants: end -->\n"
# How far below its anchor a fault may lie, and how long one layer may take, in seconds.
NEAR, LIMIT = 14, 400
WORKSPACE = """[package]
name = "ring-tests"
version = "0.0.0"
edition = "2024"
autotests = false
[[test]]
name = "ring"
path = "tests/main.rs"
[dependencies]
forebay-layout.workspace = true
forebay-ring.workspace = true
"""


@dataclass(frozen=True)
class Fault:
    """One line of the list."""

    edge: str
    file: str
    anchor: str
    old: str
    new: str
    first: str

    def row(self) -> tuple[str, str, str]:
        """The edge, file and fault as the table says them."""
        short = [re.sub(r"\bOrdering::", "", text).replace("|", "\\|") for text in (self.old, self.new)]
        fault = f"`{short[0]}` left out" if not self.new else f"`{short[0]}` → `{short[1]}`"
        return self.edge, f"`{self.file}`", fault

    def is_ordering(self) -> bool:
        """True if only what is ordered changes, which no test outside the models can see."""
        return "Ordering::" in self.old and self.new.startswith("Ordering::") or self.old.startswith("fence(")


def faults() -> list[Fault]:
    """The list. A heading names the edge of what follows."""
    found, edge = [], "–"
    for line in LIST.read_text().splitlines():
        if line.startswith("# "):
            heading = re.match(r"# (E\d) ", line)
            edge = heading[1] if heading else "–"
        elif line and not line.startswith("#"):
            parts = (part.strip().replace("\\|", "|") for part in f"{line} ".split(" | "))
            file, anchor, old, new, *first = parts
            found.append(Fault(edge, file, anchor, old, new, first[0] if first else ""))
    return found


class Tree:
    """A copy of the two crates, with the tests of the ring, in a workspace of their own."""

    def __init__(self, target: Path) -> None:
        self.path = target / "tree"
        self.target = target
        shutil.rmtree(self.path, ignore_errors=True)
        # Copies are new files: with the times of the old ones, cargo would take what was built of the last fault for them.
        for crate in ("forebay-layout", "forebay-ring"):
            shutil.copytree(ROOT / "crates" / crate, self.path / "crates" / crate, copy_function=shutil.copy)
        tests = self.path / "crates" / "ring-tests" / "tests"
        shutil.copytree(ROOT / "tests" / "ring", tests, copy_function=shutil.copy)
        (self.path / "crates" / "ring-tests" / "src").mkdir()
        (self.path / "crates" / "ring-tests" / "src" / "lib.rs").touch()
        (self.path / "crates" / "ring-tests" / "Cargo.toml").write_text(WORKSPACE)
        shutil.copy2(ROOT / "Cargo.lock", self.path)
        manifest = (ROOT / "Cargo.toml").read_text()
        manifest = re.sub(r"^(default-)?members = \[.*?^\]\n", "", manifest, flags=re.MULTILINE | re.DOTALL)
        manifest = manifest.replace("resolver = \"3\"\n", 'resolver = "3"\nmembers = ["crates/*"]\n')
        (self.path / "Cargo.toml").write_text(manifest)

    def make(self, fault: Fault) -> str:
        """Makes the fault; returns the file as it was."""
        path = self.path / "crates" / "forebay-ring" / "src" / fault.file
        whole = path.read_text()
        at = whole.find(fault.anchor)
        near = "".join(whole[at:].splitlines(keepends=True)[: NEAR + 1])
        if at < 0 or fault.old not in near:
            sys.exit(f"no such place: {fault}")
        path.write_text(whole[:at] + near.replace(fault.old, fault.new, 1) + whole[at + len(near) :])
        return whole

    def restore(self, fault: Fault, whole: str) -> None:
        """Takes the fault back."""
        (self.path / "crates" / "forebay-ring" / "src" / fault.file).write_text(whole)


@dataclass(frozen=True)
class Layer:
    """A set of tests."""

    name: str
    flags: str
    args: tuple[str, ...]
    filter: tuple[str, ...]

    def build(self, tree: Tree) -> list[str]:
        """The test programs. Ends everything if they do not build: such a fault says nothing."""
        env = os.environ | {
            "RUSTFLAGS": self.flags,
            "CARGO_TARGET_DIR": str(tree.target / self.name),
            "CARGO_INCREMENTAL": "1",
            "CARGO_PROFILE_DEV_DEBUG": "0",
            "CARGO_PROFILE_RELEASE_DEBUG": "0",
            "CARGO_PROFILE_RELEASE_LTO": "off",
            "CARGO_PROFILE_RELEASE_OPT_LEVEL": "1",
            "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
        }
        command = ["cargo", "test", "-q", "--no-run", "--message-format=json", *self.args]
        built = subprocess.run(command, cwd=tree.path, env=env, capture_output=True, text=True, check=False)
        if built.returncode:
            lines = [json.loads(line) for line in built.stdout.splitlines() if line.startswith("{")]
            print(*(line["message"]["rendered"] for line in lines if "message" in line), sep="\n", file=sys.stderr)
            sys.exit(f"does not build: {built.stderr}")
        artifacts = (json.loads(line) for line in built.stdout.splitlines() if line.startswith("{"))
        return [a["executable"] for a in artifacts if a.get("executable") and a["profile"]["test"]]

    def failure(self, programs: list[str], first: str) -> str | None:
        """The first test that fails. `first` names those to begin with."""
        filters = [(first,)] if first and self.name == "loom" else []
        for chosen in [*filters, self.filter]:
            for program in programs:
                if found := run(program, chosen):
                    return found
        return None


def run(program: str, chosen: tuple[str, ...]) -> str | None:
    """Runs a test program until a test fails; its name, or None."""
    env = os.environ | {"RUST_BACKTRACE": "0", "LOOM_MAX_DURATION": str(LIMIT), "SHUTTLE_ITERATIONS": "300"}
    command = [program, "--test-threads=2", *chosen]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    watchdog = threading.Timer(LIMIT, process.kill)
    watchdog.start()
    try:
        for line in process.stdout:
            if found := re.match(r"test (\S+)( - should panic)? \.\.\. FAILED", line):
                return found[1].removeprefix("models::")
        code = process.wait()
        if code == 0:
            return None
        return "the time limit" if code == -9 else "an abort"
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


UNIT = Layer("unit", "", ("--lib", "--tests", "-p", "forebay-ring", "-p", "ring-tests"), ())
LOOM = Layer("loom", "--cfg loom", ("--release", "--lib", "-p", "forebay-ring"), ("models",))
SHUTTLE = Layer("shuttle", "--cfg shuttle", ("--release", "--lib", "-p", "forebay-ring"), ("models",))


def catcher(tree: Tree, fault: Fault) -> str:
    """What notices the fault."""
    for layer in [LOOM] if fault.is_ordering() or fault.file.startswith("models") else [UNIT, LOOM, SHUTTLE]:
        if found := layer.failure(layer.build(tree), fault.first):
            return f"{layer.name}: `{found}`"
    return "NOTHING"


def rows() -> list[tuple[str, ...]]:
    """The rows of the page."""
    table = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    return [tuple(re.split(r" (?<!\\)\| ", line[2:-2])) for line in table.splitlines()[2:]]


def write(found: dict[int, tuple[str, ...]]) -> None:
    """Writes the table: the rows of the faults with these numbers anew, the others as they were."""
    old, used = rows(), set()
    table = "| edge | file | fault | caught by |\n|---|---|---|---|\n"
    for number, fault in enumerate(faults()):
        at = next((i for i, row in enumerate(old) if row[:3] == fault.row() and i not in used), None)
        used.add(at)
        row = found.get(number) or (old[at] if at is not None else (*fault.row(), "not tried yet"))
        table += f"| {' | '.join(row)} |\n"
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + table + END + rest.split(END)[1])


def main() -> None:
    """See the top."""
    args = [arg for arg in sys.argv[1:] if arg != "--no-baseline"]
    chosen = re.compile(args[0] if args else ".")
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "mutants"
    tree, start = Tree(target), time.monotonic()
    for layer in (UNIT, LOOM, SHUTTLE) if "--no-baseline" not in sys.argv else ():
        if failed := layer.failure(layer.build(tree), ""):
            sys.exit(f"{layer.name}: {failed} fails without any fault")
    found: dict[int, tuple[str, ...]] = {}
    for number, fault in enumerate(faults()):
        if not chosen.search(" | ".join([f"{fault.edge} ", *fault.row(), fault.anchor])):
            continue
        whole = tree.make(fault)
        found[number] = (*fault.row(), catcher(tree, fault))
        tree.restore(fault, whole)
        print(f"{fault.edge:2} {fault.file:24} {found[number][2]:60} {found[number][3]}", flush=True)
    survived = sum(row[3] == "NOTHING" for row in found.values())
    print(f"{len(found)} faults, {survived} survived, {time.monotonic() - start:.0f} s")
    write(found)
    if survived or not found:
        sys.exit(1)


if __name__ == "__main__":
    main()
