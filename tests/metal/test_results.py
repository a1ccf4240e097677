"""Kernels give what MLX and NumPy give: the emulator's Metal library means what Metal's does."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from metal_emulator import Kernel, metal_kernel

pytestmark = pytest.mark.metal

ELEMENTWISE = """
uint i = thread_position_in_grid.x;
T product = a[i] * b[i];
sum[i] = product + c[0];
T power = metal::exp(a[i]);
for (int k = 0; k < N; ++k) power *= T(factor);
powers[i] = IS_NEGATIVE ? -power : power;
"""


@pytest.fixture(scope="module")
def elementwise() -> Kernel:
    return metal_kernel("elementwise", ["a", "b", "c", "factor"], ["sum", "powers"], ELEMENTWISE)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=["float16", "bfloat16"])
def test_16_bit_arithmetic_rounds_after_every_operation(
    elementwise: Kernel, dtype: mx.Dtype
) -> None:
    """The grid ends within a threadgroup; the inputs are not evaluated before, one is a scalar."""
    a, b = (mx.random.normal((7, 37), key=mx.random.key(n)).astype(dtype) for n in (1, 2))
    c = mx.array([0.3, 7.0]).astype(dtype)
    total, powers = elementwise(
        inputs=[a, b, c, mx.array(1.25) * 2],
        template=[("T", dtype), ("N", 2), ("IS_NEGATIVE", True)],
        grid=(a.size, 1, 1),
        threadgroup=(64, 1, 1),
        output_shapes=[a.shape, a.shape],
        output_dtypes=[dtype, dtype],
    )
    assert total.dtype == dtype
    assert total.shape == a.shape
    assert mx.array_equal(total, a * b + c[0])  # two operations of MLX: each rounds
    exact = -mx.exp(a.astype(mx.float32)) * 6.25
    tolerance = 3e-3 if dtype == mx.float16 else 2e-2  # three roundings
    assert mx.allclose(powers.astype(mx.float32), exact, rtol=tolerance)


COLLECTIVES = """
uint lane = thread_index_in_simdgroup, i = thread_position_in_grid.x;
int value = x[i];
int results[] = {
  simd_sum(value), simd_max(value), simd_min(value), simd_xor(value),
  simd_prefix_inclusive_sum(value), simd_prefix_exclusive_sum(value),
  simd_shuffle(value, ushort(31 - lane)), simd_shuffle_xor(value, 5),
  simd_shuffle_down(value, 3), simd_shuffle_up(value, 3), simd_broadcast(value, 9),
  quad_sum(value), quad_shuffle_xor(value, 2),
  int(ulong(simd_ballot(value > 50))), int(simd_any(value > 98)), int(simd_all(value >= 0))};
for (int k = 0; k < 16; ++k) y[k * 64 + i] = results[k];

threadgroup atomic_uint n_large;
if (i == 0) atomic_store_explicit(&n_large, 0u, memory_order_relaxed);
threadgroup_barrier(mem_flags::mem_threadgroup);
if (value > 50) atomic_fetch_add_explicit(&n_large, 1u, memory_order_relaxed);
atomic_fetch_max_explicit((device atomic_int*)largest, value, memory_order_relaxed);
threadgroup_barrier(mem_flags::mem_threadgroup);
if (i == 0) count[0] = atomic_load_explicit(&n_large, memory_order_relaxed);

float4 v = float4(float(value), float2(1.0f, 2.0f), 3.0f);
half4 h = half4(v.wzyx);
v.xy += float2(h.zw);
vec<float, 4> w = v * 2.0f;
uint bits = as_type<uint>(float(value)) >> 23;
float counts = float(bits) + float(popcount(uint(value)));
vectors[i] = dot(w, float4(1.0f)) + counts + fma(2.0f, w.y, v.x);
"""


def collective_results(values: Any) -> Any:
    """The same in NumPy, for one SIMD-group: [16, 32]."""
    lanes = np.arange(32)
    down, up = np.minimum(lanes + 3, 31), np.maximum(lanes - 3, 0)
    down, up = np.where(lanes + 3 > 31, lanes, down), np.where(lanes < 3, lanes, up)
    ballot = (1 << lanes[values > 50]).sum().astype(np.uint32).view(np.int32)
    rows = [values.sum(), values.max(), values.min(), np.bitwise_xor.reduce(values)]
    rows += [values.cumsum(), values.cumsum() - values, values[31 - lanes], values[lanes ^ 5]]
    rows += [values[down], values[up], values[9], values.reshape(8, 4).sum(1).repeat(4)]
    rows += [values[lanes ^ 2], ballot, (values > 98).any(), (values >= 0).all()]
    return np.stack([np.broadcast_to(row, 32) for row in rows])


def test_collectives_atomics_and_vectors_give_what_numpy_gives() -> None:
    names = ["y", "largest", "count", "vectors"]
    kernel = metal_kernel("collectives", ["x"], names, COLLECTIVES)
    values = np.random.default_rng(5).integers(0, 100, 64).astype(np.int32)
    for seed in range(4):
        y, largest, count, vectors = kernel(
            inputs=[mx.array(values)],
            grid=(64, 1, 1),
            threadgroup=(64, 1, 1),
            output_shapes=[(16, 64), (1,), (1,), (64,)],
            output_dtypes=[mx.int32, mx.int32, mx.uint32, mx.float32],
            init_value=0,
            seed=seed,
        )
        groups = [collective_results(half) for half in (values[:32], values[32:])]
        assert np.array_equal(np.array(y), np.concatenate(groups, axis=1))
        assert largest.item() == values.max()
        assert count.item() == (values > 50).sum()
        x = (
            values.astype(np.float32) + 1
        )  # v = (x + 1, 1 + x, 2, 3) after the sum with h.zw = (1, x)
        ones = np.array([int(value).bit_count() for value in values])
        exponents = values.astype(np.float32).view(np.uint32) >> 23
        expected = 2 * (2 * x + 5) + exponents + ones + 4 * x + x
        assert np.array_equal(np.array(vectors), expected.astype(np.float32))


RAGGED = """
int value = x[thread_position_in_grid.x];
y[thread_position_in_grid.x] = simd_sum(value) + simd_shuffle_down(value, 1);
"""


def test_the_last_simd_group_of_a_ragged_threadgroup_has_its_own_lanes_only() -> None:
    """With 50 lanes the second SIMD-group has 18; one of them reads from a lane that is not there.

    Metal leaves what that lane gets undefined.
    """
    kernel = metal_kernel("ragged", ["x"], ["y"], RAGGED, strict=False)
    values = np.arange(100, 150, dtype=np.int32)
    (y,) = kernel(
        inputs=[mx.array(values)],
        grid=(50, 1, 1),
        threadgroup=(64, 1, 1),
        output_shapes=[(50,)],
        output_dtypes=[mx.int32],
    )
    sums = [values[:32].sum()] * 32 + [values[32:].sum()] * 18
    below = np.append(values[1:], 0)
    below[31] = values[31]
    assert np.array_equal(np.array(y)[:49], (np.array(sums) + below)[:49])
    (finding,) = kernel.report
    assert (finding["kind"], finding["line"], finding["count"]) == ("shuffle-source", 3, 1)
    assert "reads lane 18, which is not active" in finding["text"]


PRODUCT = """
uint sg = simdgroup_index_in_threadgroup;
threadgroup float tile[2 * 64];
simdgroup_matrix<half, 8, 8> left, right;
simdgroup_matrix<float, 8, 8> sum = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
for (int k = 0; k < a_shape[1]; k += 8) {
  simdgroup_load(left, a + k, a_shape[1]);
  simdgroup_load(right, b + sg * 8 * b_shape[1] + k, b_shape[1], ulong2(0, 0), true);
  simdgroup_multiply_accumulate(sum, left, right, sum);
}
sum.thread_elements() *= 0.5f;
simdgroup_multiply_accumulate(sum, left, simdgroup_matrix<half, 8, 8>(half(1)), sum);
simdgroup_store(sum, tile + sg * 64, 8);
simdgroup_barrier(mem_flags::mem_threadgroup);
for (uint i = thread_index_in_simdgroup; i < 64; i += 32)
  y[(i / 8) * 16 + sg * 8 + i % 8] = tile[sg * 64 + i];
"""


def test_simdgroup_matrices_multiply() -> None:
    kernel = metal_kernel("product", ["a", "b"], ["y"], PRODUCT)
    a = mx.random.normal((8, 24), key=mx.random.key(3)).astype(mx.float16)
    b = mx.random.normal((16, 24), key=mx.random.key(4)).astype(mx.float16)
    (y,) = kernel(
        inputs=[a, b],
        grid=(64, 1, 1),
        threadgroup=(64, 1, 1),
        output_shapes=[(8, 16)],
        output_dtypes=[mx.float32],
    )
    wide, other = a.astype(mx.float32), b.astype(mx.float32)
    last = wide[:, 16:]  # the fragment that the product with the unit matrix adds
    expected = 0.5 * (wide @ other.T) + mx.concatenate([last, last], axis=1)
    assert mx.allclose(y, expected, atol=1e-4)
    assert kernel.report.stats["mma"] == 2 * 4


TENSORS = """
threadgroup half tile[16 * 32];
for (uint i = thread_index_in_simdgroup; i < 16 * 32; i += 32) tile[i] = b[i];
simdgroup_barrier(mem_flags::mem_threadgroup);
using namespace mpp::tensor_ops;
auto left = tensor<const device half, dextents<int, 2>, tensor_inline>(a, dextents<int, 2>{16, 8});
auto right = tensor<threadgroup half, dextents<int, 2>, tensor_inline>(
    tile, dextents<int, 2>{32, 16});
auto result = tensor<device float, dextents<int, 2>, tensor_inline>(y, dextents<int, 2>{32, 8});
constexpr auto sizes = matmul2d_descriptor(
    8, 32, 16, false, false, false, matmul2d_descriptor::mode::multiply_accumulate);
matmul2d<sizes, execution_simdgroup> product;
auto sum = product.get_destination_cooperative_tensor<decltype(left), decltype(right), float>();
for (uint16_t i = 0; i < sum.get_capacity(); ++i) sum[i] = 1.0f;
product.run(left, right, sum);
sum.store(result);
"""


def test_metal_4_tensors_multiply() -> None:
    header = "#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>\n"
    kernel = metal_kernel("tensors", ["a", "b"], ["y"], TENSORS, header)
    a = mx.random.normal((8, 16), key=mx.random.key(3)).astype(mx.float16)
    b = mx.random.normal((16, 32), key=mx.random.key(4)).astype(mx.float16)
    (y,) = kernel(
        inputs=[a, b],
        grid=(32, 1, 1),
        threadgroup=(32, 1, 1),
        output_shapes=[(8, 32)],
        output_dtypes=[mx.float32],
    )
    assert mx.allclose(y, a.astype(mx.float32) @ b.astype(mx.float32) + 1, atol=1e-5)


PROFILED = """
uint i = thread_position_in_grid.x;
y[i] = x[i] + x[32 * (i % 32)];
"""


def test_a_profile_counts_the_cache_lines_of_a_simd_load() -> None:
    """32 floats side by side are one line of 128 bytes; a stride of 128 bytes touches 32 lines."""
    kernel = metal_kernel("profiled", ["x"], ["y"], PROFILED)
    x = mx.zeros((1024,))
    kernel(
        inputs=[x],
        grid=(1024, 1, 1),
        threadgroup=(64, 1, 1),
        output_shapes=[(1024,)],
        output_dtypes=[mx.float32],
        profile=True,
        threadgroups=(1, 2),
        init_value=0,
    )
    stats = kernel.report.stats
    found = sorted((op["buffer"], op["write"], op["lines128_per_op"]) for op in stats["memory_ops"])
    assert found == [("x", False, 1.0), ("x", False, 32.0), ("y", True, 1.0)]
    assert {op["line"] for op in stats["memory_ops"]} == {3}
    assert stats["threadgroups"] == 2
    assert (stats["y"]["written"], stats["x"]["read"]) == (2 * 64 * 4, 2 * 64 * 8)


@pytest.mark.parametrize("init_value", [0.5, float("nan")])
def test_an_output_with_an_initial_value_need_not_be_written(init_value: float) -> None:
    kernel = metal_kernel("half_written", ["x"], ["y"], "y[0] = T(x[0]) + y[1];")
    (y,) = kernel(
        inputs=[mx.ones((3,))],
        template=[("T", mx.bfloat16)],
        grid=(1, 1, 1),
        threadgroup=(1, 1, 1),
        output_shapes=[(2,)],
        output_dtypes=[mx.bfloat16],
        init_value=init_value,
    )
    expected = mx.array([1 + init_value, init_value])
    assert mx.array_equal(y.astype(mx.float32), expected, equal_nan=True)
