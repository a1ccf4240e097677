"""Whether a kernel is kept: right first, then faster."""

from typing import Any

import mlx.core as mx
import pytest

from cases import broad
from emulated import Emulated
from few_row_cases import make_case
from mlx_eagle.kernels import few_rows, metal_text, trial
from mlx_eagle.kernels.attention_trial import AttentionVerdict, Heads
from mlx_eagle.kernels.shapes import CONVERT, Shape, Variant
from mlx_eagle.kernels.trial import Verdict, in_turns, stock_product, try_shape
from mlx_eagle.kernels.verdicts import Table, from_fields, to_fields

SHAPE = Shape(128, (64,), 4, 32, "float16")
ONLY = Variant(2, 4, CONVERT)


@pytest.fixture(autouse=True)
def one_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each number of rows is tried with one variant, at few numbers of rows."""
    monkeypatch.setattr("mlx_eagle.kernels.shapes.CANDIDATES", (ONLY,))
    monkeypatch.setattr(trial, "ROWS", (2, 8, 12))


def verdicts(*, is_timed: bool = False) -> dict[int, Verdict]:
    case = make_case(SHAPE, 16)
    return {v.rows: v for v in try_shape(SHAPE, [case.weights], case.rows, is_timed=is_timed)}


@pytest.mark.metal
def test_a_right_kernel_is_kept_for_all_rows_where_time_does_not_count(emulated: Emulated) -> None:
    found = verdicts()
    assert found == {n: Verdict(n, ONLY) for n in (2, 8, 12)}
    assert Table({SHAPE: list(found.values())}).plan().rows == [2, 8, 12]


@pytest.mark.metal
@pytest.mark.parametrize(
    ("old", "new"),
    [
        broad("for (int s = 0; s < SPLITS; ++s) {", "for (int s = 1; s < SPLITS; ++s) {"),
        # outputs that are left out stay what they were, which is not a number
        broad(
            "y[size_t(m) * N + n0 + n] = T(first);", "if (n) y[size_t(m) * N + n0 + n] = T(first);"
        ),
        # wrong by little: about four units in the last place
        ("= T(first);", "= T(first * 1.004f);"),
    ],
)
def test_a_wrong_kernel_is_refused(old: str, new: str, emulated: Emulated) -> None:
    names = few_rows._names()
    old, new = (metal_text.shortened(part, names) for part in (old, new))

    def plant(arguments: dict[str, Any]) -> dict[str, Any]:
        assert arguments["source"].count(old) == 1
        return {**arguments, "source": arguments["source"].replace(old, new)}

    emulated.edit, emulated.strict = plant, False
    for verdict in verdicts().values():
        assert verdict.variant is None
        assert verdict.reason.startswith("wrong (16 outputs, 4 splits, convert): ")


@pytest.mark.metal
def test_a_kernel_that_the_gpu_refuses_is_not_used(emulated: Emulated) -> None:
    emulated.options["max_threads"] = 64
    for verdict in verdicts().values():
        assert verdict.variant is None
        assert verdict.reason.startswith("refused")
        assert "threads per threadgroup" in verdict.reason


@pytest.mark.metal
def test_a_slower_kernel_is_not_used(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "in_turns", lambda own, stock: own() * 0 + stock() * 0 + 1.5)
    monkeypatch.setattr(trial, "ROWS", (2,))
    monkeypatch.setattr(trial, "CHAINS", 1)
    monkeypatch.setattr(trial, "STEPS", 1)
    found = verdicts(is_timed=True)[2]
    assert (found.variant, found.reason) == (None, "not faster")
    assert found.ratio == 1.5


def test_both_ways_take_turns_so_that_a_machine_that_slows_down_favours_neither() -> None:
    clock, order = iter([1.0, 2.0, 3.0, 4.0]), []

    def timed(name: str) -> float:
        order.append(name)
        return next(clock)

    ratio = in_turns(lambda: timed("own"), lambda: timed("stock"))
    assert order == ["stock", "own", "own", "stock"]
    assert ratio == (2.0 + 3.0) / (1.0 + 4.0)


def test_the_product_it_is_compared_with_is_that_of_the_layers() -> None:
    case = make_case(Shape(128, (64, 64), 4, 32, "float16", is_gated=True), 4)
    outputs = []
    for part in case.weights:
        dense = mx.dequantize(part.packed, part.scales, part.biases, group_size=32, bits=4)
        outputs.append(case.rows.astype(mx.float32) @ dense.astype(mx.float32).T)
    gate, up = outputs
    expected = gate * mx.sigmoid(gate) * up
    found = stock_product(case.shape, case.rows, case.weights)[0]
    assert mx.allclose(found, expected, rtol=2e-2, atol=2e-2)


def test_verdicts_survive_a_file_and_limit_the_rows_of_the_plan() -> None:
    products = {
        SHAPE: [Verdict(2, ONLY, 0.9), Verdict(3, None, 1.2, "not faster"), Verdict(8, ONLY, 0.5)],
        SHAPE._replace(k=256): [Verdict(2, None, None, "wrong (x): y")],
    }
    heads = Heads(32, 8, 128, "float16", 0.125)
    attention = {heads: [AttentionVerdict(4, 0, (0.9, 0.8)), AttentionVerdict(6, 4096, (1.1, 0.7))]}
    table = Table(products, attention)
    assert from_fields(to_fields(table)) == table
    assert table.plan() == ({SHAPE: {2: ONLY, 8: ONLY}}, {heads: {4: 0, 6: 4096}})
    assert table.plan([8]) == ({SHAPE: {8: ONLY}}, {})
    assert table.plan([4, 8]).rows == [4, 8]
    assert table.reasons == ["not faster", "wrong (x): y"]
    assert table.lines[0][1] == ["2: 0.90 used", "3: 1.20 not faster", "8: 0.50 used"]
    assert table.lines[2][1] == ["4: 0.90 0.80 used", "6: 1.10 0.70 used"]
