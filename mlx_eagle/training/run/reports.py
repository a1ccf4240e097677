"""What a training says about itself: figures of batches, of updates and of measurements."""

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_eagle.training.batch import Batch, Figures


class Sums(NamedTuple):
    """Figures of one or more batches on the host, where counts can become large.

    Attributes:
        n_tokens: B * L of all batches.
        loss: the loss of each batch times its B * L, added up.
        losses: [K] float64, likewise of each step.
        hits: [K] float64, as in `Figures`.
        counted: [K] float64, as in `Figures`.
    """

    n_tokens: int
    loss: float
    losses: np.ndarray
    hits: np.ndarray
    counted: np.ndarray

    @classmethod
    def of(cls, batch: Batch, loss: mx.array, figures: Figures) -> "Sums":
        """Return the figures of one batch, once they are computed."""
        n = batch.tokens.size
        losses, hits, counted = (np.array(part, dtype=np.float64) for part in figures)
        return cls(n, float(loss) * n, losses * n, hits, counted)

    def __add__(self, other: tuple[Any, ...]) -> "Sums":
        """Return the figures of both together."""
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def n_alpha(self) -> tuple[float, ...]:
        """Share of the counted positions, step by step, where the head drafts the right token."""
        return tuple((self.hits / np.maximum(self.counted, 1)).tolist())

    @property
    def mean_losses(self) -> tuple[float, ...]:
        """Loss of each step, as a mean over all positions."""
        return tuple((self.losses / max(self.n_tokens, 1)).tolist())

    @property
    def acceptance_length(self) -> float:
        """Tokens per round of a chain as deep as there are steps, if hits were independent."""
        return 1 + float(np.cumprod(self.n_alpha).sum())


class UpdateReport(NamedTuple):
    """An update that is done.

    Attributes:
        update: how many are done.
        n_updates: how many there will be.
        loss: mean of the loss over all batches.
        losses: of each step, likewise.
        n_alpha: share of the counted positions where the head drafted the right token, step by
            step. Counted are all whose token is trained, also where the draft vocabulary lacks the
            target's token.
        gradient_norm: before clipping.
        rates: learning rate of AdamW, then of Muon if it is used.
        tokens: in the batches of all processes.
        seconds: that it took, without measurements and checkpoints.
    """

    update: int
    n_updates: int
    loss: float
    losses: tuple[float, ...]
    n_alpha: tuple[float, ...]
    gradient_norm: float
    rates: tuple[float, ...]
    tokens: int
    seconds: float


class Measurement(NamedTuple):
    """Figures of the held-out texts after an update; see `UpdateReport`.

    Attributes:
        acceptance_length: what n_alpha makes of a chain; the best weights have most.
        is_best: no measurement before was better.
    """

    update: int
    n_updates: int
    losses: tuple[float, ...]
    n_alpha: tuple[float, ...]
    acceptance_length: float
    is_best: bool
    seconds: float


def table_row(report: UpdateReport | Measurement) -> dict[str, float]:
    """Return a report as numbers by column: a column for each step, and for each rate."""
    row: dict[str, float] = {}
    for name, value in report._asdict().items():
        if isinstance(value, tuple):
            row |= {f"{name}_{i}": part for i, part in enumerate(value)}
        elif name not in ("n_updates", "is_best"):  # every row tells what the best one is
            row[name] = value
    return row
