"""The optimizers of a head's weights, their learning rates, and how gradients are clipped.

AdamW for every weight, or Muon (https://kellerjordan.github.io/posts/muon/) for matrices, with
AdamW for norms, biases, embeddings and output layers: whose rows belong to single tokens, and are
not orthogonalised against each other.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import AdamW, MultiOptimizer, Muon, clip_grad_norm
from mlx.utils import tree_reduce

from mlx_eagle.training.options import LoopOptions

BETAS = (0.9, 0.95)
# Full learning rates of AdamW: where Muon has the matrices, and where it has everything.
RATES = {"muon": 1e-3, "adamw": 1e-4}
ROWS_OF_TOKENS = ("embed_tokens", "lm_head")


def make_optimizer(options: LoopOptions, head: nn.Module) -> MultiOptimizer:
    """Return the optimizer of a head's trainable weights, whose state is all there already.

    MLX's Muon averages gradients where others add them up. The update is normalised, so both give
    the same.
    """
    adamw = AdamW(0.0, betas=list(BETAS), weight_decay=0.0, bias_correction=True)
    if options.optimizer == "adamw":
        optimizer = MultiOptimizer([adamw])
    else:
        optimizer = MultiOptimizer([adamw, Muon(0.0, weight_decay=0.0)], [_is_left_to_adamw])
    optimizer.init(head.trainable_parameters())
    mx.eval(optimizer.state)
    return optimizer


def full_rates(options: LoopOptions) -> tuple[float, ...]:
    """Return the full learning rate of AdamW, then that of Muon if it is used."""
    adamw = RATES[options.optimizer] if options.learning_rate is None else options.learning_rate
    return (adamw,) if options.optimizer == "adamw" else (adamw, options.muon_rate)


def set_rates(optimizer: MultiOptimizer, rates: Sequence[float]) -> None:
    """Set the learning rates of the next update, in the order of `full_rates`."""
    for part, rate in zip(optimizer.optimizers, rates, strict=True):
        part.learning_rate = rate


def clipped(gradients: Any, most: float) -> tuple[Any, mx.array]:
    """Return gradients whose norm, all together, is at most `most`, and what it was.

    Args:
        gradients: a tree of arrays.
        most: 0 leaves them as they are.
    """
    if most > 0:
        return clip_grad_norm(gradients, most)  # type: ignore[no-any-return]
    squares = tree_reduce(lambda total, x: total + x.square().sum(), gradients, mx.array(0.0))
    return gradients, mx.sqrt(squares)


def _is_left_to_adamw(name: str, weight: mx.array) -> bool:
    """Say whether a weight, or its gradient, is one that Muon is not made for."""
    return weight.ndim != 2 or any(part in ROWS_OF_TOKENS for part in name.split("."))
