"""Drafts that a draft model draws: each from its own distribution after the path above it."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_eagle.drafters.base import Draws
from mlx_eagle.drafters.draft_model import DraftModelDrafter
from mlx_eagle.drafters.drawn import DrawnDrafts
from mlx_eagle.heads.draft_model import DraftModel
from mlx_eagle.sampling.ratio import RatioSampler
from mlx_eagle.target.target import Target
from mlx_eagle.tree import PLAIN, TreeShape
from tiny_models import build_target

TEXT = [5, 9, 17, 3, 44, 2, 61, 8]


@pytest.fixture(scope="module")
def drafter() -> DraftModelDrafter:
    drafter = DraftModelDrafter(DraftModel(build_target("llama")), Target(build_target("llama")))
    drafter.begin(mx.array(TEXT[:1], dtype=mx.int32))
    drafter.observe(None, mx.array(TEXT[1:], dtype=mx.int32))
    return drafter


@pytest.mark.parametrize("shape", [TreeShape.chain(3), TreeShape(3, 3, 9), TreeShape(3, 4, 20)])
def test_every_node_is_drawn_by_what_mlx_lm_says_after_its_path(
    drafter: DraftModelDrafter, shape: TreeShape
) -> None:
    sampler = RatioSampler(temperature=0.7, seed=3)
    tree = DrawnDrafts(drafter, sampler).draft(mx.array(TEXT[-1:], dtype=mx.int32), shape)
    tokens, parents = tree.tokens.tolist(), tree.structure()
    rows = np.array(tree.draft_log_probs)
    paths: list[list[int]] = [[]]
    for node in range(1, tree.n_nodes):
        paths.append([*paths[parents[node]], tokens[node]])
    for node in set(parents):
        logits = drafter.model.network(mx.array([[*TEXT, *paths[node]]]))[0, -1] / 0.7
        want = np.array(logits - mx.logsumexp(logits))
        np.testing.assert_allclose(rows[node], want, rtol=1e-4, atol=1e-4)
    above = np.array(tree.log_probs)[parents]
    own = rows[parents, tokens]
    np.testing.assert_allclose(np.array(tree.log_probs)[1:], (above + own)[1:], rtol=1e-5)
    assert drafter.cache.rows == len(TEXT), "drafted rows are forgotten"


def test_what_stands_in_for_the_drafter_for_one_answer_is_one(drafter: DraftModelDrafter) -> None:
    assert isinstance(drafter, Draws)
    drawn = DrawnDrafts(drafter, RatioSampler(temperature=1.0, seed=1))
    for name in ("max_width", "max_depth", "rows", "nbytes"):
        assert getattr(drawn, name) == getattr(drafter, name)
    assert drawn.draft(mx.array([8]), PLAIN).n_nodes == 1
    with pytest.raises(AssertionError, match="not checked"):
        next(iter([drawn.greedy_path(1, 1)]))
    twin = DrawnDrafts(drafter.fork(), RatioSampler(temperature=1.0, seed=1))
    twin.observe(None, mx.array([1, 2], dtype=mx.int32))
    twin.trim(4)
    assert (twin.rows, drafter.rows) == (4, len(TEXT) - 1)
    assert len(twin.buffers) == len(drafter.buffers)
