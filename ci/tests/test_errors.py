"""docs/errors.md lists every error there is, and none that is not."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/errors.md").read_text()
# `OnError` is a policy, not an error.
ENUM = re.compile(r"^pub enum (?!OnError)(\w+Error) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
# A variant starts a line at one level of indentation and is no attribute, comment or field.
VARIANT = re.compile(r"^ {4}([A-Z]\w*)\b", re.MULTILINE)


def variants() -> set[str]:
    """`Enum::Variant` of every public error enum of the published crates."""
    found = set()
    for source in ROOT.glob("crates/*/src/**/*.rs"):
        for enum, body in ENUM.findall(source.read_text()):
            found |= {f"{enum}::{variant}" for variant in VARIANT.findall(body)}
    return found


def test_the_sources_were_read() -> None:
    assert {"CreateError::Taken", "RecvError::Os", "IngestError::BadLine", "ConnectError::NotYet"} <= variants()


def test_every_variant_has_a_row_and_every_row_a_variant() -> None:
    listed = set(re.findall(r"^\| `(\w+Error::\w+)`", PAGE, re.MULTILINE))
    assert listed == variants(), "run with -vv to see which differ"


def test_every_exception_class_is_named() -> None:
    import forebay

    classes = {name for name, value in vars(forebay).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert "ForebayError" in classes
    missing = {name for name in classes if f"`{name}`" not in PAGE}
    assert not missing


def test_the_marks_say_what_the_classes_are() -> None:
    import forebay

    bases = {"T": TimeoutError, "C": ConnectionError, "V": ValueError}
    rows = re.findall(r"^\| `\w+Error::\w+` \| `(\w+)`(?: \*([TCV]+)\*)?", PAGE, re.MULTILINE)
    assert len(rows) > 20
    for name, marks in rows:
        exception = getattr(forebay, name)
        assert issubclass(exception, forebay.ForebayError), name
        for letter, base in bases.items():
            assert issubclass(exception, base) == (letter in marks), f"{name} and {base.__name__}"
