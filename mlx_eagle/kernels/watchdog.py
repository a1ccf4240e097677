"""Notices that rounds with a kernel stall now and then, which no measurement beforehand shows."""

from collections import defaultdict, deque
from statistics import median

REMEMBERED = 64  # rounds of each number of rows
ENOUGH = 8  # rounds before one can be called slow
SLOW = 3.0  # times the median
LEAST = 0.5  # seconds: compiling for a longer context, or another program, takes less
TWICE_WITHIN = 64  # rounds: a machine that sleeps in between stalls once


class Watchdog:
    """Watches the rounds in which a kernel takes part."""

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._n_rounds = 0
        self._slow_at: int | None = None

    def stalls(self, n_rows: int, seconds: float) -> bool:
        """Take in one round; say whether it is the second slow one within a short time.

        Args:
            n_rows: rows that it verified.
            seconds: until they were read back.
        """
        self._n_rounds += 1
        known = self._seconds[n_rows]
        is_slow = len(known) >= ENOUGH and seconds > max(LEAST, SLOW * median(known))
        if not is_slow:
            known.append(seconds)
            return False
        before, self._slow_at = self._slow_at, self._n_rounds
        return before is not None and self._n_rounds - before <= TWICE_WITHIN
