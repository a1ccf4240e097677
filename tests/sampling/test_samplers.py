"""The draw: it follows the distribution, and it depends on the position, not on the tree."""

import mlx.core as mx
import numpy as np
import pytest

from cases import broad
from mlx_eagle.sampling.samplers import NO_NUMBERS, SeededSampler, StockSampler
from mlx_eagle.tree import DraftTree

LOGITS = mx.array([2.0, 1.0, 0.5, 0.0, -1.0, -2.0])


def draws(sampler: SeededSampler, n: int) -> np.ndarray:
    """The tokens drawn from LOGITS at positions 0 to n - 1."""
    tree = DraftTree.chain(mx.zeros((n,), dtype=mx.int32))
    rows = mx.broadcast_to(LOGITS, (n, LOGITS.size))
    return np.array(sampler(rows, tree, 0))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def test_temperature_zero_is_the_argmax() -> None:
    logits = mx.array([[0.0, 5.0, 1.0], [7.0, 5.0, 1.0]])
    tree = DraftTree.chain(mx.array([0, 1]))
    assert SeededSampler()(logits, tree, 3).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, broad(1.0), 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    """Chi-square with 5 degrees of freedom; 30 is exceeded once in 70,000 fair trials."""
    n = 3000
    expected = softmax(np.array(LOGITS) / temperature) * n
    counts = np.bincount(draws(SeededSampler(temperature, seed=11), n), minlength=6)
    assert ((counts - expected) ** 2 / expected).sum() < 30


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.7}, {0, 1}),
        ({"min_p": 0.2}, {0, 1, 2}),
        # Of the two likeliest alone the first would have more than 0.6.
        ({"top_p": 0.6, "top_k": 2}, {0, 1}),
        # At this temperature three tokens would be needed for 0.7, and four were above 0.2.
        ({"top_p": 0.7, "temperature": 2.0}, {0, 1}),
        ({"min_p": 0.2, "temperature": 2.0}, {0, 1, 2}),
    ],
)
def test_filters_leave_only_the_tokens_they_keep(filters: dict[str, float], kept: set[int]) -> None:
    """They work on the distribution at temperature 1, top-p before top-k, as in mlx-lm."""
    assert set(draws(SeededSampler(**{"temperature": 1.0} | filters), 400).tolist()) == kept


def test_the_draw_depends_on_seed_and_position_only() -> None:
    logits = mx.broadcast_to(LOGITS, (4, 6))
    tree = DraftTree.static(mx.array([0, 1, 2, 3]), [0, 0, 0, 1])
    sampler = SeededSampler(1.0, seed=3)
    in_tree = sampler(logits, tree, 40).tolist()
    alone = [
        sampler(logits[:1], DraftTree.chain(mx.array([0])), 40 + d).item() for d in (0, 1, 1, 2)
    ]
    assert in_tree == alone
    others = [SeededSampler(1.0, seed=s)(logits, tree, 40).tolist() for s in range(4, 14)]
    assert any(other != in_tree for other in others)


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": 2.0}, {"top_k": -1}]
)
def test_settings_out_of_range_are_refused_by_name(bad: dict[str, float]) -> None:
    name = next(iter(bad))
    with pytest.raises(ValueError, match=f"{name} is {bad[name]}"):
        SeededSampler(**bad)


@pytest.mark.parametrize("bad", [mx.nan, mx.inf])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"temperature": 0.7, "top_k": 2}])
def test_b7_logits_that_are_no_numbers_are_never_a_token(
    bad: float, options: dict[str, float]
) -> None:
    logits = mx.array([[0.0, 5.0, 1.0], [0.0, bad, 1.0]])
    tree = DraftTree.chain(mx.array([0, 1]))
    for sampler in (SeededSampler(**options), StockSampler(lambda row: mx.argmax(row, axis=-1))):
        sound, broken = sampler(logits, tree, 3).tolist()
        assert 0 <= sound < 3
        assert broken == NO_NUMBERS
