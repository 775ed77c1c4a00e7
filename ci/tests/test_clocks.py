"""Nothing but CLOCK_MONOTONIC decides anything; what can be set forth and back is for people to read.

A word of the shared memory that holds such a time has a name with `unix_ns`, or is W_STARTED; who reads one is listed
too, and does nothing but hand it on to be shown.
"""

import collections
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = [*ROOT.glob("crates/*/src/**/*.rs"), *ROOT.glob("python-client/**/src/**/*.rs")]
PYTHON = [*ROOT.glob("python-client/python/**/*.py"), *ROOT.glob("python-client/ingest/python/**/*.py")]
# Tools that are no part of what ships.
LEFT_OUT = {"forebay-testkit", "forebay-bench"}

ASKS = re.compile(r"\b(SystemTime|UNIX_EPOCH|realtime_ns|[Rr]ealtime\w*|gettimeofday|CLOCK_REALTIME|Tai|libc::time)\b")
READS = re.compile(r"\b(W_STARTED|ATTACHED_UNIX_NS|\w+_unix_ns)\b")
OTHER_CLOCKS = re.compile(r"\b(?:Timerfd)?ClockId::(\w+)|\bCLOCK_(\w+)")
PYTHON_ASKS = re.compile(r"\btime\.(time|time_ns|localtime|gmtime)\b|\bdatetime\b")

# Who asks such a clock, and what for.
ASKERS = {
    "crates/forebay-os/src/clock.rs": "the clock itself, and its test",
    "crates/forebay/src/producer/create.rs": "when the producer started, for `forebay ls`",
    "crates/forebay/src/producer/site.rs": "when a consumer attached, for `forebay ls`",
    "crates/forebay/src/rendezvous/objects.rs": "when the ring was made, for `forebay ls`",
    "crates/forebay-cli/src/ls.rs": "how long ago that was",
    "crates/forebay-serve/src/engine/dispatch.rs": "when a span began and ended, for a collector of traces",
    "crates/forebay-serve/src/http/context.rs": "the same",
    "crates/forebay-serve/src/trace/mod.rs": "the same",
    "crates/forebay-serve/src/trace/otlp.rs": "the same",
}
# Who reads such a time.
READERS = {
    "crates/forebay-layout/src/header.rs": "where it is",
    "crates/forebay-layout/src/member.rs": "where it is",
    "crates/forebay/src/producer/create.rs": "writes it",
    "crates/forebay/src/producer/site.rs": "writes it",
    "crates/forebay/src/rendezvous/objects.rs": "writes it",
    "crates/forebay/src/inspect/look.rs": "copies it into a report",
    "crates/forebay/src/inspect/members.rs": "copies it into a report",
    "crates/forebay/src/inspect/report.rs": "a report",
    "crates/forebay-cli/src/ls.rs": "shows it",
    "python-client/src/inspect.rs": "shows it",
}
# Clocks that cannot be set, and the one above.
STEADY = {"Monotonic", "MonotonicCoarse", "MONOTONIC", "MONOTONIC_COARSE"}


def code(path: pathlib.Path) -> str:
    """A source without its comments."""
    return re.sub(r"^\s*//.*$", "", path.read_text(), flags=re.MULTILINE)


def users(pattern: re.Pattern[str]) -> dict[str, list[str]]:
    found = collections.defaultdict(list)
    for path in SOURCES:
        name = str(path.relative_to(ROOT))
        if not LEFT_OUT & set(path.parts):
            for match in pattern.finditer(code(path)):
                found[name].append(next(group for group in match.groups() if group))
    return found


def test_only_displays_ask_a_clock_that_can_be_set() -> None:
    assert set(users(ASKS)) == set(ASKERS)


def test_only_displays_read_a_time_that_such_a_clock_gave() -> None:
    assert set(users(READS)) - set(READERS) == set()


def test_every_other_clock_is_steady() -> None:
    found = {(name, clock) for name, clocks in users(OTHER_CLOCKS).items() for clock in clocks}
    assert len(found) > 3
    assert {(name, clock) for name, clock in found if clock not in STEADY} == {
        ("crates/forebay-os/src/clock.rs", "Realtime")
    }


def test_the_writers_ask_once_each_and_only_store_it() -> None:
    stores = {
        "crates/forebay/src/producer/create.rs": r"set\(W_STARTED, clock::realtime_ns\(\)\)",
        "crates/forebay/src/producer/site.rs": r"\.store\(at::ATTACHED_UNIX_NS, clock::realtime_ns\(\)\)",
        "crates/forebay/src/rendezvous/objects.rs": r"created_unix_ns: clock::realtime_ns\(\)",
    }
    for name, store in stores.items():
        text = code(ROOT / name)
        assert len(re.findall(store, text)) == text.count("realtime_ns") == 1, name


def test_python_asks_no_such_clock() -> None:
    assert PYTHON
    assert [path.name for path in PYTHON if PYTHON_ASKS.search(path.read_text())] == []
