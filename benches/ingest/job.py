"""What one comparison of the ingest benchmark is: the same work done by forebay and by what users have now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# The name of our own candidate in every job.
OURS = "forebay"


@dataclass(frozen=True)
class Job:
    """One row of the table. Each candidate does the whole work once when called and returns how many units it did.

    What is made ready before (vocabularies, files, arrays) is not part of a call; what a user has to do for every batch
    is.
    """

    what: str
    unit: str
    candidates: dict[str, Callable[[], int]]
    # Ours must be at least this many times as fast as this candidate: {"NumPy": 2.0}.
    aims: dict[str, float]
    # Why a figure is what it is, where the table alone would mislead.
    note: str = ""
    # Ours must do at least so many units a second, where the aim is no ratio.
    at_least: float = 0.0
