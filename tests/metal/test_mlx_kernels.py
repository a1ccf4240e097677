"""Kernels that MLX ships for Metal, unchanged, give what MLX computes on the CPU.

They are the oracle of the emulator's Metal library: nobody wrote them for it. MLX's wheel has their
source among its headers.
"""

import mlx.core as mx
import pytest

from metal_emulator import metal_kernel
from stock_metal import function, quantized_product

pytestmark = pytest.mark.metal


@pytest.mark.parametrize("width", [300, 512])
def test_mlx_s_softmax(width: int) -> None:
    limits = (
        "#define SOFTMAX_N_READS 4\n"
        "template <typename T> struct Limits {\n"
        "  static constexpr T min = -metal::numeric_limits<T>::infinity();\n"
        "  static constexpr T finite_min = -metal::numeric_limits<T>::max();\n};\n"
    )
    header = limits + function("softmax.h", "softmax_exp")
    header += function("softmax.h", "softmax_single_row")
    source = """
    softmax_single_row<T, float, 4>(
        x, y, width, threadgroup_position_in_grid.x, thread_position_in_threadgroup.x,
        thread_index_in_simdgroup, simdgroup_index_in_threadgroup);
    """
    kernel = metal_kernel("mlx_softmax", ["x", "width"], ["y"], source, header)
    x = (4 * mx.random.normal((3, width), key=mx.random.key(0))).astype(mx.bfloat16)
    (y,) = kernel(
        inputs=[x, mx.array(width)],
        template=[("T", mx.bfloat16)],
        grid=(3 * 128, 1, 1),
        threadgroup=(128, 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[x.dtype],
    )
    expected = mx.softmax(x.astype(mx.float32), axis=-1)
    assert mx.allclose(y.astype(mx.float32), expected, rtol=2**-8)


def test_mlx_s_quantized_matrix_vector_product() -> None:
    n, k = 16, 1024
    weights = mx.random.normal((n, k), key=mx.random.key(1)).astype(mx.float16)
    x = mx.random.normal((1, k), key=mx.random.key(2)).astype(mx.float16)
    w, scales, biases = mx.quantize(weights, group_size=64, bits=4)
    y, kernel = quantized_product(x, w, scales, biases, 64, 4)
    wide, low = scales.astype(mx.float32), biases.astype(mx.float32)
    expected = x.astype(mx.float32) @ mx.dequantize(w, wide, low, group_size=64, bits=4).T
    assert mx.abs(y.astype(mx.float32) - expected).max() < 2e-3 * mx.abs(expected).max()
    assert kernel.report.stats["w"]["unique"] == w.nbytes
