"""Attention of a few rows on the emulator: MLX's numbers, one look at every key, no finding."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from attention_cases import SPARE, Case, Inputs, error, make_inputs, run, spoil
from cases import broad
from emulated import Emulated
from mlx_eagle.kernels import attention as module
from mlx_eagle.kernels.attention import attends, attention, refusal

pytestmark = pytest.mark.metal
BF16, F16 = mx.bfloat16, mx.float16
LONG = Case(rows=5, length=303)  # three splits, 20 queries for each KV head, ragged at both
SHORT = Case(rows=5, length=77)
PACKED = Case(rows=4, length=50, head_dim=128, dtype=BF16, bits=4, group_size=64)

CASES = [
    LONG,
    SHORT,
    PACKED,
    broad(Case(rows=3, length=33, head_dim=80, heads=(3, 3), mask="none")),
    broad(Case(rows=7, length=7, head_dim=96, heads=(4, 2), dtype=BF16, mask="causal")),
    broad(Case(rows=8, length=520, head_dim=128, heads=(8, 1))),
    broad(Case(rows=16, length=60, head_dim=192, heads=(4, 1))),
    Case(rows=2, length=130, head_dim=256, heads=(16, 1), dtype=BF16, mask="causal"),
    broad(Case(rows=9, length=45, heads=(2, 2), bits=8, group_size=32)),
    broad(Case(rows=3, length=40, head_dim=256, mask="causal", bits=4, group_size=128)),
]


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulated]:
    """Kernels run on the emulator, and are made anew."""
    made = Emulated()
    monkeypatch.setattr(mx.fast, "metal_kernel", made)
    module.kernels.cache_clear()
    yield made
    module.kernels.cache_clear()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernels_give_mlx_s_attention_to_output_rounding(
    emulated: Emulated, case: Case
) -> None:
    inputs = make_inputs(case)
    assert error(case, inputs, run(case, inputs)) <= 1


@pytest.mark.broad
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("dtype", [F16, BF16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("rows", [2, 5, 8, 16])
@pytest.mark.parametrize("heads", [(2, 2), (8, 2), (16, 1)])
def test_every_served_shape(
    emulated: Emulated, head_dim: int, dtype: mx.Dtype, rows: int, heads: tuple[int, int]
) -> None:
    for length, mask in itertools.product([rows, 100, 1100], ["none", "causal", "array"]):
        case = Case(rows, length, head_dim, heads, dtype, mask)
        inputs = make_inputs(case)
        assert error(case, inputs, run(case, inputs)) <= 1, case


@pytest.mark.broad
@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [F16, BF16], ids=["float16", "bfloat16"])
def test_every_served_quantization(
    emulated: Emulated, head_dim: int, group_size: int, bits: int, dtype: mx.Dtype
) -> None:
    if head_dim % group_size:
        pytest.skip("a head is no whole number of groups")
    for rows, heads, length in itertools.product([2, 9], [(2, 2), (8, 2)], [100, 600]):
        case = Case(rows, length, head_dim, heads, dtype, "array", bits, group_size)
        inputs = make_inputs(case)
        assert error(case, inputs, run(case, inputs)) <= 1, case


@pytest.mark.parametrize("length", [1, 2, 8, 31, 32, 33, 64, 79, 159, 160, 161, 320, 2500])
def test_any_length_of_context(emulated: Emulated, length: int) -> None:
    case = LONG._replace(length=length)
    inputs = make_inputs(case)
    assert error(case, inputs, run(case, inputs)) <= 1
    assert len(emulated.launched) == (1 if length < 160 else 2)


@pytest.mark.parametrize("case", [LONG, SHORT, PACKED], ids=str)
def test_the_order_of_lanes_changes_no_bit(emulated: Emulated, case: Case) -> None:
    inputs = make_inputs(case)
    answers = []
    for seed in (0, 1, 2):
        emulated.launch = {"seed": seed}
        answers.append(run(case, inputs))
    assert mx.array_equal(answers[0], answers[1])
    assert mx.array_equal(answers[0], answers[2])


@pytest.mark.parametrize("case", [LONG._replace(length=320), PACKED._replace(length=56)], ids=str)
def test_keys_and_values_are_read_once(emulated: Emulated, case: Case) -> None:
    inputs = make_inputs(case)
    run(case, inputs)
    for name, held in (("keys", inputs.keys), ("values", inputs.values)):
        rows = held[0] if isinstance(held, tuple) else held
        traffic = emulated.launched[0].report.stats[name]
        assert traffic["read"] == traffic["unique"] == rows.nbytes


def test_a_ragged_end_reads_at_most_its_last_row_again(emulated: Emulated) -> None:
    inputs = make_inputs(LONG)
    run(LONG, inputs)
    assert isinstance(inputs.keys, mx.array)
    row = inputs.keys.nbytes // LONG.length  # of all KV heads
    for name in ("keys", "values"):
        traffic = emulated.launched[0].report.stats[name]
        assert traffic["unique"] == inputs.keys.nbytes
        assert traffic["read"] - traffic["unique"] < 8 * row


def test_more_queries_than_a_threadgroup_holds_read_keys_once_for_each_block(
    emulated: Emulated,
) -> None:
    case = Case(rows=16, length=56, head_dim=192, heads=(4, 1))  # 64 queries, of which 40 fit
    run(case, make_inputs(case))
    traffic = emulated.launched[0].report.stats["keys"]
    assert traffic["read"] == 2 * traffic["unique"]


def test_slices_of_a_cache_are_not_copied(emulated: Emulated) -> None:
    inputs = make_inputs(LONG)
    run(LONG, inputs)
    kernel = emulated.find("attention_split")
    assert not kernel.ensure_row_contiguous
    head = (LONG.length + SPARE) * LONG.head_dim  # numbers from one KV head to the next
    bytes_spanned = 2 * (head + LONG.length * LONG.head_dim)
    assert kernel.report.stats["keys"]["size"] == bytes_spanned


def test_rows_may_stand_between_those_of_other_heads(emulated: Emulated) -> None:
    """Projections come as [1, rows, heads, head_dim]; masks may be broadcast or transposed."""
    inputs = make_inputs(LONG)

    def interleaved(array: mx.array) -> mx.array:
        rows_first = mx.contiguous(array.swapaxes(1, 2))
        mx.eval(rows_first)
        return rows_first.swapaxes(1, 2)

    queries, keys, values, mask, exact = inputs
    assert isinstance(keys, mx.array)
    assert isinstance(values, mx.array)
    assert isinstance(mask, mx.array)
    transposed = mx.contiguous(mask.T)
    mx.eval(transposed)
    moved = Inputs(
        interleaved(queries), interleaved(keys), interleaved(values), transposed.T, exact
    )
    assert error(LONG, moved, run(LONG, moved)) <= 1


def test_a_row_that_sees_only_itself_is_its_value(emulated: Emulated) -> None:
    """Whole blocks and splits are hidden from it: they count for nothing, and make no NaN."""
    inputs = make_inputs(LONG)
    last = mx.arange(LONG.length - LONG.rows, LONG.length)
    visible = mx.arange(LONG.length)[None] == last[:, None]
    answer = run(LONG, inputs._replace(mask=visible))
    values = mx.repeat(inputs.exact[1][:, :, -LONG.rows :], 4, axis=1)
    assert mx.array_equal(answer.astype(mx.float32), values)


def test_what_is_hidden_at_the_start_does_not_count_later(emulated: Emulated) -> None:
    """The first blocks of every split are hidden from all rows."""
    inputs = make_inputs(LONG)
    visible = mx.broadcast_to(mx.arange(LONG.length) % 96 >= 64, (LONG.rows, LONG.length))
    hidden = inputs._replace(mask=visible)
    assert error(LONG, hidden, run(LONG, hidden)) <= 1


def test_far_larger_scores_do_not_overflow(emulated: Emulated) -> None:
    inputs = make_inputs(LONG)
    loud = inputs._replace(queries=inputs.queries * 500)
    assert error(LONG, loud, run(LONG, loud)) <= 1.5


@pytest.mark.parametrize("case", [broad(LONG), PACKED], ids=str)
def test_metal_s_address_spaces_are_kept_apart(emulated: Emulated, case: Case) -> None:
    emulated.launch = {"spaces": True}
    run(case, make_inputs(case))
    assert emulated.launched


def test_arrays_that_mlx_passes_as_constants(emulated: Emulated) -> None:
    """MLX puts arrays of less than 8 elements in another address space."""
    emulated.launch = {"spaces": True}
    case = Case(rows=2, length=1, heads=(1, 1), bits=8, group_size=64)
    inputs = make_inputs(case)
    assert error(case, inputs, run(case, inputs)) <= 1


def test_the_source_as_metal_gets_it(emulated: Emulated) -> None:
    """With its loops unrolled, without comments and template arguments."""
    emulated.unrolls = True
    case = Case(rows=2, length=20, mask="none")
    inputs = make_inputs(case)
    assert error(case, inputs, run(case, inputs)) <= 1
    (kernel,) = emulated.launched
    assert "//" not in kernel.source + kernel.header
    assert "clang loop unroll(full)" in kernel.header


def test_a_kernel_is_made_once_for_all_contexts_and_numbers_of_heads(emulated: Emulated) -> None:
    for length in (200, 303):
        run(LONG, make_inputs(LONG._replace(length=length)))
    assert len({id(kernel) for kernel in emulated.launched}) == 2
    more = LONG._replace(heads=(16, 4))
    run(more, make_inputs(more))
    assert len({kernel.name for kernel in emulated.launched}) == 2


def test_nothing_beyond_the_context_is_used(emulated: Emulated) -> None:
    """The inputs' buffers go on with NaN: an answer without is proof, if they do."""
    inputs = make_inputs(LONG)
    assert isinstance(inputs.keys, mx.array)
    assert not mx.isnan(run(LONG, inputs)).any()
    buffer = spoil(mx.zeros((1, 2, LONG.length + SPARE, 64), F16), LONG.length - 1)
    used = attention(inputs.queries, buffer[:, :, : LONG.length], inputs.keys, scale=1.0, mask=None)
    assert mx.isnan(used).any()


@pytest.mark.parametrize("case", [LONG, SHORT, PACKED], ids=str)
def test_mlx_itself_takes_the_kernels_and_their_launches(tmp_path: Path, case: Case) -> None:
    """Without a GPU it builds the graph only where a function is exported."""
    module.kernels.cache_clear()
    inputs = make_inputs(case)
    seen: list[mx.array] = []

    def traced(queries: mx.array) -> mx.array:
        seen.append(run(case, inputs._replace(queries=queries)))
        return seen[0]

    mx.export_function(str(tmp_path / "attention.mlxfn"), traced, inputs.queries)
    module.kernels.cache_clear()
    assert (seen[0].shape, seen[0].dtype) == (inputs.queries.shape, case.dtype)


@pytest.mark.parametrize("rows", [2, 16])
@pytest.mark.parametrize("heads", [(1, 1), (16, 1), (40, 8)])
def test_trees_of_2_to_16_rows_are_served(rows: int, heads: tuple[int, int]) -> None:
    n_heads, n_kv_heads = heads
    for head_dim in (64, 80, 96, 128, 192, 256):
        assert attends((1, n_heads, rows, head_dim), n_kv_heads, F16)
    assert attends((1, n_heads, rows, 128), n_kv_heads, BF16, group_size=32, bits=4)


@pytest.mark.parametrize(
    ("shape", "n_kv_heads", "dtype", "form", "reason"),
    [
        ((2, 8, 4, 64), 2, F16, {}, "2 sequences at once"),
        ((1, 8, 1, 64), 2, F16, {}, "1 rows"),
        ((1, 8, 17, 64), 2, F16, {}, "17 rows"),
        ((1, 8, 4, 64), 2, mx.float32, {}, "queries of mlx.core.float32"),
        ((1, 8, 4, 112), 2, F16, {}, "heads of 112 numbers"),
        ((1, 8, 4, 64), 3, F16, {}, "8 query heads for 3 KV heads"),
        ((1, 34, 4, 64), 2, F16, {}, "34 query heads for 2 KV heads"),
        ((1, 8, 4, 64), 2, F16, {"group_size": 64, "bits": 6}, "6 bits in groups of 64"),
        ((1, 8, 4, 64), 2, F16, {"group_size": 16, "bits": 4}, "4 bits in groups of 16"),
        ((1, 8, 4, 96), 2, F16, {"group_size": 64, "bits": 4}, "groups of 64 in heads of 96"),
    ],
)
def test_what_is_not_served_has_a_reason(
    shape: tuple[int, ...], n_kv_heads: int, dtype: mx.Dtype, form: dict[str, int], reason: str
) -> None:
    assert reason in (refusal(shape, n_kv_heads, dtype, **form) or "")
    assert not attends(shape, n_kv_heads, dtype, **form)
