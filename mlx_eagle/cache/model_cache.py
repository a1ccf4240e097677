"""The caches of all layers of a target or head, kept in step: opened and committed together."""

from collections.abc import Sequence

import mlx.core as mx

from mlx_eagle.cache.attention_sinks import SinkKVCache
from mlx_eagle.cache.kv import KVCache, OpenRows
from mlx_eagle.cache.recurrent import RecurrentCache
from mlx_eagle.cache.stock import StockCache
from mlx_eagle.cache.window import WindowKVCache
from mlx_eagle.tree import DraftTree

OwnCache = KVCache | RecurrentCache


class LayerList:
    """Several caches of one layer, which model code tells apart by their index."""

    def __init__(self, *parts: OwnCache) -> None:
        self.parts = parts

    def __getitem__(self, index: int) -> OwnCache:
        return self.parts[index]

    def fork(self) -> "LayerList":
        """Return a copy that goes its own way."""
        return LayerList(*(part.fork() for part in self.parts))


class TreeCache:
    """The caches of all layers of a target or head, kept in step.

    Attributes:
        layers: as the model code sees them.
        parts: all caches in them.
    """

    def __init__(self, layers: Sequence[OwnCache | LayerList]) -> None:
        self.layers = list(layers)
        self.parts = [
            part
            for layer in layers
            for part in (layer.parts if isinstance(layer, LayerList) else (layer,))
        ]

    @property
    def chains_only(self) -> bool:
        """Whether branches would go wrong.

        They do where a layer keeps one state for all rows, and where it looks rows up by the place
        at which they lie, for which it has a cache besides that of keys and values.
        """
        several = any(isinstance(layer, LayerList) for layer in self.layers)
        return several or any(part.chains_only for part in self.parts)

    @property
    def window(self) -> int | None:
        """Positions that the layer with the shortest window sees; None where all see all."""
        kinds = WindowKVCache, SinkKVCache
        return min((part.window for part in self.parts if isinstance(part, kinds)), default=None)

    @property
    def rows(self) -> int:
        """Committed tokens."""
        return self.parts[0].rows

    @property
    def nbytes(self) -> int:
        """Bytes held by the buffers of all layers."""
        return sum(part.nbytes for part in self.parts)

    @property
    def buffers(self) -> list[mx.array]:
        """The arrays to evaluate when the cache must be up to date."""
        return [buffer for part in self.parts for buffer in part.buffers]

    def open(self, tree: DraftTree) -> None:
        """Prepare for one forward pass over `tree`; an undecided earlier tree is forgotten.

        A chain needs no mask of its own and no per-node positions: it is causal.
        """
        for part in self.parts:
            part.forget()
        if not tree.is_chain:
            positions = self.rows + tree.depths
            self.expect(OpenRows(positions, positions, tree.ancestors()))

    def expect(self, rows: OpenRows) -> None:
        """Say how the rows of the next forward pass branch."""
        for part in self.parts:
            assert isinstance(part, KVCache), "a recurrent layer verifies chains only"
            part.open_rows = rows

    def commit(self, path: Sequence[int]) -> None:
        """Keep the rows of an accepted path (ascending node indices, root first)."""
        for part in self.parts:
            part.commit(path)

    def checkpoint(self) -> None:
        """Remember the committed rows as a place to go back to, where that takes remembering."""
        for part in self.parts:
            part.checkpoint()

    def pad(self, n: int) -> None:
        """Append and commit n rows of zeros, to measure what a longer context costs."""
        for part in self.parts:
            part.pad(n)
        self.commit(range(n))

    def fork(self) -> "TreeCache":
        """Return a copy; both share the rows held so far, and neither sees what the other adds."""
        return TreeCache([layer.fork() for layer in self.layers])

    def arrays(self) -> dict[str, mx.array]:
        """Return what the layers hold of the committed rows, by layer and name."""
        return {
            f"{index}.{name}": array
            for index, part in enumerate(self.parts)
            for name, array in part.arrays().items()
        }

    def restore(self, arrays: dict[str, mx.array], rows: int) -> None:
        """Hold what `arrays` returned of a cache of the same layers with `rows` committed rows."""
        for index, part in enumerate(self.parts):
            start = f"{index}."
            own = {
                name.removeprefix(start): a for name, a in arrays.items() if name.startswith(start)
            }
            part.restore(own, rows)

    def longest_restorable_prefix(self, rows: int) -> int:
        """Return the most tokens, `rows` at most, that `trim` can go back to; 0 where none are."""
        restore_points = {rows, *(place for part in self.parts for place in part.restore_points)}
        return max((at for at in restore_points if at <= rows and self.can_trim(at)), default=0)

    def can_trim(self, rows: int) -> bool:
        """Say whether every layer can go back to `rows` tokens."""
        return all(part.can_trim(rows) for part in self.parts)

    def trim(self, rows: int) -> None:
        """Forget everything after the first `rows` tokens."""
        for part in self.parts:
            part.trim(rows)


AnyCache = TreeCache | StockCache
