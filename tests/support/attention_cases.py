"""Attention of a few rows: inputs as caches hold them, and MLX's own answer in float32."""

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_eagle.kernels.attention import Mask, Parts, attention, quantized_attention

SPARE = 40  # rows of a cache's buffer beyond those in use
# The part of a number that rounding to a type can change, and what float32 sums add to it.
HALF_ULP = {mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}
FLOAT32_SUMS = 1e-5


class Case(NamedTuple):
    """A shape; bits of 16 are keys and values that are not quantized."""

    rows: int
    length: int
    head_dim: int = 64
    heads: tuple[int, int] = (8, 2)  # of queries, of keys and values
    dtype: mx.Dtype = mx.float16
    mask: str = "array"
    bits: int = 16
    group_size: int = 0

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)


class Inputs(NamedTuple):
    """What attention takes; `exact` keys and values are float32."""

    queries: mx.array
    keys: mx.array | Parts
    values: mx.array | Parts
    mask: Mask
    exact: tuple[mx.array, mx.array]


def make_inputs(case: Case) -> Inputs:
    """Return random inputs; keys and values are slices of larger buffers that go on with NaN."""
    n_heads, n_kv_heads = case.heads
    draw = np.random.default_rng(case.length)
    queries = mx.array(3 * draw.standard_normal((1, n_heads, case.rows, case.head_dim)))
    shape = (1, n_kv_heads, case.length + SPARE, case.head_dim)
    buffers = [mx.array(draw.standard_normal(shape)).astype(case.dtype) for _ in range(2)]
    if case.group_size:
        packed = _packed(buffers[0], case), _packed(buffers[1], case)
        exact = _unpacked(packed[0], case), _unpacked(packed[1], case)
        return Inputs(queries.astype(case.dtype), *packed, make_mask(case), exact)
    keys, values = (spoil(buffer, case.length)[:, :, : case.length] for buffer in buffers)
    mx.eval(keys, values)
    exact = keys.astype(mx.float32), values.astype(mx.float32)
    return Inputs(queries.astype(case.dtype), keys, values, make_mask(case), exact)


def spoil(buffer: mx.array, length: int) -> mx.array:
    """Return a buffer [1, heads, L, W] with NaN in the rows from `length` on, evaluated."""
    rows = mx.arange(buffer.shape[2])[:, None]
    spoiled = mx.where(rows < length, buffer, mx.array(float("nan"), buffer.dtype))
    mx.eval(spoiled)
    return spoiled


def make_mask(case: Case) -> Mask:
    """Return the mask that a case names; in an array every row sees at least the last key."""
    if case.mask != "array":
        return None if case.mask == "none" else case.mask
    visible = np.random.default_rng(1).random((case.rows, case.length)) < 0.7
    visible[:, -1] = True
    return mx.array(visible)


def _packed(buffer: mx.array, case: Case) -> Parts:
    weights, scales, biases = mx.quantize(buffer, case.group_size, case.bits)
    parts = weights, spoil(scales, case.length), spoil(biases, case.length)
    weights, scales, biases = (part[:, :, : case.length] for part in parts)
    return weights, scales, biases


def _unpacked(parts: Parts, case: Case) -> mx.array:
    weights, scales, biases = parts[0], *(part.astype(mx.float32) for part in parts[1:])
    return mx.dequantize(weights, scales, biases, case.group_size, case.bits)


def run(case: Case, inputs: Inputs) -> mx.array:
    """Return the kernels' answer [1, H, N, D]."""
    queries, keys, values, mask, _ = inputs
    if isinstance(keys, tuple) and isinstance(values, tuple):
        form = {"group_size": case.group_size, "bits": case.bits}
        return quantized_attention(queries, keys, values, scale=case.scale, mask=mask, **form)
    assert isinstance(keys, mx.array)
    assert isinstance(values, mx.array)
    return attention(queries, keys, values, scale=case.scale, mask=mask)


def error(case: Case, inputs: Inputs, answer: mx.array) -> float:
    """Return the largest error of an answer, as a multiple of what must be allowed.

    The limit is the rounding of the largest number of the output, and what sums in float32 add.
    """
    queries = inputs.queries.astype(mx.float32)
    wanted = mx.fast.scaled_dot_product_attention(
        queries, *inputs.exact, scale=case.scale, mask=inputs.mask
    )
    largest = mx.abs(wanted).max().item()
    worst = mx.abs(answer.astype(mx.float32) - wanted).max().item()
    assert isinstance(largest, float)
    assert isinstance(worst, float)
    return worst / (largest * (HALF_ULP[case.dtype] + FLOAT32_SUMS))
