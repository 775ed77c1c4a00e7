"""`make compare-ingest`: what turns rates into the table, without any rival."""

import importlib
import pathlib
import sys
from types import ModuleType

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benches/ingest"


@pytest.fixture(scope="module")
def page() -> ModuleType:
    # Another folder of benches has a `page` too.
    kept = sys.modules.pop("page", None)
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module("page")
    finally:
        sys.path.remove(str(FOLDER))
        del sys.modules["page"]
        if kept is not None:
            sys.modules["page"] = kept


def job(**more: object) -> "dict[str, object]":
    rates = {"forebay": [300.0, 600.0, 400.0], "slow": [100.0, 200.0, 400.0]}
    facts = {"part": "text", "what": "text: x", "unit": "tokens", "ours": "forebay", "note": "", "quick": False}
    return {**facts, "rates": rates, "aims": {"slow": 2.5}, "at_least": 0.0, **more}


def test_ratios_are_taken_round_by_round(page: ModuleType) -> None:
    assert page.ratios(job(), "slow") == [3.0, 3.0, 1.0]
    [row] = page.rows([job()])
    assert row[1:] == ["400.0 tokens/s", "slow", "200.0/s", "3.00 (1.00–3.00) ×", "≥ 2.5 ×", "yes"]  # noqa: RUF001
    assert page.rows([job(aims={"slow": 3.5})])[0][-1] == "**no**"
    assert page.rows([job(aims={})])[0][-2:] == ["", ""]


def test_an_aim_that_is_no_ratio_has_a_row_of_its_own(page: ModuleType) -> None:
    only = {"forebay": [2e6, 1e6, 3e6]}
    assert page.rows([job(rates=only, aims={}, at_least=1.5e6)])[0][-2:] == ["≥ 1.50 M tokens/s", "yes"]
    assert page.rows([job(rates=only, aims={}, at_least=2.5e6)])[0][-1] == "**no**"


def test_the_page_has_one_place_for_the_table(page: ModuleType, tmp_path: pathlib.Path) -> None:
    facts = {"cpu": "c", "cores": 2, "kernel": "k", "python": "3", "commit": "0", "date": "d", "packages": {}}
    facts |= {"load_before": 0.1, "load_after": 9.0}
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "docs/ingest/README.md").read_text())
    page.write(copy, facts, [job(note="seen")])
    once = copy.read_text()
    assert "| text: x |" in once
    assert "- text: x: seen" in once
    assert "Doubtful" in once
    page.write(copy, facts, [job(note="seen")])
    assert copy.read_text() == once
    copy.write_text("nothing")
    with pytest.raises(ValueError, match="exactly one place"):
        page.write(copy, facts, [job()])


def test_every_part_is_listed_and_names_its_jobs(page: ModuleType) -> None:
    parts = {path.stem for path in FOLDER.glob("*.py")} - {"job", "page", "run"}
    listed = (FOLDER / "run.py").read_text().split("PARTS = (", 1)[1].split(")", 1)[0]
    assert all(f'"{part}"' in listed for part in parts), parts
    assert page.PACKAGES
