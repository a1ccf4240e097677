"""The quantized product of a few rows, run and checked by the emulator."""

from typing import Any

import mlx.core as mx
import pytest

from cases import broad, rotated
from emulated import Emulated
from few_row_cases import Case, error, exact, make_case
from metal_emulator import EmulationError, Report
from mlx_eagle.kernels import few_rows
from mlx_eagle.kernels.few_rows import BODY, Launch, text
from mlx_eagle.kernels.shapes import (
    BITS,
    CONVERT,
    DTYPES,
    GROUPS,
    IN_PLACE,
    MAGIC,
    Shape,
    Variant,
    candidates,
    row_tiles,
)
from stock_metal import quantized_product

pytestmark = [pytest.mark.metal, pytest.mark.usefixtures("emulated")]

# Rounding of the output, and of sums in another order: in parts of the largest output.
ROUNDING = {"float16": 6e-4, "bfloat16": 4.5e-3}

# Every number of bits, group, type, way of codes and number of row tiles in a few shapes; outputs
# that do not fill a tile, inputs that do not fill the splits.
FEW = [
    (Shape(512, (100,), 4, 64, "float16"), 5, Variant(4, 8, CONVERT)),
    (Shape(320, (72,), 4, 32, "bfloat16"), 16, Variant(2, 4, IN_PLACE)),
    (Shape(384, (40,), 4, 128, "float16"), 2, Variant(2, 2, MAGIC)),
    (Shape(320, (72,), 8, 64, "bfloat16"), 9, Variant(2, 4, CONVERT)),
    (Shape(256, (40,), 8, 128, "float16"), 8, Variant(4, 2, MAGIC)),
    (Shape(160, (8,), 8, 32, "bfloat16"), 1, Variant(1, 4, IN_PLACE)),
    (Shape(256, (64, 24, 40), 4, 64, "bfloat16", has_bias=True), 6, Variant(2, 4, CONVERT)),
    (Shape(256, (72, 72), 4, 64, "float16", is_gated=True), 13, Variant(4, 4, MAGIC)),
    (Shape(256, (72, 72), 8, 32, "bfloat16", is_gated=True), 7, Variant(2, 4, CONVERT)),
]


@pytest.mark.parametrize(
    ("shape", "n_rows", "variant"), [*FEW[::2], *(broad(*case) for case in FEW[1::2])], ids=str
)
def test_it_gives_the_exact_product_up_to_rounding_and_no_check_finds_anything(
    shape: Shape, n_rows: int, variant: Variant
) -> None:
    case = make_case(shape, n_rows)
    outputs = Launch(shape, variant, row_tiles(n_rows))(case.rows, case.weights)  # or it raises
    for found, expected in zip(outputs, exact(case), strict=True):
        assert found.shape == expected.shape
        assert error(found, expected) <= ROUNDING[shape.dtype]


@pytest.mark.broad
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", BITS)
def test_all_rows_and_ways_of_codes_give_the_exact_product(
    bits: int, group: int, dtype: str
) -> None:
    for n, k in ((100, 5 * group), (8, 4 * group)):
        shape = Shape(k, (n,), bits, group, dtype)
        ways = {v.codes for v in candidates(shape._replace(k=16 * group), 8)}
        for codes in sorted(ways):
            for n_rows in range(1, 17):
                case = make_case(shape, n_rows, seed=n_rows)
                kernel = Launch(shape, Variant(2, 3, codes), row_tiles(n_rows))
                found = kernel(case.rows, case.weights)[0]
                assert error(found, exact(case)[0]) <= ROUNDING[dtype], (shape, n_rows, codes)


def test_the_order_of_lanes_changes_no_bit() -> None:
    shape, n_rows, variant = FEW[0]
    case = make_case(shape, n_rows)
    kernel = Launch(shape, variant, row_tiles(n_rows))
    first, *others = (kernel(case.rows, case.weights, seed=s)[0] for s in (0, 1, 2, 12345))
    assert all(mx.array_equal(first, other).item() for other in others)


def test_weights_are_read_once_for_sixteen_rows(emulated: Emulated) -> None:
    shape = Shape(512, (64,), 4, 64, "float16")
    case = make_case(shape, 16)
    Launch(shape, Variant(4, 8, CONVERT), 2)(case.rows, case.weights)
    weights: dict[str, int] = emulated.launched[-1].report.stats["w0"]
    assert weights["unique"] == weights["size"]
    # While one group is multiplied the next one is read; past the end that is the last one again.
    assert weights["read"] <= 2 * weights["size"]


@pytest.mark.parametrize(("codes", "dtype"), list(rotated([CONVERT, IN_PLACE, MAGIC], DTYPES)))
def test_its_error_is_that_of_mlx_s_kernel_for_metal(dtype: str, codes: str) -> None:
    case = make_case(Shape(1024, (64,), 4, 64, dtype), 8)
    part = case.weights[0]
    packed = part.packed, part.scales, part.biases
    stock, _ = quantized_product(case.rows[0], *packed, 64, 4)
    found = Launch(case.shape, Variant(4, 8, codes), 1)(case.rows, case.weights)[0]
    expected = exact(case)[0]
    assert rms(found - expected) <= 1.02 * rms(stock - expected)


def rms(array: mx.array) -> float:
    return float(mx.sqrt(mx.mean(array.astype(mx.float32) ** 2)))


def test_address_spaces_are_those_of_metal() -> None:
    """The emulator raises what Metal's compiler would refuse."""
    for shape, n_rows, variant in (FEW[6], FEW[7]):
        case = make_case(shape, n_rows)
        Launch(shape, variant, row_tiles(n_rows))(case.rows, case.weights, spaces=True)


def test_every_candidate_fits_the_memory_of_a_threadgroup() -> None:
    for bits in BITS:
        shape = Shape(4096, (4096,), bits, 64, "bfloat16")
        for n_rows in (8, 16):
            assert candidates(shape, n_rows)
            for variant in candidates(shape, n_rows):
                assert 4 * variant.splits * row_tiles(n_rows) * variant.tiles * 64 <= 32768
                assert variant.codes != MAGIC or bits == 4


# What is planted: name, text, its replacement, what reports it ("" where only the numbers do).
BUGS = [
    (
        "no barrier before the sums are added",
        "threadgroup_barrier(mem_flags::mem_threadgroup);",
        "",
        "threadgroup-race",
    ),
    (
        "a barrier that orders nothing",
        "threadgroup_barrier(mem_flags::mem_threadgroup);",
        "threadgroup_barrier(mem_flags::mem_none);",
        "threadgroup-race",
    ),
    (
        "rows not clamped",
        "min(8 * r + fragment_column + e, M - 1)",
        "(8 * r + fragment_column + e)",
        "out-of-bounds",
    ),
    (
        "outputs not clamped",
        "min(n0 + 8 * (t % NA) + fragment_row, N - 1)",
        "(n0 + 8 * (t % NA) + fragment_row)",
        "out-of-bounds",
    ),
    (
        "outputs not guarded",
        "if (m < M && n0 + n < N) {",
        "if (m < M) {",
        "device-race",
    ),
    (
        "rows not guarded",
        "if (m < M && n0 + n < N) {",
        "if (n0 + n < N) {",
        "out-of-bounds",
    ),
    (
        "a product under a condition",
        "simdgroup_multiply_accumulate(product[r][t], a, b[r], product[r][t]);",
        "if (lane < 31) simdgroup_multiply_accumulate(product[r][t], a, b[r], product[r][t]);",
        "divergent-collective",
    ),
    (
        "lanes that leave early",
        "float total[RT][NT][2];",
        "if (n0 + fragment_row >= N) return; float total[RT][NT][2];",
        "divergent-collective",
    ),
    (
        "too little room for sums",
        "parts[SPLITS * RT * NT * 64];",
        "parts[SPLITS * RT * NT * 32];",
        "array-index",
    ),
    (
        "sums that nothing was stored in",
        "product[r][t] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);",
        ";",
        "uninitialised-fragment",
    ),
    (
        "the last group read ahead",
        "min(g + SPLITS, GROUPS - 1)",
        "(g + SPLITS)",
        "out-of-bounds",
    ),
    (
        "a shuffle by too far",
        "simd_shuffle_xor(sum[r][e], 16)",
        "simd_shuffle_down(sum[r][e], 16)",
        "",
    ),
    (
        "a split left out",
        "for (int s = 0; s < SPLITS; ++s) {",
        "for (int s = 1; s < SPLITS; ++s) {",
        "",
    ),
    (
        "halves of a word exchanged",
        "+ STEPS * (fragment_row & 1);",
        "+ STEPS * (1 - (fragment_row & 1));",
        "",
    ),
    (
        "another group's scale",
        "row_of_codes[t]) * GROUPS + g]);\nconst float offset",
        "row_of_codes[t]) * GROUPS]);\nconst float offset",
        "",
    ),
    (
        "groups counted twice",
        "g < GROUPS; g += SPLITS",
        "g < GROUPS; g += SPLITS - 1",
        "",
    ),
    (
        "biases of the wrong sign",
        "fma(offset, sum[r][e],",
        "fma(-offset, sum[r][e],",
        "",
    ),
    (
        "an offset that is one too large",
        "as_type<T2>(((packed",
        "T2(T(1.0f)) + as_type<T2>(((packed",
        "",
    ),
]

# One of each kind, and those that only the numbers show; the others where more is asked for.
TYPICAL = {
    "no barrier before the sums are added",
    "rows not clamped",
    "a product under a condition",
    "too little room for sums",
    "another group's scale",
    "an offset that is one too large",
}
PLANTED = [bug if bug[0] in TYPICAL else broad(*bug) for bug in BUGS]


@pytest.fixture(scope="module")
def ragged() -> Case:
    """Rows that do not fill a tile, outputs that do not, and inputs that do not fill the splits."""
    return make_case(Shape(576, (100,), 4, 64, "float16"), 5)


def run(case: Case, emulated: Emulated, **options: Any) -> tuple[mx.array, Report]:
    """Return what a kernel gives for a case of one matrix, and what the checks found."""
    outputs = Launch(case.shape, Variant(4, 4, MAGIC), 1)(case.rows, case.weights, **options)
    return outputs[0], emulated.launched[-1].report


@pytest.mark.parametrize(("name", "old", "new", "kind"), PLANTED)
def test_a_planted_bug_is_reported_or_seen_in_the_numbers(
    name: str,
    old: str,
    new: str,
    kind: str,
    ragged: Case,
    emulated: Emulated,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = text(BODY)
    assert "\n".join(line.strip() for line in body.split("\n")).count(old) == 1
    planted = "\n".join(line.strip() for line in body.split("\n")).replace(old, new)
    monkeypatch.setattr(few_rows, "text", lambda name: planted if name == BODY else text(name))
    few_rows._names.cache_clear()
    emulated.strict = False
    found, report = run(ragged, emulated)
    few_rows._names.cache_clear()
    if kind:
        assert kind in report.kinds(), report
    else:
        assert not error(found, exact(ragged)[0]) <= ROUNDING["float16"]


def test_without_a_planted_bug_nothing_is_reported(ragged: Case, emulated: Emulated) -> None:
    found, report = run(ragged, emulated)
    assert error(found, exact(ragged)[0]) <= ROUNDING["float16"]
    assert report == []


def test_rows_that_are_not_aligned_are_reported(ragged: Case, emulated: Emulated) -> None:
    with pytest.raises(EmulationError, match="misaligned"):
        run(ragged, emulated, misalign=3)
