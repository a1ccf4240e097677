"""A bound on how long a model thinks: where a thought is full, only the mark that ends it may come.

What may follow a node depends on the tokens before it alone, as with a grammar, so every node of a
draft tree has its own count: a bounded thought is drafted as any other text, and the answer with
speculation equals the one without. What holds besides, a grammar say, goes on holding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from mlx_eagle.sampling.token_selector import TreeConstraint


class Thinking(NamedTuple):
    """Whether a thought is open, and how many tokens of thoughts there were so far."""

    is_open: bool
    n_tokens: int = 0


class ThoughtBudget:
    """Ends an answer's thoughts; the interface is that of `TreeConstraint`.

    Args:
        most: tokens that thoughts may have together, their marks not counted.
        marks: the tokens that begin and end a thought.
        n_logits: width of the target's logits.
        is_open: whether the prompt has begun a thought.
        inner: what else says which tokens may follow.
    """

    def __init__(
        self,
        most: int,
        marks: tuple[int, int],
        n_logits: int,
        *,
        is_open: bool = False,
        inner: TreeConstraint | None = None,
    ) -> None:
        self._most, (self._start, self._end), self._inner = most, marks, inner
        self._ends_now = mx.arange(n_logits) == self._end
        self._state = Thinking(is_open)

    def advance(self, tokens: Sequence[int]) -> None:
        """Take in the tokens that a round has committed."""
        for token in tokens:
            self._state = self._next(self._state, token)
        if self._inner is not None:
            self._inner.advance(tokens)

    def masks(self, tokens: Sequence[int], parents: Sequence[int]) -> mx.array | None:
        """Return [N, V] bool: which tokens may follow each of N nodes; None where all may.

        Args:
            tokens: N token ids; the root's has been given to `advance` or belongs to the prompt.
            parents: N node indices; parents come before children.
        """
        allowed = None if self._inner is None else self._inner.masks(tokens, parents)
        states = [self._state]
        for token, parent in zip(tokens[1:], parents[1:], strict=True):
            states.append(self._next(states[parent], token))
        full = [state.is_open and state.n_tokens >= self._most for state in states]
        if not any(full):
            return allowed
        others = mx.array(True) if allowed is None else allowed
        return mx.where(mx.array(full)[:, None], self._ends_now, others)

    def _next(self, state: Thinking, token: int) -> Thinking:
        """Return the state after one more token."""
        if not state.is_open:
            return Thinking(token == self._start, state.n_tokens)
        if token == self._end:
            return Thinking(False, state.n_tokens)
        return Thinking(True, state.n_tokens + 1)
