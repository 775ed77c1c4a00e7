"""`make gpu`: what turns its results into the page, without a GPU; and what the page says while there are none."""

import importlib
import pathlib
import sys
from types import ModuleType

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benches/gpu"
PAGE = (ROOT / "docs/gpu.md").read_text()


@pytest.fixture(scope="module")
def page() -> ModuleType:
    # Other folders of benches have a `page` too.
    kept = sys.modules.pop("page", None)
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module("page")
    finally:
        sys.path.remove(str(FOLDER))
        del sys.modules["page"]
        if kept is not None:
            sys.modules["page"] = kept


def results(page: ModuleType) -> "dict[str, object]":
    facts = {"gpu": "g", "cpu": "c", "cores": 2, "kernel": "k", "torch": "t", "cuda": "13", "commit": "0", "date": "d"}
    found: list[dict[str, object]] = []
    for turn in range(2):
        for nbytes in (1 << 16, 4 << 20):
            for way, rate in ((page.PLAIN, 50.0), (page.OURS, 48.0 - turn), (page.LOADER, 20.0)):
                one = {"way": way, "bytes": nbytes, "round": turn, "gb_s": rate}
                found.append(one if way == page.PLAIN else one | {"us": 10.0, "us_p99": 20.0, "cpu_ms_gib": 0.5})
    found.append({"way": "zmq", "bytes": 1 << 16, "round": 0, "why_not": "not installed"})
    overlap = {"copy_ms": 1.0, "forward_ms": 1.1, "speed": 0.97}
    ways = [page.OURS, page.LOADER, "zmq"]
    return {"facts": facts, "found": found, "ways": ways, "notes": {page.LOADER: "n"}, "launch_us": 16.0, "overlap": overlap}


def test_aims_are_judged_by_ratios_within_a_round(page: ModuleType) -> None:
    found = results(page)
    assert page.ratios(found, page.PLAIN, 4 << 20) == [0.96, 0.94]
    aims = page.aims(found)
    assert "| GB/s at 4 MiB ÷ a plain pinned copy's | 0.95 (0.94–0.96) | ≥ 0.95 | yes |" in aims  # noqa: RUF001
    assert "64 KiB ÷ a plain" not in aims
    assert "| 16.0 µs | ≤ 15 µs | **no** |" in aims
    assert "| 0.970 | ≥ 0.95 | yes |" in aims


def test_the_page_has_one_place_for_figures(page: ModuleType, tmp_path: pathlib.Path) -> None:
    copy = tmp_path / "gpu.md"
    copy.write_text(PAGE)
    page.write(copy, results(page))
    once = copy.read_text()
    assert "still missing" not in once
    assert "zmq at 64 KiB was left out: not installed" in once
    page.write(copy, results(page))
    assert copy.read_text() == once
    copy.write_text("nothing")
    with pytest.raises(ValueError, match="exactly one place"):
        page.write(copy, results(page))


def test_the_page_has_figures_or_says_that_they_are_missing() -> None:
    figures = PAGE.split("<!-- gpu figures -->")[1].split("<!-- end figures -->")[0]
    assert ("**These figures are still missing.**" in figures) != ("Sustained, GB/s:" in figures)
