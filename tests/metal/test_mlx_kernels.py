"""Kernels that MLX ships for Metal, unchanged, give what MLX computes on the CPU.

They are the oracle of the emulator's Metal library: nobody wrote them for it. MLX's wheel has their
source among its headers.
"""

import re
from pathlib import Path

import mlx.core as mx
import pytest

from metal_emulator import metal_kernel

pytestmark = pytest.mark.metal
HEADERS = Path(mx.__file__).parent / "include" / "mlx" / "backend" / "metal" / "kernels"


def function(file: str, name: str) -> str:
    """Return the text of one function template of MLX's headers, its template line included."""
    path = HEADERS / file
    if not path.is_file():
        pytest.skip(f"this installation of MLX has no {file}")
    text = path.read_text()
    head = rf"^(template <[^{{}};]*>\n)?[^\n{{}};]*\b{name}\([^{{}};]*\) \{{\n"
    match = re.search(head, text, re.MULTILINE)
    assert match, f"{file} has no function {name}"
    return text[match.start() : text.index("\n}\n", match.end()) + 3]


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
    names = ["get_pack_factor", "get_bytes_per_pack", "load_vector", "qdot", "qmv_fast_impl"]
    header = "constant constexpr const int SIMD_SIZE = 32;\n"
    header += "".join(function("quantized.h", name) for name in names)
    source = """
    qmv_fast_impl<T, 64, 4>(
        w, scales, biases, x, y, K, N, threadgroup_position_in_grid,
        simdgroup_index_in_threadgroup, thread_index_in_simdgroup);
    """
    inputs = ["w", "scales", "biases", "x", "K", "N"]
    kernel = metal_kernel("mlx_qmv_fast", inputs, ["y"], source, header)
    n, k = 16, 1024
    weights = mx.random.normal((n, k), key=mx.random.key(1)).astype(mx.float16)
    x = mx.random.normal((1, k), key=mx.random.key(2)).astype(mx.float16)
    w, scales, biases = mx.quantize(weights, group_size=64, bits=4)
    (y,) = kernel(
        inputs=[w, scales, biases, x, mx.array(k), mx.array(n)],
        template=[("T", mx.float16)],
        grid=(32, 2 * n // 8, 1),
        threadgroup=(32, 2, 1),
        output_shapes=[(1, n)],
        output_dtypes=[mx.float16],
    )
    wide, low = scales.astype(mx.float32), biases.astype(mx.float32)
    expected = x.astype(mx.float32) @ mx.dequantize(w, wide, low, group_size=64, bits=4).T
    assert mx.abs(y.astype(mx.float32) - expected).max() < 2e-3 * mx.abs(expected).max()
    assert kernel.report.stats["w"]["unique"] == w.nbytes
