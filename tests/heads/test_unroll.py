"""A head that drafts at every token at once gives what it gives when it drafts there alone."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from cases import rotated
from mlx_eagle.heads import unroll
from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.exponential import exponential, softmax
from mlx_eagle.heads.unroll import UnrolledCache, UnrolledKeys
from own_heads import EAGLE, PLAIN, H

LENGTH, STEPS = 11, 4
HEADS = {
    "plain": PLAIN,
    "two layers, output normed": replace(
        PLAIN, num_hidden_layers=2, sliding_windows=(None, None), norm_output=True
    ),
    "window shorter than the text": replace(PLAIN, sliding_windows=(5,)),
    "window shorter than the draft": replace(PLAIN, sliding_windows=(3,)),
    "rotated in pairs": replace(PLAIN, rope_interleaved=True, qk_norm=True),
    "eagle-1": EAGLE,
}


def random_head(config: HeadConfig) -> EagleHead:
    mx.random.seed(3)
    head = EagleHead(config)
    head.update(tree_map(lambda w: mx.random.normal(w.shape) * 0.3, head.parameters()))
    return head


def drafted_alone(head: EagleHead, taps: mx.array, embeddings: mx.array, start: int) -> list:
    """What the head gives when it has observed the tokens up to `start` and then drafts."""
    cache, n = head.make_cache(), start + 1
    out = head(head.fuse(taps[:, :n]), embeddings[:, 1 : n + 1], cache)
    cache.commit(range(n))
    found = [out.normed[0, -1]]
    for i in range(1, STEPS):
        out = head(out.feedback[:, -1:], embeddings[:, n + i : n + i + 1], cache)
        found.append(out.normed[0, -1])
    return found


def drafted_everywhere(
    head: EagleHead, taps: mx.array, embeddings: mx.array, texts: mx.array | None = None
) -> list[mx.array]:
    cache, hidden, found = UnrolledCache.of(head, texts), head.fuse(taps), []
    for i in range(STEPS):
        out = head(hidden, embeddings[:, 1 + i : 1 + i + taps.shape[1]], cache)
        found.append(out.normed)
        hidden = out.feedback
    return found


def inputs(head: EagleHead, rows: int = 1) -> tuple[mx.array, mx.array]:
    mx.random.seed(4)
    taps = mx.random.normal((rows, LENGTH, len(head.config.taps) * H))
    return taps, mx.random.normal((rows, LENGTH + STEPS, H))


@pytest.mark.parametrize(("name", "block"), list(rotated(HEADS, [4, 5, 256])))
def test_every_start_gives_what_it_gives_alone(
    name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unroll, "BLOCK", block)
    head = random_head(HEADS[name])
    taps, embeddings = inputs(head)
    together = drafted_everywhere(head, taps, embeddings)
    for start in range(LENGTH):
        alone = drafted_alone(head, taps, embeddings, start)
        for i in range(STEPS):
            atol = 1e-5 * max(1.0, float(mx.abs(alone[i]).max()))
            np.testing.assert_allclose(together[i][0, start], alone[i], rtol=2e-4, atol=atol)


@pytest.mark.parametrize("name", [name for name in HEADS if name != "eagle-1"])
def test_what_tokens_give_may_be_computed_once_for_all_steps(name: str) -> None:
    head = random_head(HEADS[name])
    taps, embeddings = inputs(head)
    tokens, cache, hidden = head.token_side(embeddings), UnrolledCache.of(head), head.fuse(taps)
    for i, expected in enumerate(drafted_everywhere(head, taps, embeddings)):
        out = head(hidden, [side[:, 1 + i : 1 + i + LENGTH] for side in tokens], cache)
        np.testing.assert_allclose(out.normed, expected, rtol=2e-4, atol=2e-5)
        hidden = out.feedback


def test_no_text_sees_another() -> None:
    head = random_head(PLAIN)
    taps, embeddings = inputs(head)
    texts = mx.array([[1] * 4 + [2] * (LENGTH - 4)])
    packed = drafted_everywhere(head, taps, embeddings, texts)
    alone = drafted_everywhere(head, taps[:, 4:], embeddings[:, 4:])
    for ours, theirs in zip(packed, alone, strict=True):
        np.testing.assert_allclose(ours[:, 4:], theirs, rtol=2e-4, atol=2e-5)


def dense(queries: mx.array, keys: list, values: list, window: int | None) -> mx.array:
    """Attention of the last step with one mask over the keys of all steps."""
    length, step = queries.shape[2], len(keys) - 1
    rows = mx.arange(length)[:, None]
    masks = [mx.tril(mx.ones((length, length), dtype=mx.bool_))]
    masks += [mx.eye(length, dtype=mx.bool_)] * step
    if window is not None:
        for i, mask in enumerate(masks):
            masks[i] = mask & (rows + step - (mx.arange(length)[None] + i) < window)
    return mx.fast.scaled_dot_product_attention(
        queries,
        mx.concatenate(keys, axis=2),
        mx.concatenate(values, axis=2),
        scale=0.4,
        mask=mx.concatenate(masks, axis=1),
    )


@pytest.mark.parametrize("window", [None, 3])
def test_its_gradient_is_that_of_one_dense_mask(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unroll, "BLOCK", 4)
    mx.random.seed(5)
    shapes = [(2, heads, LENGTH, 8) for heads in (4, 2, 2)]
    steps = [[mx.random.normal(shape) for shape in shapes] for _ in range(3)]
    weight = mx.random.normal(shapes[0])

    def ours(steps: list) -> mx.array:
        cache, total = UnrolledKeys(None), mx.array(0.0)
        for queries, keys, values in steps:
            total += (weight * cache.attend(queries, keys, values, 0.4, window)).sum()
        return total

    def naive(steps: list) -> mx.array:
        total = mx.array(0.0)
        for i in range(len(steps)):
            _, keys, values = (list(part) for part in zip(*steps[: i + 1], strict=True))
            total += (weight * dense(steps[i][0], keys, values, window)).sum()
        return total

    found, wanted = mx.value_and_grad(ours)(steps), mx.value_and_grad(naive)(steps)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    for ours_of_step, naive_of_step in zip(found[1], wanted[1], strict=True):
        for a, b in zip(ours_of_step, naive_of_step, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_exponential_is_that_of_the_library_and_nothing_where_that_is_next_to_nothing() -> None:
    x = mx.concatenate([-mx.random.uniform(0, 40, (1000,)), mx.array([0.0, -1e4, -mx.inf])])
    np.testing.assert_allclose(
        exponential(x), np.exp(np.array(x, np.float64)), rtol=4e-6, atol=1e-18
    )


def test_a_softmax_gives_hidden_scores_nothing_at_all() -> None:
    found = softmax(mx.array([[1.0, -mx.inf, 3.0]]))
    np.testing.assert_allclose(
        found, mx.softmax(mx.array([[1.0, -mx.inf, 3.0]]), axis=-1), rtol=1e-6
    )
    assert found[0, 1].item() == 0.0
