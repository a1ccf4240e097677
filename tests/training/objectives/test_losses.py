"""Losses in blocks, with gradients of their own, against the same written down plainly."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_eagle.training.objectives import losses
from mlx_eagle.training.objectives.losses import smooth_l1, soft_cross_entropy

K, B, L, H, W = 3, 2, 11, 8, 24
FACTORS = [0.8**i for i in range(K)]


def inputs() -> tuple[list[mx.array], mx.array, mx.array, list[mx.array]]:
    mx.random.seed(0)
    hidden = [mx.random.normal((B, L, H)) for _ in range(K)]
    teacher = mx.softmax(3 * mx.random.normal((B, L, W)), axis=-1)
    weights = [mx.random.bernoulli(0.7, (B, L)) * mx.random.uniform(0, 2, (B, L)) for _ in range(K)]
    for i, weight in enumerate(weights):  # nothing counts where no teacher's row is left
        weight[:, L - 1 - i :] = 0
    return hidden, mx.random.normal((W, H)), teacher, weights


def plain(hidden: list[mx.array], weight: mx.array) -> mx.array:
    _, _, teacher, weights = inputs()
    total = mx.array(0.0)
    for i in range(K):
        n = L - 1 - i
        logits = hidden[i][:, :n] @ weight.T
        drafted = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        each = -(teacher[:, 1 + i :] * drafted).sum(-1)
        total += FACTORS[i] * (weights[i][:, :n] * each).sum()
    return total


def ours(hidden: list[mx.array], weight: mx.array) -> mx.array:
    _, _, teacher, weights = inputs()
    return soft_cross_entropy(hidden, weight, teacher, weights, FACTORS).total


@pytest.mark.parametrize("block", [4, 512])
@pytest.mark.parametrize("compiled", [False, True])
def test_loss_and_gradients_are_those_of_autodiff(
    block: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "BLOCK", block)
    hidden, weight, _, _ = inputs()
    both = [mx.value_and_grad(f, argnums=(0, 1)) for f in (ours, plain)]
    found, wanted = (mx.compile(f) if compiled else f for f in both)
    (loss, (d_hidden, d_weight)), (loss_2, (d_hidden_2, d_weight_2)) = (
        f(hidden, weight) for f in (found, wanted)
    )
    np.testing.assert_allclose(loss, loss_2, rtol=1e-5)
    np.testing.assert_allclose(d_weight, d_weight_2, rtol=1e-4, atol=1e-5)
    for a, b in zip(d_hidden, d_hidden_2, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_in_16_bits_it_is_the_same_within_their_rounding() -> None:
    hidden, weight, teacher, weights = inputs()
    half = [x.astype(mx.bfloat16) for x in hidden]
    found = soft_cross_entropy(half, weight.astype(mx.bfloat16), teacher, weights, FACTORS)
    assert found.total.dtype == mx.float32
    np.testing.assert_allclose(found.total, ours(hidden, weight), rtol=0.02)


def test_the_likeliest_ids_are_told_step_by_step() -> None:
    hidden, weight, teacher, weights = inputs()
    found = soft_cross_entropy(hidden, weight, teacher, weights, FACTORS)
    for i in range(K):
        assert mx.array_equal(found.likeliest[i], (hidden[i] @ weight.T).argmax(-1))


def test_a_step_is_weighed_in_the_total_and_not_in_its_own_loss() -> None:
    hidden, weight, teacher, weights = inputs()
    found = soft_cross_entropy(hidden, weight, teacher, weights, FACTORS)
    np.testing.assert_allclose(found.total, (mx.array(FACTORS) * found.each).sum(), rtol=1e-6)
    alone = soft_cross_entropy(hidden[:1], weight, teacher, weights[:1], [1.0])
    np.testing.assert_allclose(found.each[0], alone.total, rtol=1e-6)


def test_smooth_l1_is_square_up_to_one_and_straight_beyond() -> None:
    found = smooth_l1(mx.array([[[0.5, 3.0]]]), mx.zeros((1, 1, 2)), mx.array([[2.0]]))
    assert found.item() == pytest.approx(2 * (0.125 + 2.5) / 2)
