"""What a head is trained towards: a batch in, the loss to make smaller and its figures out.

EAGLE-3's training-time test is written down here (arXiv 2503.01840, section 3.2). Start t of a row
reads the target's taps at token t and the token t + 1; step i of it reads the token t + 1 + i, and
should foresee what the target makes of it: its distribution at t + 1 + i.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.exponential import softmax
from mlx_eagle.heads.unroll import UnrolledCache
from mlx_eagle.training.batch import Batch, Figures
from mlx_eagle.training.losses import soft_cross_entropy
from mlx_eagle.training.options import HeadOptions

Objective = Callable[[Batch], tuple[mx.array, Figures]]


class Teacher(Protocol):
    """What of the target is needed besides a batch: its two layers that know tokens."""

    @property
    def embedding(self) -> nn.Module:
        """Ids [..] to embeddings [.., D]."""

    @property
    def unembed(self) -> Callable[[mx.array], mx.array]:
        """Final hidden states [.., D] to logits [.., V]."""


def eagle3_objective(head: EagleHead, teacher: Any, options: HeadOptions) -> Objective:
    """Return training-time test of `options.steps` steps.

    Args:
        head: its parameters are what is trained.
        teacher: the target's layers, as in `Teacher`.
        options: steps and how much less each one weighs.
    """
    ids = head.draft_to_target
    rows = mx.zeros((head.config.target_vocab_size,), dtype=mx.int32) - 1
    rows[ids] = mx.arange(ids.size, dtype=mx.int32)  # target id -> draft id, or -1
    logits = OutputRows(teacher.unembed, ids)
    mx.eval(rows, logits.weight)  # what a compiled function uses must be there
    embed = head.embed_tokens if head.config.own_embedding else teacher.embedding

    def objective(batch: Batch) -> tuple[mx.array, Figures]:
        length, steps = batch.tokens.shape[1], options.steps
        ahead = partial(_ahead, length=length)
        probabilities = softmax(logits(batch.final).astype(mx.float32))
        embeddings = mx.stop_gradient(embed(batch.tokens))
        truth, hidden = rows[batch.choices], head.fuse(batch.taps)
        cache = UnrolledCache.of(head, batch.texts)
        losses, hits, counted = [], [], []
        for i in range(steps):
            out = head(hidden, ahead(embeddings, 1 + i), cache)
            counts = _counted(batch, i)
            choice = ahead(truth, 1 + i)
            weights = (counts & (choice >= 0)).astype(mx.float32) / batch.tokens.size
            loss, likeliest = soft_cross_entropy(
                out.normed, head.lm_head.weight, ahead(probabilities, 1 + i), weights
            )
            losses.append(loss)
            hits.append((counts & (likeliest == choice)).sum())
            counted.append(counts.sum())
            hidden = out.feedback
        decay = mx.array([options.step_decay**i for i in range(steps)])
        figures = Figures(*(mx.stop_gradient(mx.stack(x)) for x in (losses, hits, counted)))
        return (decay * mx.stack(losses)).sum(), figures

    return objective


class OutputRows:
    """The target's output layer, for some of its tokens only."""

    def __init__(self, unembed: Any, ids: mx.array) -> None:
        self.weight = unembed.weight[ids]

    def __call__(self, x: mx.array) -> mx.array:
        """Return logits [.., W] for final hidden states x [.., D]."""
        return x @ self.weight.T


def _ahead(x: mx.array, n: int, length: int) -> mx.array:
    """Return x [B, L, ..] with every position holding what stands n positions on; zeros beyond."""
    beyond = [(0, 0), (0, min(n, length))] + [(0, 0)] * (x.ndim - 2)
    return mx.pad(x, beyond)[:, n : n + length]


def _counted(batch: Batch, step: int) -> mx.array:
    """Return bool [B, L]: starts whose step drafts a token that is trained, of their own text."""
    length, n = batch.tokens.shape[1], step + 2
    texts, later = batch.texts, _ahead(batch.texts, n, length)
    return (texts > 0) & (texts == later) & _ahead(batch.trained, n, length)
