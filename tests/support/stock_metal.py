"""Kernels that MLX ships for Metal, taken from the headers of its wheel and run by the emulator."""

import re
from pathlib import Path

import mlx.core as mx
import pytest

from metal_emulator import Kernel, metal_kernel

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


def quantized_product(
    rows: mx.array, packed: mx.array, scales: mx.array, biases: mx.array, group: int, bits: int
) -> tuple[mx.array, Kernel]:
    """Return what MLX's `qmv_fast` gives for rows [M, K], and the kernel that ran.

    K is a multiple of 512 (256 for 8 bits), N of 8.
    """
    names = ["get_pack_factor", "get_bytes_per_pack", "load_vector", "qdot", "qmv_fast_impl"]
    header = "constant constexpr const int SIMD_SIZE = 32;\n"
    header += "".join(function("quantized.h", name) for name in names)
    source = f"""
    qmv_fast_impl<T, {group}, {bits}>(
        w, scales, biases, x, y, K, N, threadgroup_position_in_grid,
        simdgroup_index_in_threadgroup, thread_index_in_simdgroup);
    """
    inputs = ["w", "scales", "biases", "x", "K", "N"]
    kernel = metal_kernel(f"mlx_qmv_fast_{group}_{bits}", inputs, ["y"], source, header)
    (m, k), n = rows.shape, packed.shape[0]
    (y,) = kernel(
        inputs=[packed, scales, biases, rows, mx.array(k), mx.array(n)],
        template=[("T", rows.dtype)],
        grid=(32 * m, 2 * n // 8, 1),
        threadgroup=(32, 2, 1),
        output_shapes=[(m, n)],
        output_dtypes=[rows.dtype],
    )
    return y, kernel
