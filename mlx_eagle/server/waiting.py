"""Requests in the order in which they are served: in turn among those who ask, each in a row."""

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


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
