"""The self-test as a whole: it runs here, and what is planted shows in its verdict."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import mlx_eagle
from command_line import run_here
from mlx_eagle.bench.prompts import builtin_prompts
from mlx_eagle.cache.options import WHOLE
from mlx_eagle.calibration.kernels import Kernels, TargetSource
from mlx_eagle.calibration.planners import UNMEASURED, Calibration
from mlx_eagle.cli.main import run
from mlx_eagle.errors import EagleError
from mlx_eagle.hub.packaged import DEMO
from mlx_eagle.load_options import LoadOptions
from mlx_eagle.sampling.samplers import SeededSampler
from mlx_eagle.selftest.kernels import KernelLook
from mlx_eagle.selftest.memory import MemoryLook
from mlx_eagle.selftest.report import to_json, to_markdown, verdict
from mlx_eagle.selftest.run import Sizes, run_selftest
from turning_pair import make_turning_engine

SMALL = Sizes(tokens=6, memory_tokens=40)
COSTS = Calibration(UNMEASURED.costs, "made up", is_measured=True)


@pytest.fixture(scope="module")
def found() -> Any:
    """What a small pair gives, in a small run with costs that were measured before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlx_eagle.engine.measure_costs", lambda *_: COSTS)
        patch.setattr("mlx_eagle.selftest.caches.KINDS", {"whole": WHOLE})
        patch.setattr("mlx_eagle.selftest.run.warm_up", lambda *_: None)
        engine = make_turning_engine()
        source = TargetSource(DEMO / "target", None, None)
        engine.kernels = Kernels(engine.target, source, LoadOptions().kernels)
        engine.kernels.put_on(print, may_try=False)
        return run_selftest(engine, builtin_prompts(demo=True)[:1], lambda *_: None, SMALL)


def test_a_sound_pair_is_called_sound(found: Any) -> None:
    assert found.faults == []
    assert found.comparison.n_compared == 2 * 4
    assert found.comparison.differences == []
    assert [check.is_right for check in found.caches] == [True]
    assert found.memory[-1].tokens == 40
    assert set(found.speeds) == {"auto", "chain:4", "tree:4x2x6", "tree:5x4x15"}
    assert verdict(found).startswith("sound: 8 drafted texts equal plain decoding's; the fastest")


def test_the_reports_hold_all_of_it(found: Any) -> None:
    facts = json.loads(to_json(found))
    assert facts["is_sound"] is True
    assert facts["machine"]["mlx"] and facts["costs"]["contexts"]
    page = to_markdown(found)
    for title in ("Machine", "Pair", "Caches after commits", "Memory during", "Milliseconds"):
        assert f"## {title}" in page
    contexts = " | ".join(map(str, facts["costs"]["contexts"]))
    assert f"| rows | {contexts} |" in page
    assert verdict(found) in page


def test_the_reports_tell_what_was_found_of_kernels(found: Any) -> None:
    assert "another device" in found.kernels.status
    look = KernelLook("on for 8 rows", [("128->64", ["8: 0.60 used"])], {8: 0.75})
    page, facts = (make(found._replace(kernels=look)) for make in (to_markdown, to_json))
    assert "## Few-row kernels: on for 8 rows" in page
    assert "| 128->64 | 8: 0.60 used |" in page and "| 8 | 0.75 |" in page
    assert json.loads(facts)["kernels"]["forward"] == {"8": 0.75}


def test_every_fault_is_named_in_the_verdict(found: Any) -> None:
    piled = found._replace(memory=[MemoryLook(200, 1, 10**9, 10**6)])
    assert verdict(piled).startswith("1 faults: MLX keeps 1000 MB unused after 200 tokens")
    wrong = found.caches[0]._replace(is_right=False, difference=1.5)
    both = piled._replace(caches=[wrong])
    assert len(both.faults) == 2
    assert "a cache (whole) holds something else after commits" in verdict(both)
    assert "| whole | 1.5 |" in to_markdown(both) and "WRONG" in to_markdown(both)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs that were measured before, caches that were tried, one prompt, few tokens."""
    one = builtin_prompts(demo=True)[:1]
    monkeypatch.setattr("mlx_eagle.bench.prompts.builtin_prompts", lambda demo: one)
    monkeypatch.setattr("mlx_eagle.engine.measure_costs", lambda *_: COSTS)
    monkeypatch.setattr("mlx_eagle.selftest.run.check_caches", lambda _: [])
    monkeypatch.setattr("mlx_eagle.selftest.run.warm_up", lambda *_: None)
    monkeypatch.setattr("mlx_eagle.selftest.run.TREES", ("chain:4",))
    monkeypatch.setattr("mlx_eagle.selftest.run.TEMPERATURES", (0.0,))
    monkeypatch.setattr(Sizes, "__new__", lambda cls, tokens=4: SMALL)


@pytest.mark.usefixtures("quick")
def test_a_target_that_chooses_otherwise_in_trees_is_a_bug(
    turning: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = SeededSampler.__call__

    def lie(self: Any, logits: mx.array, tree: Any, rows: int) -> mx.array:
        tokens = plain(self, logits, tree, rows)
        return tokens if tokens.shape[0] == 1 else (tokens + 1) % 4000

    monkeypatch.setattr(SeededSampler, "__call__", lie)
    monkeypatch.setattr(turning, "planners", turning.planners)
    found = run_selftest(turning, builtin_prompts(demo=True)[:1], lambda *_: None, SMALL)
    assert any("differs from plain decoding's by more than a near-tie" in f for f in found.faults)


@pytest.mark.usefixtures("small_toy_pair")
def test_without_a_head_there_is_nothing_to_test() -> None:
    engine = mlx_eagle.load(head="none")
    with pytest.raises(EagleError, match="nothing to test without a head"):
        run_selftest(engine, [], lambda *_: None)


@pytest.mark.usefixtures("quick", "small_toy_pair")
def test_the_command_writes_both_files_and_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    assert run(["selftest", "--out", str(out), "--tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("sound: ")
    assert {file.name for file in out.iterdir()} == {"selftest.json", "selftest.md"}
    again = run_here("selftest", "--out", str(out))
    assert (again.returncode, "exists" in again.stderr) == (1, True)
