"""Tables, and places of a page that are written by a program.

The place for KEY of NAME is what lies between `<!-- NAME KEY -->` and `<!-- end KEY -->`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from report.host import Facts

DOUBTFUL = "**Doubtful:** other work ran beside it; ratios hold better than rates."
QUICK = "**A quick run, not to be quoted.**"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """With a line for the head, and one for each row."""
    lines = [head, *body]
    said = ["| " + " | ".join(words) + " |" for words in lines]
    return "\n".join([said[0], "|" + "---|" * len(head), *said[1:]])


def fill(page: str, name: str, key: str, body: str) -> str:
    """`page` with `body` in its one place for `key`."""
    place = re.compile(rf"(<!-- {re.escape(name)} {re.escape(key)} -->\n).*?(<!-- end {re.escape(key)} -->)", re.DOTALL)
    if len(place.findall(page)) != 1:
        raise ValueError(f"the page has not exactly one place for {name} {key}")
    return place.sub(lambda found: f"{found[1]}{body.strip()}\n{found[2]}", page)


def host_rows(facts: Facts) -> dict[str, str]:
    """What every page says of the host, by the name of its row."""
    versions = [facts["python"], *(f"{name} {version}" for name, version in facts["packages"].items())]
    return {
        "machine": f"{facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']}",
        "date, commit": f"{facts['date']}, {facts['commit']}",
        "load before and after": f"{facts['load_before']:.2f}, {facts['load_after']:.2f}",
        "CPython, packages": ", ".join(versions),
    }
