"""A loss in blocks of rows is the loss of all rows, its gradients too, with fewer logits."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_eagle.training.objectives import losses
from mlx_eagle.training.objectives.blocks import loss_in_blocks
from mlx_eagle.training.objectives.eagle3 import make_objective
from mlx_eagle.training.objectives.teacher import Teacher
from mlx_eagle.training.options import HeadOptions
from tiny_models import tiny_head_config
from training_cases import EAGLE, eagle_head, medusa_head, random_batch, tiny_target

B, L, D, W = 2, 11, 8, 24


def block_loss(
    hidden: mx.array, weight: mx.array, wanted: mx.array, factors: mx.array
) -> tuple[mx.array, mx.array]:
    """A loss with a soft cap, which no gradient by hand would know of."""
    logits = 5 * mx.tanh(hidden @ weight.T / 5)
    chosen = mx.take_along_axis(logits, wanted[..., None], axis=-1)[..., 0]
    each = mx.logsumexp(logits, axis=-1) - chosen
    return (factors * each * each).sum(), logits.argmax(-1)


def inputs() -> tuple[mx.array, mx.array, mx.array, mx.array]:
    mx.random.seed(0)
    hidden, weight = mx.random.normal((B, L, D)), mx.random.normal((W, D))
    return hidden, weight, mx.random.randint(0, W, (B, L)), mx.random.uniform(0, 2, (B, L))


def in_blocks(hidden: mx.array, weight: mx.array) -> mx.array:
    _, _, wanted, factors = inputs()
    return 3 * loss_in_blocks(block_loss, hidden, [weight], [wanted, factors], hidden)[0]


def at_once(hidden: mx.array, weight: mx.array) -> mx.array:
    _, _, wanted, factors = inputs()
    return 3 * block_loss(hidden, weight, wanted, factors)[0]


@pytest.mark.parametrize("block", [4, 512])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_loss_and_gradients_are_those_of_all_rows_at_once(
    block: int, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "BLOCK", block)
    hidden, weight, _, _ = inputs()
    both = [mx.value_and_grad(f, argnums=(0, 1)) for f in (in_blocks, at_once)]
    found, wanted = (mx.compile(f) if is_compiled else f for f in both)
    (loss, ours), (loss_2, theirs) = (f(hidden, weight) for f in (found, wanted))
    np.testing.assert_allclose(loss, loss_2, rtol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_likeliest_ids_are_those_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "BLOCK", 4)
    hidden, weight, *rows = inputs()
    found = loss_in_blocks(block_loss, hidden, [weight], rows, hidden)[1]
    assert mx.array_equal(found, (hidden @ weight.T).argmax(-1))


def test_in_16_bits_the_gradient_of_a_weight_does_not_lose_the_last_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 600 ones added in bfloat16, those after the 256th are rounded away."""

    def ones(hidden: mx.array, weight: mx.array) -> tuple[mx.array, mx.array]:
        return (hidden @ weight.T).astype(mx.float32).sum(), mx.zeros(hidden.shape[:2], mx.int32)

    monkeypatch.setattr(losses, "BLOCK", 1)
    hidden, weight = mx.ones((1, 600, 1), mx.bfloat16), mx.ones((1, 1), mx.bfloat16)
    gradient = mx.grad(lambda w: loss_in_blocks(ones, hidden, [w], [], hidden)[0])(weight)
    assert gradient.dtype == mx.bfloat16
    assert gradient.item() == 600


VOCABULARY, LENGTH = 8192, 64


@pytest.mark.parametrize("algorithm", ["eagle", "hass", "medusa"])
def test_no_objective_holds_the_logits_of_all_rows(
    algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "BLOCK", 2)
    target = tiny_target(VOCABULARY)
    mx.eval(target.embedding.weight, target.output.weight)
    sizes: Any = {"target_vocab_size": VOCABULARY, "draft_vocab_size": VOCABULARY}
    if algorithm == "medusa":
        head: Any = medusa_head(**sizes, own_lm_heads=False)
    else:
        head = eagle_head(tiny_head_config(), **EAGLE | sizes)
    head.unfreeze()
    head.freeze(recurse=False, keys=["draft_to_target"])
    batch = random_batch(head.config, target, ("1" * LENGTH,))
    options = HeadOptions(algorithm=algorithm, steps=2)
    objective = make_objective(head, Teacher(target.embedding, target.unembed), options)
    mx.eval(head.parameters(), batch)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    (loss, _), gradients = nn.value_and_grad(head, objective)(batch)
    mx.eval(loss, [array for _, array in tree_flatten(gradients)])
    logits = 4 * LENGTH * VOCABULARY  # of all rows: at once, a loss takes seven such arrays or more
    assert mx.get_peak_memory() - before < 2 * logits
