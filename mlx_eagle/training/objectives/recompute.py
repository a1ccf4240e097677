"""Steps that keep their inputs and outputs only, and are computed again for their gradients.

`mx.checkpoint` does not serve here: it computes a step again as soon as its outputs are there, all
steps long before their gradients, and then holds as much as if nothing had been forgotten. What is
computed again here waits for the gradients of the step's outputs, and the step before waits for all
gradients of this one: those of the weights would otherwise be left for the end, and hold everything
that they are made of.
"""

from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

Step = Callable[..., list[mx.array]]


def recomputed(head: nn.Module, step: Step) -> Step:
    """Return a step of a head that forgets what it computes on the way.

    Args:
        head: the step reads its trainable weights, and is differentiated by them.
        step: arrays to a list of arrays.
    """
    names = list(dict(tree_flatten(head.trainable_parameters())))

    def with_weights(*arrays: mx.array) -> list[mx.array]:
        present = head.trainable_parameters()
        head.update(tree_unflatten(list(zip(names, arrays, strict=False))))
        try:
            return step(*arrays[len(names) :])
        finally:
            head.update(present)

    @mx.custom_function
    def forgetful(*arrays: mx.array) -> list[mx.array]:
        return with_weights(*arrays)

    @forgetful.vjp
    def gradient(primals: Any, cotangents: Any, _: Any) -> Any:
        late = mx.depends(list(primals), list(cotangents))
        found = mx.vjp(with_weights, late, list(cotangents))[1]
        return mx.depends(found, found)

    def call(*arrays: mx.array) -> list[mx.array]:
        weights = dict(tree_flatten(head.trainable_parameters())).values()
        return cast(list[mx.array], forgetful(*weights, *arrays))

    return call
