"""Calibration on tiny models: what is measured, and that real costs show."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from cases import broad
from mlx_eagle.calibration import measure as module
from mlx_eagle.calibration import planners as planning
from mlx_eagle.calibration.measure import CONTEXTS, ROWS, WARM, _Bench, fused_rows, measure
from mlx_eagle.calibration.planners import GREEDY, UNMEASURED, Calibration, Planners, find_costs
from mlx_eagle.calibration.store import Identity, Records
from mlx_eagle.drafters.base import Drafter
from mlx_eagle.drafters.make import make_drafter
from mlx_eagle.heads.config import HeadConfig, MedusaConfig
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.medusa import MedusaHead
from mlx_eagle.planner.acceptance_model import Acceptance
from mlx_eagle.planner.cost_model import Costs, LiveCosts
from mlx_eagle.planner.planner import Planner
from mlx_eagle.target.target import Target
from mlx_eagle.tree import DraftTree

TinyTarget = Callable[..., nn.Module]
COSTS = Costs((64, 2048), {1: (1.0, 1.5), 2: (1.2, 1.9)}, (0.9, 1.4), (0.1, 0.15), 0.01)


def pair(tiny_target: TinyTarget, config: HeadConfig, architecture: str) -> tuple[Target, Drafter]:
    config = replace(config, hidden_size=64, target_hidden_size=64, target_vocab_size=128)
    target = Target(tiny_target(architecture), taps=config.taps)
    return target, make_drafter(EagleHead(config), target)


@pytest.mark.parametrize("architecture", [broad("llama"), "gemma3_text", broad("qwen3_moe")])
def test_all_costs_are_measured_at_all_contexts(
    architecture: str,
    tiny_target: TinyTarget,
    head_config: HeadConfig,
    monkeypatch: pytest.MonkeyPatch,
    is_quick: bool,
) -> None:
    contexts = (64, 256, 1024) if is_quick else CONTEXTS
    monkeypatch.setattr(module, "CONTEXTS", contexts)
    monkeypatch.setattr(module, "_is_useless", lambda costs, depth: False)
    monkeypatch.setattr(module, "MOST_SAMPLES", module.SAMPLES)  # of what is asked, not how often
    steps: list[tuple[int, int]] = []
    target, drafter = pair(tiny_target, head_config, architecture)
    costs = measure(target, drafter, lambda *step: steps.append(step))
    assert costs.contexts == contexts
    assert costs.rows[:2] == [1, 2] and set(costs.rows) <= set(ROWS)
    assert len(costs.draft) == max(d for d in module.DEPTHS if d < costs.rows[-1])
    assert costs.sync < costs.draft[0]
    assert steps[0] == (0, 5) and steps[-1] == (5, 5)


def run_by_clock(
    target: Target, monkeypatch: pytest.MonkeyPatch, seconds_of: Callable[[int], float]
) -> Callable[[float], float]:
    """Let the clock say that verifying n rows takes so long; return what puts it forward."""
    verify, seconds = target.verify, 0.0

    def forward(by: float) -> float:
        nonlocal seconds
        seconds += by
        return seconds

    def slow(tree: Any, cache: Any) -> Any:
        forward(seconds_of(tree.n_nodes))
        return verify(tree, cache)

    monkeypatch.setattr(target, "verify", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: forward(1e-6))
    return forward


@pytest.mark.broad
def test_medusa_is_measured_as_deep_as_it_drafts(
    tiny_target: TinyTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_SAMPLES", module.SAMPLES)
    monkeypatch.setattr(module, "CONTEXTS", (64, 128))
    config = MedusaConfig(
        algorithm="medusa",
        num_heads=3,
        num_layers=1,
        block_bias=True,
        hidden_size=64,
        target_hidden_size=64,
        target_vocab_size=128,
        draft_vocab_size=128,
        taps=(5,),
        own_lm_heads=True,
    )
    target = Target(tiny_target("llama"), taps=config.taps)
    drafter = make_drafter(MedusaHead(config), target)
    run_by_clock(target, monkeypatch, lambda n: 0.01)
    assert len(measure(target, drafter).draft) == 3


def test_rows_cost_what_the_clock_says(
    tiny_target: TinyTarget, head_config: HeadConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock by which a second row costs 4 ms, and five rows 20 ms more."""
    target, drafter = pair(tiny_target, head_config, "llama")
    run_by_clock(target, monkeypatch, lambda n: 0.006 + 0.004 * n + (0.02 if n >= 5 else 0.0))
    costs = measure(target, drafter)
    for n, want in ((1, 0.01), (2, 0.014), (4, 0.022)):
        assert costs.verify[n][0] == pytest.approx(want, rel=0.01)
    assert max(costs.rows) <= 4, "five rows cost more than four times one: they are of no use"
    assert len(costs.draft) == 3, "and so is a fourth level"
    assert costs.contexts == CONTEXTS
    assert costs.build < 0.001, "by this clock nothing goes on while a graph is built"


def test_what_is_drafted_while_the_graph_is_built_is_measured(
    tiny_target: TinyTarget, head_config: HeadConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock by which a level costs 3 ms, but only where it is read back."""
    target, drafter = pair(tiny_target, head_config, "llama")
    monkeypatch.setattr(module, "CONTEXTS", (64,))
    forward = run_by_clock(target, monkeypatch, lambda n: 0.01)
    greedy_path = drafter.greedy_path

    def slow(n_children: int, depth: int) -> Any:
        for level in greedy_path(n_children, depth):
            forward(0.003)
            yield level

    monkeypatch.setattr(drafter, "greedy_path", slow)
    assert measure(target, drafter).build == pytest.approx(0.003, rel=0.05)


@pytest.mark.parametrize("fixed", [0.0, 0.0015])
def test_where_no_head_pays_on_a_cpu_the_calibration_ends_at_once(
    fixed: float, tiny_target: TinyTarget, head_config: HeadConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock by which n rows cost n times one, or little less: four of them 3.6 times."""
    target, drafter = pair(tiny_target, head_config, "llama")
    verified: list[int] = []
    run_by_clock(target, monkeypatch, lambda n: (verified.append(n), fixed + 0.01 * n)[1])
    costs = measure(target, drafter)
    assert costs.verify[4] == pytest.approx((fixed + 0.04,), rel=0.01)
    assert costs.contexts == (WARM - 1,) and len(costs.draft) == 1
    assert Planner(LiveCosts(costs), Acceptance(), 8).is_hopeless(0)
    assert sum(verified) < 35, "rows in all: on a CPU each may take as long as a token"


def test_a_measurement_can_be_ended_before_every_sample(
    tiny_target: TinyTarget, head_config: HeadConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, drafter = pair(tiny_target, head_config, "llama")
    verified: list[int] = []
    forward = run_by_clock(target, monkeypatch, lambda n: (verified.append(n), 0.01)[1])

    def report(done: int, total: int) -> None:
        if forward(0.0) > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(target, drafter, report)
    assert 90 < len(verified) <= 110, "a second of samples, of drafting and of plain tokens too"


def test_a_machine_that_is_busy_half_of_the_time_is_measured_all_the_same(
    tiny_target: TinyTarget, head_config: HeadConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock by which four rows cost 1.6 times one, and every other pass takes five times that."""
    target, drafter = pair(tiny_target, head_config, "llama")
    monkeypatch.setattr(module, "CONTEXTS", (64, 128))
    rng = np.random.default_rng(1)
    run_by_clock(
        target, monkeypatch, lambda n: 0.01 * (0.8 + 0.2 * n) * (5 if rng.random() < 0.5 else 1)
    )
    costs = measure(target, drafter)
    for n in (1, 2, 3, 4):
        assert costs.verify[n][0] == pytest.approx(0.01 * (0.8 + 0.2 * n), rel=0.01)
    assert costs.plain[0] == pytest.approx(0.01, rel=0.1)


def test_a_curve_that_comes_down_again_is_followed(
    tiny_target: TinyTarget, head_config: HeadConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock by which 5 to 12 rows cost eight times one, and more of them twice, as on an M5."""
    target, drafter = pair(tiny_target, head_config, "llama")
    run_by_clock(target, monkeypatch, lambda n: 0.08 if 5 <= n <= 12 else 0.02 if n > 12 else 0.01)
    monkeypatch.setattr(module, "CONTEXTS", (64, 128))
    assert measure(target, drafter).rows == [1, 2, 3, 4]
    monkeypatch.setattr(module, "comes_down_again", lambda: True)
    assert measure(target, drafter).rows == [1, 2, 3, 4, 16, 24, 32]


@pytest.mark.parametrize(
    ("group", "left_out"),
    [(1, []), (4, []), (5, [7, 8]), (6, [6, 7, 8]), (8, [5, 6, 7, 8]), (16, [3, 4, 5, 6, 7, 8])],
)
def test_on_metal_rows_that_leave_the_fused_attention_are_not_tried(
    group: int, left_out: list[int]
) -> None:
    assert fused_rows(group, is_metal=False) == ROWS
    assert [n for n in ROWS if n not in fused_rows(group, is_metal=True)] == left_out


def test_the_target_says_how_many_queries_share_a_key(tiny_target: TinyTarget) -> None:
    assert Target(tiny_target("llama")).queries_per_key == 2
    assert Target(tiny_target("phi3", num_key_value_heads=4)).queries_per_key == 1


def records(folder: Path) -> Records:
    return Records(folder, Identity({"chip": "M9"}, {"target": "abc"}))


def test_costs_on_record_are_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def fake(*args: Any) -> Costs:
        measured.append(args)
        return COSTS

    monkeypatch.setattr(planning, "measure", fake)
    nothing: Any = None
    kept = records(tmp_path)
    assert find_costs(nothing, nothing, kept, may_measure=False) == UNMEASURED
    assert measured == []
    first = find_costs(nothing, nothing, kept)
    second = find_costs(nothing, nothing, kept)
    assert len(measured) == 1
    assert first.costs == second.costs == COSTS
    assert first.source == "measured now" and second.source.startswith("measured on 20")


def test_costs_that_cannot_be_kept_are_used_and_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "measure", lambda *args: COSTS)
    (tmp_path / "costs").write_text("a file where a folder belongs")
    nothing: Any = None
    found = find_costs(nothing, nothing, records(tmp_path))
    assert found.costs == COSTS and found.is_measured
    assert "MLX_EAGLE_CACHE names another folder" in found.source


def test_greedy_and_sampled_decoding_learn_apart_from_each_other() -> None:
    planners = Planners(Calibration(COSTS, "", is_measured=True))
    greedy, sampled = planners.planner(0.0), planners.planner(0.7)
    assert greedy is planners.planner(0.0) and sampled is planners.planner(1.2)
    assert greedy.acceptance is not sampled.acceptance
    assert greedy.costs is not sampled.costs


def test_acceptance_is_kept_once_enough_was_learnt(tmp_path: Path) -> None:
    kept = records(tmp_path)
    planners = Planners(Calibration(COSTS, "", is_measured=True), 8, kept)
    planner = planners.planner(0.0)
    for _ in range(50):
        planner.acceptance.observe([0.6], chosen=0)
    planners.keep()
    assert not kept.acceptance_file.exists()
    planner.recent.n_rounds = Planners.WORTH_KEEPING
    planners.keep()
    assert kept.acceptance(GREEDY).children([0.6])[0] > 0.9
    again = Planners(Calibration(COSTS, "", is_measured=True), 8, kept)
    assert again.planner(0.0).acceptance.children([0.6])[0] > 0.9


def test_padding_leaves_the_newest_rows_visible(
    tiny_target: TinyTarget, head_config: HeadConfig
) -> None:
    target, drafter = pair(tiny_target, head_config, "gemma3_text")
    bench = _Bench(target, drafter)
    bench.warm_up()
    bench.pad(500)
    assert bench.cache.rows == 500
    assert all(layer.rows == 500 and layer.pending == 0 for layer in bench.cache.layers)
    logits = target.verify(DraftTree.chain(mx.array([1, 2])), bench.cache).logits
    assert mx.all(mx.isfinite(logits))
