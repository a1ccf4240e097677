"""What is computed in 16 bits leaves the weights, and their gradients, in float32."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.training.new_head import unfreeze_weights
from mlx_eagle.training.objectives.eagle3 import make_objective
from mlx_eagle.training.objectives.mixed_precision import in_precision
from mlx_eagle.training.objectives.teacher import Teacher
from mlx_eagle.training.options import HeadOptions
from training_cases import eagle_head, random_batch, tiny_target


def test_gradients_in_16_bits_point_where_those_in_float32_do(head_config: HeadConfig) -> None:
    target = tiny_target()
    head = eagle_head(head_config)
    unfreeze_weights(head)
    teacher = Teacher(target.embedding, target.unembed)
    objective = make_objective(head, teacher, HeadOptions(steps=3))
    batch = random_batch(head.config, target)
    half = batch._replace(
        taps=batch.taps.astype(mx.bfloat16), final=batch.final.astype(mx.bfloat16)
    )
    before = dict(tree_flatten(head.parameters()))
    (loss, _), gradients = nn.value_and_grad(head, in_precision(objective, head, mx.bfloat16))(half)
    assert all(mx.array_equal(w, before[name]) for name, w in tree_flatten(head.parameters()))
    (loss_2, _), gradients_2 = nn.value_and_grad(head, objective)(batch)
    np.testing.assert_allclose(loss, loss_2, rtol=0.02)
    for (name, found), (_, wanted) in zip(
        tree_flatten(gradients), tree_flatten(gradients_2), strict=True
    ):
        assert found.dtype == mx.float32
        cosine = (found * wanted).sum() / (mx.linalg.norm(found) * mx.linalg.norm(wanted))
        assert cosine > 0.98, name
