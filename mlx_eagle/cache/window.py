"""The KV cache of a layer with a sliding window.

It keeps the window and some slack, not the whole history, so its size does not grow.
"""

from collections.abc import Sequence

import mlx.core as mx

from mlx_eagle.cache.kv import KVCache, _branch_mask, _sequence_mask


class WindowKVCache(KVCache):
    """Keys and values of a layer that attends to the last `window` positions only.

    The buffer holds positions from `first` on, in order. When it is full the last rows move to
    its front, so that a row is copied once per `slack` tokens, not once per token.
    """

    slack = 256  # rows written between two moves
    margin = 64  # rows kept beyond the window, so that a conversation can step back a little

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.first = 0

    @property
    def most_rows(self) -> int:
        """The most committed rows that it keeps."""
        return self.window + self.margin + self.slack

    @property
    def held(self) -> int:
        """Committed rows in the buffers."""
        return self.rows - self.first

    @property
    def lowest(self) -> int:
        """The oldest position that the next row can see."""
        return max(0, self.rows - self.window + 1)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append L undecided rows and return them after the rows that the window still shows."""
        n = keys.shape[2]
        seen = slice(self.lowest - self.first, self.rows - self.first)
        if n > self.slack and self.open_rows is None and not self.pending:
            return self._append_long(keys, values, seen)
        if self.rows + self.pending + n - self.first > self.window + self.margin + self.slack:
            self._move_to_front()
        start = self.rows + self.pending - self.first
        held_keys, held_values = self._put(start, keys, values)
        self._take_in([keys, values])
        visible = slice(self.lowest - self.first, start + n)
        return held_keys[:, :, visible], held_values[:, :, visible]

    def make_mask(
        self, n: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """Return the mask for n new rows over the rows that `update_and_fetch` will return."""
        window = window_size or self.window
        if self.open_rows is not None:
            return _branch_mask(self.open_rows, self.lowest, self.rows, window)
        offset = self.rows + self.pending - self.lowest
        if n == 1 and window >= self.window and not self.pending:
            return None
        limit = window if offset + n > window else None
        return _sequence_mask(n, offset, return_array, limit)

    def can_trim(self, rows: int) -> bool:
        """Say whether the rows that position `rows` would see are still held."""
        return rows <= self.rows and self.first <= max(0, rows - self.window + 1)

    def commit(self, path: Sequence[int]) -> None:
        """Keep the undecided rows `path`, in order, and forget the others."""
        is_whole = len(path) == self.pending or self.first <= self.lowest
        assert is_whole, "a part of a chunk that is longer than the slack"
        super().commit(path)

    def restore(self, arrays: dict[str, mx.array], rows: int) -> None:
        """Hold what `arrays` returned: the newest of `rows` committed rows."""
        super().restore(arrays, rows)
        self.first = rows - (0 if self.keys is None else self.keys.shape[2])

    def _least_rows(self, rows: int) -> int:
        return min(rows, self.window - 1)

    def _append_long(
        self, keys: mx.array, values: mx.array, seen: slice
    ) -> tuple[mx.array, mx.array]:
        """Append a prefill chunk that is longer than the slack; only its end is stored."""
        if self.keys is not None and self.values is not None:
            keys = mx.concatenate([self.keys[..., seen, :], keys], axis=2)
            values = mx.concatenate([self.values[..., seen, :], values], axis=2)
        self.pending = keys.shape[2] - (seen.stop - seen.start)
        kept = min(keys.shape[2], self.window + self.margin)
        self.first = self.rows + self.pending - kept
        self.keys = self.values = None
        self._put(0, keys[..., -kept:, :], values[..., -kept:, :])
        return keys, values

    def _move_to_front(self) -> None:
        """Drop the rows that no later row can see, but for the margin."""
        assert self.keys is not None and self.values is not None, "a full cache has buffers"
        first = max(self.first, self.rows - self.window - self.margin + 1)
        held = slice(first - self.first, self.rows + self.pending - self.first)
        self._put(0, self.keys[..., held, :], self.values[..., held, :])
        self.first = first
