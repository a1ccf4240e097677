"""Modes of quantization: the table is MLX's own, the defaults are mlx-lm's, the rest is refused."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_eagle.convert.quantization import MODES, Quantization, choose_quantization
from mlx_eagle.errors import EagleError


def accepts(mode: str, bits: int, group_size: int) -> bool:
    """Say whether MLX quantizes that way."""
    try:
        mx.eval(mx.quantize(mx.ones((2, 512)), group_size=group_size, bits=bits, mode=mode))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_has_what_mlx_has_from_2_bits_on(mode: str) -> None:
    possible = {(b, g) for b in range(2, 9) for g in (8, 16, 32, 64, 128, 256)}
    theirs = {(b, g) for b, g in possible if accepts(mode, b, g)}
    assert {(b, g) for b in MODES[mode].bits for g in MODES[mode].group_sizes} == theirs


@pytest.mark.parametrize("mode", MODES)
def test_what_is_left_open_is_as_mlx_chooses_it(mode: str) -> None:
    layer = nn.QuantizedLinear(128, 128, mode=mode)
    assert choose_quantization(mode) == (layer.bits, layer.group_size, mode)


def test_what_is_asked_for_is_kept() -> None:
    assert choose_quantization() == Quantization(4, 64, "affine")
    assert choose_quantization("affine", 3) == (3, 64, "affine")
    assert choose_quantization("affine", None, 128) == (4, 128, "affine")
    assert choose_quantization("nvfp4", 4, 16) == (4, 16, "nvfp4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("affine", 7), "affine has 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128 weights"),
        (("affine", 0), "not 0 bits in groups of 64"),
        (("affine", 4, 16), "not 4 bits in groups of 16"),
        (("mxfp4", 8), "mxfp4 has 4 bits in groups of 32 weights, not 8 bits in groups of 32"),
        (("mxfp8", 8, 64), "mxfp8 has 8 bits in groups of 32 weights, not 8 bits in groups of 64"),
        (("nvfp4", 4, 32), "nvfp4 has 4 bits in groups of 16 weights"),
        (("q4_k_m",), "there is no mode 'q4_k_m': the modes are affine, mxfp4, nvfp4, mxfp8"),
    ],
)
def test_what_mlx_does_not_have_is_refused_with_what_it_has(
    arguments: tuple[str, int, int], message: str
) -> None:
    with pytest.raises(EagleError, match=message):
        choose_quantization(*arguments)
