"""Any loss of rows, with gradients that keep no logits.

Logits of all rows over the target's whole vocabulary would be a batch's largest arrays by far:
B * L * V numbers. Here a block of rows is gone through at a time, its gradients included, and only
these stay. `losses.py` does the same for the one loss whose gradients are written down by hand.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from mlx_eagle.training.objectives import losses

# A block of hidden states [B, n, D], weights, and a block of each of some arrays [B, n, ..] to the
# sum of the loss over its rows and the likeliest ids [B, n].
BlockLoss = Callable[..., tuple[mx.array, mx.array]]


def loss_in_blocks(
    block_loss: BlockLoss,
    hidden: mx.array,
    weights: Sequence[mx.array],
    rows: Sequence[mx.array],
    after: mx.array,
) -> tuple[mx.array, mx.array]:
    """Return the sum of a loss over all rows, and the likeliest ids [B, L].

    Args:
        block_loss: of the rows of a block; what else it reads is not differentiated.
        hidden: [B, L, D]; the loss is differentiated by it.
        weights: that the loss is differentiated by besides, the output layer's for example.
        rows: [B, L, ..] each; nothing is differentiated through them.
        after: is computed before the first block. MLX would begin the blocks of all losses before
            it ends one, and hold their logits together.
    """
    loss, likeliest, *_ = _fused(block_loss, 1 + len(weights))(hidden, *weights, *rows, after)
    return loss, likeliest


def _fused(block_loss: BlockLoss, n: int) -> Any:
    """Return the function behind `loss_in_blocks`, with its gradient by the first n arrays."""
    differentiated: Any = mx.value_and_grad(block_loss, argnums=list(range(n)))

    @mx.custom_function
    def fused(*inputs: mx.array) -> list[mx.array]:
        (hidden, *weights), rows, before = inputs[:n], inputs[n:-1], [inputs[-1]]
        parts, gradients = list[tuple[mx.array, mx.array]](), list[mx.array]()
        d_weights = [mx.zeros(weight.shape) for weight in weights]
        for start in range(0, hidden.shape[1], losses.BLOCK):
            block = slice(start, start + losses.BLOCK)
            x = mx.depends([hidden], before)[0][:, block]
            part, found = differentiated(x, *weights, *(array[:, block] for array in rows))
            d_x, *more = found if weights else [found]  # MLX does not wrap a single one
            # Added up in float32: of many blocks in 16 bits the last ones would be rounded away.
            d_weights = [a + b.astype(mx.float32) for a, b in zip(d_weights, more, strict=True)]
            parts.append(part)
            gradients.append(d_x)
            before = [*part, d_x, *d_weights]
        loss = mx.stack([part[0] for part in parts]).sum()
        likeliest = mx.concatenate([part[1] for part in parts], axis=1)
        in_type = [d.astype(w.dtype) for d, w in zip(d_weights, weights, strict=True)]
        return [loss, likeliest, mx.concatenate(gradients, axis=1), *in_type]

    @fused.vjp
    def gradient(primals: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
        scale = cotangents[0]
        found = [(scale * d.astype(mx.float32)).astype(d.dtype) for d in outputs[2:]]
        return [*found, *(mx.zeros_like(other) for other in primals[n:])]

    return fused
