"""The dynamic tree against a naive one that evaluates every path by itself."""

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_eagle.drafters.eagle import EagleDrafter
from mlx_eagle.drafters.medusa import MedusaDrafter
from mlx_eagle.drafters.ranking import Candidates, best, rerank
from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.sampling.largest import top_ids
from mlx_eagle.static_tree import StaticTree
from mlx_eagle.tree import PLAIN, TreeShape, check_structure

N = 11  # observed tokens
Parts = tuple[EagleHead, nn.Embedding, mx.array, mx.array]


@pytest.fixture(scope="module")
def parts(head_config: HeadConfig) -> Parts:
    """A random head and embedding, taps [N, 3H] and next_tokens [N]."""
    mx.random.seed(5)
    head, embedding = EagleHead(head_config), nn.Embedding(64, 32)
    head.lm_head.weight = 4 * head.lm_head.weight  # spread the logits
    head.draft_to_target = mx.arange(48, dtype=mx.int32) + 16
    embedding.weight = 8 * embedding.weight
    taps, next_tokens = mx.random.normal((N, 96)), mx.random.randint(0, 64, (N,))
    mx.eval(head.parameters(), embedding.parameters(), taps, next_tokens)
    return head, embedding, taps, next_tokens


def sharing(embedding: nn.Embedding) -> Any:
    """What a drafter asks of a target."""
    return SimpleNamespace(embedding=embedding)


def drafter_after(parts: Parts) -> EagleDrafter:
    head, embedding, taps, next_tokens = parts
    drafter = EagleDrafter(head, sharing(embedding))
    drafter.observe(taps, next_tokens)
    return drafter


def log_probs_after(parts: Parts, path: list[int]) -> np.ndarray:
    """Draft log-probabilities [W] after a path of target ids, run as one plain sequence."""
    head, embedding, taps, next_tokens = parts
    cache = head.make_cache()
    out = head(head.fuse(taps[None]), embedding(next_tokens[None]), cache)
    cache.commit(range(N))
    for token in path:
        out = head(out.feedback[:, -1:], embedding(mx.array([[token]])), cache)
        cache.commit([0])
    logits = np.array(head.lm_head(out.normed[:, -1]))[0].astype(np.float64)
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def naive_tree(parts: Parts, shape: TreeShape) -> dict[tuple[int, ...], float]:
    """The kept paths with their scores: expand, score all children, keep the best."""
    made: dict[tuple[int, ...], float] = {}
    frontier: list[tuple[int, ...]] = [()]
    for _ in range(shape.depth):
        level: dict[tuple[int, ...], float] = {}
        for path in frontier:
            scores = log_probs_after(parts, list(path))
            for draft_id in np.argsort(-scores)[: shape.width]:
                level[(*path, int(draft_id) + 16)] = made.get(path, 0.0) + scores[draft_id]
        made |= level
        frontier = sorted(level, key=lambda path: -level[path])[: shape.width]
    kept = sorted(made, key=lambda path: -made[path])[: shape.nodes]
    return {path: made[path] for path in kept}


def paths_of(tokens: list[int], parents: list[int]) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tokens[1:], parents[1:], strict=True):
        paths.append((*paths[parent], token))
    return paths[1:]


@pytest.mark.parametrize(
    "shape", [TreeShape(1, 4, 3), TreeShape(4, 4, 8), TreeShape(3, 5, 30), TreeShape(6, 3, 20)]
)
def test_the_tree_is_the_naive_dynamic_tree(parts: Parts, shape: TreeShape) -> None:
    tree = drafter_after(parts).draft(mx.array([9]), shape)
    tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
    expected = naive_tree(parts, shape)
    found = paths_of(tokens, parents)
    assert tokens[0] == 9
    assert set(found) == set(expected)
    assert tree.depths.tolist() == check_structure(parents)
    scores = [expected[path] for path in found]
    np.testing.assert_allclose(tree.log_probs.tolist()[1:], scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("paths", [None, [(1, 0, 2), (0, 1, 1), (2,)], [(1, 1, 1, 0)]])
def test_a_fixed_tree_holds_the_ranked_tokens_after_every_path(
    parts: Parts, paths: list[tuple[int, ...]] | None
) -> None:
    """EAGLE-1's tree, one with gaps, and one that goes on from the second child of all levels."""
    fixed = StaticTree.of(paths) if paths else StaticTree.published("eagle1")
    drafter = drafter_after(parts)
    tree = drafter.draft_static(mx.array([9]), fixed)
    assert tree.structure() == fixed.parents
    found, scores = paths_of(tree.tokens.tolist(), fixed.parents), tree.log_probs.tolist()
    for ranks, path, score in zip(fixed.paths, found, scores[1:], strict=True):
        log_probs = log_probs_after(parts, list(path[:-1]))
        draft_id = int(np.argsort(-log_probs)[ranks[-1]])
        assert path[-1] == draft_id + 16
        parent = tree.parents.tolist()[fixed.paths.index(ranks) + 1]
        assert score - scores[parent] == pytest.approx(log_probs[draft_id], abs=1e-4)
    assert drafter.rows == N, "drafted rows are forgotten"


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_chain_follows_the_likeliest_token(parts: Parts, depth: int) -> None:
    tree = drafter_after(parts).draft(mx.array([9]), TreeShape.chain(depth))
    path: list[int] = []
    for _ in range(depth):
        path.append(int(np.argmax(log_probs_after(parts, path))) + 16)
    assert tree.is_chain
    assert tree.tokens.tolist() == [9, *path]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_spine_offers_the_likeliest_children_of_the_likeliest_node(
    parts: Parts, depth: int
) -> None:
    drafter = drafter_after(parts)
    path: list[int] = []
    for log_probs, tokens in drafter.greedy_path(4, depth):
        expected = log_probs_after(parts, path)
        order = np.argsort(-expected)[:4]
        assert tokens.tolist() == (order + 16).tolist()
        np.testing.assert_allclose(np.array(log_probs), expected[order], rtol=1e-4, atol=1e-4)
        path.append(tokens[0].item())
    assert len(path) == depth


def test_a_spine_that_is_left_early_leaves_no_trace(parts: Parts) -> None:
    drafter = drafter_after(parts)
    before = drafter.draft(mx.array([9]), TreeShape.chain(4)).tokens.tolist()
    greedy_path = drafter.greedy_path(4, 8)
    for _ in range(3):
        mx.eval(next(greedy_path))
    greedy_path.close()
    assert drafter.cache.layers[0].pending == 0 and drafter.rows == N
    assert drafter.draft(mx.array([9]), TreeShape.chain(4)).tokens.tolist() == before


def test_a_head_of_few_tokens_offers_as_many_as_there_are(parts: Parts) -> None:
    sizes = [tokens.size for _, tokens in drafter_after(parts).greedy_path(1000, 2)]
    assert sizes == [48, 48]


def test_drafting_leaves_no_trace(
    parts: Parts,
) -> None:
    once, twice = drafter_after(parts), drafter_after(parts)
    twice.draft(mx.array([9]), TreeShape(6, 3, 20)).tokens.tolist()
    twice.draft(mx.array([9]), TreeShape.chain(4))
    trees = [d.draft(mx.array([9]), TreeShape(4, 4, 8)) for d in (once, twice)]
    assert trees[0].tokens.tolist() == trees[1].tokens.tolist()
    assert trees[0].log_probs.tolist() == trees[1].log_probs.tolist()
    assert once.rows == twice.rows == N


def test_observing_in_pieces_equals_observing_at_once(
    parts: Parts,
) -> None:
    head, embedding, taps, next_tokens = parts
    pieces = EagleDrafter(head, sharing(embedding))
    for start, end in [(0, 4), (4, 5), (5, 11)]:
        pieces.observe(taps[start:end], next_tokens[start:end])
    shape = TreeShape(4, 4, 8)
    trees = [d.draft(mx.array([9]), shape) for d in (drafter_after(parts), pieces)]
    assert trees[0].tokens.tolist() == trees[1].tokens.tolist()
    np.testing.assert_allclose(
        trees[0].log_probs.tolist(), trees[1].log_probs.tolist(), rtol=1e-5, atol=1e-5
    )


def test_a_plain_shape_drafts_the_root_alone(
    parts: Parts,
) -> None:
    assert drafter_after(parts).draft(mx.array([9]), PLAIN).tokens.tolist() == [9]


def medusa_after(parts: Parts) -> MedusaDrafter:
    """Medusa heads that have observed all tokens; they are never run."""
    head: Any = SimpleNamespace(max_depth=4, config=SimpleNamespace(draft_vocab_size=9))
    target: Any = SimpleNamespace(unembed=None)
    drafter = MedusaDrafter(head, target)
    drafter.observe(parts[2], parts[3])
    return drafter


@pytest.mark.parametrize("make", [drafter_after, medusa_after])
def test_what_is_forgotten_is_not_drafted_from(make: Any, parts: Parts) -> None:
    drafter = make(parts)
    drafter.trim(drafter.rows)
    assert drafter._newest is not None, "nothing was forgotten"
    drafter.trim(6)
    with pytest.raises(AssertionError, match="observe a token before drafting"):
        drafter.draft(mx.array([9]), TreeShape(2, 2, 4))
    with pytest.raises(AssertionError, match="observe a token before drafting"):
        next(drafter.greedy_path(2, 2))


def test_trimming_forgets_later_tokens(
    parts: Parts,
) -> None:
    _, _, taps, next_tokens = parts
    trimmed = drafter_after(parts)
    trimmed.trim(6)
    trimmed.observe(taps[6:], next_tokens[6:])
    shape = TreeShape(4, 4, 8)
    fresh = drafter_after(parts).draft(mx.array([9]), shape)
    assert trimmed.draft(mx.array([9]), shape).tokens.tolist() == fresh.tokens.tolist()


@given(
    st.lists(st.sampled_from([0.0, -1.0, -1.5, -2.0, -np.inf]), min_size=1, max_size=40), st.data()
)
def test_best_breaks_ties_by_order(scores: list[float], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(scores)))
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:n]
    assert sorted(best(mx.array(scores), n).tolist()) == sorted(expected)


@given(st.data())
def test_ties_never_keep_a_child_without_its_parent(data: st.DataObject) -> None:
    """Log-probabilities of 0 and -inf, the hazards that the reference names."""
    depth, width = data.draw(st.integers(2, 4)), data.draw(st.integers(2, 4))
    step = st.sampled_from([0.0, -0.0, -1e-30, -1.0, -np.inf])
    parents, scores, depths = [-1] * width, [data.draw(step) for _ in range(width)], [1] * width
    newest = list(range(width))
    for level in range(2, depth + 1):
        frontier = sorted(newest, key=lambda i: (-scores[i], i))[:width]
        newest = []
        for parent in frontier:
            for _ in range(width):
                newest.append(len(scores))
                scores.append(scores[parent] + data.draw(step))
                parents.append(parent)
                depths.append(level)
    shape = TreeShape(depth, width, data.draw(st.integers(1, len(scores))))
    candidates = Candidates(
        mx.arange(len(scores), dtype=mx.int32),
        mx.array(parents, dtype=mx.int32),
        mx.array(scores, dtype=mx.float32),
        mx.array(depths, dtype=mx.int32),
    )
    tree = rerank(mx.array([99], dtype=mx.int32), candidates, shape)
    found = tree.parents.tolist()
    assert check_structure(found) == tree.depths.tolist()
    tokens = tree.tokens.tolist()
    for node in range(1, len(tokens)):
        origin = parents[tokens[node]]
        assert tokens[found[node]] == (99 if origin < 0 else origin)


def test_top_ids_come_largest_first() -> None:
    logits = mx.array([[0.5, 3.0, -1.0, 2.0], [9.0, 1.0, 4.0, 8.0]])
    assert top_ids(logits, 3).tolist() == [[1, 3, 0], [0, 3, 2]]
    assert top_ids(logits, 1).tolist() == [[1], [0]]


def test_a_bad_head_that_gives_nan_still_drafts_a_tree(
    parts: Parts,
) -> None:
    head, embedding, taps, next_tokens = parts
    drafter = EagleDrafter(head, sharing(embedding))
    drafter.observe(mx.full(taps.shape, mx.nan), next_tokens)
    tree = drafter.draft(mx.array([9]), TreeShape(3, 3, 10))
    assert check_structure(tree.parents.tolist()) == tree.depths.tolist()
