"""Pending rows: committed tokens that a drafter has not observed yet.

While nothing is drafted they wait, because a head that runs over many tokens at once reads its
weights once for all of them. So plain rounds cost next to nothing although a head follows the text.
"""

import mlx.core as mx

from mlx_eagle.drafters.base import Drafter


class PendingRows:
    """The tokens that wait, oldest first; there is nothing to do for no drafter."""

    LIMIT = 256  # plain rounds; their taps are held in memory

    def __init__(self, drafter: Drafter | None) -> None:
        self._drafter = drafter
        self._taps: list[mx.array] = []
        self._next_tokens: list[mx.array] = []

    def add(self, taps: mx.array | None, next_tokens: mx.array) -> None:
        """Let L tokens wait: their taps [L, A * D] and the token after each, [L] int32."""
        if self._drafter is None:
            return
        if taps is not None:
            self._taps.append(taps)
        self._next_tokens.append(next_tokens)
        if len(self._next_tokens) >= self.LIMIT:
            self.observe()
            mx.async_eval(*self._drafter.buffers)

    def observe(self) -> None:
        """Let the drafter observe all that wait, together."""
        if self._drafter is None or not self._next_tokens:
            return
        taps = mx.concatenate(self._taps) if self._taps else None
        self._drafter.observe(taps, mx.concatenate(self._next_tokens))
        self._taps, self._next_tokens = [], []
