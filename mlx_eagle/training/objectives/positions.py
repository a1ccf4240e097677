"""Which position of a row is compared with which, and by which id: shifts, and what counts."""

from collections.abc import Sequence

import mlx.core as mx

from mlx_eagle.heads.load import Head
from mlx_eagle.training.batch import Batch, Figures


def ahead(x: mx.array, n: int) -> mx.array:
    """Return x [B, L, ..] with what stands n positions on at every position; zeros beyond the end.

    Worked example: [7 8 9] one ahead is [8 9 0].
    """
    n = min(n, x.shape[1])
    return mx.pad(x[:, n:], [(0, 0), (0, n)] + [(0, 0)] * (x.ndim - 2))


def counted_starts(batch: Batch, step: int) -> mx.array:
    """Return bool [B, L]: starts whose step drafts a token that is trained, of their own text."""
    drafted = step + 2
    same = (batch.texts > 0) & (batch.texts == ahead(batch.texts, drafted))
    return same & ahead(batch.trained, drafted)


def tally(losses: mx.array, hits: Sequence[mx.array], counted: Sequence[mx.array]) -> Figures:
    """Return the figures of a batch: losses [K], and numbers for each step."""
    sums = losses, mx.stack(list(hits)), mx.stack(list(counted))
    return Figures(*(mx.stop_gradient(part) for part in sums))


def draft_id_of_target(head: Head) -> mx.array:
    """Return [V] int32: the draft id of each of the target's tokens, or -1."""
    ids = head.draft_to_target
    found = mx.full((head.config.target_vocab_size,), -1, dtype=mx.int32)
    found[ids] = mx.arange(ids.size, dtype=mx.int32)
    mx.eval(found)  # compiled functions use it as a constant
    return found
