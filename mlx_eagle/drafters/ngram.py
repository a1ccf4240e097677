"""Drafting by n-gram lookup: what followed the text's last tokens the last times they occurred.

The text is all that was observed: the prompt, earlier turns, the answer so far. Where the text has
stood several times before, the continuations are merged into one tree, as SuffixDecoding does
(arXiv 2411.04975). A continuation weighs half as much for every token that its match is shorter
than the longest. The confidence of a token is its share of the weight below its parent, times
n / (n + 1), n being the tokens that agree up to it: an order of likelihood, which the planner's
acceptance model turns into probabilities.
"""

import copy
import heapq
from collections.abc import Generator
from math import log
from typing import NamedTuple, Self, cast

import mlx.core as mx

from mlx_eagle.drafters.base import Level as LazyLevel
from mlx_eagle.drafters.early_stop import all_nodes, levels_to_tree
from mlx_eagle.drafters.ngram_index import Match, NgramIndex
from mlx_eagle.planner.policy import ROOT, Level, Node
from mlx_eagle.tree import DraftTree, TreeShape

SHORTER = 0.5  # weight of a match for every token that it is shorter than the longest


class _Child(NamedTuple):
    """A token that may follow, and the matches after which it did."""

    token: int
    confidence: float
    matches: list[Match]


class _Offer(NamedTuple):
    """A node that may be taken; of equal paths the parent that was taken first, then the rank."""

    path: float  # minus the product of the confidences: a heap gives the least
    parent: Node
    rank: int  # among its siblings, the likeliest first
    depth: int
    child: _Child


class NgramDrafter:
    """A text and its index; it reads tokens on the host and needs no taps."""

    buffers: tuple[mx.array, ...] = ()

    def __init__(self, max_width: int, max_depth: int) -> None:
        """Make the drafter of an empty text; the vocabulary and the deepest tree bound it."""
        self.max_width, self.max_depth = max_width, max_depth
        self.index = NgramIndex()

    @property
    def rows(self) -> int:
        """Committed tokens observed."""
        return len(self.index)

    @property
    def nbytes(self) -> int:
        """Bytes of the text and its index."""
        return self.index.nbytes

    def observe(self, taps: mx.array | None, next_tokens: mx.array) -> None:
        """Add L tokens, next_tokens [L]."""
        # The host has read these tokens before, or sent them: nothing of a forward is waited for.
        self.index.extend(cast(list[int], next_tokens.tolist()))

    def lookup(self, depth: int, width: int, nodes: int) -> list[Level]:
        """Return the likeliest `nodes` continuations; see `base.Lookup`."""
        offers = self._offers(-1.0, ROOT, 1, self.index.matches(), width)
        places: dict[Node, int] = {}  # by parent, the level of its children
        levels: list[tuple[list[int], list[float]]] = []  # tokens and confidences
        for left in reversed(range(nodes)):
            if not offers:
                break
            path, parent, rank, at, child = heapq.heappop(offers)
            place = places.setdefault(parent, len(levels))
            if place == len(levels):
                levels.append(([], []))
            levels[place][0].append(child.token)
            levels[place][1].append(child.confidence)
            if left and at < depth:
                node = Node(place, rank)
                for offer in self._offers(path, node, at + 1, child.matches, width):
                    heapq.heappush(offers, offer)
        return [
            Level(*level, parent, is_lookup=True)
            for parent, level in zip(places, levels, strict=True)
        ]

    def draft(self, root: mx.array, shape: TreeShape) -> DraftTree:
        """Propose the likeliest continuations below `root` [1], `shape.nodes` at most."""
        levels = self.lookup(shape.depth, shape.width, shape.nodes)
        return levels_to_tree(root, levels, all_nodes(levels))

    def draft_alone(self, root: mx.array, shape: TreeShape) -> DraftTree:
        """Propose nothing below `root` [1]: there is no head."""
        return DraftTree.chain(root)

    def greedy_path(self, k: int, depth: int) -> Generator[LazyLevel]:
        """Yield the k likeliest tokens of every level, below the likeliest ones, if any."""
        matches = self.index.matches()
        for level in range(depth if matches else 0):
            children = self._children(matches, level)[:k]
            log_probs = [log(child.confidence) for child in children]
            tokens = [child.token for child in children]
            yield mx.array(log_probs), mx.array(tokens, dtype=mx.int32)
            matches = children[0].matches

    def _offers(
        self, path: float, parent: Node, depth: int, matches: list[Match], width: int
    ) -> list[_Offer]:
        """Return the likeliest `width` children of a node, on what path it is, the best first."""
        children = self._children(matches, depth - 1)[:width] if matches else []
        return [
            _Offer(path * child.confidence, parent, rank, depth, child)
            for rank, child in enumerate(children)
        ]

    def _children(self, matches: list[Match], depth: int) -> list[_Child]:
        """Return what follows, `depth` tokens further on, by likelihood."""
        leading: dict[int, list[Match]] = {}
        for match in matches:  # the longest first, and so in every list
            leading.setdefault(self.index.following(match, depth), []).append(match)
        longest = matches[0].length
        weights = [
            sum(SHORTER ** (longest - m.length) for m in those) for those in leading.values()
        ]
        total, children = sum(weights), list[_Child]()
        for (token, those), weight in zip(leading.items(), weights, strict=True):
            agreeing = those[0].length + depth
            children.append(_Child(token, weight / total * agreeing / (agreeing + 1), those))
        return sorted(children, key=lambda child: -child.confidence)

    def trim(self, rows: int) -> None:
        """Forget everything after the first `rows` observed tokens."""
        self.index.trim(rows)

    def fork(self) -> Self:
        """Return a copy that goes its own way."""
        twin = copy.copy(self)
        twin.index = self.index.fork()
        return twin

    def arrays(self) -> dict[str, mx.array]:
        """Return the text [1, 1, rows, 1], with its rows where those of a cache are."""
        if not self.rows:
            return {}
        return {"tokens": mx.array(list(self.index.tokens), dtype=mx.int32)[None, None, :, None]}

    def restore(self, arrays: dict[str, mx.array], rows: int) -> None:
        """Hold what `arrays` returned of a drafter with `rows` observed tokens.

        Raises:
            ValueError: if there are not so many tokens.
        """
        found = arrays["tokens"].size if rows else 0
        if found != rows:
            raise ValueError(f"the text that is looked up in has {found} tokens for {rows} rows")
        self.index = NgramIndex()
        if rows:
            self.index.extend(cast(list[int], arrays["tokens"].reshape(-1).tolist()))
