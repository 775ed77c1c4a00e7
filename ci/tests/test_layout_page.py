"""docs/layout.md and the source name the same words."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/layout.md").read_text()
SOURCE = ROOT / "crates/forebay-layout/src"
CONSTANT = re.compile(r"^pub const ([A-Z][A-Z_]*): usize = (\d+);", re.MULTILINE)
ROW = re.compile(r"^\| `([A-Z_]+)` \| (\d+) \|", re.MULTILINE)
# Sizes of pieces, not places of words; each is said in the text.
SIZES = {"WORDS", "FIXED_WORDS", "LABEL_WORDS", "LAST_STRIDE", "SLOT_WORD_STRIDE"}
# Described in the tables of fixed words, by number.
FIXED = {"W_MAGIC", "W_OBJECT", "W_INSTANCE", "W_VERSION", "W_NAME"}


def constants(file: str) -> set[tuple[str, str]]:
    found = CONSTANT.findall((SOURCE / file).read_text())
    return {(name, value) for name, value in found if name not in SIZES | FIXED}


def test_every_word_of_the_source_is_on_the_page_and_the_other_way_round() -> None:
    words = [constants(file) for file in ("header.rs", "pool.rs", "member.rs")]
    assert all(len(one) > 2 for one in words)
    assert set(ROW.findall(PAGE)) == set.union(*words)


def test_the_layout_version_is_the_one_on_the_page() -> None:
    header = (SOURCE / "header.rs").read_text()
    major, minor = (re.search(rf"pub const {name}: u16 = (\d+);", header)[1] for name in ("MAJOR", "MINOR"))
    assert PAGE.startswith(f"# Layout {major}.{minor}:")


def test_every_dtype_code_is_on_the_page() -> None:
    codes = re.findall(r"^    (\w+) = (\d+),", (SOURCE / "dtype.rs").read_text(), re.MULTILINE)
    assert len(codes) == 17
    text = " ".join(PAGE.split())
    assert [name for name, code in codes if f"{code} {name.lower()}" not in text] == []
