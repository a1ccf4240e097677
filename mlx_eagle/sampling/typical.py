"""Medusa's typical acceptance: what the target finds likely enough is taken. It is lossy.

A drafted token is accepted if the target gives it more than min(threshold, alpha * exp(-entropy)),
and of all accepted paths the longest is taken (arXiv 2401.10774, section 2.3.1). The text is
plausible, but it does not have the target's distribution: unlikely tokens come less often, and
which token comes depends on what was drafted. So it is asked for by name alone, and said to be
lossy wherever it shows. At temperature 0 the authors' code decodes greedily, and so does this.
"""

import mlx.core as mx

from mlx_eagle.sampling.samplers import SeededSampler, if_finite
from mlx_eagle.tree import DraftTree

# The defaults of the authors' code.
THRESHOLD, ALPHA = 0.09, 0.3


class TypicalSampler(SeededSampler):
    """Accepts drafts that are likely enough; where none is, the target's own draw decides."""

    def __call__(self, logits: mx.array, tree: DraftTree, offset: int) -> mx.array:
        """Choose the token after every node: the child on the longest accepted path, or a draw."""
        own = super().__call__(logits, tree, offset)
        if self.temperature == 0 or not tree.num_draft_tokens:
            return own
        child = _longest(tree, _is_typical(self.log_probs(logits), tree))
        return if_finite(
            mx.logsumexp(logits, axis=-1, keepdims=True),
            mx.where(child > 0, tree.tokens[child], own),
        )


def _is_typical(log_probs: mx.array, tree: DraftTree) -> mx.array:
    """Return [N] bool: which nodes the target finds likely enough after their parents.

    Args:
        log_probs: [N, V] of the target.
        tree: the N nodes; the root is accepted.
    """
    probs = mx.exp(log_probs)
    entropy = -mx.where(probs > 0, probs * log_probs, 0).sum(axis=-1)
    limit = mx.minimum(THRESHOLD, ALPHA * mx.exp(-entropy))  # [N]
    own = probs[tree.parents, tree.tokens]
    return (own > limit[tree.parents]) | (tree.depths == 0)


def _longest(tree: DraftTree, accepted: mx.array) -> mx.array:
    """Return [N] int32: the child of every node that the longest accepted path goes on with.

    It is 0 where no child is accepted; of paths as long the one that was drafted first is taken.
    """
    n = tree.n_nodes
    reached = accepted
    for _ in range(tree.max_depth):
        reached = accepted & reached[tree.parents]
    deepest = mx.where(reached, tree.depths, 0)
    for _ in range(tree.max_depth):
        deepest = deepest.at[tree.parents].maximum(deepest)
    nodes = mx.arange(n, dtype=mx.int32)
    # Deeper first, then lower nodes; the root is nobody's child.
    rank = mx.where(reached & (nodes > 0), deepest * (n + 1) + n - nodes, 0)
    best = mx.zeros((n,), dtype=mx.int32).at[tree.parents].maximum(rank.astype(mx.int32))
    return mx.where(best > 0, n - best % (n + 1), 0)
