"""What a head learns from is what the target says, for all of its tokens or for some."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_eagle.target.target import Target
from mlx_eagle.training.features.compute import compute, tap_for_features
from mlx_eagle.training.objectives.teacher import Teacher
from tiny_models import build_target

TOKENS = np.random.default_rng(0).integers(0, 128, 20).astype(np.int32)
IDS = mx.array([3, 40, 41, 100])


def logits_of_model(target: Target) -> mx.array:
    return target.forward(mx.array(TOKENS), target.make_cache()).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "cohere", "gemma2"])
def test_recomputed_logits_are_those_of_the_model(architecture: str, tied: bool) -> None:
    model = build_target(architecture, tie_word_embeddings=tied)
    target = Target(model)
    final = mx.array(compute(tap_for_features(target, ()), TOKENS).final)
    teacher, wanted = Teacher.of(target), logits_of_model(target)
    np.testing.assert_allclose(teacher.logits_of()(final), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(teacher.logits_of(IDS)(final), wanted[:, IDS], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_quantized_output_layer_gives_the_rows_that_are_asked_for(tied: bool, mode: str) -> None:
    model = build_target("llama", tie_word_embeddings=tied)
    group_size, bits = (32, 8) if mode == "affine" else (32, 4)
    nn.quantize(model, group_size, bits, mode=mode)
    target = Target(model)
    final = mx.array(compute(tap_for_features(target, ()), TOKENS).final)
    teacher, wanted = Teacher.of(target), logits_of_model(target)[:, IDS]
    np.testing.assert_allclose(teacher.logits_of(IDS)(final), wanted, rtol=1e-4, atol=1e-4)
    plain = final @ teacher.weight(IDS).astype(mx.float32).T
    np.testing.assert_allclose(plain, wanted, rtol=1e-3, atol=1e-3)
