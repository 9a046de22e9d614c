"""When a process that died is started again: a function of clocks, without any process.

The delay doubles from `backoff_s` to `backoff_max_s` and starts anew for a process that was up for
`stable_s`. A death is *quick* when the one before it was less than `stable_s` ago: a gateway that
dies so gives its share of new connections to the others.
"""

from __future__ import annotations

from typing import NamedTuple


class Verdict(NamedTuple):
    """What follows from a death: start again after `delay_s`; `quick` for the second in a row."""

    delay_s: float
    quick: bool


class Restarts:
    """The restarts of one process. Times are seconds of any clock that never goes back."""

    def __init__(self, backoff_s: float, backoff_max_s: float, stable_s: float) -> None:
        self._first_s = backoff_s
        self._max_s = backoff_max_s
        self._stable_s = stable_s
        self._next_s = backoff_s
        self._started: float | None = None
        self._died: float | None = None
        self.count = 0  # deaths so far

    def started(self, now: float) -> None:
        """Note a start."""
        self._started = now

    def died(self, now: float) -> Verdict:
        """Note a death, or a start that failed, and say what follows."""
        up_s = now - self._started if self._started is not None else 0.0
        if up_s >= self._stable_s:
            self._next_s = self._first_s
        delay_s = self._next_s
        self._next_s = min(self._next_s * 2, self._max_s)
        quick = self._died is not None and now - self._died < self._stable_s
        self._started, self._died = None, now
        self.count += 1
        return Verdict(min(delay_s, self._max_s), quick)

    def stable(self, now: float) -> bool:
        """Whether the process has been up for long enough to be trusted again."""
        return self._started is not None and now - self._started >= self._stable_s
