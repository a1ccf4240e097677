"""Codes of a few bits in the words that MLX packs them into."""

import sys

import numpy as np
from numpy.typing import NDArray


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """Return codes as a stream of bits, the lowest first, in words of 32.

    For 8 bits a word holds four codes, for 4 bits eight; 5 bits go across words.

    Args:
        codes: [rows, values], each below 2 ** bits; values are a multiple of 32.
        bits: 4, 5 or 8.

    Returns:
        [rows, values * bits / 32].
    """
    assert sys.byteorder == "little", "MLX runs on little-endian machines alone"
    if bits == 8:
        stream = np.ascontiguousarray(codes)
    elif bits == 4:
        stream = codes[:, 0::2] | codes[:, 1::2] << np.uint8(4)
    else:
        single = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little")
        stream = np.packbits(single.reshape(len(codes), -1), axis=-1, bitorder="little")
    return stream.view(np.uint32)
