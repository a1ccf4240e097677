"""The words of training: texts as tokens, and batches of them with what the target computed.

Arrays of texts are NumPy's and live on the host; those of a batch are MLX's.
"""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import numpy as np


class Example(NamedTuple):
    """A text as tokens.

    Attributes:
        tokens: [L] int32.
        trained: [L] bool, the tokens that a head learns to foresee: those of answers.
    """

    tokens: np.ndarray
    trained: np.ndarray


class Features(NamedTuple):
    """What the target computed of L tokens of a text.

    Attributes:
        taps: [L, A * D], its residual streams at A boundaries, shallowest first.
        final: [L, D], what its final norm gives, from which its output layer makes logits.
        choices: [L] int32, the token that it finds likeliest after each of them.
    """

    taps: np.ndarray
    final: np.ndarray
    choices: np.ndarray


class Batch(NamedTuple):
    """B rows of L tokens, each row packed from several texts.

    Attributes:
        tokens: [B, L] int32.
        taps: [B, L, A * D].
        final: [B, L, D].
        choices: [B, L] int32; all three as in `Features`.
        texts: [B, L] int32, which text of the row a token belongs to, from 1 on; 0 where the row
            is not filled. No text sees another.
        trained: [B, L] bool, as in `Example`.
    """

    tokens: mx.array
    taps: mx.array
    final: mx.array
    choices: mx.array
    texts: mx.array
    trained: mx.array


class Figures(NamedTuple):
    """What one or more batches say about a head, step by step; sums, so that they can be added.

    Attributes:
        losses: [K] float32, of each step, before it is weighted; each divided by B * L.
        hits: [K] int32, counted positions where the likeliest draft token is the target's choice.
        counted: [K] int32, positions whose token is trained and of the same text.
    """

    losses: mx.array
    hits: mx.array
    counted: mx.array


# A batch to the loss that is made smaller, a number, and its figures.
Objective = Callable[[Batch], tuple[mx.array, Figures]]
