"""The state of a recurrent layer, which a chain advances and which goes back to what was accepted.

Such a layer (Mamba, arXiv 2312.00752; gated delta nets, arXiv 2412.06464; short convolutions) sums
up all rows before in a state of constant size. Rows cannot be dropped from it and siblings cannot
share it, so targets with such layers verify chains, not trees.

Model code never writes into a state, it puts a new one in its place; so remembering a state is
keeping a reference. Where a chain is accepted in part, the modules that updated the state are run
again from the state before it, on the accepted ones of the rows that they were given then. Nothing
else of the target runs again, and of these modules, lazily, only what leads to the state.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache

State = list[mx.array | None]


class Update(NamedTuple):
    """One run of a module that updated a state.

    Attributes:
        run: the module's method, bound.
        args: what it was given; arrays of rows are [1, n_rows, ..].
        kwargs: what it was given by name.
        n_rows: rows that it was given.
    """

    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    n_rows: int

    def again(self, n: int, cache: "RecurrentCache") -> None:
        """Run on the first `n` of the rows, from the state in `cache`."""
        args = (self._cut(value, n, cache) for value in self.args)
        self.run(*args, **{name: self._cut(v, n, cache) for name, v in self.kwargs.items()})

    def _cut(self, value: Any, n: int, cache: "RecurrentCache") -> Any:
        """Return an argument for the first `n` rows."""
        if isinstance(value, RecurrentCache):
            return cache
        if isinstance(value, mx.array) and value.ndim > 1 and value.shape[1] == self.n_rows:
            return value[:, :n]
        return value


class Stretch(NamedTuple):
    """Rows that were committed together: how many were before, the state then, the updates."""

    rows: int
    state: State
    updates: list[Update]


class RecurrentCache(ArraysCache):
    """The state of one recurrent layer, in mlx-lm's class for it and with our caches' interface.

    Args:
        size: arrays that the state consists of.
    """

    cache: Any  # a State; mlx-lm's class reads and writes its items
    chains_only = True
    most_rows = 256  # committed at once that may be taken back in part: chains, not prefill
    n_checkpoints = 2

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.rows = 0  # committed
        self.open_rows: None = None  # rows never branch
        self._updates: list[Update] = []  # by undecided rows
        self._committed: State = list(self.cache)
        self._newest = Stretch(0, self._committed, [])
        self._checkpoints: dict[int, State] = {}

    @property
    def pending(self) -> int:
        """Undecided rows."""
        return self._updates[0].n_rows if self._updates else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all states that are held, each array counted once."""
        states = [self.cache, self._newest.state, *self._checkpoints.values()]
        held = {id(array): array.nbytes for state in states for array in state if array is not None}
        return sum(held.values())

    @property
    def buffers(self) -> list[mx.array]:
        """The arrays to evaluate when the cache must be up to date."""
        return [array for array in self.cache if array is not None]

    @property
    def restore_points(self) -> list[int]:
        """Numbers of rows that `trim` can go back to, besides those within the newest rows."""
        return [self._newest.rows, *self._checkpoints]

    def note(self, update: Update, compute: Callable[[], Any]) -> Any:
        """Return what a module computes, and remember it as an update if no module in it is one."""
        n_noted = len(self._updates)
        out = compute()
        if len(self._updates) == n_noted:
            self._updates.append(update)
        return out

    def commit(self, path: Sequence[int]) -> None:
        """Keep the first undecided rows and forget the others.

        Args:
            path: 0, 1, 2, ...: indices into the undecided rows.
        """
        n = len(path)
        assert path == range(n) or list(path) == list(range(n)), "only chains have one state"
        if n == 0:
            self.forget()
            return
        stretch = Stretch(self.rows, self._committed, self._updates)
        if n < self.pending:
            self._follow(stretch, n)
        self._set_committed(self.rows + n)
        if n <= self.most_rows:
            self._newest = stretch

    def forget(self) -> None:
        """Forget the undecided rows."""
        self.cache, self._updates = list(self._committed), []

    def checkpoint(self) -> None:
        """Remember the committed state, and forget all but the newest few that were remembered."""
        self._checkpoints.pop(self.rows, None)
        self._checkpoints[self.rows] = self._committed
        while len(self._checkpoints) > self.n_checkpoints:
            del self._checkpoints[min(self._checkpoints)]

    def can_trim(self, rows: int) -> bool:
        """Say whether `trim` may go back to `rows`."""
        within = self._newest.rows < rows < self.rows and bool(self._newest.updates)
        return rows == self.rows or rows in self.restore_points or within

    def trim(self, rows: int) -> None:
        """Forget everything after the first `rows` rows."""
        assert self.can_trim(rows), f"no state of {rows} rows is held"
        self.forget()
        if rows in self._checkpoints:
            self.cache = list(self._checkpoints[rows])
        elif rows < self.rows:
            self._follow(self._newest, rows - self._newest.rows)
        newest = self._newest
        self._set_committed(rows)
        if newest.rows <= rows:
            self._newest = newest
        self._checkpoints = {at: state for at, state in self._checkpoints.items() if at <= rows}

    def fork(self) -> Self:
        """Return a copy; both share the states held so far, and then each goes its own way."""
        twin = copy.copy(self)
        twin.cache, twin._updates = list(self.cache), list(self._updates)
        twin._checkpoints = dict(self._checkpoints)
        return twin

    def arrays(self) -> dict[str, mx.array]:
        """Return the committed state, by index."""
        return {str(i): array for i, array in enumerate(self._committed) if array is not None}

    def restore(self, arrays: dict[str, mx.array], rows: int) -> None:
        """Hold what `arrays` returned of a cache of the same kind with `rows` committed rows."""
        self.cache = [arrays.get(str(i)) for i in range(len(self.cache))]
        self._checkpoints = {}
        self._set_committed(rows)

    def pad(self, n: int) -> None:
        """Do nothing: n rows more make no difference to what a state of constant size costs."""

    def _set_committed(self, rows: int) -> None:
        """Take the present state for that of `rows` committed rows."""
        self.rows, self._updates = rows, []
        self._committed = list(self.cache)
        self._newest = Stretch(rows, self._committed, [])

    def _follow(self, stretch: Stretch, n: int) -> None:
        """Become the state after the first `n` rows of a stretch."""
        self.cache = list(stretch.state)
        for update in stretch.updates if n else []:
            update.again(n, self)
        self._updates = []
