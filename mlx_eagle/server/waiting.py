"""Requests in the order in which they are served: in turn among those who ask, each in a row.

And how long it takes until one is.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

FIRST_GUESS = 5.0  # seconds of an answer, before one was seen
NEWEST = 0.3  # share of the newest answer in the guess
T = TypeVar("T")


class AnswerSeconds:
    """How long an answer takes, by those that were seen."""

    def __init__(self) -> None:
        self._mean: float | None = None

    def add(self, seconds: float, *, is_cut: bool = False) -> None:
        """Note how long one took.

        Args:
            seconds: that it took.
            is_cut: whether somebody ended it: to its end it would have taken longer.
        """
        if self._mean is None:
            self._mean = None if is_cut else seconds
        elif not is_cut or seconds > self._mean:
            self._mean += NEWEST * (seconds - self._mean)

    def expected(self, elapsed: float) -> float:
        """Return the seconds of an answer, no fewer than what the one in the making has taken."""
        return max(FIRST_GUESS if self._mean is None else self._mean, elapsed)


class FairQueue(Generic[T]):
    """A queue with a row for each client; one of every row is served before a second one of any."""

    def __init__(self) -> None:
        self._rows: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def __iter__(self) -> Iterator[T]:
        """Yield all in the order in which they would be served."""
        rows = [list(row) for row in self._rows.values()]
        for place in range(max(map(len, rows), default=0)):
            yield from (row[place] for row in rows if place < len(row))

    def put(self, who: str, item: T) -> None:
        """Let an item wait."""
        self._rows.setdefault(who, deque()).append(item)

    def take(self) -> T | None:
        """Return who is next, whose row goes to the end; None if nobody waits."""
        if not self._rows:
            return None
        who, row = self._rows.popitem(last=False)
        item = row.popleft()
        if row:
            self._rows[who] = row
        return item

    def remove(self, item: T) -> bool:
        """Take an item out, wherever it waits; returns whether it did."""
        for who, row in self._rows.items():
            if item in row:
                row.remove(item)
                if not row:
                    del self._rows[who]
                return True
        return False
