"""Drafting with a DSpark head: a block in one step, then level by level what follows a token.

Each depth's logits are biased by the token before it, so every node of a tree has children of its
own, ranked as EAGLE-2's are. A level costs the bias alone, for the nodes that are expanded.
"""

from collections.abc import Generator

import mlx.core as mx

from mlx_eagle.drafters.base import Level
from mlx_eagle.drafters.block import BlockDrafter
from mlx_eagle.drafters.ranking import Candidates, Children, Frontier, expand, likeliest
from mlx_eagle.heads.block import BlockHead
from mlx_eagle.tree import TreeShape


class _Levels:
    """The children of nodes of one block, asked for level by level.

    Args:
        head: with the bias.
        states: [1, depth, h] of the block.
        logits: [depth, W] without the bias.
        k: children per node.
    """

    def __init__(self, head: BlockHead, states: mx.array, logits: mx.array, k: int) -> None:
        self.head, self.k = head, k
        self.states, self.logits = states[0], logits
        self._state = head.markov_head.start(states.dtype)  # [F, r] of the nodes' own level

    def __call__(self, level: int, frontier: Frontier) -> Children:
        """Return the k likeliest children of a frontier: [F, k] each."""
        log_probs, ids = likeliest(self.logits_of(level, frontier), self.k)
        return log_probs, self.head.draft_to_target[ids]

    def logits_of(self, level: int, frontier: Frontier) -> mx.array:
        """Return the logits [F, W] of the children of a frontier."""
        bias, self._state = self.head.markov_head(
            frontier.tokens, self.states[level : level + 1], self._state[frontier.parents]
        )
        return self.logits[level] + bias


class MarkovDrafter(BlockDrafter):
    """A DSpark head: DFlash's block, and a bias for each token by the one before it."""

    def greedy_path(self, k: int, depth: int) -> Generator[Level]:
        """Yield the k likeliest children of the likeliest node; the first costs the block."""
        assert self._newest is not None, "observe a token before drafting"
        levels = self._levels(self._newest, min(k, self.max_width), depth)
        frontier = Frontier.of_one(self._newest)
        for level in range(depth):
            log_probs, tokens = levels(level, frontier)
            yield log_probs[0], tokens[0]
            frontier = Frontier.of_one(tokens[0, :1])

    def logits_along(self, root: mx.array, path: mx.array) -> mx.array:
        """Return the logits [depth, W] of the levels below `root`, biased along `path`."""
        levels = self._levels(root, 1, path.size + 1)
        tokens = mx.concatenate([root, path])
        return mx.concatenate(
            [
                levels.logits_of(level, Frontier.of_one(tokens[level : level + 1]))
                for level in range(tokens.size)
            ]
        )

    def _expand(self, root: mx.array, shape: TreeShape) -> Candidates:
        """Score `shape.n_candidates` nodes."""
        k, depth = shape.width, shape.depth
        return expand(self._levels(root, k, depth), root, depth, k)

    def _levels(self, root: mx.array, k: int, depth: int) -> _Levels:
        """Return what gives the children of nodes below `root` [1]."""
        states = self._states(root, depth)
        return _Levels(self.head, states, self.unembed(states)[0], k)
