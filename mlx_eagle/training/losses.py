"""Losses of many rows, with gradients that keep no logits.

The logits of all steps of a batch would be its largest arrays by far: K * B * L * W numbers. Here
they are made, used and forgotten a block of rows at a time. The gradients with respect to the
hidden states and to the output layer's weight are ready when the loss is.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_eagle.heads.exponential import exponential

BLOCK = 512  # rows of logits that exist at the same time, for each row of the batch


class StepLosses(NamedTuple):
    """The losses of K steps.

    Attributes:
        total: their sum, each times its factor; only this one is differentiable.
        each: [K] float32.
        likeliest: K times [B, L], the likeliest ids.
    """

    total: mx.array
    each: mx.array
    likeliest: list[mx.array]


def soft_cross_entropy(
    hidden: Sequence[mx.array],
    weight: mx.array,
    teacher: mx.array,
    weights: Sequence[mx.array],
    factors: Sequence[float],
) -> StepLosses:
    """Return the cross-entropies of softmax(hidden @ weight.T) against a teacher's distribution.

    Row t of step i is compared with the teacher's row t + 1 + i, or with zeros beyond the end.

    Args:
        hidden: K times [B, L, h].
        weight: [W, h], of the output layer.
        teacher: [B, L, W] float32, probabilities; nothing is differentiated through it.
        weights: K times [B, L] float32: of each row in its step's loss.
        factors: of each step in the total.
    """
    n = len(hidden)
    padded = mx.pad(teacher, [(0, 0), (0, n), (0, 0)])
    total, each, *rest = _fused(list(factors))(*hidden, weight, padded, *weights)
    return StepLosses(total, each, rest[:n])


def _fused(factors: list[float]) -> Any:
    """Return the function behind `soft_cross_entropy`, with its gradient."""
    n = len(factors)

    @mx.custom_function
    def fused(*inputs: mx.array) -> list[mx.array]:
        hidden, (weight, teacher), weights = inputs[:n], inputs[n : n + 2], inputs[n + 2 :]
        d_weight = mx.zeros(weight.shape, mx.float32)
        losses, likeliest, d_hidden = [], [], []
        for i, (x, w) in enumerate(zip(hidden, weights, strict=True)):
            step = _Step(x, weight, teacher[:, 1 + i : 1 + i + x.shape[1]], w, factors[i])
            blocks = [step.block(start) for start in range(0, x.shape[1], BLOCK)]
            losses.append(sum(block.loss for block in blocks))
            likeliest.append(mx.concatenate([block.likeliest for block in blocks], axis=1))
            d_hidden.append(mx.concatenate([block.d_hidden for block in blocks], axis=1))
            for block in blocks:
                d_weight = d_weight + block.d_weight
        each = mx.stack(losses)
        total = (mx.array(factors) * each).sum()
        return [total, each, *likeliest, *d_hidden, d_weight.astype(weight.dtype)]

    @fused.vjp
    def gradient(primals: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
        scale = cotangents[0]
        found = [(scale * d.astype(mx.float32)).astype(d.dtype) for d in outputs[2 + n :]]
        return [*found, *(mx.zeros_like(other) for other in primals[n + 1 :])]

    return fused


class _Block(NamedTuple):
    """The loss of a block of rows, and what follows from it at once."""

    loss: mx.array
    likeliest: mx.array  # [B, n]
    d_hidden: mx.array  # [B, n, h]
    d_weight: mx.array  # [W, h]


class _Step(NamedTuple):
    """The inputs of one step's loss."""

    hidden: mx.array  # [B, L, h]
    weight: mx.array  # [W, h]
    teacher: mx.array  # [B, L, W]
    weights: mx.array  # [B, L]
    factor: float

    def block(self, start: int) -> _Block:
        """Return the loss and the gradients of the rows from `start` on."""
        rows = slice(start, start + BLOCK)
        x, p, w = self.hidden[:, rows], self.teacher[:, rows], self.weights[:, rows, None]
        logits = (x @ self.weight.T).astype(mx.float32)  # [B, n, W]
        highest = logits.max(-1, keepdims=True)
        raised = exponential(logits - highest)
        total = raised.sum(-1, keepdims=True)
        each = highest + mx.log(total) - (p * logits).sum(-1, keepdims=True)
        d_logits = (raised * (w * self.factor / total) - p * (w * self.factor)).astype(x.dtype)
        flat, flat_x = d_logits.reshape(-1, p.shape[-1]), x.reshape(-1, x.shape[-1])
        d_weight = (flat.T @ flat_x).astype(mx.float32)
        return _Block((w * each).sum(), logits.argmax(-1), d_logits @ self.weight, d_weight)


def smooth_l1(found: mx.array, wanted: mx.array, weights: mx.array) -> mx.array:
    """Return the weighted sum of the rows' smooth L1 distances, each the mean over D.

    Args:
        found: [B, L, D].
        wanted: [B, L, D]; nothing is differentiated through it.
        weights: [B, L] float32, of each row in the sum.
    """
    away = mx.abs(found.astype(mx.float32) - mx.stop_gradient(wanted).astype(mx.float32))
    each = mx.where(away < 1, 0.5 * away * away, away - 0.5).mean(-1)
    return (weights * each).sum()
