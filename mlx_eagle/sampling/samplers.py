"""How one token follows from the logits: their argmax, a seeded draw, or a sampler of mlx-lm.

The draw is Gumbel-max with noise keyed by (seed, position), not by call. A position therefore
draws the same token whether its row was verified in a tree or decoded alone, and sampled text
with speculation equals sampled text without it. Filters follow mlx-lm's order: top-p, min-p and
top-k on the untempered distribution, then the temperature. Processors and grammars, which change
the logits before, are applied in `token_selector.py`.
"""

import secrets
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

from mlx_eagle.errors import EagleError
from mlx_eagle.sampling.options import SamplingOptions
from mlx_eagle.tree import DraftTree

NO_TOKEN = -1  # what a caller's sampler chose where that is no token of the target
NO_NUMBERS = -2  # what is chosen from logits that are NaN or infinite


class Sampler(Protocol):
    """Chooses a token after every node of a tree."""

    def __call__(self, logits: mx.array, tree: DraftTree, offset: int) -> mx.array:
        """Return [N] int32 token ids for the logits [N, V] of a tree whose root is at `offset`."""

    def commit(self, path: Sequence[int]) -> None:
        """Go on after the last node of `path`, which was accepted; the other draws never were."""

    def rewind(self, n: int) -> None:
        """Go back before the last `n` draws of the path that was committed last."""


class SeededSampler(SamplingOptions):
    """Draws as the options say, by seed and position; the filters are mlx-lm's.

    Without a seed it takes one of its own.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.randbits(32))

    def __call__(self, logits: mx.array, tree: DraftTree, offset: int) -> mx.array:
        """Choose the token after every node.

        Args:
            logits: [N, V] of the target.
            tree: the N nodes.
            offset: position of the root.

        Returns:
            [N] int32 token ids.
        """
        if self.temperature == 0:
            # mlx-lm takes the argmax after this subtraction, which makes ties in 16 bits.
            normalizer = mx.logsumexp(logits, axis=-1, keepdims=True)
            chosen = mx.argmax(logits - normalizer, axis=-1).astype(mx.int32)
            return if_finite(normalizer, chosen)
        logits = logits.astype(mx.float32)
        chosen = self.drawn(self._scores(logits), tree, offset)
        return if_finite(mx.logsumexp(logits, axis=-1, keepdims=True), chosen)

    def drawn(self, scores: mx.array, tree: DraftTree, offset: int) -> mx.array:
        """Draw the token [N] after every node by log-probabilities [N, V] up to a constant."""
        noise = [self._noise(offset + d, scores.shape[-1]) for d in range(tree.max_depth + 1)]
        return mx.argmax(scores + mx.stack(noise)[tree.depths], axis=-1).astype(mx.int32)

    def log_probs(self, logits: mx.array) -> mx.array:
        """Return the log-probabilities [N, V] of a draw from logits [N, V], in float32."""
        scores = self._scores(logits.astype(mx.float32))
        return scores - mx.logsumexp(scores, axis=-1, keepdims=True)

    def commit(self, path: Sequence[int]) -> None:
        """Nothing to do: a draw depends on its position alone."""

    def rewind(self, n: int) -> None:
        """Nothing to do, as for `commit`."""

    def _scores(self, logits: mx.array) -> mx.array:
        """Return log-probabilities [N, V] of a draw, up to a constant, filtered and tempered."""
        scores = self._filtered(logits)
        # The largest is 0, so that the coldest draw still has one finite score.
        return (scores - scores.max(axis=-1, keepdims=True)) / self.temperature

    def _filtered(self, logits: mx.array) -> mx.array:
        """Return log-probabilities [N, V], -inf where a filter removes the token."""
        log_probs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        if self.top_p < 1:
            log_probs = apply_top_p(log_probs, self.top_p)
        if self.min_p > 0:
            log_probs = apply_min_p(log_probs, self.min_p)
        if 0 < self.top_k < logits.shape[-1]:
            log_probs = apply_top_k(log_probs, self.top_k)
        return log_probs

    def _noise(self, position: int, n: int) -> mx.array:
        """Return [n] Gumbel noise that depends on the seed and the position alone."""
        assert self.seed is not None, "it has taken one"
        key = mx.array([self.seed, position], dtype=mx.uint32)
        return mx.random.gumbel((n,), key=key)


class StockSampler:
    """A sampler made for mlx-lm: log-probabilities [1, V] to a token [1].

    Every node draws as if the nodes above it had been the only calls before: it starts from the
    random state that its parent's call left behind. So the tokens are those that mlx-lm draws
    after the same `mx.random.seed`, whatever is drafted.
    """

    def __init__(self, sampler: Callable[[mx.array], mx.array]) -> None:
        self._sampler = sampler
        self._states: list[mx.array] = []  # of mlx's generator, after each node's call
        self._path: list[mx.array] = []  # of them, those after the nodes that were committed last

    def __call__(self, logits: mx.array, tree: DraftTree, offset: int) -> mx.array:
        """Call the sampler once per node; see `Sampler`."""
        before = _random_state()
        normalizer = mx.logsumexp(logits, axis=-1, keepdims=True)
        log_probs = logits - normalizer
        tokens: list[mx.array] = []
        self._states = []
        for node, parent in enumerate(tree.structure()):
            _set_random_state(self._states[parent] if node else before)
            tokens.append(self._draw(log_probs[node : node + 1]))
            self._states.append(_random_state())
        _set_random_state(before)
        chosen = mx.concatenate(tokens).astype(mx.int32)
        chosen = mx.where((chosen >= 0) & (chosen < logits.shape[-1]), chosen, NO_TOKEN)
        return if_finite(normalizer, chosen)

    def commit(self, path: Sequence[int]) -> None:
        """Leave mlx's generator as the call for the last accepted node left it."""
        self._path = [self._states[node] for node in path]
        _set_random_state(self._path[-1])

    def rewind(self, n: int) -> None:
        """Leave mlx's generator as if the last `n` accepted nodes had not been drawn after."""
        if 0 < n < len(self._path):
            _set_random_state(self._path[-1 - n])

    def _draw(self, log_probs: mx.array) -> mx.array:
        """Return the token [1] that the sampler draws from log-probabilities [1, V]."""
        token = self._sampler(log_probs)
        if not isinstance(token, mx.array) or token.size != 1:
            is_array = isinstance(token, mx.array)
            found = f"an array of shape {token.shape}" if is_array else type(token).__name__
            raise EagleError(f"the sampler returned {found}; it must return an array of one token")
        return token.reshape(1)


def if_finite(normalizer: mx.array, chosen: mx.array) -> mx.array:
    """Return tokens [N], or NO_NUMBERS for rows whose logarithm of a sum [N, 1] is NaN or infinite.

    It is -inf where no token is allowed, which is the grammar's matter.
    """
    return mx.where(normalizer[:, 0] < mx.inf, chosen, NO_NUMBERS)


def _random_state() -> mx.array:
    """Return the key of mlx's random generator: [2] uint32."""
    state: Any = mx.random.state
    return mx.array(state[0])


def _set_random_state(key: mx.array) -> None:
    """Let mlx's generator go on from `key` [2]."""
    state: Any = mx.random.state
    state[0][...] = key
