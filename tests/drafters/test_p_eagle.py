"""Heads that draft all depths at once, against naive trees and against plain decoding."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.generate import generate_step

from cases import rotated
from doubles import make_session
from mlx_eagle.calibration.planners import Planners
from mlx_eagle.drafters.eagle import EagleDrafter
from mlx_eagle.drafters.make import make_drafter
from mlx_eagle.drafters.medusa import MedusaDrafter
from mlx_eagle.drafters.p_eagle import PEagleDrafter
from mlx_eagle.drafters.ranking import independent_candidates
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.config import HeadConfig, MedusaConfig
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.load import Head
from mlx_eagle.heads.medusa import MedusaHead
from mlx_eagle.session.session import Session
from mlx_eagle.static_tree import StaticTree
from mlx_eagle.target.target import Target
from mlx_eagle.tree import PLAIN, TreeShape, check_structure

N, H, V = 9, 64, 128

MEDUSA = MedusaConfig(
    algorithm="medusa",
    hidden_size=H,
    target_hidden_size=H,
    target_vocab_size=V,
    draft_vocab_size=V,
    num_heads=4,
    num_layers=1,
    block_bias=True,
    own_lm_heads=True,
    taps=(5,),
)
WIDE = {
    "hidden_size": H,
    "target_hidden_size": H,
    "target_vocab_size": V,
    "draft_vocab_size": V,
}
EAGLE1 = WIDE | {
    "algorithm": "eagle",
    "taps": (5,),
    "fuse_taps": False,
    "input_layernorm": False,
    "hidden_norm": False,
    "final_norm": False,
    "own_lm_head": False,
}
PEAGLE = WIDE | {
    "algorithm": "p-eagle",
    "num_hidden_layers": 2,
    "sliding_windows": (None, None),
    "own_embedding": True,
    "mask_token_id": 7,
}
LAST_HIDDEN = WIDE | {"taps": (5,), "fuse_taps": False, "hidden_norm": False}
WINDOWED = WIDE | {"num_hidden_layers": 2, "sliding_windows": (3, None), "qk_norm": True}


def random_head(config: HeadConfig) -> EagleHead:
    mx.random.seed(3)
    head = EagleHead(config)
    if config.algorithm == "p-eagle":
        head.mask_hidden = mx.random.normal(head.mask_hidden.shape)
    mx.eval(head.parameters())
    return head


@pytest.fixture
def shared() -> Any:
    """What heads borrow of a target."""
    mx.random.seed(6)
    return SimpleNamespace(embedding=nn.Embedding(V, H), unembed=nn.Linear(H, V, bias=False))


def naive_scores(log_probs: np.ndarray, shape: TreeShape) -> dict[tuple[int, ...], float]:
    """The kept paths of independent depths with their scores: expand, score, keep the best."""
    made: dict[tuple[int, ...], float] = {}
    frontier: list[tuple[int, ...]] = [()]
    for depth in range(shape.depth):
        likeliest = np.argsort(-log_probs[depth])[: shape.width]
        level = {
            (*path, int(token)): made.get(path, 0.0) + log_probs[depth][token]
            for path in frontier
            for token in likeliest
        }
        made |= level
        frontier = sorted(level, key=lambda path: -level[path])[: shape.width]
    kept = sorted(made, key=lambda path: -made[path])[: shape.nodes]
    return {path: made[path] for path in kept}


def paths_of(tokens: list[int], parents: list[int]) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tokens[1:], parents[1:], strict=True):
        paths.append((*paths[parent], token))
    return paths[1:]


SHAPES = [TreeShape.chain(1), TreeShape.chain(3), TreeShape(1, 4, 3), TreeShape(4, 3, 9)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_medusa_tree_is_the_naive_one(shape: TreeShape, shared: Any) -> None:
    mx.random.seed(8)
    head = MedusaHead(MEDUSA)
    taps = mx.random.normal((N, H))
    drafter = MedusaDrafter(head, shared)
    drafter.observe(taps, mx.zeros((N,), dtype=mx.int32))
    tree = drafter.draft(mx.array([9]), shape)
    logits = np.array(head(taps[None, -1:])).astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = naive_scores(log_probs, shape)
    tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
    found = paths_of(tokens, parents)
    assert set(found) == set(expected)
    assert tree.depths.tolist() == check_structure(parents)
    want = [expected[path] for path in found]
    np.testing.assert_allclose(tree.log_probs.tolist()[1:], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_p_eagle_tree_reads_each_depth_from_its_masked_row(
    shape: TreeShape, shared: Any, head_config: HeadConfig
) -> None:
    head = random_head(replace(head_config, **PEAGLE))
    mx.random.seed(8)
    taps, next_tokens = mx.random.normal((N, 3 * H)), mx.random.randint(0, V, (N,))
    drafter = PEagleDrafter(head, shared)
    drafter.observe(taps, next_tokens)
    tree = drafter.draft(mx.array([9]), shape)
    # One causal pass over everything: true rows, then masked ones.
    masked = mx.broadcast_to(head.mask_hidden, (shape.depth - 1, 3 * H))
    hidden = head.fuse(mx.concatenate([taps, masked])[None])
    tokens = mx.concatenate([next_tokens, mx.full((shape.depth - 1,), 7)])
    out = head(hidden, head.embed_tokens(tokens[None]), head.make_cache())
    logits = np.array(head.lm_head(out.normed)[0, N - 1 :]).astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = naive_scores(log_probs, shape)
    assert set(paths_of(tree.tokens.tolist(), tree.parents.tolist())) == set(expected)
    assert drafter.rows == N


def test_independent_depths_as_a_literal() -> None:
    """Two depths of two tokens: 0.6 and 0.3, then 0.5 and 0.4."""
    log_probs = mx.log(mx.array([[0.6, 0.3], [0.5, 0.4]]))
    found = independent_candidates(log_probs, mx.array([[1, 2], [3, 4]], dtype=mx.int32))
    assert found.tokens.tolist() == [1, 2, 3, 4, 3, 4]
    assert found.parents.tolist() == [-1, -1, 0, 0, 1, 1]
    assert found.depths.tolist() == [1, 1, 2, 2, 2, 2]
    want = [0.6, 0.3, 0.3, 0.24, 0.15, 0.12]
    np.testing.assert_allclose(np.exp(found.scores), want, rtol=1e-5)


def test_plain_shape_drafts_the_root_alone(shared: Any) -> None:
    drafter = MedusaDrafter(MedusaHead(MEDUSA), shared)
    assert drafter.draft(mx.array([9]), PLAIN).tokens.tolist() == [9]


def heads(head_config: HeadConfig) -> dict[str, Head]:
    eagle = {"eagle 1": EAGLE1, "p-eagle": PEAGLE, "last hidden": LAST_HIDDEN, "window": WINDOWED}
    found: dict[str, Head] = {
        name: random_head(replace(head_config, **changes)) for name, changes in eagle.items()
    }
    mx.random.seed(3)
    return found | {
        "medusa": MedusaHead(MEDUSA),
        "medusa, target's output": MedusaHead(replace(MEDUSA, own_lm_heads=False)),
    }


FIXED = StaticTree.of([(1, 0, 0), (0, 2), (3,)])
NAMES = ["eagle 1", "p-eagle", "last hidden", "window", "medusa", "medusa, target's output"]


def session_of(target: Target, head: Head) -> Session:
    """A conversation whose text nobody reads."""
    make = partial(make_drafter, head, target)
    planners = Planners(max_depth=make().max_depth)
    return make_session(target, make, planners)


@pytest.mark.parametrize(("name", "architecture"), list(rotated(NAMES, ["llama", "gemma3_text"])))
def test_every_kind_of_head_leaves_the_text_as_it_is(
    name: str,
    architecture: str,
    tiny_target: Callable[..., nn.Module],
    head_config: HeadConfig,
    is_quick: bool,
) -> None:
    model = tiny_target(architecture, tie_word_embeddings=architecture != "llama")
    n, prompts = 14, [list(range(3, 33)), [*range(3, 33), 9, 60, 61], list(range(3, 20)), [5]]
    shapes = [None, TreeShape.chain(2), TreeShape(3, 3, 7), FIXED]
    if is_quick:  # two shapes in turn
        n, prompts, shapes = 6, prompts[1:3], [*shapes, *shapes][NAMES.index(name) % 4 :][:2]
    want = [[int(t) for t, _ in generate_step(mx.array(p), model, max_tokens=n)] for p in prompts]
    head = heads(head_config)[name]
    target = Target(model, taps=head.config.taps)
    session = session_of(target, head)
    for shape in shapes:
        for prompt, tokens in zip(prompts, want, strict=True):
            stream = session.stream_generate(prompt, max_tokens=n, tree=shape)
            assert [r.token for r in stream] == tokens


def test_tree_deeper_than_there_are_medusa_heads_is_refused(
    tiny_target: Callable[..., nn.Module],
) -> None:
    head = MedusaHead(replace(MEDUSA, num_heads=2))
    target = Target(tiny_target("llama"), taps=head.config.taps)
    session = session_of(target, head)
    with pytest.raises(EagleError, match="depth 3 was asked for, but the head proposes 2 tokens"):
        session.stream_generate([5, 6], tree=TreeShape.chain(3))
    assert len(list(session.stream_generate([5, 6], max_tokens=5))) == 5, "the default fits"


@pytest.mark.parametrize("name", ["p-eagle", "medusa"])
def test_a_spine_of_a_parallel_head_is_its_chain_with_siblings(
    name: str, tiny_target: Callable[..., nn.Module], head_config: HeadConfig
) -> None:
    head = heads(head_config)[name]
    target = Target(tiny_target("llama"), taps=head.config.taps)
    drafter, cache = make_drafter(head, target), target.make_cache()
    drafter.observe(target.extend(mx.arange(3, 12), cache), mx.arange(4, 13))
    chain = drafter.draft(mx.array([12]), TreeShape.chain(3))
    levels = list(drafter.greedy_path(4, 3))
    assert [tokens[0].item() for _, tokens in levels] == chain.tokens.tolist()[1:]
    scores = np.cumsum([log_probs[0].item() for log_probs, _ in levels])
    np.testing.assert_allclose(scores, chain.log_probs.tolist()[1:], rtol=1e-5)
    assert all(np.all(np.diff(np.array(log_probs)) <= 0) for log_probs, _ in levels)
    again = drafter.draft(mx.array([12]), TreeShape.chain(3))
    assert again.tokens.tolist() == chain.tokens.tolist()


def test_kind_of_drafter_follows_the_head(head_config: HeadConfig, shared: Any) -> None:
    kinds = {name: type(make_drafter(head, shared)) for name, head in heads(head_config).items()}
    assert kinds == {
        "eagle 1": EagleDrafter,
        "p-eagle": PEagleDrafter,
        "last hidden": EagleDrafter,
        "window": EagleDrafter,
        "medusa": MedusaDrafter,
        "medusa, target's output": MedusaDrafter,
    }
