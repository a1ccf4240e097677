"""Computing in 16 bits with weights that are kept, and updated, in float32."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlx_eagle.training.batch import Batch, Figures, Objective


def in_precision(objective: Objective, head: nn.Module, dtype: mx.Dtype) -> Objective:
    """Return an objective that computes in a type; gradients come out in that of the weights.

    Args:
        objective: reads the head's weights.
        head: its weights are float32.
        dtype: float32 returns the objective as it is.
    """
    if dtype == mx.float32:
        return objective

    def cast(batch: Batch) -> tuple[mx.array, Figures]:
        kept = head.trainable_parameters()
        head.update(tree_map(lambda weight: weight.astype(dtype), kept))
        try:
            return objective(batch)
        finally:
            head.update(kept)

    found: Any = cast
    return found  # type: ignore[no-any-return]
