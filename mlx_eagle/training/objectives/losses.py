"""Losses of many rows, with gradients that keep no logits.

The logits of all steps of a batch would be its largest arrays by far: K * B * L * W numbers. Here
they are made, used and forgotten a block of rows at a time. The gradients with respect to the
hidden states and to the output layer's weight are ready when the loss is.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_eagle.heads.exponential import exponential, softmax

BLOCK = 256  # rows of logits that exist at the same time, for each row of the batch


def probabilities(final: mx.array, logits: Callable[[mx.array], mx.array]) -> mx.array:
    """Return the teacher's distribution [B, L, W] float32, made a block of rows at a time.

    Args:
        final: [B, L, D], the target's final states.
        logits: of these, for the W tokens of the draft vocabulary.
    """
    blocks = list[mx.array]()
    for start in range(0, final.shape[1], BLOCK):
        rows = mx.depends([final[:, start : start + BLOCK]], blocks[-1:] or [final])[0]
        blocks.append(softmax(logits(rows).astype(mx.float32)))
    return mx.concatenate(blocks, axis=1)


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
        hidden: K times [B, L, h]; what is made of them is computed in float32.
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
        # In 16 bits, products of a head and a teacher that agree would differ by rounding alone.
        dtypes = [x.dtype for x in (*hidden, weight)]
        exact, weight = [x.astype(mx.float32) for x in hidden], weight.astype(mx.float32)
        # What the teacher's rows make of the weight serves every step's loss and gradient.
        taught = teacher @ weight  # [B, L + K, h]
        steps = [
            _Step(x, weight, taught[:, 1 + i : 1 + i + x.shape[1]], w, factors[i])
            for i, (x, w) in enumerate(zip(exact, weights, strict=True))
        ]
        found = list[_Rows]()
        for step in steps:
            found.append(step.rows(list(found[-1][2:]) if found else [taught]))
        each = mx.stack([rows.loss for rows in found])
        total = (mx.array(factors) * each).sum()
        d_weight = added(rows.d_weight for rows in found) - _taught_gradient(steps, teacher)
        gradients = [*(rows.d_hidden for rows in found), d_weight]
        in_type = [d.astype(dtype) for d, dtype in zip(gradients, dtypes, strict=True)]
        return [total, each, *(rows.likeliest for rows in found), *in_type]

    @fused.vjp
    def gradient(primals: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
        scale = cotangents[0]
        found = [(scale * d.astype(mx.float32)).astype(d.dtype) for d in outputs[2 + n :]]
        return [*found, *(mx.zeros_like(other) for other in primals[n + 1 :])]

    return fused


class _Rows(NamedTuple):
    """The loss of rows, and what follows from it at once."""

    loss: mx.array
    likeliest: mx.array  # [B, n]
    d_hidden: mx.array  # [B, n, h]
    d_weight: mx.array  # [W, h], without the teacher's part


class _Step(NamedTuple):
    """The inputs of one step's loss, float32."""

    hidden: mx.array  # [B, L, h]
    weight: mx.array  # [W, h]
    taught: mx.array  # [B, L, h]: the teacher's probabilities times the weight
    weights: mx.array  # [B, L]
    factor: float

    def rows(self, before: list[mx.array]) -> _Rows:
        """Return the loss and the gradients of all rows.

        Args:
            before: what is computed first. MLX would begin all blocks before it ends one, and hold
                their logits together.
        """
        blocks = list[_Rows]()
        for start in range(0, self.hidden.shape[1], BLOCK):
            hidden = mx.depends([self.hidden], before)[0]
            blocks.append(self._replace(hidden=hidden)._block(start))
            before = list(blocks[-1][2:])
        return _Rows(
            mx.stack([block.loss for block in blocks]).sum(),
            mx.concatenate([block.likeliest for block in blocks], axis=1),
            mx.concatenate([block.d_hidden for block in blocks], axis=1),
            added(block.d_weight for block in blocks),
        )

    def _block(self, start: int) -> _Rows:
        """Return the loss and the gradients of the rows from `start` on.

        The array of logits is gone through as seldom as possible: rows are scaled after products.
        """
        rows = slice(start, start + BLOCK)
        x, taught, w = self.hidden[:, rows], self.taught[:, rows], self.weights[:, rows, None]
        logits = x @ self.weight.T  # [B, n, W]
        likeliest = logits.argmax(-1, keepdims=True)
        highest = mx.take_along_axis(logits, likeliest, axis=-1)
        raised = exponential(logits - highest)
        total = raised.sum(-1, keepdims=True)
        expected = (x * taught).sum(-1, keepdims=True)
        loss = (w * (highest + mx.log(total) - expected)).sum()
        scale = w * self.factor / total
        d_hidden = (raised @ self.weight) * scale - taught * (w * self.factor)
        flat = raised.reshape(-1, raised.shape[-1])
        d_weight = flat.T @ (x * scale).reshape(-1, x.shape[-1])
        return _Rows(loss, likeliest[..., 0], d_hidden, d_weight)


def _taught_gradient(steps: list[_Step], teacher: mx.array) -> mx.array:
    """Return [W, h]: the teacher's part of the weight's gradient, of all steps in one product."""
    n, width = len(steps), teacher.shape[-1]
    seen = []  # [B, L + K, h] each: the rows of a step where their teachers stand
    for i, step in enumerate(steps):
        rows = step.hidden * (step.weights[..., None] * step.factor)
        seen.append(mx.pad(rows, [(0, 0), (1 + i, n - 1 - i), (0, 0)]))
    flat = added(seen).reshape(-1, seen[0].shape[-1])
    return teacher.reshape(-1, width).T @ flat


def added(arrays: Iterable[mx.array]) -> mx.array:
    """Return the sum of arrays of one shape, of one at least."""
    return reduce(mx.add, arrays)


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
