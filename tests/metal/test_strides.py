"""A kernel that takes inputs as they are gets the strides of a slice, and its memory uncopied."""

import mlx.core as mx
import pytest

from metal_emulator import Kernel, metal_kernel

pytestmark = pytest.mark.metal
SOURCE = """
uint row = thread_position_in_grid.y, column = thread_position_in_grid.x;
y[row * x_shape[1] + column] = x[row * x_strides[0] + column * x_strides[1]];
"""


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    return metal_kernel("strided_copy", ["x"], ["y"], SOURCE, ensure_row_contiguous=False)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("form", ["whole", "slice", "transposed", "broadcast"])
def test_a_kernel_reads_any_strides(kernel: Kernel, dtype: mx.Dtype, form: str) -> None:
    whole = mx.random.normal((6, 8), key=mx.random.key(1)).astype(dtype)
    forms = {
        "whole": whole,
        "slice": whole[1:4, 2:7],
        "transposed": whole.T,
        "broadcast": mx.broadcast_to(whole[2], (5, 8)),
    }
    x = forms[form]
    (y,) = kernel(
        inputs=[x],
        grid=(x.shape[1], x.shape[0], 1),
        threadgroup=(1, 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[dtype],
    )
    assert mx.array_equal(y, x)
    if form == "slice":
        size = whole.dtype.size
        assert kernel.report.stats["x"]["size"] == size * (2 * 8 + 5)
