"""Conversations that a planner drafts: the text of plain decoding, whatever is planned."""

from collections.abc import Callable
from functools import cache
from typing import Any

import mlx.core as mx
import pytest

from cases import rotated
from mlx_eagle.cache.options import KVOptions
from mlx_eagle.calibration.planners import Calibration, Planners
from mlx_eagle.engine import Engine
from mlx_eagle.planner.cost_model import Costs
from mlx_eagle.planner.planner import CHILDREN, Phase
from mlx_eagle.tree import TreeShape

TEXT = {"max_tokens": 24, "ignore_eos": True}
FREE = dict.fromkeys(range(1, 9), (1e-4,))
STEPS = tuple(1e-6 * d for d in range(1, 9))
MACHINES = {
    "rows free": Costs((0,), FREE, (1e-4,), STEPS, 0.0),
    "waits dear": Costs((0,), FREE, (1e-4,), tuple(2e-5 * d for d in range(1, 9)), 1.9e-5),
    "rows dear": Costs((0,), {n: (1e-4 * n,) for n in range(1, 9)}, (1e-4,), STEPS, 0.0),
    "one row": Costs((0,), {1: (1e-4,)}, (1e-4,), STEPS, 0.0),
}


def planned(engine: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """The engine on a machine of these costs."""
    planners = Planners(Calibration(MACHINES[name], "made up", is_measured=True), 255)
    monkeypatch.setattr(engine, "planners", planners)
    return engine


def ask(prompts: list[str], index: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompts[index]}]


@pytest.fixture(scope="module")
def plain_tokens(turning: Any, prompts: list[str]) -> Callable[[int, float], list[int]]:
    """The plain text after a prompt, which machines share."""

    @cache
    def generate(index: int, temperature: float) -> list[int]:
        options = TEXT | {"temperature": temperature, "seed": index}
        question = ask(prompts, index)
        tokens: list[int] = turning.generate(question, speculate=False, **options).tokens
        return tokens

    return generate


@pytest.mark.parametrize(("name", "temperature"), list(rotated(MACHINES, [0.0, 0.8])))
def test_what_is_planned_does_not_show_in_the_text(
    name: str,
    temperature: float,
    turning: Any,
    prompts: list[str],
    plain_tokens: Callable[[int, float], list[int]],
    monkeypatch: pytest.MonkeyPatch,
    is_quick: bool,
) -> None:
    engine = planned(turning, monkeypatch, name)
    for index in (1,) if is_quick else (1, 5):
        options = TEXT | {"temperature": temperature, "seed": index}
        found = engine.generate(ask(prompts, index), **options)
        assert found.tokens == plain_tokens(index, temperature)
        assert found.stats.rounds == found.stats.planned.rounds
        if name == "rows free":
            assert found.stats.accepted > 6 and found.stats.speculation == "on"


@pytest.mark.parametrize("name", ["rows dear", "one row"])
def test_where_nothing_can_pay_nothing_is_drafted_and_the_reason_is_told(
    name: str, turning: Any, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = planned(turning, monkeypatch, name).session()
    stats = list(session.ask(prompts[1], max_tokens=20, ignore_eos=True))[-1].stats
    assert stats.drafted == 0 and stats.planned.plain_rounds == stats.rounds == 19
    assert stats.speculation.startswith("off: ")
    assert "even a perfect head would give only" in stats.speculation
    # A tree that is asked for is drafted all the same, and the head catches up.
    forced = list(session.ask(prompts[2], max_tokens=20, tree=TreeShape.chain(3)))[-1].stats
    assert forced.drafted > 0 and forced.speculation == "on"


def test_a_long_pause_does_not_cost_the_next_turn_its_cache(
    turning: Any, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = planned(turning, monkeypatch, "rows free").session()
    planner = turning.planners.planner(0.0)
    planner.phase = Phase(10_000)  # as if drafting had not paid for long
    first = list(session.ask(prompts[1], max_tokens=50, ignore_eos=True))[-1]
    assert first.stats.drafted == 0
    planner.phase = Phase()
    second = list(session.ask(prompts[2], max_tokens=30))[-1]
    assert second.stats.cached_tokens >= first.stats.prompt_tokens + 40
    assert second.stats.accepted > 0, "the head has followed the pause"


def test_settings_may_change_from_turn_to_turn(
    turning: Any, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = planned(turning, monkeypatch, "rows free").session()
    questions = sorted(prompts, key=len)  # short ones: fresh conversations read them all again
    changes: list[dict[str, Any]] = [
        {},
        {"speculate": False},
        {"temperature": 0.7, "seed": 3},
        {"tree": TreeShape(3, 2, 5)},
        {},
    ]
    for index, options in enumerate(changes):
        before = list(session.messages)
        found = [r.token for r in session.ask(questions[index], max_tokens=7, **options)]
        plain = {k: v for k, v in options.items() if k != "tree"} | {"speculate": False}
        messages = [*before, {"role": "user", "content": questions[index]}]
        assert found == turning.generate(messages, max_tokens=7, **plain).tokens


def test_planners_of_a_target_that_verifies_chains_plan_chains() -> None:
    costs = Calibration(MACHINES["rows free"], "made up", is_measured=True)
    for chains_only, n_children in ((False, CHILDREN), (True, 1)):
        planner = Planners(costs, chains_only=chains_only).planner(0.0)
        plan = planner.plan(0)
        assert plan.check is planner.round and plan.n_children == n_children


def test_c4_what_was_calibrated_anew_holds_everywhere_at_once(
    turning: Any, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Engine(turning.target, turning.tokenizer, turning.head, turning.info, Planners())
    variant = own.with_kv(KVOptions(bits=8, group_size=32))
    sessions = [own.session(), variant.session()]

    def speculation(machine: str) -> list[str]:
        costs = Calibration(MACHINES[machine], "made up", is_measured=True)
        monkeypatch.setattr("mlx_eagle.engine.measure_costs", lambda *_: costs)
        assert own.calibrate() is costs
        assert own.with_kv(variant.target.kv) is variant
        answers = [list(each.ask(prompts[1], max_tokens=4))[-1] for each in sessions]
        told = [own.info.speculation, variant.info.speculation]
        return [*told, *(answer.stats.speculation for answer in answers)]

    assert speculation("rows free") == ["on"] * 4
    assert all(each.startswith("off: verifying") for each in speculation("rows dear"))
    assert speculation("rows free") == ["on"] * 4


def test_a_calibration_that_is_put_off_is_caught_up_with(
    turning: Any, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then a CPU does not draft; whoever cannot wait ends it and leaves all as it was."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.cpu)
    own = Engine(turning.target, turning.tokenizer, turning.head, turning.info, Planners())
    session = own.session()

    def speculation() -> str:
        stats = list(session.ask(prompts[1], max_tokens=4))[-1].stats
        assert (stats.planned is None) == ("not been measured" in stats.speculation)
        return str(stats.speculation)

    own.await_calibration()
    assert "not been measured yet" in own.info.speculation and own.info.speculation == speculation()
    with pytest.raises(KeyboardInterrupt):
        own.catch_up(interrupt_after(3))
    assert "not been measured yet" in speculation()
    costs = Calibration(MACHINES["rows free"], "made up", is_measured=True)
    monkeypatch.setattr("mlx_eagle.calibration.planners.measure_costs", lambda *_: costs)
    assert own.catch_up() is costs and own.info.speculation == speculation() == "on"
    own.await_calibration()
    assert own.info.speculation == "on", "it is measured"


def interrupt_after(n_reports: int) -> Callable[[int, int], None]:
    """Return a report of progress that interrupts its caller."""
    reports = iter(range(n_reports))

    def report(done: int, total: int) -> None:
        if next(reports, None) is None:
            raise KeyboardInterrupt

    return report
