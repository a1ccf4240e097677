"""The self-test: equality, caches, memory, costs and speed of one pair on this machine."""

from collections.abc import Callable
from typing import Any, NamedTuple

from mlx_eagle.bench.asked import Asked
from mlx_eagle.bench.contestants import Contestant, make_contestant
from mlx_eagle.bench.machine import describe_machine
from mlx_eagle.bench.measure import Trial, measure, warm_up
from mlx_eagle.bench.metrics import Sample
from mlx_eagle.bench.prompts import BenchPrompt
from mlx_eagle.bench.specs import parse_specs
from mlx_eagle.bench.text_comparison import Comparison, compare, judge_by
from mlx_eagle.engine import Engine
from mlx_eagle.errors import EagleError
from mlx_eagle.selftest.caches import CacheCheck, check_caches
from mlx_eagle.selftest.kernels import KernelLook, look_at_kernels
from mlx_eagle.selftest.memory import MemoryLook, piles_up, watch_memory
from mlx_eagle.tree_shape import TreeShape

TREES = ("auto", "chain:4", "tree:4x2x6", "tree:5x4x15")
CHAINS = ("auto", "chain:2", "chain:4", "chain:6")
TEMPERATURES = (0.0, 0.8)

Report = Callable[[str, int, int], None]  # what is done, steps done, steps in all


class Sizes(NamedTuple):
    """How much is tried: tokens of each text, and of the one answer for which memory is watched."""

    tokens: int = 48
    memory_tokens: int = 2000


class SelfTest(NamedTuple):
    """What was found.

    Attributes:
        machine: chip, system and versions.
        pair: what was loaded, as the chat's banner says it.
        comparison: of every drafted text with plain decoding's.
        caches: what became of every kind of cache.
        memory: what MLX held during a long answer.
        kernels: whether few-row kernels run here, and their time over that of MLX's.
        costs: seconds of rounds by rows and context, as measured here; None without a head.
        speeds: by contestant, how many times as fast as plain decoding its greedy texts came.
        plain_tps: tokens per second of plain decoding.
    """

    machine: dict[str, Any]
    pair: dict[str, str]
    comparison: Comparison
    caches: list[CacheCheck]
    memory: list[MemoryLook]
    kernels: KernelLook
    costs: dict[str, Any] | None
    speeds: dict[str, float]
    plain_tps: float

    @property
    def faults(self) -> list[str]:
        """What is wrong, a line each; empty if all is well."""
        found = [
            f"the text of {bug.contestant} at temperature {bug.temperature:g} differs from plain "
            f"decoding's by more than a near-tie (prompt {bug.prompt_id}, token {bug.position})"
            for bug in self.comparison.bugs
        ]
        found += [
            f"a cache ({check.kind}) holds something else after commits: logits differ by "
            f"{check.difference:.2g} of their spread, rounding by {check.floor:.2g}"
            for check in self.caches
            if not check.is_right
        ]
        if piles_up(self.memory):
            last = self.memory[-1]
            found.append(
                f"MLX keeps {last.unused / 1e6:.0f} MB unused after {last.tokens} tokens, the "
                f"caches hold {last.caches / 1e6:.0f} MB"
            )
        return found


def run_selftest(
    engine: Engine,
    prompts: list[BenchPrompt],
    report: Report,
    sizes: Sizes = Sizes(),  # noqa: B008 (it cannot be changed)
) -> SelfTest:
    """Try everything that another machine may do differently.

    Args:
        engine: a loaded pair.
        prompts: some that it can answer.
        report: called with (what is done, steps done, steps in all).
        sizes: how much is tried.

    Raises:
        EagleError: if there is no head, so that nothing is drafted.
    """
    if engine.head is None:
        raise EagleError(
            f"there is nothing to test without a head: speculation is {engine.info.speculation}"
        )
    costs = engine.calibrate(lambda done, total: report("calibrate", done, total)).costs
    contestants = _contestants(engine)
    asked = Asked.of(engine, prompts)
    first = asked.ids(0.0, 0)
    trial = Trial(max_tokens=sizes.tokens, temperatures=TEMPERATURES, warmup=8)
    warm_up(contestants, first, trial)
    samples = measure(contestants, asked, trial, lambda done, total: report("texts", done, total))
    names = {contestant.name for contestant in contestants}
    judge = judge_by(engine.target.model, asked.ids, trial.seed)
    comparison = compare(samples, contestants[0].name, names, judge)
    report("caches", 0, 1)
    caches = check_caches(engine.target)
    report("memory", 0, 1)
    memory = watch_memory(engine, first, sizes.memory_tokens)
    report("memory", 1, 1)
    speeds, plain_tps = _speeds(samples, contestants[0].name)
    pair = {
        "target": f"{engine.info.target} · {engine.info.target_precision}",
        "head": f"{engine.info.head} · {engine.info.head_precision}",
        "speculation": engine.info.speculation,
    }
    kernels = look_at_kernels(engine.kernels)
    findings = (comparison, caches, memory, kernels, costs.to_dict(), speeds, plain_tps)
    return SelfTest(describe_machine(), pair, *findings)


def _contestants(engine: Engine) -> list[Contestant]:
    """Return plain decoding, and ways to draft that this target can verify and this head make."""
    assert engine.head is not None, "checked before"
    specs = parse_specs(("plain", *(CHAINS if engine.target.chains_only else TREES)))
    deepest = engine.head.max_depth
    fitting = [s for s in specs if not isinstance(s.shape, TreeShape) or s.shape.depth <= deepest]

    def no_other(*_: Any) -> Any:
        raise AssertionError("no other model takes part")

    return [make_contestant(spec, engine, no_other, no_other) for spec in fitting]


def _speeds(samples: list[Sample], plain: str) -> tuple[dict[str, float], float]:
    """Return how many times as fast as plain decoding greedy texts came, and plain's tokens/s."""
    rates = {}
    for name in dict.fromkeys(sample.contestant for sample in samples):
        mine = [s for s in samples if s.contestant == name and s.temperature == 0]
        rates[name] = sum(s.n_timed for s in mine) / max(sum(s.seconds for s in mine), 1e-9)
    return {n: rate / rates[plain] for n, rate in rates.items() if n != plain}, rates[plain]
