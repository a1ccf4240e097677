"""How long a forward pass may take, from how long others took: more is a host that stands still.

A pass takes longer with more rows, but no more than in proportion, because a part of it is the same
for any number of rows. So a pass of m rows that took t seconds says that n rows take at most
t * max(1, n / m). The longest of the last passes of about m rows is taken for each m, and of what
these say the least.
"""

from collections import deque

SLOWER = 20.0  # times as long as is expected is too long
KEPT = 32  # passes of about as many rows; what was slow once is forgotten after so many


class PassTimes:
    """The seconds of the last forward passes, by their rows in powers of two."""

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = {}  # by the rows' bit length

    def add(self, n_rows: int, seconds: float) -> None:
        """Note a pass of so many rows that has ended."""
        self._seconds.setdefault(n_rows.bit_length(), deque(maxlen=KEPT)).append(seconds)

    def limit(self, n_rows: int) -> float | None:
        """Return the seconds after which a pass of so many rows is given up; None: unknown.

        Example: passes of 1 row took 0.1 s and one of 2048 rows took 15 s. Then 4 rows may take
        20 * 0.1 * 4 = 8 s, and 2048 rows 20 * 15 = 300 s: less than 20 * 0.1 * 2048.
        """
        expected = (
            max(seconds) * max(1.0, n_rows / (1 << length - 1))
            for length, seconds in self._seconds.items()
        )
        return min((SLOWER * seconds for seconds in expected), default=None)
