"""The demo runs, and its checks can fail."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples/demo/run.py"
SPEC = importlib.util.spec_from_file_location("demo", SCRIPT)
demo = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(demo)


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_the_demo_holds_on_the_bundled_corpus() -> None:
    done = run("--passes", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "403 of up to 32 rows" in done.stdout
    assert "all equal to the Python package" in done.stdout
    assert "0 between publish and tensor" in done.stdout


def test_the_demo_holds_on_other_text(tmp_path: pathlib.Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes("\ufeffgrüße\r\n\n  \n日本語 のテキスト\n\u2028\na\tb\x1c\nlast line without an end".encode())
    done = run(text, "--passes", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 x 2 passes" in done.stdout


def test_the_demo_fails_when_there_is_nothing_to_receive(tmp_path: pathlib.Path) -> None:
    done = run("--tokenizer", tmp_path / "none.json")
    assert done.returncode == 1
    assert "cannot read the tokenizer" in done.stderr


def batch(first: int, *rows: list[int]) -> tuple:
    """A batch as the consumer keeps it, padded with 0."""
    import torch

    columns = max(map(len, rows))
    ids = torch.tensor([row + [0] * (columns - len(row)) for row in rows], dtype=torch.int32)
    mask = torch.tensor([[True] * len(row) + [False] * (columns - len(row)) for row in rows])
    return first, ids, mask


EXPECTED = [[5], [6, 7], [8]]


@pytest.mark.parametrize(
    ("seen", "complaint"),
    [
        ([batch(0, [5], [6, 7]), batch(2, [8])], None),
        ([batch(0, [5], [6, 9]), batch(2, [8])], "line 1: ids"),
        ([batch(0, [5], [6, 7])], "1 lines did not arrive exactly once"),
        ([batch(0, [5], [6, 7]), batch(2, [8]), batch(2, [8])], "1 lines did not arrive exactly once"),
        ([batch(2, [8]), batch(0, [5], [6, 7])], None),
    ],
)
def test_what_differs_is_noticed(seen: list, complaint: str | None) -> None:
    wrong, _ = demo.compare(seen, EXPECTED, 1)
    assert len(wrong) == (complaint is not None), wrong
    assert all(complaint in line for line in wrong)


def test_quantiles_are_values_that_were_measured() -> None:
    values = list(range(1000, 1_001_000, 1000))
    assert [demo.quantile(values, q) for q in (0.5, 0.99, 0.999)] == [500, 990, 999]
    assert demo.quantile([7000], 0.999) == 7
