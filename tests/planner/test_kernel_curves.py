"""Calculated costs of kernels for few rows, and what the planner makes of them: simulated.

Nothing here was measured on a Mac. A few machines stand for all; `--exactness broad` takes all.
"""

from functools import cache
from typing import Any

import pytest

from benchmark_modules import load_benchmark
from cases import narrowed

curves = load_benchmark("curves")
kernel_curves = load_benchmark("kernel_curves")
replay = load_benchmark("replay")
simulate = load_benchmark("simulate")
simulate_kernels = load_benchmark("simulate_kernels")

CURVES: dict[str, Any] = kernel_curves.KERNEL_CURVES
M1_M2 = [chip for chip in kernel_curves.CHIPS if chip.startswith(("M1", "M2"))]
# Flat to 8 rows, to 16 rows, several steps, and one that comes down again.
FEW_CURVES = [
    "M1 Ultra, 4 bits, kernel",
    "M5 Max, 4 bits, kernel",
    "M4 Pro, Qwen3-14B, cache read by each head, kernel",
    "M3 Max, Qwen3-32B, cache read by each head, kernel",
]
ROOFLINE = [  # chip; 8 rows fitted and ideal; 16 rows fitted
    ("M1", 1.42, 1.08, 2.2),
    ("M1 Pro", 1.73, 1.33, 2.9),
    ("M1 Ultra", 1.73, 1.33, 2.9),
    ("M2", 1.45, 1.09, 2.3),
    ("M2 Max", 1.48, 1.10, 2.4),
    ("M3", 1.40, 1.08, 2.1),
    ("M3 Pro", 1.33, 1.07, 1.8),
    ("M3 Max", 1.46, 1.09, 2.3),
    ("M4", 1.42, 1.08, 2.2),
    ("M4 Pro", 1.48, 1.10, 2.4),
    ("M4 Max", 1.48, 1.10, 2.4),
]


@cache
def recorded() -> Any:
    return replay.Trace.load()


@cache
def as_published() -> Any:
    return replay.accepting(recorded(), simulate_kernels.PUBLISHED_TOKENS)


def planner(curve: str, trace: Any) -> float:
    """Return the planner's speed relative to plain decoding."""
    machine = simulate.Machine(CURVES[curve])
    run = simulate.PlannerRun(machine, trace).run()
    return float(run.rate * machine.plain)


def is_few(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--exactness") == "quick")


@pytest.mark.parametrize(("chip", "fitted", "ideal", "sixteen"), ROOFLINE)
def test_the_roofline_is_the_one_that_was_worked_out_by_hand(
    chip: str, fitted: float, ideal: float, sixteen: float
) -> None:
    known = kernel_curves.CHIPS[chip]
    assert kernel_curves.roofline(known, 8) == pytest.approx(fitted, abs=0.006)
    assert kernel_curves.roofline(known, 8, apart=kernel_curves.IDEAL) == pytest.approx(
        ideal, abs=0.006
    )
    assert kernel_curves.roofline(known, 16) == pytest.approx(sixteen, abs=0.06)


@pytest.mark.parametrize(
    ("n_rows", "bits", "published_ms", "off"),
    [(8, 4, 0.313, 0.01), (16, 4, 0.533, 0.05), (8, 8, 0.443, 0.14)],
)
def test_the_fitted_roofline_gives_the_times_that_were_published(
    n_rows: int, bits: int, published_ms: float, off: float
) -> None:
    """mlx-dspark's kernel on an M4 Pro, 17408x5120; only its 8 rows at 4 bits were fitted."""
    n_bytes = 17408 * 5120 * {4: 0.5625, 8: 1.0625}[bits]
    reading_ms = 1e3 * n_bytes / (0.87 * 273e9)
    found = reading_ms * kernel_curves.roofline(kernel_curves.CHIPS["M4 Pro"], n_rows, bits)
    assert found == pytest.approx(published_ms, rel=off)


def test_rows_of_one_tile_cost_the_same_and_a_ninth_pays_for_a_second_tile() -> None:
    chip = kernel_curves.CHIPS["M2"]
    costs = [kernel_curves.roofline(chip, n) for n in (1, 8, 9, 16)]
    assert costs[0] == costs[1] < costs[2] == costs[3]


def test_a_kernel_is_taken_only_where_it_is_cheaper() -> None:
    own = curves.PUBLISHED["M4 Pro 8B"].rows
    rows = CURVES["M4 Pro, 4 bits, kernel"].rows
    assert [rows[n] for n in (1, 2, 3, 4)] == [own[n] for n in (1, 2, 3, 4)]
    assert rows[6] == rows[8] < own[6] < own[8]
    assert sorted(rows) == list(range(1, 17))


def test_every_curve_says_what_its_numbers_are() -> None:
    for name, curve in (curves.CURVES | CURVES).items():
        assert curve.source, name
    assert CURVES["M1, 4 bits, MLX"].label == "published"
    assert CURVES["M1, 8 bits, MLX"].label == "estimate"  # only 4 bits were published
    assert CURVES["M5 Max, 4 bits, kernel"].label == "estimate"
    kernels = [c for name, c in CURVES.items() if name.endswith("kernel") and "M5" not in name]
    assert {curve.label for curve in kernels} == {"calculated"}


@pytest.mark.parametrize(("target", "last_fused"), [("Qwen3-14B", 6), ("Qwen3-32B", 4)])
def test_attention_that_leaves_its_kernel_makes_rows_up_to_8_dearer(
    target: str, last_fused: int
) -> None:
    once, by_each = (
        CURVES[f"M3 Max, {target}, cache {reads}, kernel"].rows for reads in kernel_curves.READS
    )
    assert once[last_fused] < once[last_fused + 1] < by_each[last_fused + 1]
    assert once[9] == by_each[9]


def test_the_target_of_8_heads_costs_less_at_9_rows_than_at_8() -> None:
    rows = CURVES["M3 Max, Qwen3-32B, cache read by each head, kernel"].rows
    assert rows[9] < rows[8]


def test_texts_chosen_by_one_chain_accept_as_published_with_all() -> None:
    """vLLM#20780: Llama-3.1-8B and its published head, chains of 2, 3, 5 and 7 on MT-bench."""
    for depth, published in ((2, 2.36), (3, 2.79), (5, 3.32), (7, 3.54)):
        tokens, rounds = as_published().walk(replay.TreeShape.chain(depth))
        assert tokens / rounds == pytest.approx(published, rel=0.03)


def test_the_planner_is_never_much_slower_than_plain_decoding(
    request: pytest.FixtureRequest,
) -> None:
    dead = replay.variants(recorded())["dead head"]
    for curve in FEW_CURVES[1:2] if is_few(request) else CURVES:
        assert planner(curve, dead) >= 0.97, curve
        assert planner(curve, recorded()) >= 0.97, curve


@pytest.mark.parametrize("curve", narrowed(FEW_CURVES, FEW_CURVES[1:3]))
def test_the_planner_is_nearly_the_best_in_hindsight_on_curves_with_steps(curve: str) -> None:
    assert simulate.contest(curve, "recorded", recorded()).margin >= 0.97


@pytest.mark.broad
def test_a_kernel_makes_drafting_pay_on_an_m1_and_m2(request: pytest.FixtureRequest) -> None:
    for chip in ["M1 Ultra"] if is_few(request) else M1_M2:
        assert planner(f"{chip}, 4 bits, MLX", recorded()) == pytest.approx(1.0, abs=0.02)
        assert planner(f"{chip}, 4 bits, kernel", recorded()) >= 1.5, chip


@pytest.mark.broad
def test_a_kernel_gives_an_m4_pro_nearly_twice_the_speed_with_a_head_as_published() -> None:
    assert planner("M4 Pro, 4 bits, MLX", as_published()) == pytest.approx(1.72, abs=0.02)
    assert planner("M4 Pro, 4 bits, kernel", as_published()) >= 1.9


def test_a_line_of_the_table_has_both_speeds_and_says_that_costs_are_calculated() -> None:
    name = "M1 Max, Qwen3-32B, cache read once"
    few = {f"{name}, {kind}": CURVES[f"{name}, {kind}"] for kind in ("MLX", "kernel")}
    found = list(simulate_kernels.gains(few, "one text", recorded().reordered([0, 1])))
    assert [gain.machine for gain in found] == [name]
    assert found[0].ratio == found[0].kernel.planner / found[0].alone.planner
    assert list(simulate_kernels.lines(found))[-1].endswith("| calculated |")
