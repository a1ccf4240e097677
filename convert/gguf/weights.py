"""Weights of a GGUF file become MLX's arrays, one after the other.

What a format allows is taken over code by code; the rest is dequantized by the package gguf and
quantized again, with 8 bits. What that costs is measured, tensor by tensor.
"""

import math
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_eagle.convert.gguf.formats import EXACT, GROUP, Affine, read_rows
from mlx_eagle.convert.gguf.packing import pack
from mlx_eagle.convert.gguf.reader import chunks
from mlx_eagle.convert.gguf.source_weights import INEXACT_BITS, Numbers, Weight, require_finite
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import quote


class Converted(NamedTuple):
    """What became of a weight.

    Attributes:
        arrays: what MLX loads, by name.
        bits: of quantized values; None for others.
        error: root mean square of what was changed, in units of that of the values; 0: nothing.
    """

    arrays: dict[str, mx.array]
    bits: int | None
    error: float


def convert_weight(weight: Weight, dtype: mx.Dtype) -> Converted:
    """Return a weight as MLX has it.

    Args:
        weight: what to convert.
        dtype: of scales, offsets and values that are not quantized.

    Raises:
        CheckpointError: if it has values that are no finite numbers, or of a kind that the package
            gguf does not dequantize.
    """
    try:
        with np.errstate(all="ignore"):  # what is not finite is looked for
            return (_plain if weight.bits is None else _quantized)(weight, dtype)
    except NotImplementedError as error:
        raise CheckpointError(
            f"{quote(weight.tensor.name)} has the type {weight.tensor.kind.name}, which the "
            "package gguf does not dequantize"
        ) from error


def rounded(numbers: Numbers, dtype: mx.Dtype) -> Numbers:
    """Return numbers as they are once they have had a type."""
    return np.array(mx.array(numbers).astype(dtype).astype(mx.float32))


def _plain(weight: Weight, dtype: mx.Dtype) -> Converted:
    """Return values that are not quantized, in a type."""
    rows, difference = weight.rows(), _Difference()
    parts = []
    for part in chunks(*rows.shape):
        values = weight.values(rows[part])
        difference.add(values, rounded(values, dtype))
        parts.append(mx.array(values).astype(dtype))
        mx.eval(parts[-1])
    array = mx.concatenate(parts).reshape(weight.tensor.shape)
    mx.eval(array)
    return Converted({weight.place: array}, None, difference.relative)


def _quantized(weight: Weight, dtype: mx.Dtype) -> Converted:
    """Return codes, scales and offsets."""
    rows, bits, difference = weight.rows(), weight.bits, _Difference()
    assert bits is not None, "it is quantized"
    read = _read_exactly if weight.tensor.kind in EXACT else _quantize_again
    words, scales, offsets = [], [], []
    width = weight.tensor.shape[-1]
    for part in chunks(len(rows), width):
        affine = read(weight, rows[part], dtype, difference)
        words.append(pack(affine.codes, bits))
        scales.append(mx.array(affine.scales).astype(dtype))
        offsets.append(mx.array(affine.offsets).astype(dtype))
        mx.eval(scales[-1], offsets[-1])
    stem, outer = weight.place.removesuffix(".weight"), weight.tensor.shape[:-1]
    arrays = {
        weight.place: mx.array(np.concatenate(words)).reshape(*outer, -1),
        f"{stem}.scales": mx.concatenate(scales).reshape(*outer, -1),
        f"{stem}.biases": mx.concatenate(offsets).reshape(*outer, -1),
    }
    mx.eval(arrays)
    return Converted(arrays, bits, difference.relative)


def _read_exactly(
    weight: Weight, rows: NDArray[np.uint8], dtype: mx.Dtype, difference: "_Difference"
) -> Affine:
    """Return rows as they are stored, and note what their scales lose in a type."""
    affine = read_rows(weight.tensor.kind, rows)
    require_finite(weight, affine.scales, affine.offsets)
    kept = affine._replace(
        scales=rounded(affine.scales, dtype), offsets=rounded(affine.offsets, dtype)
    )
    require_finite(weight, kept.scales, kept.offsets)
    is_kept = np.array_equal(kept.scales, affine.scales)
    if not (is_kept and np.array_equal(kept.offsets, affine.offsets)):
        difference.add(_value_of(affine), _value_of(kept))
    return affine


def _quantize_again(
    weight: Weight, rows: NDArray[np.uint8], dtype: mx.Dtype, difference: "_Difference"
) -> Affine:
    """Return rows dequantized and quantized again, and note what they lose."""
    values = weight.values(rows)
    low = values.reshape(len(values), -1, GROUP).min(axis=-1)
    high = values.reshape(len(values), -1, GROUP).max(axis=-1)
    offsets = rounded(low, dtype)
    scales = rounded((high - offsets) / (2**INEXACT_BITS - 1), dtype)
    steps = np.repeat(np.where(scales > 0, scales, 1), GROUP, axis=-1)
    codes = np.rint((values - np.repeat(offsets, GROUP, axis=-1)) / steps)
    affine = Affine(codes.clip(0, 2**INEXACT_BITS - 1).astype(np.uint8), scales, offsets)
    require_finite(weight, scales, offsets)
    difference.add(values, _value_of(affine))
    return affine


def _value_of(affine: Affine) -> Numbers:
    """Return the values [rows, values] that codes, scales and offsets stand for."""
    scales, offsets = (np.repeat(part, GROUP, axis=-1) for part in affine[1:])
    return scales * affine.codes + offsets


class _Difference:
    """How much values differ from what they were, added up over parts."""

    def __init__(self) -> None:
        self._lost = self._whole = 0.0

    def add(self, values: Numbers, kept: Numbers) -> None:
        """Count a part."""
        self._lost += float(np.square(values - kept, dtype=np.float64).sum())
        self._whole += float(np.square(values, dtype=np.float64).sum())

    @property
    def relative(self) -> float:
        """Root mean square of the difference, in units of that of the values; 0 for none."""
        return math.sqrt(self._lost / self._whole) if self._lost else 0.0
