"""The target's own choice after every node of a tree, made with the node's own prefix.

Logits processors, a grammar and the sampler of one answer apply in that order. mlx-lm's processors
take all tokens so far and the logits of one row; here every node is such a row, and its tokens are
the committed ones followed by its own path. So a node is processed as plain decoding would process
it if it got there, whatever else is in the tree.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import mlx.core as mx

from mlx_eagle.errors import EagleError
from mlx_eagle.sampling.samplers import NO_NUMBERS, NO_TOKEN, Sampler
from mlx_eagle.tree import DraftTree

LogitsProcessor = Callable[[mx.array, mx.array], mx.array]  # tokens [T], logits [1, V]: [1, V]


class TreeConstraint(Protocol):
    """Says which tokens may follow; see `grammar.py`."""

    def masks(self, tokens: Sequence[int], parents: Sequence[int]) -> mx.array | None:
        """Return [N, V] bool: which tokens may follow each node; None where all may."""

    def advance(self, tokens: Sequence[int]) -> None:
        """Take in what a round has committed."""


class TargetTokens(NamedTuple):
    """What the target puts after each node: tokens [N] int32, by processed logits [N, V]."""

    tokens: mx.array
    logits: mx.array

    def log_probs(self, nodes: Sequence[int]) -> mx.array:
        """Return [len(nodes), V] log-probabilities, as mlx-lm reports them."""
        logits = self.logits[mx.array(list(nodes))]
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


class TokenSelector:
    """Chooses the tokens of one answer.

    Args:
        sampler: what chooses once the logits are processed.
        processors: in the order in which they are applied.
        constraint: what may follow at all; applied after the processors.
        history: the committed tokens without the newest one, which is the first root.
    """

    def __init__(
        self,
        sampler: Sampler,
        processors: Sequence[LogitsProcessor] = (),
        constraint: TreeConstraint | None = None,
        history: Sequence[int] = (),
    ) -> None:
        self._sampler, self._constraint = sampler, constraint
        self._processors = tuple(processors)
        self._history = mx.array(list(history) if self._processors else [], dtype=mx.int32)
        self._n_committed = 0

    @property
    def waits(self) -> bool:
        """Whether a round must have been read before the next one can be chosen."""
        return self._constraint is not None

    def __call__(self, logits: mx.array, tree: DraftTree, offset: int) -> TargetTokens:
        """Choose the token after every node.

        Args:
            logits: [N, V] of the target.
            tree: the N nodes.
            offset: position of the root.
        """
        if self._processors:
            logits = self._process(logits, tree)
        if self._constraint is not None:
            # The target works while the grammar is followed on the host.
            mx.async_eval(logits)
            tokens = cast(list[int], tree.tokens.tolist())
            masks = self._constraint.masks(tokens, tree.structure())
            if masks is not None:  # something may not follow
                logits = mx.where(masks, logits, -mx.inf)
        return TargetTokens(self._sampler(logits, tree, offset), logits)

    def commit(self, tree: DraftTree, path: Sequence[int]) -> None:
        """Take in the accepted nodes `path`, the root first."""
        self._sampler.commit(path)
        self._n_committed += len(path)
        if self._processors:
            self._history = mx.concatenate([self._history, tree.tokens[mx.array(list(path))]])

    def advance(self, tokens: Sequence[int]) -> None:
        """Take in the tokens that a round has emitted.

        Raises:
            EagleError: if the caller's sampler chose something that is no token of the target, or
                there was nothing to choose from.
        """
        if NO_NUMBERS in tokens:
            raise EagleError(
                "the target's logits are not numbers (NaN or infinite): its weights are damaged, "
                "or its type has too little range, which float32 has (--dtype float32)"
            )
        if NO_TOKEN in tokens:
            raise EagleError("the sampler chose a token that the target does not have")
        if self._constraint is not None:
            self._constraint.advance(tokens)

    def end(self, n_tokens: int) -> None:
        """End the answer after `n_tokens` tokens; what was chosen beyond them never happened."""
        self._sampler.rewind(self._n_committed - n_tokens)

    def _process(self, logits: mx.array, tree: DraftTree) -> mx.array:
        """Apply the processors to every row of logits [N, V] with its node's own tokens."""
        paths: list[list[int]] = []
        rows: list[mx.array] = []
        for node, parent in enumerate(tree.structure()):
            paths.append([*(paths[parent] if node else []), node])
            tokens = mx.concatenate([self._history, tree.tokens[mx.array(paths[node])]])
            row = logits[node : node + 1]
            for processor in self._processors:
                row = processor(tokens, row)
                if getattr(row, "shape", None) != (1, logits.shape[-1]):
                    raise EagleError(
                        f"the logits processor {_name(processor)} returned {_shape(row)}; it must "
                        f"return logits of shape (1, {logits.shape[-1]})"
                    )
            rows.append(row)
        return mx.concatenate(rows)


def _name(function: Any) -> str:
    """Return what to call a function in an error."""
    return str(getattr(function, "__name__", type(function).__name__))


def _shape(value: Any) -> str:
    """Say what came back from a function."""
    is_array = isinstance(value, mx.array)
    return f"an array of shape {value.shape}" if is_array else type(value).__name__
