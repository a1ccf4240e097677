"""The KV cache of one layer: committed rows, then the rows of one undecided tree.

Buffers are preallocated, grown in steps and written in place. Verifying a tree writes its rows
after the committed ones; `commit` moves the rows of the accepted path together and forgets the
rest. Other kinds of layers are in `window.py`, `attention_sinks.py`, `quantized.py` and
`recurrent.py`; all layers of a model together are in `model_cache.py`.

The caches stand in for mlx-lm's: model code reads `offset`, `update_and_fetch` and `make_mask`
and nothing else. While rows that branch are expected, `offset` is the vector of their positions.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import mlx.core as mx
from mlx_lm.models.base import scaled_dot_product_attention
from mlx_lm.models.cache import create_attention_mask


class OpenRows(NamedTuple):
    """How N new rows that branch see the undecided rows, M in all, their own included.

    Attributes:
        positions: [N] int32, where the new rows stand.
        columns: [M] int32, where the undecided rows stand.
        seen: [N, M] bool, which of them each new row may attend to.
    """

    positions: mx.array
    columns: mx.array
    seen: mx.array


class KVCache:
    """Keys and values of one layer, [1, heads, rows, head_dim] each; all history is kept."""

    step = 256  # rows by which the buffers grow
    chains_only = False
    restore_points: Sequence[int] = ()  # that must be remembered: any row will do here

    def __init__(self) -> None:
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.rows = 0  # committed
        self.pending = 0  # written after the committed rows, undecided
        self.open_rows: OpenRows | None = None
        # The undecided rows as they came, if they came at once: what a commit with gaps copies. To
        # read them from the buffers would keep these in use, and MLX would copy all of each.
        self._fresh: list[mx.array] | None = None

    @property
    def most_rows(self) -> int | None:
        """The most committed rows that it keeps; None for all."""
        return None

    @property
    def held(self) -> int:
        """Committed rows in the buffers; the undecided ones follow them."""
        return self.rows

    @property
    def offset(self) -> int | mx.array:
        """Where rope places the next rows: a position, or one per row where they branch."""
        return self.rows + self.pending if self.open_rows is None else self.open_rows.positions

    @property
    def nbytes(self) -> int:
        """Bytes held by the buffers."""
        return sum(buffer.nbytes for buffer in self.buffers)

    @property
    def buffers(self) -> list[mx.array]:
        """The arrays to evaluate when the cache must be up to date."""
        return [] if self.keys is None or self.values is None else [self.keys, self.values]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append L undecided rows and return the rows that they may attend to.

        Args:
            keys: [1, heads, L, head_dim].
            values: [1, heads, L, head_dim].
        """
        start = self.held + self.pending
        end = start + keys.shape[2]
        held_keys, held_values = self._put(start, keys, values)
        self._take_in([keys, values])
        return held_keys[:, :, :end], held_values[:, :, :end]

    def attend(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: float,
        window: int | None = None,
    ) -> mx.array:
        """Append L undecided rows and return what attention gives their queries.

        Args:
            queries: [1, heads, L, head_dim], rotated.
            keys: [1, kv heads, L, head_dim], rotated.
            values: [1, kv heads, L, head_dim].
            scale: factor of the scores.
            window: positions that a query sees, its own included; None for all.
        """
        mask: Any = self.make_mask(queries.shape[2], window_size=window)
        keys, values = self.update_and_fetch(keys, values)
        seen: mx.array = scaled_dot_product_attention(queries, keys, values, self, scale, mask)
        return seen

    def make_mask(
        self, n: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """Return the mask for n new rows, as mlx-lm's models ask for it; [n, T] where an array."""
        if self.open_rows is None:
            return _sequence_mask(n, self.held + self.pending, return_array, window_size)
        return _branch_mask(self.open_rows, self.rows - self.held, self.rows, window_size)

    def commit(self, path: Sequence[int]) -> None:
        """Keep the undecided rows `path`, in order, and forget the others.

        Args:
            path: ascending indices into the undecided rows.
        """
        stay = next((i for i, row in enumerate(path) if row != i), len(path))
        if stay < len(path):
            self._close_gap(mx.array(list(path[stay:])), stay)
        self.rows += len(path)
        self.forget()

    def forget(self) -> None:
        """Forget the undecided rows."""
        self.pending, self.open_rows, self._fresh = 0, None, None

    def checkpoint(self) -> None:
        """Remember nothing: the rows themselves say what was before."""

    def can_trim(self, rows: int) -> bool:
        """Say whether `trim` may go back to `rows`."""
        return rows <= self.rows

    def trim(self, rows: int) -> None:
        """Forget everything after the first `rows` rows."""
        assert self.can_trim(rows), f"cannot trim {self.rows} rows to {rows}"
        self.rows = rows
        self.forget()

    def fork(self) -> Self:
        """Return a copy; both share the rows held so far, and neither sees what the other adds."""
        twin = copy.copy(self)
        # Buffers are written in place through their handle, so the copy needs handles of its own.
        twin.keys = None if self.keys is None else self.keys[...]
        twin.values = None if self.values is None else self.values[...]
        return twin

    def arrays(self) -> dict[str, mx.array]:
        """Return the committed rows that are held, and what else `restore` needs, by name."""
        if self.keys is None or self.values is None:
            return {}
        return {"keys": self.keys[:, :, : self.held], "values": self.values[:, :, : self.held]}

    def restore(self, arrays: dict[str, mx.array], rows: int) -> None:
        """Hold what `arrays` returned of a cache of the same kind with `rows` committed rows.

        Raises:
            ValueError: if it is not what these rows need.
        """
        self.keys, self.values = arrays.get("keys"), arrays.get("values")
        held = [buffer.shape[2] for buffer in self.buffers] or [0, 0]
        if held[0] != held[1] or not self._least_rows(rows) <= held[0] <= rows:
            raise ValueError(f"a layer has {held[0]} keys and {held[1]} values for {rows} rows")
        self.rows = rows
        self.forget()

    def pad(self, n: int) -> None:
        """Append n undecided rows of zeros, to measure what a longer context costs."""
        assert self.keys is not None and self.values is not None, "a row says how wide rows are"
        shapes = [(*b.shape[:2], n, b.shape[3]) for b in (self.keys, self.values)]
        self.update_and_fetch(*(mx.zeros(shape, self.keys.dtype) for shape in shapes))

    def _least_rows(self, rows: int) -> int:
        """Return how many of the newest of `rows` rows must be held to go on."""
        return rows

    def _put(self, start: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write rows in place from buffer row `start`, growing the buffers if they are full."""
        end = start + keys.shape[2]
        self.keys = reserve(self.keys, end, keys, self.step)
        self.values = reserve(self.values, end, values, self.step)
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        return self.keys, self.values

    def _take_in(self, parts: list[mx.array]) -> None:
        """Note rows that were written to the buffers; rows are axis 2."""
        self._fresh = None if self.pending else parts
        self.pending += parts[0].shape[2]

    def _close_gap(self, path: mx.array, stay: int) -> None:
        """Write the undecided rows `path` [n] behind the first `stay` of them."""
        start = self.held + stay
        if self._fresh is None:
            self._write(start, [part[..., self.held + path, :] for part in self._stored])
        else:
            self._write(start, [part[..., path, :] for part in self._fresh])

    @property
    def _stored(self) -> list[mx.array]:
        """The buffers that hold rows; rows are axis 2."""
        assert self.keys is not None and self.values is not None, "commit before any row"
        return [self.keys, self.values]

    def _write(self, start: int, parts: Sequence[mx.array]) -> None:
        """Write rows, in the order of `_stored`, from buffer row `start`."""
        self._put(start, *parts)


def reserve(buffer: mx.array | None, rows: int, like: mx.array, step: int) -> mx.array:
    """Return a buffer of at least `rows` rows that starts with the rows of `buffer`."""
    held = 0 if buffer is None else buffer.shape[2]
    if buffer is not None and rows <= held:
        return buffer
    batch, heads, _, head_dim = like.shape
    room = -(-rows // step) * step - held
    grown = mx.zeros((batch, heads, room, head_dim), like.dtype)
    return grown if buffer is None else mx.concatenate([buffer, grown], axis=2)


def _sequence_mask(
    n: int, offset: int, return_array: bool, window: int | None
) -> mx.array | str | None:
    """Return mlx-lm's own mask for n rows in sequence after `offset` visible ones."""
    mask: mx.array | str | None = create_attention_mask(n, offset, return_array, window)
    return mask


def _branch_mask(open_rows: OpenRows, first: int, rows: int, window: int | None) -> mx.array:
    """Return the bool mask [N, rows - first + M]: cached positions, then the undecided rows."""
    positions, columns, own = open_rows
    prefix = mx.ones((positions.shape[0], rows - first), dtype=mx.bool_)
    if window is not None:
        prefix = positions[:, None] - mx.arange(first, rows) < window
        own = own & (positions[:, None] - columns < window)
    return mx.concatenate([prefix, own], axis=1)
