"""Losses over rows of draft logits, each with a gradient that keeps no logits.

The logits of all steps of a batch would be its largest arrays by far (K * B * L * W numbers). Here
they are made, used and forgotten a block of rows at a time: the gradient with respect to the hidden
states and to the output layer's weight is ready when the loss is.
"""

from typing import NamedTuple

import mlx.core as mx

from mlx_eagle.heads.exponential import exponential

ROWS = 512  # of logits that exist at the same time, for each row of the batch


class RowLosses(NamedTuple):
    """Of [B, L] rows: the weighted sum of their losses, and their likeliest ids [B, L]."""

    loss: mx.array
    likeliest: mx.array


def soft_cross_entropy(
    hidden: mx.array, weight: mx.array, teacher: mx.array, weights: mx.array
) -> RowLosses:
    """Return the cross-entropy of softmax(hidden @ weight.T) against a teacher's distribution.

    Args:
        hidden: [B, L, h].
        weight: [W, h], of the output layer.
        teacher: [B, L, W] float32, probabilities; nothing is differentiated through it.
        weights: [B, L] float32, of each row in the sum.
    """
    loss, likeliest, *_ = _fused(hidden, weight, teacher, weights)
    return RowLosses(loss, likeliest)


@mx.custom_function
def _fused(
    hidden: mx.array, weight: mx.array, teacher: mx.array, weights: mx.array
) -> tuple[mx.array, ...]:
    """Return the loss, the likeliest ids and the gradients of hidden and weight."""
    losses, likeliest, d_hidden = [], [], []
    d_weight = mx.zeros(weight.shape, mx.float32)
    for start in range(0, hidden.shape[1], ROWS):
        rows = slice(start, start + ROWS)
        x, p, w = hidden[:, rows], teacher[:, rows], weights[:, rows, None]
        logits = (x @ weight.T).astype(mx.float32)  # [B, n, W]
        highest = logits.max(-1, keepdims=True)
        raised = exponential(logits - highest)
        total = raised.sum(-1, keepdims=True)
        each = highest + mx.log(total) - (p * logits).sum(-1, keepdims=True)
        losses.append((w * each).sum())
        likeliest.append(logits.argmax(-1))
        d_logits = ((raised * (1 / total) - p) * w).astype(hidden.dtype)
        d_hidden.append(d_logits @ weight)
        flat = d_logits.reshape(-1, weight.shape[0])
        d_weight = d_weight + (flat.T @ x.reshape(-1, weight.shape[1])).astype(mx.float32)
    return (
        mx.stack(losses).sum(),
        mx.concatenate(likeliest, axis=1),
        mx.concatenate(d_hidden, axis=1),
        d_weight.astype(weight.dtype),
    )


@_fused.vjp
def _fused_gradient(
    primals: list[mx.array], cotangents: list[mx.array], outputs: list[mx.array]
) -> tuple[mx.array, ...]:
    """Return the gradients of the loss, which are outputs already."""
    _, _, teacher, weights = primals
    scale = cotangents[0]
    d_hidden, d_weight = (
        (scale * output.astype(mx.float32)).astype(output.dtype) for output in outputs[2:]
    )
    return d_hidden, d_weight, mx.zeros_like(teacher), mx.zeros_like(weights)


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
