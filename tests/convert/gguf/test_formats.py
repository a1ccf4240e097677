"""Quantized blocks against the package gguf's own dequantization, bit by bit if nothing is lost."""

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize

from gguf_files import Array, random_blocks
from mlx_eagle.convert.gguf.formats import EXACT, GROUP
from mlx_eagle.convert.gguf.precision import choose_dtype
from mlx_eagle.convert.gguf.reader import Tensor
from mlx_eagle.convert.gguf.source_weights import Weight
from mlx_eagle.convert.gguf.weights import Converted, convert_weight
from mlx_eagle.errors import CheckpointError

SHAPE = (3, 512)
AGAIN = [Kind.Q6_K, Kind.Q2_K, Kind.Q3_K, Kind.IQ4_NL, Kind.IQ4_XS]
HALVES = [kind for kind, known in EXACT.items() if known.fits_half]


def weight_of(kind: Kind, data: Array, shape: tuple[int, ...] = SHAPE) -> Weight:
    return Weight("model.x.weight", Tensor("blk.0.x.weight", kind, shape, data))


def values_of(converted: Converted) -> Array:
    """What MLX makes of converted arrays, in float32."""
    words, *affine = converted.arrays.values()
    scales, offsets = (array.astype(mx.float32) for array in affine)
    bits = converted.bits
    assert bits is not None
    return np.array(mx.dequantize(words, scales, offsets, group_size=GROUP, bits=bits))


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_format_that_fits_is_the_same_bit_by_bit(kind: Kind) -> None:
    blocks = random_blocks(kind, SHAPE)
    weight = weight_of(kind, blocks)
    dtype = mx.float16 if kind in HALVES else mx.float32
    converted = convert_weight(weight, dtype)
    assert converted.error == 0.0
    assert converted.bits == EXACT[kind].bits
    assert np.array_equal(values_of(converted), dequantize(blocks, kind))


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_smallest_type_that_loses_nothing_is_chosen(kind: Kind) -> None:
    chosen = choose_dtype([weight_of(kind, random_blocks(kind, SHAPE))])
    assert chosen == ("float16" if kind in HALVES else "float32")


def test_float16_is_left_out_where_it_is_too_small_for_what_is_computed() -> None:
    weight = weight_of(Kind.Q8_0, random_blocks(Kind.Q8_0, SHAPE))
    assert choose_dtype([weight], may_be_half=False) == "float32"


@pytest.mark.parametrize("kind", AGAIN, ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", [mx.float16, mx.float32], ids=str)
def test_format_that_does_not_fit_has_eight_bits_and_the_error_that_is_told(
    kind: Kind, dtype: mx.Dtype
) -> None:
    blocks = random_blocks(kind, SHAPE)
    converted = convert_weight(weight_of(kind, blocks), dtype)
    expected = dequantize(blocks, kind)
    lost = np.sqrt(np.square(values_of(converted) - expected).mean() / np.square(expected).mean())
    assert converted.bits == 8
    assert converted.error == pytest.approx(lost, rel=1e-3)
    groups = expected.reshape(-1, GROUP)
    steps = (groups.max(axis=-1) - groups.min(axis=-1)) / 255
    worst = np.abs(values_of(converted) - expected).reshape(-1, GROUP).max(axis=-1)
    assert (worst <= steps * (0.51 if dtype == mx.float32 else 0.8)).all()


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q5_K], ids=lambda kind: kind.name)
def test_scales_rounded_on_demand_have_the_error_that_is_told(kind: Kind) -> None:
    blocks = random_blocks(kind, SHAPE)
    converted = convert_weight(weight_of(kind, blocks), mx.float16)
    expected = dequantize(blocks, kind)
    lost = np.sqrt(np.square(values_of(converted) - expected).mean() / np.square(expected).mean())
    assert 0 < converted.error < 1e-3
    assert converted.error == pytest.approx(lost, rel=1e-2)


def test_offsets_too_large_for_16_bits_are_kept_in_32() -> None:
    blocks = random_blocks(Kind.Q8_0, SHAPE).reshape(-1, 34)
    blocks[0, :2] = np.array([1000.0], np.float16).view(np.uint8)
    blocks = blocks.reshape(3, -1)
    weight = weight_of(Kind.Q8_0, blocks)
    assert choose_dtype([weight]) == "float32"
    assert np.array_equal(
        values_of(convert_weight(weight, mx.float32)), dequantize(blocks, Kind.Q8_0)
    )


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q6_K], ids=lambda kind: kind.name)
def test_blocks_without_a_finite_scale_are_refused(kind: Kind) -> None:
    blocks = random_blocks(kind, (1, 256))
    at = 0 if kind == Kind.Q4_0 else 208
    blocks[0, at : at + 2] = np.array([np.inf], np.float16).view(np.uint8)
    with pytest.raises(CheckpointError, match="no finite numbers: the file is damaged"):
        convert_weight(weight_of(kind, blocks, (1, 256)), mx.float32)


def test_experts_keep_their_axis() -> None:
    blocks = random_blocks(Kind.Q8_0, (4, 6, 64))
    converted = convert_weight(weight_of(Kind.Q8_0, blocks, (4, 6, 64)), mx.float16)
    assert [array.shape for array in converted.arrays.values()] == [
        (4, 6, 16),
        (4, 6, 2),
        (4, 6, 2),
    ]
    assert np.array_equal(values_of(converted), dequantize(blocks, Kind.Q8_0))


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        ([1.0, 0.5, 3.0], "float16"),
        ([1.0, 2.0**-30], "bfloat16"),
        ([1.0, 1.0 + 2.0**-20], "float32"),
    ],
)
def test_numbers_of_32_bits_that_had_16_have_16_again(values: list[float], chosen: str) -> None:
    array = np.array(values, np.float32)
    weight = Weight("model.norm.weight", Tensor("x", Kind.F32, array.shape, array))
    assert choose_dtype([weight]) == chosen
    kept = convert_weight(weight, getattr(mx, chosen)).arrays["model.norm.weight"]
    assert kept.astype(mx.float32).tolist() == array.tolist()


def test_bfloat16_is_read_as_it_is() -> None:
    array = np.array([[1.5, -3.0, 2.0**-100]], np.float32)
    bits = (array.view(np.uint32) >> 16).astype(np.uint16)
    weight = Weight("model.x.weight", Tensor("x", Kind.BF16, array.shape, bits))
    assert choose_dtype([weight]) == "bfloat16"
    converted = convert_weight(weight, mx.bfloat16)
    assert converted.arrays["model.x.weight"].astype(mx.float32).tolist() == array.tolist()
