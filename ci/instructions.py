#!/usr/bin/env python3
"""Counts the instructions of the hot operations and compares them with those on record.

    ci/instructions.py            ends with 1 if an operation takes over 5 % more than benches/instructions.list says
    ci/instructions.py --write    puts what was counted on record
    ci/instructions.py --if-can   says so and ends well where it cannot count: without valgrind, or not on x86_64

Counting takes valgrind. A count is exact and the same on each run of a binary, whatever else the machine does; another
compiler gives other counts, which is why a few per cent are let pass. An operation that takes over 5 % less is to be put
on record, too: otherwise it may grow again unseen.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benches" / "instructions.list"
ROUNDS = 2000
LIMIT = 0.05
HEAD = """# Instructions of one operation on a 64-byte message, counted by `make instructions` (x86_64, release profile).
# case operation instructions
"""


def program() -> Path:
    """The built program."""
    cargo = ["cargo", "build", "--release", "-p", "forebay-benches", "--bin", "instructions"]
    subprocess.run([*cargo, *os.environ.get("CARGO_FLAGS", "--locked").split()], cwd=ROOT, check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "instructions"


def cases(binary: Path) -> list[str]:
    """The names of the cases, as the program says them."""
    said = subprocess.run([binary], capture_output=True, text=True, check=False).stderr
    return re.search(r"one of (.*)", said)[1].split(", ")


def count(binary: Path, case: str, folder: Path) -> dict[str, float]:
    """Instructions per call of each operation of a case."""
    out = folder / f"{case}.out"
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", binary, case, str(ROUNDS)]
    # Without slices no look at the peers falls into an operation by chance.
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"FOREBAY_SLICE_MS": "0"})
    return per_call(out.read_text())


def per_call(profile: str) -> dict[str, float]:
    """Inclusive instructions per call of the functions named `op_…`, from a callgrind profile.

    A call is written as a line `cfn=` with the callee's name, a line `calls=` with how often, and a line with the
    callee's inclusive cost. A name stands beside its number the first time only.
    """
    names, totals, calls, callee, counting = {}, {}, {}, None, False
    for line in profile.splitlines():
        if found := re.match(r"(c?fn)=\((\d+)\)(?: (.*))?$", line):
            if found[3]:
                names[found[2]] = found[3]
            if found[1] == "cfn":
                operation = re.search(r"\bop_(\w+?)(?:17h[0-9a-f]{16}E)?$", names[found[2]].split("'")[0])
                callee = operation and operation[1]
        elif callee and (found := re.match(r"calls=(\d+)", line)):
            calls[callee] = calls.get(callee, 0) + int(found[1])
            counting = True
        elif counting:
            totals[callee] = totals.get(callee, 0) + int(line.split()[1])
            callee, counting = None, False
    return {name: totals[name] / calls[name] for name in totals}


def read_record() -> dict[tuple[str, str], int]:
    """What is on record."""
    rows = [line.split() for line in RECORD.read_text().splitlines() if not line.startswith("#")]
    return {(case, name): int(number) for case, name, number in rows}


def main() -> int:
    """Counts, prints, compares or writes."""
    if not shutil.which("valgrind") or platform.machine() != "x86_64":
        print("Instructions were not counted: that takes valgrind (apt install valgrind) on x86_64.", file=sys.stderr)
        return "--if-can" not in sys.argv[1:]
    binary = program()
    with tempfile.TemporaryDirectory() as folder:
        counted = {
            (case, name): round(number)
            for case in cases(binary)
            for name, number in sorted(count(binary, case, Path(folder)).items())
        }
    if "--write" in sys.argv[1:]:
        RECORD.write_text(HEAD + "".join(f"{case} {name} {number}\n" for (case, name), number in counted.items()))
    record = read_record()
    wrong = []
    print(f"{'case':12} {'operation':14} {'now':>6} {'record':>7}")
    for key in sorted(counted.keys() | record.keys()):
        now, then = counted.get(key), record.get(key)
        print(f"{key[0]:12} {key[1]:14} {now if now is not None else '-':>6} {then if then is not None else '-':>7}")
        if now is None or then is None:
            wrong.append(f"{' '.join(key)}: is not {'run' if now is None else 'on record'}")
        elif abs(now - then) > max(LIMIT * then, 1):
            wrong.append(f"{' '.join(key)}: {now} instructions and not {then}")
    if wrong:
        print("\n".join(wrong), "If that is meant, put it on record: ci/instructions.py --write", sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
