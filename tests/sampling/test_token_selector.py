"""What is chosen after a node depends on its path alone; where mlx's generator is left."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.sample_utils import make_sampler

from mlx_eagle.sampling.samplers import SeededSampler, StockSampler
from mlx_eagle.sampling.token_selector import TokenSelector
from mlx_eagle.tree import DraftTree

# Two children of the root, the first of which has two, the second one: paths cross in their order.
PARENTS = [0, 0, 0, 1, 2, 1]
PATHS = [[0], [0, 1], [0, 2], [0, 1, 3], [0, 2, 4], [0, 1, 5]]
VOCABULARY = 50


def test_a_node_is_processed_with_its_own_path_and_nothing_else() -> None:
    seen: list[list[int]] = []

    def note(tokens: mx.array, logits: mx.array) -> mx.array:
        seen.append(tokens.tolist())
        return logits

    selector = TokenSelector(SeededSampler(), [note], history=[1, 2])
    tree = DraftTree.static(mx.array([3, 8, 5, 9]), [0, 0, 0, 1])
    selector(mx.zeros((4, 12)), tree, 2)
    assert seen == [[1, 2, 3], [1, 2, 3, 8], [1, 2, 3, 5], [1, 2, 3, 8, 9]]
    selector.commit(tree, [0, 2])
    seen.clear()
    selector(mx.zeros((1, 12)), DraftTree.chain(mx.array([7])), 4)
    assert seen == [[1, 2, 3, 5, 7]]


@pytest.fixture
def tree() -> DraftTree:
    return DraftTree.static(mx.arange(len(PARENTS)), PARENTS)


@pytest.fixture
def logits() -> mx.array:
    """Random logits [N, V]."""
    return mx.array(np.random.default_rng(2).normal(size=(len(PARENTS), VOCABULARY)))


def draw_along(path: list[int], logits: mx.array) -> list[int]:
    """What mlx-lm's sampler draws after the nodes of a path, one call after another."""
    rows = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    sampler = make_sampler(1.0)
    return [int(sampler(rows[node : node + 1]).item()) for node in path]


def test_every_node_draws_after_its_own_path(tree: DraftTree, logits: mx.array) -> None:
    mx.random.seed(8)
    found = TokenSelector(StockSampler(make_sampler(1.0)))(logits, tree, 5).tokens.tolist()
    for path in PATHS:
        mx.random.seed(8)
        assert draw_along(path, logits)[-1] == found[path[-1]]


@pytest.mark.parametrize("n_tokens", [4, 5, 6])
def test_mlxs_generator_goes_back_to_the_last_token_of_the_answer(
    n_tokens: int, tree: DraftTree, logits: mx.array
) -> None:
    """Three rounds accept one, two and three nodes; the answer ends within the last one."""
    mx.random.seed(8)
    selector = TokenSelector(StockSampler(make_sampler(1.0)))
    for path in ([0], [0, 2], [0, 1, 3]):
        selector(logits, tree, 5)
        selector.commit(tree, path)
    selector.end(n_tokens)
    after = mx.random.uniform().item()
    mx.random.seed(8)
    draw_along([0, 0, 2, 0, 1, 3][:n_tokens], logits)
    assert after == mx.random.uniform().item()


def test_seeded_draws_of_a_node_are_those_of_its_position(
    tree: DraftTree, logits: mx.array
) -> None:
    selector = TokenSelector(SeededSampler(1.0, seed=4))
    found = selector(logits, tree, 5).tokens.tolist()
    for path in PATHS:
        alone = selector(logits[path[-1]][None], DraftTree.chain(mx.array([0])), 4 + len(path))
        assert alone.tokens.item() == found[path[-1]]
