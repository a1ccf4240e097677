"""What is computed in 16 bits leaves the weights, and their gradients, in float32."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.unroll import UnrolledKeys
from mlx_eagle.target.hooks import wrap_method
from mlx_eagle.training.new_head import unfreeze_weights
from mlx_eagle.training.objectives.eagle3 import make_objective
from mlx_eagle.training.objectives.mixed_precision import in_precision
from mlx_eagle.training.objectives.teacher import Teacher
from mlx_eagle.training.options import HeadOptions
from training_cases import eagle_head, random_batch, tiny_target


def watched_types(head: EagleHead) -> set[mx.Dtype]:
    """Return the set into which the types of what the head's norms are given will come."""
    seen: set[mx.Dtype] = set()

    def note(plain: Any, self: nn.Module, x: mx.array) -> mx.array:
        seen.add(x.dtype)
        return plain(self, x)

    for _, module in head.named_modules():
        if isinstance(module, nn.RMSNorm):
            wrap_method(module, "__call__", note)
    return seen


@pytest.mark.parametrize("of_queries", [True, False])
def test_attention_gives_gradients_in_the_type_of_its_inputs(of_queries: bool) -> None:
    shapes = [(1, heads, 6, 8) for heads in (4, 2, 2)]
    arrays = [mx.random.normal(shape).astype(mx.bfloat16) for shape in shapes]

    def attend(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        cache = UnrolledKeys(None)
        first = cache.attend(queries, keys, values, 0.3, None)
        return (first + cache.attend(queries, keys, values, 0.3, None)).sum()

    found = mx.grad(attend, argnums=(0,) if of_queries else (1, 2))(*arrays)
    assert {gradient.dtype for gradient in found} == {mx.bfloat16}


def test_gradients_in_16_bits_point_where_those_in_float32_do(head_config: HeadConfig) -> None:
    target = tiny_target()
    head = eagle_head(head_config, num_hidden_layers=2, sliding_windows=(None, None), qk_norm=True)
    unfreeze_weights(head)
    teacher = Teacher(target.embedding, target.unembed)
    objective = make_objective(head, teacher, HeadOptions(steps=3))
    batch = random_batch(head.config, target)
    half = batch._replace(
        taps=batch.taps.astype(mx.bfloat16), final=batch.final.astype(mx.bfloat16)
    )
    seen = watched_types(head)
    before = dict(tree_flatten(head.parameters()))
    (loss, _), gradients = nn.value_and_grad(head, in_precision(objective, head, mx.bfloat16))(half)
    assert all(mx.array_equal(w, before[name]) for name, w in tree_flatten(head.parameters()))
    assert seen == {mx.bfloat16}, "embeddings of another type would promote all that follows"
    (loss_2, _), gradients_2 = nn.value_and_grad(head, objective)(batch)
    np.testing.assert_allclose(loss, loss_2, rtol=0.02)
    for (name, found), (_, wanted) in zip(
        tree_flatten(gradients), tree_flatten(gradients_2), strict=True
    ):
        assert found.dtype == mx.float32
        cosine = (found * wanted).sum() / (mx.linalg.norm(found) * mx.linalg.norm(wanted))
        assert cosine > 0.98, name
