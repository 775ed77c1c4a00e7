"""`make compare`: what turns results into tables, without any rival."""

import importlib
import pathlib
import re
import sys
from types import ModuleType

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benches/compare"


@pytest.fixture(scope="module")
def modules() -> "dict[str, ModuleType]":
    sys.path.insert(0, str(FOLDER))
    try:
        return {
            name: importlib.import_module(name)
            for name in ("aims", "candidates", "numbers_of", "page", "plot")
        }
    finally:
        sys.path.remove(str(FOLDER))


def answer(p50: int, rate: "float | None" = None) -> "dict[str, object]":
    times = {"p50": p50, "p99": 2 * p50, "p999": 3 * p50, "max": 4 * p50}
    return {"have": times, "touch": times, "rate": rate}


def results(**answers: object) -> "dict[str, object]":
    return {"64": {"effort": {}, "answers": answers}}


def test_ratios_are_taken_round_by_round(modules: "dict[str, ModuleType]") -> None:
    page = modules["numbers_of"]
    # The second round was twice as slow for both: the ratio is the same, though the medians alone would not say so.
    answers = {"a": [answer(200), answer(400)], "b": [answer(100), answer(200)]}
    assert page.ratios(answers, "a", "b", page.have) == [2.0, 2.0]
    assert page.spread([2.0, 2.0], page.times) == "2.00"
    assert page.spread([1.0, 3.0, 20.0], page.times) == "3.00 (1.00 to 20.0)"
    assert page.spread([], page.times) == "-"


def test_a_round_that_failed_is_left_out_and_said(
    modules: "dict[str, ModuleType]",
) -> None:
    page, job = modules["page"], modules["candidates"].JOBS[0]
    cells = results(
        forebay=[answer(100, 1e6), answer(100, 1e6)],
        minimal=[answer(50, 2e6), answer(50, 2e6)],
        ringfire=[{"failed": "no such thing"}, answer(150, 5e5)],
    )
    text = page.job_tables(job, cells)
    assert "| ringfire | 1.50 |" in text  # of forebay's, from the round that both have
    assert "| ringfire | 3.00 |" in text  # of the floor's
    assert "| ringfire | 0.50 |" in text  # messages a second
    assert "| forebay | 2.00 |" in text
    assert "- ringfire, 64 B: no such thing" in text
    assert text.index("multiple of forebay's") < text.index("One way, p50")


def test_what_speaks_against_the_figures_is_said(
    modules: "dict[str, ModuleType]",
) -> None:
    cells = results(minimal=[answer(80), answer(120)])
    facts = {"load_before": 1.5, "load_after": 4.0, "cores": 2, "stolen": 0.0}
    run = {"facts": facts, "quick": False, "rounds": 5, "jobs": {"rust-rust": cells}}
    assert modules["page"].doubts_of(run) == [
        "the load was 1.5 on 2 cores before it began",
        "the load was 4.0 on 2 cores at its end: other work ran beside it",
        "the floor itself was between 80 ns and 120 ns",
    ]
    quiet = {
        "facts": {**facts, "load_before": 0.2, "load_after": 2.1},
        "quick": False,
        "rounds": 5,
        "jobs": {},
    }
    assert modules["page"].doubts_of(quiet) == []


def test_only_what_is_between_the_markers_changes(
    modules: "dict[str, ModuleType]",
) -> None:
    fill = modules["page"].markdown.fill
    text = "before\n<!-- compare a -->\nold\n<!-- end a -->\nafter\n"
    once = fill(text, "compare", "a", r"new \1 text")
    assert once == "before\n<!-- compare a -->\nnew \\1 text\n<!-- end a -->\nafter\n"
    assert fill(once, "compare", "a", r"new \1 text") == once
    for name, key in (("compare", "b"), ("other", "a")):
        with pytest.raises(ValueError, match=f"exactly one place for {name} {key}"):
            fill(text, name, key, "")


def test_the_page_has_a_place_for_every_job(modules: "dict[str, ModuleType]") -> None:
    page = (ROOT / "docs/performance.md").read_text()
    for key in ("machine", "aims", *(job.key for job in modules["candidates"].JOBS)):
        modules["page"].markdown.fill(page, "compare", key, "")


def test_every_candidate_is_one_that_the_programs_know(
    modules: "dict[str, ModuleType]",
) -> None:
    known = {
        "rust": (FOLDER / "rust/src/main.rs").read_text(),
        "mixed": (FOLDER / "python/receive.py").read_text(),
        "python": (FOLDER / "python/pair.py").read_text(),
    }
    for job in modules["candidates"].JOBS:
        names = {candidate.name for candidate in job.candidates}
        assert set(job.references.values()) <= names
        assert not job.floor or job.floor in names
        assert [name for name in names if f'"{name}"' not in known[job.kind]] == []


def test_the_plot_is_a_document_with_a_line_for_each(
    modules: "dict[str, ModuleType]",
) -> None:
    plot = modules["plot"]
    lines = [
        plot.Line("a & b", [(64.0, 100.0), (4096.0, 1e6)]),
        plot.Line("own", [(64.0, 90.0), (4096.0, 95.0)], own=True),
    ]
    text = plot.svg("title", lines)
    assert text.count("<polyline") == 2
    assert "a &amp; b" in text
    for x in re.findall(r'points="([\d.]+),', text):
        assert 0 <= float(x) <= plot.WIDTH
    with pytest.raises(ValueError, match="nothing to draw"):
        plot.svg("title", [])


def test_an_aim_is_met_or_not_by_the_median(modules: "dict[str, ModuleType]") -> None:
    cells = results(
        forebay=[answer(100, 3e7), answer(100, 3e7), answer(500, 3e7)],
        minimal=[answer(95, 4e7), answer(95, 4e7), answer(95, 4e7)],
        iceoryx2=[answer(300, 3e6), answer(300, 3e6), answer(300, 3e6)],
    )
    rows = {
        row[0]: row[1:] for row in modules["aims"].rows({"jobs": {"rust-rust": cells}})
    }
    assert rows["Rust to Rust, 64 B, one way ÷ the floor's"] == [
        "≤ 1.15",
        "1.05 (1.05 to 5.26)",
        "yes",
    ]
    assert rows["64 B messages a second ÷ the floor's"] == ["≥ 0.60", "0.75", "yes"]
    assert "64 B messages a second to NumPy" not in rows  # that job was not run
    text = modules["page"].stands({"jobs": {"rust-rust": cells}})
    assert "| the same ÷ iceoryx2's | ≤ 0.25 | 0.33 (0.33 to 1.67) | **no** |" in text
