"""Optimizers against PyTorch's, and Muon against the formula of the fixture's trainer."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_eagle.training.options import LoopOptions
from mlx_eagle.training.run.optimizer import (
    clipped,
    full_rates,
    make_optimizer,
    set_rates,
)

SHAPES = {"tall": (9, 4), "wide": (4, 9), "square": (5, 5)}


class Matrices(nn.Module):
    """A few weights with random values."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        for name, shape in SHAPES.items():
            self[name] = mx.array(rng.normal(size=shape).astype(np.float32))
        self["bias"] = mx.array(rng.normal(size=7).astype(np.float32))
        self["lm_head"] = mx.array(rng.normal(size=(6, 4)).astype(np.float32))


def gradients(update: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(100 + update)
    return {
        name: (0.1 * rng.normal(size=weight.shape)).astype(np.float32)
        for name, weight in Matrices().items()
    }


def trained(options: LoopOptions, rates: tuple[float, ...], n_updates: int) -> dict[str, Any]:
    """The weights after some updates at constant rates."""
    head = Matrices()
    optimizer = make_optimizer(options, head)
    for update in range(n_updates):
        set_rates(optimizer, rates)
        optimizer.update(head, {k: mx.array(g) for k, g in gradients(update).items()})
    return {name: np.array(weight) for name, weight in head.items()}


@pytest.mark.torch
def test_adamw_is_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    theirs = {k: torch.nn.Parameter(torch.tensor(np.array(w))) for k, w in Matrices().items()}
    optimizer = torch.optim.AdamW(theirs.values(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for update in range(20):
        for name, gradient in gradients(update).items():
            theirs[name].grad = torch.tensor(gradient)
        optimizer.step()
    ours = trained(LoopOptions(optimizer="adamw"), (3e-3,), 20)
    for name, weight in theirs.items():
        np.testing.assert_allclose(ours[name], weight.detach().numpy(), rtol=1e-5, atol=1e-6)


def orthogonalized(update: np.ndarray) -> np.ndarray:
    """Five steps of Newton and Schulz, as the fixture's trainer writes them."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update / (np.linalg.norm(update) + 1e-7)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return np.asarray(x.T if is_tall else x)


def test_muon_is_that_of_the_fixtures_trainer() -> None:
    start = {name: np.array(Matrices()[name], dtype=np.float64) for name in SHAPES}
    momentum = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for update in range(10):
        for name in SHAPES:
            gradient = gradients(update)[name].astype(np.float64)
            momentum[name] = 0.95 * momentum[name] + gradient
            rows, columns = SHAPES[name]
            scale = max(1, rows / columns) ** 0.5
            start[name] -= 0.02 * scale * orthogonalized(gradient + 0.95 * momentum[name])
    ours = trained(LoopOptions(optimizer="muon"), (1e-3, 0.02), 10)
    for name in SHAPES:
        np.testing.assert_allclose(ours[name], start[name], rtol=1e-4, atol=1e-5)


def test_under_muon_the_rest_is_adamws() -> None:
    with_muon = trained(LoopOptions(optimizer="muon"), (3e-3, 0.02), 3)
    alone = trained(LoopOptions(optimizer="adamw"), (3e-3,), 3)
    for name in with_muon:
        assert (with_muon[name] == alone[name]).all() == (name not in SHAPES)


@pytest.mark.torch
@pytest.mark.parametrize("most", [0.05, 0.5, 1e3])
def test_clipping_is_pytorchs(most: float) -> None:
    torch = pytest.importorskip("torch")
    given = gradients(0)
    theirs = [torch.nn.Parameter(torch.zeros(g.shape)) for g in given.values()]
    for parameter, gradient in zip(theirs, given.values(), strict=True):
        parameter.grad = torch.tensor(gradient)
    norm = torch.nn.utils.clip_grad_norm_(theirs, most)
    ours, our_norm = clipped({name: mx.array(g) for name, g in given.items()}, most)
    assert float(our_norm) == pytest.approx(float(norm), rel=1e-6)
    for parameter, gradient in zip(theirs, ours.values(), strict=True):
        np.testing.assert_allclose(np.array(gradient), parameter.grad.numpy(), rtol=1e-5)


def test_clip_0_measures_and_changes_nothing() -> None:
    given = {name: mx.array(g) for name, g in gradients(0).items()}
    same, norm = clipped(given, 0)
    assert same is given
    assert float(norm) == pytest.approx(float(clipped(given, 1)[1]))


def test_rates_are_the_users_or_those_of_the_optimizer() -> None:
    assert full_rates(LoopOptions(optimizer="muon")) == (1e-3, 0.02)
    assert full_rates(LoopOptions(optimizer="muon", muon_rate=0.1)) == (1e-3, 0.1)
    assert full_rates(LoopOptions(optimizer="adamw", learning_rate=0.5)) == (0.5,)
