"""Drafts that are drawn and accepted by ratio: the target's distribution, by enumeration.

Target and drafter are Markov chains over five tokens. Seeds are fixed, so the tests are too; were
they not, each would fail by chance in one of 10,000 runs.
"""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from cases import broad
from doubles import Letters, make_drafted_engine, make_engine, perturbed
from mlx_eagle.decoding.accept import Accepted, accept
from mlx_eagle.drafters.drawn import draw_tree
from mlx_eagle.errors import EagleError
from mlx_eagle.sampling.ratio import RatioSampler
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.static_tree import StaticTree
from mlx_eagle.tree import DraftTree, TreeShape

N_TOKENS = 5
Z = 3.719  # standard deviations that are exceeded, to one side, once in 10,000
RNG = np.random.default_rng(2)
TARGET, DRAFT = (RNG.normal(size=(N_TOKENS, N_TOKENS)) * 1.5 for _ in range(2))
PROMPT = [5, 9, 17]
SHAPES = {"chain": TreeShape.chain(2), "tree": TreeShape(2, 3, 7)}


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probs: np.ndarray = e / e.sum(axis=-1, keepdims=True)
    return probs


def play_round(
    sampler: RatioSampler, root: int, at: int, shape: TreeShape
) -> tuple[DraftTree, Accepted]:
    """One round below `root` at position `at`."""
    target, draft = (mx.array(t.astype(np.float32)) for t in (TARGET, DRAFT))
    first = mx.array([root], dtype=mx.int32)
    structure = StaticTree.drawn(shape)
    tree = draw_tree(first, structure, sampler, at, lambda _, level: draft[level.tokens])
    chosen = sampler(target[tree.tokens], tree, at)
    packed = np.array(mx.stack([tree.tokens, chosen])).tolist()
    return tree, accept(packed[0], structure.parents, packed[1])


def pairs(n: int, shape: TreeShape, **options: Any) -> tuple[np.ndarray, int]:
    """Counts [V, V] of the first two tokens after token 0, and how often a draft began them."""
    counts, n_accepted = np.zeros((N_TOKENS, N_TOKENS)), 0
    for seed in range(n):
        sampler = RatioSampler(temperature=1.0, seed=seed, **options)
        tokens: list[int] = []
        while len(tokens) < 2:
            root = tokens[-1] if tokens else 0
            tree, (path, token) = play_round(sampler, root, 7 + len(tokens), shape)
            n_accepted += not tokens and len(path) > 1
            tokens += [*np.array(tree.tokens)[path[1:]].tolist(), token]
        counts[tokens[0], tokens[1]] += 1
    return counts, n_accepted


def check_counts(counts: np.ndarray, expected: np.ndarray) -> None:
    """Chi-square; cells that are seldom met stand together."""
    n = counts.sum()
    often = expected * n >= 5
    seen = np.append(counts[often], counts[~often].sum())
    want = np.append(expected[often], expected[~often].sum()) * n
    seen, want = seen[want > 0], want[want > 0]
    statistic = ((seen - want) ** 2 / want).sum()
    freedom = len(want) - 1
    # Wilson and Hilferty's cube of a normal variable.
    limit = freedom * (1 - 2 / (9 * freedom) + Z * np.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit


@pytest.mark.parametrize("name", [broad("chain"), "tree"])
def test_the_text_has_the_targets_distribution(name: str, is_quick: bool) -> None:
    n = 250 if is_quick else 20000
    counts, n_accepted = pairs(n, SHAPES[name])
    probs = softmax(TARGET)
    check_counts(counts, probs[0][:, None] * probs)
    if name == "chain":
        rate = np.minimum(softmax(TARGET)[0], softmax(DRAFT)[0]).sum()
        deviation = np.sqrt(rate * (1 - rate) / n)
        assert abs(n_accepted / n - rate) < 3.9 * deviation
        assert rate < 0.7, "the drafter is to be a bad one"


@pytest.mark.broad
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("options", [{"top_p": 0.6}, {"top_k": 2}, {"min_p": 0.3}])
def test_filters_hold_for_both(name: str, options: dict[str, Any]) -> None:
    counts, _ = pairs(5000, SHAPES[name], **options)
    filtered = RatioSampler(temperature=1.0, seed=0, **options).log_probs(mx.array(TARGET))
    probs = np.exp(np.array(filtered).astype(np.float64))
    check_counts(counts, probs[0][:, None] * probs)


def test_siblings_are_tried_against_what_is_left_by_the_formula() -> None:
    """The worked example, and a third token: every outcome of a tree of two siblings by hand."""
    p, q = np.array([0.5, 0.2, 0.3]), np.array([0.1, 0.6, 0.3])
    n, counts = 200, np.zeros(3)
    shape = StaticTree.of([(0,), (1,)])
    logits, drafts = (mx.log(mx.array(x.astype(np.float32)))[None] for x in (p, q))
    for seed in range(n):
        sampler = RatioSampler(temperature=1.0, seed=seed)
        root = mx.array([0], dtype=mx.int32)
        tree = draw_tree(root, shape, sampler, 3, lambda *_: drafts)
        assert len(set(tree.tokens.tolist()[1:])) == 2, "drawn without replacement"
        counts[sampler(mx.repeat(logits, 3, 0), tree, 3)[0].item()] += 1
    check_counts(counts, p)


def test_a_drafter_that_is_the_target_is_always_believed(tiny_target: Any) -> None:
    engine = make_drafted_engine(tiny_target("llama"), tiny_target("llama"), Letters())
    options = {"temperature": 0.8, "max_tokens": 13, "ignore_eos": True, "acceptance": "ratio"}
    stats = engine.generate(PROMPT, tree=TreeShape.chain(3), seed=1, **options).stats
    assert stats.n_accepted_per_round == [3, 3, 3]
    assert stats.acceptance_rule == stats.to_dict()["acceptance_rule"] == "ratio"


def test_a_seed_gives_the_same_text_with_the_same_trees(tiny_target: Any) -> None:
    draft = perturbed(tiny_target("qwen3"), 0.5)
    engine = make_drafted_engine(tiny_target("qwen3"), draft, Letters())
    options = {"temperature": 1.2, "max_tokens": 12, "ignore_eos": True, "acceptance": "ratio"}
    texts = {
        tuple(engine.generate(PROMPT, tree=TreeShape(3, 3, 9), seed=seed, **options).tokens)
        for seed in (1, 1, 2)
    }
    assert len(texts) == 2
    stats = engine.generate(PROMPT, tree=TreeShape(3, 3, 9), seed=1, **options).stats
    assert 0 < stats.accepted < stats.drafted
    planned = engine.generate(PROMPT, seed=1, **options).stats  # the planner looks at no draft
    assert planned.planned is not None and planned.drafted > 0
    assert engine.planners.planner(1.0, "ratio").plan(0).check is None


def test_where_nothing_is_drawn_the_rule_is_match(tiny_target: Any) -> None:
    engine = make_drafted_engine(tiny_target("llama"), tiny_target("llama"), Letters())
    options = {"max_tokens": 9, "ignore_eos": True, "tree": TreeShape(3, 2, 6)}
    greedy = engine.generate(PROMPT, acceptance="ratio", **options)
    assert greedy.stats.acceptance_rule == "match"
    assert greedy.tokens == engine.generate(PROMPT, **options).tokens


def test_a_head_is_refused_by_name(tiny_target: Any, head_config: Any) -> None:
    engine = make_engine(tiny_target("llama"), head_config, Letters())
    with pytest.raises(EagleError, match="drafts of tiny are chosen, not drawn"):
        engine.generate(PROMPT, temperature=1.0, acceptance="ratio")
    options = {"temperature": 1.0, "acceptance": "ratio", "max_tokens": 3}
    assert engine.generate(PROMPT, speculate=False, **options).tokens
    with pytest.raises(ValueError, match="gives no probabilities"):
        GenerationOptions(sampler=lambda x: x, acceptance="ratio")
