"""KV cache layers whose cost does not grow with the conversation: attention sinks and a window.

What is kept is the first few rows, on which attention puts the weight that it has no use for, and
the newest rows; without the first ones models break down (StreamingLLM, arXiv 2309.17453). A
buffer holds the sinks, then the rows from position `first` on, in order; when it is full, rows are
dropped from between the two, so that a row is copied once per `slack` tokens, not once per token.

Targets and heads need different things of it. What a target's row sees must depend on its position
alone, or speculation would change the text: `SinkKVCache` hides older rows from every query, and
positions are those of the text, as in mlx-lm's `RotatingKVCache(keep=...)`. A head only proposes,
but has never seen distances beyond the length of its training: `MovingSinkKVCache` moves the sinks
along with the window, as StreamingLLM does.

Worked example, 2 sinks and 3 rows, positions of the rows that are held, `first` = 5 of 8 rows:

    SinkKVCache        [0 1 | 5 6 7]    as they stand in the text
    MovingSinkKVCache  [3 4 | 5 6 7]    the keys of rows 0 and 1, rotated to positions 3 and 4
"""

from collections.abc import Callable, Sequence

import mlx.core as mx

from mlx_eagle.cache.kv import KVCache
from mlx_eagle.errors import EagleError

SINKS = 4  # as StreamingLLM and mlx-lm have them; fewer hurt, more do not help (its table 2)
LEAST = 16  # rows; below it a cache is hardly more than its sinks


class SinkKVCache(KVCache):
    """Keys and values of a target's layer: every query sees the sinks and the newest `window` rows.

    So does mlx-lm's `RotatingKVCache(sinks + window, keep=sinks)` one token at a time. Of a prompt
    that it is given at once and cannot hold, it hides the sinks from most tokens; here they see
    what they would see one at a time.

    Args:
        sinks: rows at the start that are never forgotten.
        window: positions that a query sees besides, its own included.
    """

    slack = 256  # rows written between two moves
    margin = 64  # rows kept beyond the window, so that a conversation can step back a little

    def __init__(self, sinks: int, window: int) -> None:
        super().__init__()
        self.sinks = sinks
        self.window = window
        self.dropped = 0  # rows forgotten between the sinks and `first`

    @property
    def most_rows(self) -> int:
        """The most committed rows that it keeps."""
        return self.sinks + self.window + self.margin + self.slack

    @property
    def held(self) -> int:
        """Committed rows in the buffers."""
        return self.rows - self.dropped

    @property
    def first(self) -> int:
        """The position of the oldest row that is held after the sinks."""
        return self.sinks + self.dropped

    def make_mask(
        self, n: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """Return the mask for n new rows over the rows that are held; [n, T] where an array."""
        end = self.rows + self.pending + n
        if not self._hides(end):
            return super().make_mask(n, return_array, window_size)
        if self.open_rows is None:
            positions = mx.arange(end - n, end)
            places = self._places(end - self.dropped)
            return self._shows(positions, places, window_size) & (places <= positions[:, None])
        positions, columns, seen = self.open_rows
        prefix = self._shows(positions, self._places(self.held), window_size)
        own = seen & self._shows(positions, columns, window_size)
        return mx.concatenate([prefix, own], axis=1)  # [N, held + M]

    def commit(self, path: Sequence[int]) -> None:
        """Keep the undecided rows `path`, in order, and forget the others."""
        super().commit(path)
        n = (self.held - self.sinks - self.window - self.margin) // self.slack * self.slack
        if n > 0:
            self._drop(n)

    def can_trim(self, rows: int) -> bool:
        """Say whether the rows that position `rows` would see are still held."""
        return rows <= self.rows and (not self.dropped or self.first <= rows - self.window + 1)

    def restore(self, arrays: dict[str, mx.array], rows: int) -> None:
        """Hold what `arrays` returned: the sinks and the newest of `rows` committed rows.

        Raises:
            ValueError: if it is not what these rows need.
        """
        super().restore(arrays, rows)
        self.dropped = rows - (0 if self.keys is None else self.keys.shape[2])

    def _least_rows(self, rows: int) -> int:
        return min(rows, self.sinks + self.window - 1)

    def _hides(self, end: int) -> bool:
        """Say whether a query before position `end` may not see all rows that are held."""
        return self.dropped > 0 or end > self.sinks + self.window

    def _places(self, n: int) -> mx.array:
        """Return the positions [n] of the first n buffer rows."""
        rows = mx.arange(n)
        return mx.where(rows < self.sinks, rows, rows + self.dropped)

    def _shows(self, positions: mx.array, places: mx.array, window_size: int | None) -> mx.array:
        """Return bool [N, T]: which rows at `places` [T] are near enough to `positions` [N]."""
        distances = positions[:, None] - places
        shown = (distances < self.window) | (places < self.sinks)
        return shown if window_size is None else shown & (distances < window_size)

    def _drop(self, n: int) -> None:
        """Forget the n oldest rows after the sinks."""
        assert self.keys is not None and self.values is not None, "a full cache has buffers"
        rest = slice(self.sinks + n, self.held)
        keys, values = self.keys[..., rest, :], self.values[..., rest, :]
        sinks = self.values[..., : self.sinks, :]
        self.dropped += n
        keys = mx.concatenate([self._sink_keys(), keys], axis=2)
        self.keys = self.values = None  # a long prefill has made them longer than they need be
        self._put(0, keys, mx.concatenate([sinks, values], axis=2))

    def _sink_keys(self) -> mx.array:
        """Return the keys of the sinks [1, heads, sinks, head_dim], where they stand now."""
        assert self.keys is not None, "a full cache has buffers"
        return self.keys[..., : self.sinks, :]


class MovingSinkKVCache(SinkKVCache):
    """Keys and values of a head's layer: it attends to `reach` committed rows, sinks included.

    All rows that are held are seen, from 7/8 of `reach` on, so no mask is needed for that. Any
    position can be gone back to; what is no longer held is missing then, but for the sinks.

    Args:
        rope: what has rotated the keys; its rotations add up (plain, linear, llama3 and YaRN do).
        reach: most committed rows that are held.
        sinks: how many of them are the first of the text.

    Raises:
        EagleError: if `reach` is below `LEAST`.
    """

    margin = 0

    def __init__(self, rope: Callable[..., mx.array], reach: int, sinks: int = SINKS) -> None:
        if reach < LEAST:
            raise EagleError(
                f"the head's window is {reach} rows; it must be {LEAST} or more (0: no window)"
            )
        self.slack = reach // 8
        super().__init__(sinks, reach - sinks - self.slack)
        self.rope = rope
        self._originals: mx.array | None = None  # keys of the sinks, where they stood in the text

    @property
    def buffers(self) -> list[mx.array]:
        """The arrays to evaluate when the cache must be up to date."""
        return super().buffers + ([] if self._originals is None else [self._originals])

    def can_trim(self, rows: int) -> bool:
        """Say whether `trim` may go back to `rows`."""
        return rows <= self.rows

    def trim(self, rows: int) -> None:
        """Forget everything after the first `rows` rows; the sinks stay before what comes next."""
        super().trim(rows)
        if self.dropped and rows < self.first:
            assert self.keys is not None, "rows were dropped from buffers"
            self.dropped = max(0, rows - self.sinks)
            self.keys[..., : self.sinks, :] = self._sink_keys()

    def arrays(self) -> dict[str, mx.array]:
        """Return the committed rows that are held, and the sinks as they stood in the text."""
        originals = {} if self._originals is None else {"sinks": self._originals}
        return super().arrays() | originals

    def restore(self, arrays: dict[str, mx.array], rows: int) -> None:
        """Hold what `arrays` returned: the sinks and the newest of `rows` committed rows.

        Raises:
            ValueError: if it is not what these rows need.
        """
        super().restore(arrays, rows)
        self._originals = arrays.get("sinks")
        if self.dropped and (self._originals is None or self._originals.shape[2] != self.sinks):
            raise ValueError(f"a layer lacks the keys of its first {self.sinks} rows")

    def _least_rows(self, rows: int) -> int:
        return min(rows, self.sinks)

    def _hides(self, end: int) -> bool:
        """Nothing that is held is hidden."""
        return False

    def _drop(self, n: int) -> None:
        """Forget the n oldest rows after the sinks, and move these up."""
        if not self.dropped:
            assert self.keys is not None, "a full cache has buffers"
            self._originals = mx.contiguous(self.keys[..., : self.sinks, :])
        super()._drop(n)

    def _sink_keys(self) -> mx.array:
        """Return the keys of the sinks, rotated on from where they stood to where they stand.

        Rope may scale what it rotates (YaRN does), which has been done once already.
        """
        assert self._originals is not None, "rows were dropped"
        if not self.sinks:
            return self._originals
        rotated = self.rope(self._originals, offset=mx.full((self.sinks,), self.dropped))
        return rotated / self.rope(mx.ones_like(self._originals[:, :, :1]), offset=0)
