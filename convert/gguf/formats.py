"""The formats of ggml's quantized blocks as MLX has weights: whole numbers, a scale and an offset.

MLX's affine weights are `scale * code + offset` by groups of 32 values that stand in a row. Blocks
of 32 with a scale, or with a scale and a minimum, are that already; so are the sub-blocks of Q4_K
and Q5_K, whose scales are products that need more than 16 bits. What is not of this form, such as
Q6_K with its groups of 16, is dequantized by the package gguf and quantized again, with 8 bits.
The layouts are those of ggml's `ggml-quants.c`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

GROUP = 32
Kind = GGMLQuantizationType


class Affine(NamedTuple):
    """Rows of weights as MLX has them, not yet packed: `scales * codes + offsets` by group.

    Attributes:
        codes: [rows, values] uint8.
        scales: [rows, groups] float32.
        offsets: [rows, groups] float32.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    offsets: NDArray[np.float32]


class Format(NamedTuple):
    """A format whose values MLX can have without quantizing them again.

    Attributes:
        bits: of a code.
        read: what takes blocks [n, bytes] apart.
        fits_half: whether its scales and offsets are numbers of 16 bits.
    """

    bits: int
    read: Callable[[NDArray[np.uint8]], Affine]
    fits_half: bool


def read_rows(kind: Kind, data: NDArray[np.uint8]) -> Affine:
    """Return quantized rows as codes, scales and offsets.

    Args:
        kind: one of `EXACT`.
        data: [rows, bytes of a row].
    """
    _, width = GGML_QUANT_SIZES[kind]
    n_rows = data.shape[0]
    codes, scales, offsets = EXACT[kind].read(data.reshape(-1, width))
    shape = (n_rows, -1)
    return Affine(codes.reshape(shape), scales.reshape(shape), offsets.reshape(shape))


def _half(blocks: NDArray[np.uint8], at: int) -> NDArray[np.float32]:
    """Return the number of 16 bits that stands at a byte of each block, [n, 1]."""
    stored = np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)
    return stored.astype(np.float32)


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the lower halves of bytes, then the upper ones: [..., n] becomes [..., 2 * n]."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _fifth_bits(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return 32 single bits, each worth 16, of 4 bytes."""
    return np.unpackbits(packed, axis=-1, bitorder="little") << np.uint8(4)


def _q4_0(blocks: NDArray[np.uint8]) -> Affine:
    scale = _half(blocks, 0)
    return Affine(_nibbles(blocks[:, 2:]), scale, -8 * scale)


def _q4_1(blocks: NDArray[np.uint8]) -> Affine:
    return Affine(_nibbles(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2))


def _q5_0(blocks: NDArray[np.uint8]) -> Affine:
    scale = _half(blocks, 0)
    return Affine(_nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6]), scale, -16 * scale)


def _q5_1(blocks: NDArray[np.uint8]) -> Affine:
    codes = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return Affine(codes, _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: NDArray[np.uint8]) -> Affine:
    scale = _half(blocks, 0)
    return Affine(blocks[:, 2:] ^ np.uint8(128), scale, -128 * scale)


def _sub_scales(blocks: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return scales and minima [n, 8] of a K-block: 6 bits each in bytes 4 to 16, in two parts."""
    first, second, mixed = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 63, (mixed & 15) | (first >> 6 << 4)], axis=-1)
    minima = np.concatenate([second & 63, (mixed >> 4) | (second >> 6 << 4)], axis=-1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _q4_k(blocks: NDArray[np.uint8]) -> Affine:
    scales, minima = _sub_scales(blocks)
    codes = _nibbles(blocks[:, 16:].reshape(-1, 4, 32))
    return Affine(codes, _half(blocks, 0) * scales, -_half(blocks, 2) * minima)


def _q5_k(blocks: NDArray[np.uint8]) -> Affine:
    scales, minima = _sub_scales(blocks)
    low = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    places = np.arange(8, dtype=np.uint8)[None, :, None]
    high = (blocks[:, None, 16:48] >> places & np.uint8(1)) << np.uint8(4)
    return Affine(low | high, _half(blocks, 0) * scales, -_half(blocks, 2) * minima)


EXACT = {
    Kind.Q4_0: Format(4, _q4_0, fits_half=True),
    Kind.Q4_1: Format(4, _q4_1, fits_half=True),
    Kind.Q5_0: Format(5, _q5_0, fits_half=True),
    Kind.Q5_1: Format(5, _q5_1, fits_half=True),
    Kind.Q8_0: Format(8, _q8_0, fits_half=True),
    Kind.Q4_K: Format(4, _q4_k, fits_half=False),
    Kind.Q5_K: Format(5, _q5_k, fits_half=False),
}
# Values that are not quantized, as numpy has them; bfloat16 is kept as its bits.
PLAIN = {Kind.F32: np.float32, Kind.F16: np.float16, Kind.BF16: np.uint16}
