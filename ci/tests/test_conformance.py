"""The pairwise part of the conformance table through the Python client; `make conformance` runs all of it."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Built by `cargo test`.
TABLE = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/forebay-conformance"


def test_every_pairwise_cell_passes_in_python(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "cells"
    command = [sys.executable, ROOT / "tests/conformance/runner.py", TABLE, out, "--pairwise"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    ran = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(ran) > 100
    assert [cell for cell in ran if cell["outcome"] not in ("pass", "none")] == []
