"""The table of seeded faults in docs/protocol.md covers exactly ci/mutants.list; both lists are well-formed."""

import importlib.util
import pathlib
import re
import types

ROOT = pathlib.Path(__file__).resolve().parents[2]
RING = ROOT / "crates/forebay-ring/src"


def load(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name.replace("-", "_"), ROOT / "ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mutants = load("mutants")


def test_the_table_covers_exactly_the_list() -> None:
    faults = mutants.faults()
    assert len(faults) >= 50
    assert [tuple(row[:3]) for row in mutants.rows()] == [fault.row() for fault in faults]


def test_every_fault_was_noticed() -> None:
    assert [row for row in mutants.rows() if not re.fullmatch(r"(unit|loom|shuttle): `\S+`( .*)?", row[3])] == []


def test_every_fault_has_its_place_in_the_source() -> None:
    for fault in mutants.faults():
        source = (RING / fault.file).read_text()
        near = "".join(source[source.find(fault.anchor) :].splitlines(keepends=True)[: mutants.NEAR + 1])
        assert fault.anchor in source, fault
        assert fault.old in near, fault


def test_every_survivor_has_a_reason() -> None:
    lines = [line for line in (ROOT / "ci/mutants.survivors").read_text().splitlines() if line and line[0] != "#"]
    assert lines
    for line in lines:
        assert re.fullmatch(r"\d+ × (layout|ring)/\S+\.rs: .+ \| \S.{9,}", line), line
