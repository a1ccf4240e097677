"""Steps that are computed again have the same gradients, and hold less on the way to them."""

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from cases import broad
from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.training.new_head import unfreeze_weights
from mlx_eagle.training.objectives.eagle3 import make_objective
from mlx_eagle.training.objectives.teacher import Teacher
from mlx_eagle.training.options import HeadOptions
from training_cases import eagle_head, random_batch, tiny_target


def test_recomputing_changes_no_gradient(head_config: HeadConfig) -> None:
    target = tiny_target()
    head = eagle_head(head_config)
    unfreeze_weights(head)
    teacher, batch = Teacher(target.embedding, target.unembed), random_batch(head.config, target)
    kept, again = (
        nn.value_and_grad(head, make_objective(head, teacher, HeadOptions(), recompute=recompute))
        for recompute in (False, True)
    )
    (loss, _), gradients = kept(batch)
    (loss_2, _), gradients_2 = again(batch)
    assert loss.item() == loss_2.item()
    for (name, a), (_, b) in zip(tree_flatten(gradients), tree_flatten(gradients_2), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("compiled", [broad(False), True])
def test_memory_hardly_grows_with_steps_where_they_are_computed_again(
    compiled: bool, head_config: HeadConfig
) -> None:
    target = tiny_target()
    head = eagle_head(replace(head_config, intermediate_size=256))
    unfreeze_weights(head)
    teacher = Teacher(target.embedding, target.unembed)
    batch = random_batch(head.config, target, ("1" * 160,))
    mx.eval(batch, head.parameters())
    state = head.state

    def peak(steps: int, recompute: bool) -> int:
        objective = make_objective(head, teacher, HeadOptions(steps=steps), recompute=recompute)
        gradients = nn.value_and_grad(head, objective)
        if compiled:
            gradients = mx.compile(gradients, inputs=state, outputs=state)
        mx.reset_peak_memory()
        (loss, _), found = gradients(batch)
        mx.eval(loss, found)
        return mx.get_peak_memory() - mx.get_active_memory()

    kept = peak(8, recompute=False) - peak(2, recompute=False)
    again = peak(8, recompute=True) - peak(2, recompute=True)
    assert again < kept / 2
