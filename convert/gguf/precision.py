"""The type that a model of a GGUF file is kept in: the smallest that loses nothing.

llama.cpp stores norms and biases with 32 bits although they had 16, and Q4_0's scales have 16 while
those of Q4_K are products that need 32. A model of one type is computed in that type; with a single
scale of 32 bits all of it would be computed in 32 bits anyway.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from gguf.constants import GGML_QUANT_SIZES

from mlx_eagle.convert.gguf.formats import EXACT, PLAIN, Kind
from mlx_eagle.convert.gguf.reader import chunks
from mlx_eagle.convert.gguf.source_weights import Weight
from mlx_eagle.convert.gguf.weights import rounded

DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}
_OWN = {Kind.F16: mx.float16, Kind.BF16: mx.bfloat16}
LARGEST_HALF = 65504.0
# How much larger than a scale the offset is.
_OFFSETS = {Kind.Q4_0: 8.0, Kind.Q5_0: 16.0, Kind.Q8_0: 128.0}


def choose_dtype(weights: Sequence[Weight], *, may_be_half: bool = True) -> str:
    """Return the name of the smallest type in which every weight is what it is in the file.

    Args:
        weights: all of them.
        may_be_half: whether float16 is large enough for what is computed.
    """
    order = ["float16", "bfloat16"] if may_be_half else ["bfloat16"]
    if any(weight.tensor.kind == Kind.BF16 for weight in weights):
        order.reverse()
    with np.errstate(all="ignore"):  # what is not finite is refused when it is converted
        for name in order:
            if all(_fits(weight, DTYPES[name]) for weight in weights):
                return name
    return "float32"


def _fits(weight: Weight, dtype: mx.Dtype) -> bool:
    """Say whether a type of 16 bits loses nothing of a weight, but for what is lost anyway."""
    kind = weight.tensor.kind
    if weight.bits is None:
        is_same = kind in _OWN and _OWN[kind] == dtype and not weight.raised
        return is_same or _fit_values(weight, dtype)
    if kind not in EXACT:
        return True
    return dtype == mx.float16 and EXACT[kind].fits_half and _fit_offsets(weight)


def _fit_values(weight: Weight, dtype: mx.Dtype) -> bool:
    """Say whether values that are not quantized are the same in a type."""
    if weight.tensor.kind not in PLAIN:
        return True  # quantized values of one axis
    rows = weight.rows()
    parts = (weight.values(rows[part]) for part in chunks(*rows.shape))
    return all(np.array_equal(values, rounded(values, dtype)) for values in parts)


def _fit_offsets(weight: Weight) -> bool:
    """Say whether offsets that are multiples of scales are not too large for 16 bits."""
    kind = weight.tensor.kind
    blocks = weight.tensor.data.reshape(-1, GGML_QUANT_SIZES[kind][1])
    scales = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    return bool(np.abs(scales).max() * _OFFSETS.get(kind, 1.0) <= LARGEST_HALF)
