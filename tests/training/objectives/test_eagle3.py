"""Losses and gradients of every objective against PyTorch in float64."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

pytest.importorskip("torch", reason="the oracle")

import torch

from cases import broad
from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.training.objectives import losses
from mlx_eagle.training.objectives.eagle3 import make_objective
from mlx_eagle.training.objectives.teacher import Teacher
from mlx_eagle.training.options import HeadOptions
from reference_head import TorchHead, torch_weights
from reference_losses import Figures, Given, eagle1, eagle3, given, hass, medusa
from training_cases import (
    EAGLE,
    FLAGS,
    eagle_head,
    medusa_head,
    random_batch,
    tiny_target,
)

pytestmark = pytest.mark.torch
TOP_WEIGHT = 1.0  # of the distillation term, as our HASS has it
MORE_FLAGS = [
    {**one, **other}
    for i, one in enumerate(FLAGS)
    for other in FLAGS[i + 1 :]
    if "num_hidden_layers" not in other or "sliding_windows" not in one
]


def reference(head: Any, g: Given, weights: Any, options: HeadOptions) -> Figures:
    """Compute the objective that the options name in PyTorch."""
    if options.algorithm == "medusa":
        return medusa(head.config, weights, g, options.step_decay)
    oracle = TorchHead(head.config, weights)
    if options.algorithm == "eagle":
        return eagle1(oracle, g)
    if options.algorithm == "hass":
        return hass(oracle, g, options.steps, options.step_decay, TOP_WEIGHT)
    return eagle3(oracle, g, options.steps, options.step_decay)


def assert_equal(head: Any, options: HeadOptions) -> None:
    """Loss, figures of every step and every gradient equal those of PyTorch."""
    target = tiny_target()
    batch = random_batch(head.config, target)
    head.unfreeze()
    head.freeze(recurse=False, keys=["draft_to_target"])
    objective = make_objective(head, Teacher(target.embedding, target.unembed), options)
    (loss, figures), gradients = nn.value_and_grad(head, objective)(batch)
    weights = torch_weights(tree_flatten(head.parameters()))
    g = given(batch, target.embedding.weight, target.unembed.weight)
    want = reference(head, g, weights, options)
    want.total.backward()  # type: ignore[no-untyped-call]

    assert loss.item() == pytest.approx(want.total.item(), rel=1e-5)
    losses = want.losses.detach().numpy()
    np.testing.assert_allclose(np.array(figures.losses), losses, rtol=1e-5)
    assert np.array(figures.hits).tolist() == want.hits.tolist()
    assert np.array(figures.counted).tolist() == want.counted.tolist()
    assert_gradients(dict(tree_flatten(gradients)), weights)


def assert_gradients(found: dict[str, mx.array], weights: dict[str, torch.Tensor]) -> None:
    """Every float parameter has a gradient, relative error below 1e-4 by norm; no other has."""
    floats = {name for name, weight in weights.items() if weight.requires_grad}
    assert floats <= set(found)
    for name in floats:
        gradient = weights[name].grad
        want = np.zeros(found[name].shape) if gradient is None else gradient.numpy()
        error = np.linalg.norm(np.array(found[name]) - want)
        assert error <= 1e-4 * np.linalg.norm(want) + 1e-9, name


@pytest.mark.parametrize(
    "flags",
    [*FLAGS, *(broad(flags) for flags in MORE_FLAGS)],
    ids=lambda flags: "+".join(flags) or "plain",
)
def test_training_time_test_has_the_gradients_of_pytorch(
    flags: dict[str, Any], head_config: HeadConfig
) -> None:
    assert_equal(eagle_head(head_config, **flags), HeadOptions(steps=4))


@pytest.mark.parametrize("steps", [1, broad(2), broad(7), broad(16)])
def test_any_number_of_steps_has_the_gradients_of_pytorch(
    steps: int, head_config: HeadConfig
) -> None:
    assert_equal(eagle_head(head_config), HeadOptions(steps=steps, step_decay=0.9))


@pytest.fixture(params=[4, broad(losses.BLOCK)])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of logits that exist at the same time: fewer than a row of the batch has, or all."""
    monkeypatch.setattr(losses, "BLOCK", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"own_lm_head": True},
        broad({"num_hidden_layers": 2, "sliding_windows": (3, None)}),
    ],
)
@pytest.mark.parametrize("algorithm", ["eagle", "hass"])
def test_losses_on_features_have_the_gradients_of_pytorch(
    algorithm: str, more: dict[str, Any], head_config: HeadConfig
) -> None:
    head = eagle_head(head_config, **EAGLE | more)
    assert_equal(
        head, HeadOptions(algorithm=algorithm, steps=3 if algorithm == "hass" else 1, noise=0.0)
    )


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("own", [True, False])
def test_medusa_heads_have_the_gradients_of_pytorch(own: bool) -> None:
    head = medusa_head(own_lm_heads=own, draft_vocab_size=48 if own else 64)
    assert_equal(head, HeadOptions(algorithm="medusa"))
