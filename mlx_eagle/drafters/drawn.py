"""Drafts that are drawn, for acceptance by the ratio of probabilities (`sampling/ratio.py`).

What is drafted is a drafter's own distribution, level by level, in a tree of a fixed structure.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

import mlx.core as mx

from mlx_eagle.drafters.base import Drafter, Draws, Level, ReadsText
from mlx_eagle.drafters.fixed import draft_fixed
from mlx_eagle.drafters.ranking import Children, Frontier
from mlx_eagle.sampling.ratio import RatioSampler
from mlx_eagle.static_tree import StaticTree
from mlx_eagle.tree import PLAIN, DraftTree, TreeShape


class DrawnDrafts:
    """A drafter for one answer, which draws what the drafter behind it would choose."""

    def __init__(self, drafter: Drafter, sampler: RatioSampler) -> None:
        assert isinstance(drafter, Draws), "a request for other drafters is refused"
        self._drafter, self._draws, self._sampler = drafter, drafter, sampler
        self._trees: dict[TreeShape, StaticTree] = {}

    @property
    def max_width(self) -> int:
        """As wide as the drafter's own."""
        return self._drafter.max_width

    @property
    def max_depth(self) -> int:
        """As deep as the drafter's own."""
        return self._drafter.max_depth

    @property
    def rows(self) -> int:
        """Committed tokens observed."""
        return self._drafter.rows

    @property
    def nbytes(self) -> int:
        """Bytes of the drafter's cache."""
        return self._drafter.nbytes

    @property
    def buffers(self) -> Sequence[mx.array]:
        """The drafter's arrays."""
        return self._drafter.buffers

    def begin(self, token: mx.array) -> None:
        """Let a drafter that reads the text itself begin."""
        if isinstance(self._drafter, ReadsText):
            self._drafter.begin(token)

    def checkpoint(self) -> None:
        """Let a drafter that reads the text itself remember the end of a prompt."""
        if isinstance(self._drafter, ReadsText):
            self._drafter.checkpoint()

    def observe(self, taps: mx.array | None, next_tokens: mx.array) -> None:
        """Let the drafter observe."""
        self._drafter.observe(taps, next_tokens)

    def draft(self, root: mx.array, shape: TreeShape) -> DraftTree:
        """Draw a tree of this shape below `root` [1]."""
        if shape == PLAIN:
            return DraftTree.chain(root)
        if shape not in self._trees:
            self._trees[shape] = StaticTree.drawn(shape)
        return self._draws.draw(root, self._trees[shape], self._sampler)

    def draft_static(self, root: mx.array, tree: StaticTree) -> DraftTree:
        """Draw a tree of this structure below `root` [1]."""
        return self._draws.draw(root, tree, self._sampler)

    def greedy_path(self, k: int, depth: int) -> Generator[Level]:
        """Never asked for: to stop by confidence would bias the text."""
        raise AssertionError("drafts that are drawn are not checked")

    def trim(self, rows: int) -> None:
        """Let the drafter forget."""
        self._drafter.trim(rows)


def draw_tree(
    root: mx.array,
    tree: StaticTree,
    sampler: RatioSampler,
    position: int,
    logits: Callable[[int, Frontier], mx.array],
) -> DraftTree:
    """Draw the tokens of a tree, level by level.

    Args:
        root: [1] int32.
        tree: its structure.
        sampler: draws.
        position: of the root.
        logits: returns [F, W] after the nodes of a frontier, whose depth it is told.
    """
    rows = dict[int, mx.array]()  # by node that has children

    def children(level: int, frontier: Frontier) -> Children:
        nodes = tree.inner(level)
        k = max(len(tree.children[node]) for node in nodes)
        drawn = sampler.draw(logits(level, frontier), k, position, level)
        rows.update(zip(nodes, drawn.log_probs, strict=True))
        return mx.take_along_axis(drawn.log_probs, drawn.tokens, axis=-1), drawn.tokens

    filled = draft_fixed(children, root, tree)
    none = mx.full(rows[0].shape, -mx.inf)
    own = mx.stack([rows.get(node, none) for node in range(tree.n_nodes)])
    return replace(filled, draft_log_probs=own)
