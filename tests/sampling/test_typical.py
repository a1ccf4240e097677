"""Typical acceptance against the authors' rule, path by path in NumPy, and its marks."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from doubles import Letters, make_engine
from mlx_eagle.bench.contestants import make_contestant
from mlx_eagle.bench.specs import parse_spec
from mlx_eagle.decoding.accept import accept
from mlx_eagle.sampling.samplers import SeededSampler
from mlx_eagle.sampling.typical import TypicalSampler
from mlx_eagle.tree import DraftTree, TreeShape

PARENTS = [0, 0, 0, 0, 1, 1, 2, 2, 4, 6, 6, 9]


def paths_to(node: int) -> list[int]:
    return [node] if node == 0 else [*paths_to(PARENTS[node]), node]


def longest_by_hand(probs: np.ndarray, tokens: list[int]) -> int:
    """How many drafted tokens the rule accepts on its best path."""

    def is_typical(node: int) -> bool:
        p = probs[PARENTS[node]]
        entropy = -(p * np.log(p)).sum()
        return bool(p[tokens[node]] > min(0.09, 0.3 * np.exp(-entropy)))

    paths = (paths_to(node)[1:] for node in range(1, len(PARENTS)))
    return max((len(p) for p in paths if all(map(is_typical, p))), default=0)


def test_the_longest_path_of_likely_enough_tokens_is_taken() -> None:
    rng = np.random.default_rng(1)
    lengths = set()
    for seed in range(60):
        logits = rng.normal(size=(len(PARENTS), 12)).astype(np.float32) * 1.5
        tokens = rng.integers(0, 12, len(PARENTS)).tolist()
        tree = DraftTree.static(mx.array(tokens, dtype=mx.int32), PARENTS)
        sampler = TypicalSampler(temperature=1.0, seed=seed)
        chosen = sampler(mx.array(logits), tree, 3)
        path, token = accept(tokens, PARENTS, np.array(chosen).tolist())
        probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        want = longest_by_hand(probs.astype(np.float64), tokens)
        own = np.array(SeededSampler(temperature=1.0, seed=seed)(mx.array(logits), tree, 3))
        # A token that the target draws may be a child all the same.
        assert len(path) - 1 >= want
        if len(path) - 1 == want:
            assert token == own[path[-1]]
        lengths.add(want)
    assert lengths >= {0, 1, 2}


def test_it_is_marked_as_lossy_wherever_it_shows(tiny_target: Any, head_config: Any) -> None:
    engine = make_engine(tiny_target("llama"), head_config, Letters())
    options = {"max_tokens": 9, "ignore_eos": True, "tree": TreeShape(2, 4, 12)}
    drawn = engine.generate([5, 9], temperature=1.5, seed=1, acceptance="typical", **options)
    assert (drawn.stats.acceptance_rule, drawn.stats.is_lossy) == ("typical", True)
    assert drawn.stats.to_dict()["is_lossy"] is True
    assert "does not keep the target's distribution" in drawn.stats.advice
    greedy = engine.generate([5, 9], acceptance="typical", **options)
    assert (greedy.stats.acceptance_rule, greedy.stats.is_lossy) == ("match", False)
    assert greedy.tokens == engine.generate([5, 9], **options).tokens
    contestant = make_contestant(parse_spec("typical:tree:2x4x12"), engine, *[pytest.fail] * 2)
    assert contestant.name == "typical:tree:2x4x12 (lossy)"
    assert not contestant.same_draws
