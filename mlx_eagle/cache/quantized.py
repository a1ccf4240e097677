"""A KV cache layer that holds its rows quantized, in half (8 bits) or a quarter (4) of 16 bits.

Every row is quantized as it is written and read back quantized, the rows of undecided trees too: a
node then looks to its descendants as it will look once it is committed, so the text is that of
plain decoding with the same cache. It equals mlx-lm's `QuantizedKVCache` from the first row on;
mlx-lm's own loop fills the first chunk of a prompt in full precision and quantizes it afterwards.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import mlx.core as mx

from mlx_eagle.cache.kv import KVCache, reserve
from mlx_eagle.errors import UnsupportedTargetError


class Quantized(NamedTuple):
    """Rows as `mx.quantize` gives them: numbers packed into words, and how to unpack a group.

    Attributes:
        weights: [1, heads, L, head_dim * bits / 32] uint32.
        scales: [1, heads, L, head_dim / group_size].
        biases: likewise.
    """

    weights: mx.array
    scales: mx.array
    biases: mx.array


PARTS = tuple(f"{of}.{part}" for of in ("keys", "values") for part in Quantized._fields)


class QuantizedKVCache(KVCache):
    """Quantized keys and values of one layer; all history is kept.

    mlx-lm's attention reads `bits` and `group_size`, and takes keys and values as three arrays
    each. `keys` and `values` are not used.

    Args:
        bits: of every number.
        group_size: numbers of a row that share a scale.
    """

    def __init__(self, bits: int, group_size: int) -> None:
        super().__init__()
        self.bits = bits
        self.group_size = group_size
        self._parts: list[mx.array] = []  # as in PARTS; rows are axis 2

    @property
    def buffers(self) -> list[mx.array]:
        """The arrays to evaluate when the cache must be up to date."""
        return list(self._parts)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Append L undecided rows and return the rows that they may attend to.

        Args:
            keys: [1, heads, L, head_dim].
            values: [1, heads, L, head_dim].

        Returns:
            `Quantized` keys and values.
        """
        start = self.held + self.pending
        parts = [*self._quantize(keys), *self._quantize(values)]
        self._write(start, parts)
        self._take_in(parts)
        end = start + keys.shape[2]
        visible = [part[:, :, :end] for part in self._parts]
        return Quantized(*visible[:3]), Quantized(*visible[3:])

    def fork(self) -> Self:
        """Return a copy; both share the rows held so far, and neither sees what the other adds."""
        twin = super().fork()
        twin._parts = [part[...] for part in self._parts]
        return twin

    def arrays(self) -> dict[str, mx.array]:
        """Return the committed rows, in six parts."""
        names = PARTS if self._parts else ()
        return {n: p[:, :, : self.held] for n, p in zip(names, self._parts, strict=True)}

    def restore(self, arrays: dict[str, mx.array], rows: int) -> None:
        """Hold what `arrays` returned of a cache of the same kind with `rows` committed rows.

        Raises:
            ValueError: if it is not what these rows need.
        """
        parts = [arrays[name] for name in PARTS if name in arrays]
        held = {part.shape[2] for part in parts} or {0}
        if held != {rows} or len(parts) not in (0, len(PARTS)):
            raise ValueError(f"a layer has parts of {sorted(held)} rows for {rows} rows")
        self._parts, self.rows = parts, rows
        self.forget()

    def pad(self, n: int) -> None:
        """Append n undecided rows that mean nothing, to measure what a longer context costs."""
        blank = [mx.zeros((*part.shape[:2], n, part.shape[3]), part.dtype) for part in self._parts]
        self._write(self.held + self.pending, blank)
        self.pending += n

    @property
    def _stored(self) -> list[mx.array]:
        return self._parts

    def _quantize(self, rows: mx.array) -> Quantized:
        """Quantize rows [1, heads, L, head_dim].

        Raises:
            UnsupportedTargetError: if a row cannot be cut into groups.
        """
        if rows.shape[-1] % self.group_size:
            raise UnsupportedTargetError(
                f"this target's attention heads are {rows.shape[-1]} wide, which is no multiple of "
                f"the KV cache's group size of {self.group_size}; give another kv_group_size, or "
                "leave kv_bits out"
            )
        return Quantized(*mx.quantize(rows, self.group_size, self.bits))

    def _write(self, start: int, parts: Sequence[mx.array]) -> None:
        """Write rows in place from buffer row `start`, growing the buffers if they are full."""
        end = start + parts[0].shape[2]
        held: Sequence[mx.array | None] = self._parts or [None] * len(parts)
        self._parts = [
            reserve(old, end, new, self.step) for old, new in zip(held, parts, strict=True)
        ]
        for buffer, part in zip(self._parts, parts, strict=True):
            buffer[:, :, start:end] = part
