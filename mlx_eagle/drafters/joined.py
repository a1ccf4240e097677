"""The drafter of a head or draft model, and n-gram lookup whose branches join its tree.

Where a planner decides, it is shown what was looked up before the head drafts, and says whether the
head drafts beside it at all (`planner/round_plan.py`). A tree of a fixed shape holds the likeliest
nodes of both, by their confidences, which takes reading the head's tree on the host. Trees of a
fixed structure (`base.DraftsStatic`) and draws (`base.Draws`) are none of both, and not offered.
"""

import copy
from collections.abc import Generator, Sequence
from typing import Self, cast

import mlx.core as mx

from mlx_eagle.drafters.base import Drafter, ReadsText, Restorable
from mlx_eagle.drafters.base import Level as LazyLevel
from mlx_eagle.drafters.early_stop import all_nodes, levels_to_tree
from mlx_eagle.drafters.ngram import NgramDrafter
from mlx_eagle.planner.policy import HEAD, Level
from mlx_eagle.tree import PLAIN, DraftTree, TreeShape

OF_HEAD, OF_NGRAM = "head.", "ngram."  # whose arrays they are, in a file


class JoinedDrafter:
    """The drafter of a head, and the text that it has observed."""

    def __init__(self, head: Drafter) -> None:
        self.head = head
        self.ngram = NgramDrafter(head.max_width, head.max_depth)

    @property
    def max_width(self) -> int:
        """The head's draft vocabulary."""
        return self.head.max_width

    @property
    def max_depth(self) -> int:
        """What the head can draft."""
        return self.head.max_depth

    @property
    def rows(self) -> int:
        """Committed tokens observed, by both."""
        return self.head.rows

    @property
    def nbytes(self) -> int:
        """Bytes of the head's cache, and of the text with its index."""
        return self.head.nbytes + self.ngram.nbytes

    @property
    def buffers(self) -> Sequence[mx.array]:
        """The arrays to evaluate when the head must be up to date."""
        return self.head.buffers

    def begin(self, token: mx.array) -> None:
        """Let a drafter that reads the text itself take in its first token [1]."""
        if isinstance(self.head, ReadsText):
            self.head.begin(token)

    def checkpoint(self) -> None:
        """Let a drafter that reads the text itself remember the end of a prompt."""
        if isinstance(self.head, ReadsText):
            self.head.checkpoint()

    def observe(self, taps: mx.array | None, next_tokens: mx.array) -> None:
        """Let both take in L tokens: taps [L, A * D], next_tokens [L]."""
        self.head.observe(taps, next_tokens)
        self.ngram.observe(None, next_tokens)

    def lookup(self, depth: int, width: int, nodes: int) -> list[Level]:
        """Return what the text suggests; see `base.Lookup`."""
        return self.ngram.lookup(depth, width, nodes)

    def draft_alone(self, root: mx.array, shape: TreeShape) -> DraftTree:
        """Propose the head's tree below `root` [1]."""
        return self.head.draft(root, shape)

    def draft(self, root: mx.array, shape: TreeShape) -> DraftTree:
        """Propose the likeliest `shape.nodes` nodes of both below `root` [1]; of chains, one."""
        if shape == PLAIN:
            return DraftTree.chain(root)
        levels = self.ngram.lookup(shape.depth, shape.width, shape.nodes)
        drafted = self.head.draft(root, shape)
        if not levels:
            return drafted
        found = levels_to_tree(root, levels, all_nodes(levels))
        if shape.width == 1:
            return max(drafted, found, key=_expected_tokens)
        return _merged(root, [drafted, found], shape.nodes)

    def greedy_path(self, k: int, depth: int) -> Generator[LazyLevel]:
        """Yield the head's levels: what is looked up is asked for apart."""
        return self.head.greedy_path(k, depth)

    def trim(self, rows: int) -> None:
        """Forget everything after the first `rows` observed tokens."""
        self.head.trim(rows)
        self.ngram.trim(rows)

    def fork(self) -> Self:
        """Return a copy that shares the head's rows so far."""
        assert isinstance(self.head, Restorable), "every head's drafter can be copied"
        twin = copy.copy(self)
        twin.head, twin.ngram = cast(Drafter, self.head.fork()), self.ngram.fork()
        return twin

    def arrays(self) -> dict[str, mx.array]:
        """Return what the head's drafter holds, and the text."""
        assert isinstance(self.head, Restorable), "every head's drafter can be written to a file"
        head = {OF_HEAD + name: array for name, array in self.head.arrays().items()}
        return head | {OF_NGRAM + name: array for name, array in self.ngram.arrays().items()}

    def restore(self, arrays: dict[str, mx.array], rows: int) -> None:
        """Hold what `arrays` returned of a drafter with `rows` observed tokens.

        Raises:
            ValueError: if a part does not hold so many.
        """
        assert isinstance(self.head, Restorable), "every head's drafter can be restored"
        own = {name: array for name, array in arrays.items() if not name.startswith(OF_NGRAM)}
        self.head.restore({name.removeprefix(OF_HEAD): array for name, array in own.items()}, rows)
        text = {name.removeprefix(OF_NGRAM): arrays[name] for name in arrays.keys() - own.keys()}
        self.ngram.restore(text, rows)


def _expected_tokens(tree: DraftTree) -> float:
    """Return how many nodes would be accepted, the root included, were confidences acceptances."""
    return float(mx.exp(tree.log_probs).sum())


def _merged(root: mx.array, trees: Sequence[DraftTree], n: int) -> DraftTree:
    """Return the `n` likeliest nodes of some trees below `root` [1] that share their root."""
    places: dict[tuple[int, int], int] = {}  # by the parent's place and the token
    tokens, parents, scores, sources = [0], [0], [0.0], list[str]()
    for tree in trees:
        proposed_by = tree.sources or (HEAD,) * tree.num_draft_tokens
        own = [0]  # by node, its place among those of all trees
        own_tokens = cast(list[int], tree.tokens.tolist())
        own_scores = cast(list[float], tree.log_probs.tolist())
        parts = zip(own_tokens, tree.structure(), own_scores, strict=True)
        for (token, parent, score), source in zip(list(parts)[1:], proposed_by, strict=True):
            place = places.setdefault((own[parent], token), len(tokens))
            own.append(place)
            if place == len(tokens):
                tokens.append(token)
                parents.append(own[parent])
                scores.append(score)
                sources.append(source)
            scores[place] = max(scores[place], score)
    likeliest = sorted(range(1, len(tokens)), key=lambda place: (-scores[place], place))[:n]
    kept = [0, *sorted(likeliest)]
    node_of = {place: node for node, place in enumerate(kept)}
    chosen = mx.array([tokens[place] for place in kept[1:]], dtype=mx.int32)
    return DraftTree.static(
        mx.concatenate([root, chosen]),
        [node_of[parents[place]] for place in kept],
        [scores[place] for place in kept],
        [sources[place - 1] for place in kept[1:]],
    )
