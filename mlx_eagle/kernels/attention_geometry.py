"""How attention of a few rows is laid over a GPU: threadgroups and splits of the context."""

import math
from typing import NamedTuple

import mlx.core as mx

LANES = 32
# SIMD-groups of a threadgroup by head_dim. Each owns 2 or 4 tiles of 8 columns of the output.
SIMDGROUPS = {64: 4, 80: 5, 96: 6, 128: 8, 192: 6, 256: 8}
QUERY_BYTES = 16384  # of a threadgroup's 32768 bytes; scores and factors need the rest
MOST_QUERIES = 64
# Four for each of 80 cores, and as many again: the last ones to end leave few cores idle.
MOST_THREADGROUPS = 512


class Shape(NamedTuple):
    """What a kernel is made for; everything but the length of the context.

    Attributes:
        n_heads: query heads.
        n_kv_heads: KV heads.
        rows: of every head's queries.
        head_dim: numbers of a query, key and value.
        dtype: of queries and output, and of keys and values unless they are quantized.
        mask: "none", "causal" or "array".
        scale: of scores.
        bits: of a number of keys and values.
        group_size: numbers that share a scale; 0 if they are not quantized.
    """

    n_heads: int
    n_kv_heads: int
    rows: int
    head_dim: int
    dtype: mx.Dtype
    mask: str
    scale: float
    bits: int = 16
    group_size: int = 0

    @property
    def heads_per_kv_head(self) -> int:
        """Query heads that share a KV head."""
        return self.n_heads // self.n_kv_heads

    @property
    def queries(self) -> int:
        """Query vectors that share a KV head."""
        return self.rows * self.heads_per_kv_head


class Geometry(NamedTuple):
    """How the queries of a KV head are laid over threadgroups, and how a context is split.

    Attributes:
        tiles: of 8 queries in a threadgroup.
        blocks: threadgroups that share the queries of a KV head; each reads all keys and values.
        simdgroups: of a threadgroup.
        split_keys: fewest keys of a split.
        most_splits: beyond which a GPU has threadgroups enough.
    """

    tiles: int
    blocks: int
    simdgroups: int
    split_keys: int
    most_splits: int

    @property
    def threads(self) -> int:
        """Threads of a threadgroup."""
        return LANES * self.simdgroups

    def splits(self, length: int) -> int:
        """Return the number of splits for a context of `length` keys."""
        return max(1, min(length // self.split_keys, self.most_splits))


def geometry(shape: Shape) -> Geometry:
    """Return how a shape is laid over threadgroups.

    A threadgroup holds at most 64 queries, and at most 16 KB of them. More are shared out evenly,
    since each threadgroup reads all keys and values. 64 queries of 128 numbers leave no room for
    the scores of 64 keys, so they get half as many SIMD-groups, which own twice as many columns.

    A split writes 4 bytes per query and column that are read once more; a key with its value is
    4 bytes per column. With at least 4 keys per query, that is at most half of the bytes of keys
    and values (1.8 times them if they have 4 bits), and little of them in a long context, whose
    number of splits is limited. More keys per split would leave cores idle in a short one.
    """
    most = min(MOST_QUERIES, QUERY_BYTES // (2 * shape.head_dim) // 8 * 8)
    blocks = math.ceil(shape.queries / most)
    tiles = math.ceil(math.ceil(shape.queries / blocks) / 8)
    simdgroups = 4 if shape.head_dim == 128 and tiles > 4 else SIMDGROUPS[shape.head_dim]
    split_keys = max(2 * 8 * simdgroups, 4 * shape.queries)
    most_splits = max(1, MOST_THREADGROUPS // (shape.n_kv_heads * blocks))
    return Geometry(tiles, blocks, simdgroups, split_keys, most_splits)
