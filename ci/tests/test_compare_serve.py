"""`make compare-serve`: what turns results into tables, without any server."""

import importlib
import pathlib
import sys
from types import ModuleType

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benches/serve"
NAMES = ("jobs", "page")


@pytest.fixture(scope="module")
def page() -> ModuleType:
    # Other folders of benches have modules of these names, too.
    kept = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module("page")
    finally:
        sys.path.remove(str(FOLDER))
        for name in NAMES:
            sys.modules.pop(name, None)
        sys.modules.update(kept)


def cell(rate: float, p99: float, **more: object) -> "dict[str, object]":
    closed = {"rate": rate, "bad": 0, "us": {"p50": 100.0, "p99": p99, "max": p99}, "cpu_us": 10.0}
    tail = {"us": {"p50": 90.0, "p99": p99}, "errors": {}, "unanswered": 0, "offered": rate}
    same = {"start_s": 1.0, "memory": {"Rss": 2 << 20, "Pss": 1 << 20}, "open": tail}
    return {"closed": {str(n): closed for n in (1, 8, 64)}, **same, **more}


def results(**cells: object) -> "dict[str, object]":
    facts = {"cpu": "c", "cores": 2, "kernel": "k", "python": "3", "commit": "0", "date": "d", "packages": {}}
    facts |= {"load_before": 0.1, "load_after": 1.0, "closed_by": "wrk"}
    return {"facts": facts, "jobs": {"text": cells}}


def found(page: ModuleType, given: "dict[str, object]", what: str) -> list[str]:
    (row,) = [row for row in page.aims(given) if what in row[0]]
    return row


def test_aims_are_held_against_the_best_of_the_others(page: ModuleType) -> None:
    given = results(forebay=cell(400.0, 10.0), mosec=cell(100.0, 30.0), LitServe=cell(150.0, 15.0))
    assert found(page, given, "throughput")[2:] == ["2.67 × at 1, 2.67 × at 8, 2.67 × at 64", "yes"]  # noqa: RUF001
    assert found(page, given, "p99")[2:] == ["10 µs, LitServe 15 µs: 0.67 ×", "**no**"]  # noqa: RUF001
    given = results(forebay=cell(250.0, 10.0), mosec=cell(150.0, 30.0))
    assert found(page, given, "throughput")[-1] == "**no**"
    assert found(page, given, "p99")[-1] == "yes"


def test_one_that_failed_is_named_and_not_compared(page: ModuleType) -> None:
    given = results(forebay=cell(200.0, 1.0), mosec=cell(100.0, 9.0), LitServe={"failed": "no port"})
    assert "LitServe was not measured: no port" in page.text(given)
    assert found(page, given, "throughput")[-1] == "yes"
    assert page.aims(results(forebay={"failed": "x"}, mosec=cell(1.0, 1.0))) == []


def test_bad_answers_are_shown(page: ModuleType) -> None:
    wrong = cell(100.0, 9.0)
    wrong["open"]["errors"] = {"503": 3}
    wrong["open"]["unanswered"] = 2
    assert "mosec (**3 bad, 2 unanswered**)" in page.text(results(forebay=cell(200.0, 1.0), mosec=wrong))


def test_the_rows_of_forebay_alone_have_their_limits(page: ModuleType) -> None:
    given = results()
    given["singles"] = {
        "overhead": {"asleep_us": {"p50": 149.0}, "alone_us": {"p50": 80.0}, "between_us": 61.0},
        "kill_ms": [5.0, 201.0],
        "start_ms": {"median": 199.0},
        "binary_bytes": 24_000_000,
    }
    soak = {"minutes": 60.0, "answered": 5, "errors": {}, "unanswered": 0, "held": 0.0}
    soak |= {"early_bytes": 1 << 20, "late_bytes": 2 << 20}
    given["soak"] = soak
    assert [row[-1] for row in page.aims(given)] == ["yes", "**no**", "**no**", "yes", "yes", "yes"]
    for less in ({"minutes": 59.0}, {"unanswered": 1}, {"errors": {"503": 1}}, {"held": 1.0}, {"late_bytes": 10 << 20}):
        given["soak"] = soak | less
        assert page.aims(given)[-1][-1] == "**no**"


def test_the_page_has_one_place_for_each_part(page: ModuleType, tmp_path: pathlib.Path) -> None:
    copy = tmp_path / "serve-performance.md"
    copy.write_text((ROOT / "docs/serve-performance.md").read_text())
    given = results(forebay=cell(400.0, 10.0), mosec=cell(100.0, 30.0))
    page.write(copy, given)
    once = copy.read_text()
    assert "| mosec | 100 |" in once
    page.write(copy, given)
    assert copy.read_text() == once
    copy.write_text("nothing")
    with pytest.raises(ValueError, match="exactly one place"):
        page.write(copy, given)


def test_what_is_measured_anew_replaces_only_itself(page: ModuleType) -> None:
    old = results(forebay=cell(1.0, 1.0), mosec=cell(2.0, 1.0))
    both = page.merged({**old, "soak": {"minutes": 1}}, results(forebay=cell(3.0, 1.0)))
    assert [both["jobs"]["text"][name]["closed"]["1"]["rate"] for name in ("forebay", "mosec")] == [3.0, 2.0]
    assert both["soak"] == {"minutes": 1}
