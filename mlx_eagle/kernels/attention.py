"""Attention of a few tree rows over a long context, as a Metal kernel.

MLX's kernel for few rows reads all keys and values once per query head and row, serves at most 32
rows times query heads per KV head, and beyond that MLX falls back to products with 16-bit scores.
Here one threadgroup holds the rows of all query heads that share a KV head, up to 64 query vectors
(40 and 32 where heads are 192 and 256 wide), so every key and value is read once for all of them;
scores, weights and sums are float32.

The keys are cut into splits, a threadgroup for each split of each KV head, because a KV head alone
would occupy one GPU core. A second kernel weighs the sums of the splits. In a threadgroup every
SIMD-group multiplies its own 8 keys of a block with all queries, and then adds the values of the
whole block to its own columns of the output: neither keys nor values are read by two SIMD-groups,
and a lane holds no more than the sums of a few columns. Products are 8x8 matrix instructions on
float32 fragments, as in MLX's own attention: quantized numbers are unpacked in registers.
"""

import functools
import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_eagle.kernels.attention_geometry import SIMDGROUPS, Geometry, Shape, geometry
from mlx_eagle.kernels.attention_source import HEADER
from mlx_eagle.kernels.attention_text import (
    TYPES,
    combine_source,
    input_names,
    short,
    split_source,
    whole_source,
)

Mask = mx.array | str | None
Parts = tuple[mx.array, mx.array, mx.array]
Kernel = Callable[..., list[mx.array]]
Attention = Callable[[mx.array, Any, Any, Any], mx.array]

ROWS = range(2, 17)
MOST_HEADS_PER_KV_HEAD = 16
GROUP_SIZES = (32, 64, 128)


def refusal(
    queries_shape: tuple[int, ...],
    n_kv_heads: int,
    dtype: mx.Dtype,
    *,
    group_size: int = 0,
    bits: int = 16,
) -> str | None:
    """Say what of a shape these kernels do not serve; None if they serve it.

    Args:
        queries_shape: (1, heads, rows, head_dim); keys and values are as wide.
        n_kv_heads: heads of keys and values.
        dtype: of the queries, and of keys and values or their scales.
        group_size: of quantized keys and values; 0 for others.
        bits: of quantized keys and values.
    """
    batch, n_heads, rows, head_dim = queries_shape
    if batch != 1:
        return f"{batch} sequences at once"
    if rows not in ROWS:
        return f"{rows} rows"
    if dtype not in TYPES:
        return f"queries of {dtype}"
    if head_dim not in SIMDGROUPS:
        return f"heads of {head_dim} numbers"
    if n_heads % n_kv_heads or n_heads // n_kv_heads > MOST_HEADS_PER_KV_HEAD:
        return f"{n_heads} query heads for {n_kv_heads} KV heads"
    if group_size and (bits not in (4, 8) or group_size not in GROUP_SIZES):
        return f"keys and values of {bits} bits in groups of {group_size}"
    if group_size and head_dim % group_size:
        return f"groups of {group_size} in heads of {head_dim} numbers"
    return None


def attends(
    queries_shape: tuple[int, ...],
    n_kv_heads: int,
    dtype: mx.Dtype,
    *,
    group_size: int = 0,
    bits: int = 16,
) -> bool:
    """Say whether these kernels serve a shape; arguments as of `refusal`."""
    return refusal(queries_shape, n_kv_heads, dtype, group_size=group_size, bits=bits) is None


def attention(
    queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: Mask
) -> mx.array:
    """Return what `mx.fast.scaled_dot_product_attention` returns, for a shape that is served.

    Nothing is copied: keys and values may be slices of larger buffers, as long as the numbers of a
    row are adjacent and rows start at multiples of 16 bytes.

    Args:
        queries: [1, H, N, D].
        keys: [1, Hk, T, D] of the queries' type; H is a multiple of Hk.
        values: likewise.
        scale: of scores.
        mask: [N, T] bool, True where a row sees a key, at least one in every row; "causal" if the
            last N keys belong to the rows; None if every row sees all.

    Returns:
        [1, H, N, D].
    """
    _, n_heads, rows, head_dim = queries.shape
    _, n_kv_heads, length, _ = keys.shape
    kind, masks = _masks(mask)
    shape = Shape(n_heads, n_kv_heads, rows, head_dim, queries.dtype, kind, scale)
    return kernels(shape).launch([queries, keys, values, *masks], length)


def quantized_attention(
    queries: mx.array,
    keys: Parts,
    values: Parts,
    *,
    scale: float,
    mask: Mask,
    group_size: int,
    bits: int,
) -> mx.array:
    """Return the attention over keys and values as `mx.quantize` packs them.

    Args:
        queries: [1, H, N, D].
        keys: packed [1, Hk, T, D * bits / 32] uint32, scales and biases [1, Hk, T, D / group_size].
        values: likewise.
        scale: of scores.
        mask: as of `attention`.
        group_size: numbers that share a scale and a bias.
        bits: of a number.

    Returns:
        [1, H, N, D].
    """
    _, n_heads, rows, head_dim = queries.shape
    _, n_kv_heads, length, _ = keys[0].shape
    kind, masks = _masks(mask)
    shape = Shape(n_heads, n_kv_heads, rows, head_dim, queries.dtype, kind, scale, bits, group_size)
    return kernels(shape).launch([queries, *keys, *values, *masks], length)


def prepared(shape: Shape) -> Attention:
    """Return the attention of one shape, which is cheap to call: queries, keys, values, mask.

    The mask is of the shape's kind: an array [N, T], or "causal".
    """
    launch, has_mask = kernels(shape).launch, shape.mask == "array"

    def whole(queries: mx.array, keys: Any, values: Any, mask: Any) -> mx.array:
        inputs = [queries, keys, values, mask] if has_mask else [queries, keys, values]
        return launch(inputs, keys.shape[2])

    def quantized(queries: mx.array, keys: Any, values: Any, mask: Any) -> mx.array:
        inputs = [queries, *keys, *values, mask] if has_mask else [queries, *keys, *values]
        return launch(inputs, keys[0].shape[2])

    return quantized if shape.group_size else whole


def _masks(mask: Mask) -> tuple[str, tuple[mx.array, ...]]:
    """Return which kind of mask a kernel is made for, and the input that it then has."""
    if mask is None:
        return "none", ()
    return ("causal", ()) if isinstance(mask, str) else ("array", (mask,))


class Kernels(NamedTuple):
    """The kernels of one shape, with what is the same in all their launches filled in.

    Attributes:
        geometry: how they are launched.
        line: KV heads, and query vectors and numbers of each.
        whole: attends to a context in one split.
        split: attends to each split: sums and totals.
        combine: weighs the sums of splits.
    """

    geometry: Geometry
    line: tuple[int, int, int]
    whole: Kernel
    split: Kernel
    combine: Kernel

    def launch(self, inputs: list[mx.array], length: int) -> mx.array:
        """Launch one kernel for a short context, two for a longer one; returns [1, H, N, D]."""
        splits = self.geometry.splits(length)
        n_kv_heads, queries, head_dim = self.line
        grid = (splits * self.geometry.threads, n_kv_heads, self.geometry.blocks)
        if splits == 1:
            return self.whole(inputs=inputs, grid=grid)[0]
        shapes = [(n_kv_heads, splits, queries, head_dim), (n_kv_heads, splits, queries, 2)]
        return self.combine(inputs=self.split(inputs=inputs, grid=grid, output_shapes=shapes))[0]


@functools.cache
def kernels(shape: Shape) -> Kernels:
    """Return the kernels of a shape; MLX compiles each when it runs for the first time."""
    laid = geometry(shape)
    names = input_names(shape)
    whole = _kernel("attention", names, ["out"], whole_source(shape))
    split = _kernel("attention_split", names, ["out", "totals"], split_source(shape))
    combine = _kernel("attention_combine", ["sums", "totals"], ["out"], combine_source(shape))
    threadgroup = (laid.threads, 1, 1)
    output = {
        "output_shapes": [(1, shape.n_heads, shape.rows, shape.head_dim)],
        "output_dtypes": [shape.dtype],
    }
    return Kernels(
        laid,
        (shape.n_kv_heads, shape.queries, shape.head_dim),
        partial(whole, threadgroup=threadgroup, **output),
        partial(split, threadgroup=threadgroup, output_dtypes=[mx.float32, mx.float32]),
        partial(
            combine,
            grid=(shape.head_dim, shape.queries, shape.n_kv_heads),
            threadgroup=(shape.head_dim, 1, 1),
            **output,
        ),
    )


def _kernel(name: str, inputs: list[str], outputs: list[str], source: str) -> Kernel:
    """Return a kernel named after its text: MLX keeps compiled kernels by name.

    It takes slices as they are (`ensure_row_contiguous`): MLX would copy the whole cache.
    """
    make: Any = mx.fast.metal_kernel
    kernel: Kernel = make(
        name=f"mlx_eagle_{name}_{hashlib.sha256(source.encode()).hexdigest()[:12]}",
        input_names=inputs,
        output_names=outputs,
        source=source,
        header=short(HEADER),
        ensure_row_contiguous=False,
    )
    return kernel
