"""Speculative sampling by the ratio of probabilities: drafts are drawn, not chosen.

A drafted token is accepted with probability target/draft, at most 1; where it is not, the next
sibling is tried against what of the target's distribution is left, and in the end a token is drawn
from that (Leviathan et al., arXiv 2211.17192, appendix A; Chen et al., arXiv 2302.01318; siblings
drawn without replacement: Jeong et al., arXiv 2402.14160). Text has the target's distribution
exactly. It is not the text of the same seed without drafts: it depends on the trees too.

The distribution survives only if no drafted token has a say in which nodes are verified: trees have
a fixed structure (`static_tree.py`), and no confidence is looked at before a token is drawn.

Worked example: of two tokens the target gives 0.7 and 0.3, the draft 0.4 and 0.6. A draft of the
second is accepted with probability 0.3 / 0.6; else what is left is (0.3, 0), the first.
"""

from typing import NamedTuple

import mlx.core as mx

from mlx_eagle.sampling.largest import top_ids
from mlx_eagle.sampling.samplers import SeededSampler, if_finite
from mlx_eagle.static_tree import children_of
from mlx_eagle.tree import MAX_NODES, DraftTree

# Noise of three kinds, told apart by the upper bits of a position.
STREAM = 1 << 30
DRAFTS, TESTS = 1, 2


class Drawn(NamedTuple):
    """Tokens [R, k] drawn after R nodes, the first draw first, by log-probabilities [R, W]."""

    tokens: mx.array
    log_probs: mx.array


class RatioSampler(SeededSampler):
    """Draws drafts, and accepts them by the ratio of probabilities; both by seed and position."""

    def draw(self, logits: mx.array, k: int, root: int, depth: int) -> Drawn:
        """Draw k tokens after each of R drafted nodes of one depth, without replacement.

        Args:
            logits: [R, W] of the drafter.
            k: tokens after each node.
            root: position of the root, which tells the draws of one round from all others.
            depth: of the nodes; 0 is the root.
        """
        log_probs = self.log_probs(logits)
        n = logits.shape[-1]
        key = mx.random.split(self._key(root, DRAFTS), MAX_NODES + 1)[depth]
        # The k largest sums with Gumbel noise are k draws without replacement, in their order.
        scores = log_probs + mx.random.gumbel((n,), key=key)
        return Drawn(top_ids(scores, k).astype(mx.int32), log_probs)

    def __call__(self, logits: mx.array, tree: DraftTree, offset: int) -> mx.array:
        """Choose the token after every node: an accepted child, or a draw from what is left.

        Args:
            logits: [N, V] of the target.
            tree: the N nodes; where nothing was drawn, the target's own draw decides.
            offset: position of the root.
        """
        if tree.draft_log_probs is None or self.temperature == 0:
            return super().__call__(logits, tree, offset)
        children = children_of(tree.structure())
        n, n_tokens = logits.shape
        target, draft = mx.exp(self.log_probs(logits)), mx.exp(tree.draft_log_probs)
        draft = mx.pad(draft, [(0, 0), (0, n_tokens - draft.shape[1])])
        tests = mx.random.uniform(
            shape=(tree.max_depth + 1, max(map(len, children), default=0)),
            key=self._key(offset, TESTS),
        )
        chosen = mx.full((n,), -1, dtype=mx.int32)
        for rank in range(tests.shape[1]):
            child = mx.array([each[rank] if rank < len(each) else 0 for each in children])
            is_open = (child > 0) & (chosen < 0)
            token = tree.tokens[child]
            p, q = (mx.take_along_axis(d, token[:, None], 1)[:, 0] for d in (target, draft))
            accepted = is_open & (q > 0) & (tests[tree.depths, rank] * q < p)
            chosen = mx.where(accepted, token, chosen)
            rejected = (is_open & ~accepted & (q > 0))[:, None]
            target = mx.where(rejected, _left(target, draft), target)
            draft = mx.where(rejected, _without(draft, token), draft)
        chosen = mx.where(chosen < 0, self.drawn(mx.log(target), tree, offset), chosen)
        return if_finite(mx.logsumexp(logits, axis=-1, keepdims=True), chosen)

    def _key(self, position: int, stream: int) -> mx.array:
        """Return the key of one kind of noise at a position."""
        return mx.array([self.seed, position + stream * STREAM], dtype=mx.uint32)


def _left(target: mx.array, draft: mx.array) -> mx.array:
    """Return what of distributions [N, V] is left where a draft was rejected, normalised."""
    rest = mx.maximum(target - draft, 0)
    total = rest.sum(axis=-1, keepdims=True)
    return mx.where(total > 0, rest / mx.maximum(total, 1e-38), target)


def _without(draft: mx.array, token: mx.array) -> mx.array:
    """Return distributions [N, V] without one token [N] each, normalised; all 0 if none is left."""
    rest = mx.put_along_axis(draft, token[:, None], mx.array(0.0, dtype=draft.dtype), axis=1)
    total = rest.sum(axis=-1, keepdims=True)
    return mx.where(total > 0, rest / mx.maximum(total, 1e-38), rest)
