"""What `control.measure` does, for receivers that are called with each message instead of asking for it."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from control import DONE, Control, now, times


class Meter:
    """Counts, times and answers."""

    def __init__(self, plan: SimpleNamespace, control: Control) -> None:
        self.plan, self.control = plan, control
        self.taken: list[list[int]] = [[], []]
        self.done = self.begin = self.span = 0
        self.wrong: str | None = None
        self.finished = threading.Event()
        self.lock = threading.Lock()

    def take(self, array: Any) -> None:
        """One message has come."""
        plan = self.plan
        each = plan.warm + plan.count
        phase, message = divmod(self.done, each)
        if phase == 1:
            int(array[0]), int(array[-1])
        end = now()
        if phase < 2:
            if int(array[-1]) != self.done:
                self.wrong = f"message {int(array[-1])} came in place of {self.done}"
                self.finished.set()
            if message >= plan.warm:
                self.taken[phase].append(end - int(array[0]))
            self.done += 1
            self.control.set(DONE, self.done)
            if self.done == 2 * each and not plan.rate_count:
                self.finished.set()
            return
        # Calls that are under way at the same time may arrive in any order: they are counted.
        with self.lock:
            self.done += 1
            rate = self.done - 2 * each
            if rate == plan.warm + 1:
                self.begin = end
            if rate == plan.warm + plan.rate_count:
                self.span = end - self.begin
                self.control.set(DONE, 2 * each + 1)
                self.finished.set()

    def answer(self) -> dict[str, Any]:
        if self.wrong:
            raise ValueError(self.wrong)
        rate = (self.plan.rate_count - 1) / (self.span / 1e9) if self.plan.rate_count else None
        return {"have": times(self.taken[0]), "touch": times(self.taken[1]), "rate": rate}
