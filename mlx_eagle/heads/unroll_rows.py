"""A head with a block of mlx-lm's that drafts at every token of a text at once.

`unroll.py` computes the scores itself, which a block of the target's class does not allow: it asks
a cache for rows and a mask. Here the rows of all steps lie in one cache, and the mask tells which
a start sees: the first step's up to its own, and its own of the steps since. So the mask grows with
the square of the text, which is short where a head is measured.
"""

import mlx.core as mx

from mlx_eagle.cache.kv import KVCache


class UnrolledRows(KVCache):
    """Keys and values of one layer: L rows of every step so far, one step after the other.

    Worked example, L = 3, step 2: start 1 sees

        first step   [x x .]    starts 0 and 1
        step 1       [. x .]    itself, one position on
        step 2       [. x .]    itself, two positions on
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length  # L

    @property
    def steps(self) -> int:
        """Steps that were made."""
        return self.pending // self.length

    @property
    def offset(self) -> mx.array:
        """Start t stands at position t + i in step i: [L]."""
        return mx.arange(self.length) + self.steps

    def make_mask(
        self, n: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array:
        """Return the mask [L, L * steps] for a step, its own rows included."""
        assert n == self.length and window_size is None, "a step has a row for every start"
        starts = mx.arange(n)
        own = [starts[:, None] == starts] * self.steps
        return mx.concatenate([starts[:, None] >= starts, *own], axis=1)
