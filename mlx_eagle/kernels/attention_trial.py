"""Whether the attention kernel is right on this machine, and at which contexts it is faster.

As for products (`trial.py`): right first, against attention in float32; then faster than what
mlx-lm calls, in chains that wait for one another over several layers' keys and values.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.models.base import quantized_scaled_dot_product_attention

from mlx_eagle.kernels.attention import (
    Attention,
    Mask,
    attention,
    prepared,
    quantized_attention,
    refusal,
)
from mlx_eagle.kernels.attention_geometry import Shape
from mlx_eagle.kernels.shapes import DTYPES
from mlx_eagle.kernels.trial import FASTER, NOT_FASTER, ROWS, in_turns

CONTEXTS = (128, 512, 4096)  # cached tokens; the kernel cuts the longer ones into splits
LAYERS = 4  # whose keys and values take turns
STEPS = 8  # of a chain
CHAINS = 5  # timed of each kind; their median counts
WORST = 2.0  # units in the last place of the largest output

Rows = Any  # keys or values: an array [1, Hk, T, D], or three that `mx.quantize` gave


class Heads(NamedTuple):
    """Attention of a model's layers.

    Attributes:
        n_heads: of queries.
        n_kv_heads: of keys and values.
        head_dim: numbers of each.
        dtype: "float16" or "bfloat16".
        scale: of scores.
        bits: of a number of keys and values.
        group_size: numbers that share a scale; 0 if they are not quantized.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    dtype: str
    scale: float
    bits: int = 16
    group_size: int = 0

    def __str__(self) -> str:
        """Return it as tables show it."""
        kind = f"{self.bits} bits by {self.group_size}" if self.group_size else self.dtype
        return f"attention {self.n_heads}/{self.n_kv_heads} heads of {self.head_dim}, {kind}"

    def refusal(self, n_rows: int) -> str | None:
        """Say why the kernel does not serve so many rows; None if it does."""
        if self.dtype not in DTYPES:
            return f"queries in {self.dtype}"
        return refusal(
            (1, self.n_heads, n_rows, self.head_dim),
            self.n_kv_heads,
            DTYPES[self.dtype],
            group_size=self.group_size,
            bits=self.bits,
        )

    def own(self, queries: mx.array, keys: Rows, values: Rows, mask: Mask) -> mx.array:
        """Return what the kernel gives for queries [1, H, N, D]."""
        if not self.group_size:
            return attention(queries, keys, values, scale=self.scale, mask=mask)
        packing = {"group_size": self.group_size, "bits": self.bits}
        return quantized_attention(queries, keys, values, scale=self.scale, mask=mask, **packing)

    def prepared(self, n_rows: int, mask: str) -> Attention:
        """Return the kernel for a number of rows and a kind of mask: "array" or "causal"."""
        numbers = (self.n_heads, self.n_kv_heads, n_rows, self.head_dim, DTYPES[self.dtype])
        return prepared(Shape(*numbers, mask, self.scale, self.bits, self.group_size))

    def stock(self, queries: mx.array, keys: Rows, values: Rows, mask: Mask) -> mx.array:
        """Return what mlx-lm calls."""
        if not self.group_size:
            return mx.fast.scaled_dot_product_attention(
                queries, keys, values, scale=self.scale, mask=mask
            )
        packing = {"group_size": self.group_size, "bits": self.bits}
        queries = queries + 0  # it scales its argument in place
        stock: Any = quantized_scaled_dot_product_attention  # its mask may be "causal" too
        found: mx.array = stock(queries, keys, values, scale=self.scale, mask=mask, **packing)
        return found


class AttentionVerdict(NamedTuple):
    """What was found for one number of rows.

    Attributes:
        rows: how many.
        least: cached tokens from which the kernel is used; None for never.
        ratios: its time over that of MLX, by context; empty where none was timed.
        reason: why it is not used; "" where it is.
    """

    rows: int
    least: int | None
    ratios: tuple[float, ...] = ()
    reason: str = ""


def try_attention(heads: Heads, *, is_timed: bool = True) -> Iterator[AttentionVerdict]:
    """Try the kernel for all numbers of rows; see `trial.try_shape`."""
    layers: dict[int, list[tuple[Rows, Rows]]] = {}
    for n_rows in ROWS:
        if why := heads.refusal(n_rows):
            yield AttentionVerdict(n_rows, None, (), f"not served: {why}")
            continue
        for context in CONTEXTS if not layers else ():
            layers[context] = [_layer(heads, context, seed) for seed in range(LAYERS)]
        try:
            yield _judge(heads, n_rows, layers, is_timed=is_timed)
        except (RuntimeError, ValueError) as error:  # MLX's, for what a GPU refuses or cannot
            why = f"refused: {' '.join(str(error).split())[:200]}"
            yield AttentionVerdict(n_rows, None, (), why)


def _judge(
    heads: Heads, n_rows: int, layers: dict[int, list[tuple[Rows, Rows]]], *, is_timed: bool
) -> AttentionVerdict:
    """Try one number of rows."""
    ratios = []
    for context, kept in layers.items():
        queries, mask = _queries(heads, n_rows), _mask(n_rows, context)
        for layer, seen in ((kept[0], mask), (kept[-1], "causal")):
            if wrong := _fault(heads, queries, layer, seen):
                return AttentionVerdict(n_rows, None, (), f"wrong: {wrong}")
        if is_timed:
            own = partial(_seconds, heads.own, kept, queries, mask)
            ratios.append(in_turns(own, partial(_seconds, heads.stock, kept, queries, mask)))
    if not is_timed:
        return AttentionVerdict(n_rows, CONTEXTS[0])
    least = next((n for i, n in enumerate(CONTEXTS) if max(ratios[i:]) <= FASTER), None)
    return AttentionVerdict(n_rows, least, tuple(ratios), "" if least is not None else NOT_FASTER)


def _fault(heads: Heads, queries: mx.array, layer: tuple[Rows, Rows], mask: Mask) -> str | None:
    """Return what is wrong with what the kernel computes; None if nothing is."""
    keys, values = (_in_float32(heads, rows) for rows in layer)
    wide = heads._replace(group_size=0)
    exact = wide.stock(queries.astype(mx.float32), keys, values, mask)
    found, again = (heads.own(queries, *layer, mask) for _ in range(2))
    unit = 2.0**-10 if heads.dtype == "float16" else 2.0**-7
    largest, scale = float(mx.abs(found - exact).max()), float(mx.abs(exact).max())
    if not largest <= WORST * unit * scale:
        return f"an output is off by {largest:.2g} of {scale:.2g}"
    return None if mx.array_equal(found, again).item() else "two runs differ"


def _seconds(
    step: Callable[..., mx.array],
    layers: Sequence[tuple[Rows, Rows]],
    queries: mx.array,
    mask: mx.array,
) -> float:
    """Return the median seconds of one attention, each waiting for the one before."""
    samples = []
    for _ in range(CHAINS + 1):
        start = time.perf_counter()
        x = queries
        for i in range(STEPS):
            y = step(x, *layers[i % len(layers)], mask)
            x = queries + y[:, :1, :1, :1] * 0  # one element is enough to wait for
        mx.eval(x)
        samples.append((time.perf_counter() - start) / STEPS)
    return median(samples[1:])


def _layer(heads: Heads, context: int, seed: int) -> tuple[Rows, Rows]:
    """Return random keys and values of one layer, as a cache holds them."""
    shape = (1, heads.n_kv_heads, context, heads.head_dim)
    rows = [
        mx.random.normal(shape, key=key).astype(DTYPES[heads.dtype])
        for key in mx.random.split(mx.random.key(seed))
    ]
    if heads.group_size:
        packed = [mx.quantize(x, heads.group_size, heads.bits) for x in rows]
        mx.eval(packed)
        return packed[0], packed[1]
    mx.eval(rows)
    return rows[0], rows[1]


def _queries(heads: Heads, n_rows: int) -> mx.array:
    shape = (1, heads.n_heads, n_rows, heads.head_dim)
    return mx.random.normal(shape, key=mx.random.key(n_rows)).astype(DTYPES[heads.dtype])


def _mask(n_rows: int, context: int) -> mx.array:
    """Return the mask [N, T] of a root and its children: no child sees another."""
    tree = mx.eye(n_rows, dtype=mx.bool_) | (mx.arange(n_rows) == 0)[None]
    return mx.concatenate([mx.ones((n_rows, context - n_rows), dtype=mx.bool_), tree], axis=1)


def _in_float32(heads: Heads, rows: Rows) -> mx.array:
    """Return keys or values [1, Hk, T, D] in float32."""
    if not heads.group_size:
        return mx.array(rows, dtype=mx.float32)
    packed, scales, biases = rows
    wide = scales.astype(mx.float32), biases.astype(mx.float32)
    return mx.dequantize(packed, *wide, group_size=heads.group_size, bits=heads.bits)
