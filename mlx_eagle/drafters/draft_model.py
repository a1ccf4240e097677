"""Drafting with a small language model: a chain, or the tree that is likeliest by its own lights.

Every token that is committed is read by the model too, and its rows stay in a cache of its own.
Rows of drafted tokens come after them and are forgotten once a tree is drafted: the accepted ones
are read again together with the target's own token, which takes one forward all the same.
"""

import copy
from collections.abc import Callable, Generator
from typing import Self

import mlx.core as mx

from mlx_eagle.drafters.base import Level
from mlx_eagle.drafters.drawn import draw_tree
from mlx_eagle.drafters.fixed import draft_fixed
from mlx_eagle.drafters.ranking import Frontier, expand, likeliest, to_tree
from mlx_eagle.heads.draft_model import DraftModel
from mlx_eagle.sampling.ratio import RatioSampler
from mlx_eagle.static_tree import StaticTree
from mlx_eagle.target.target import Target
from mlx_eagle.tree import PLAIN, DraftTree, TreeShape

PIECE = 512  # tokens that are read in one forward
UNBOUNDED = 1 << 40  # tokens
FEW = 32  # of which the logits of all are computed, though those of the last are wanted
TOKENS = "tokens"  # in a file


class DraftModelDrafter:
    """A draft model with its own cache, and the tokens that it is of.

    The tokens are kept because not every cache can go back to any row: what of them it lacks after
    a `trim` is read again with the next ones. Beyond the context that the model was made for it
    reads no more, and drafts nothing.
    """

    def __init__(self, model: DraftModel, target: Target, window: int | None = None) -> None:
        assert not window, "a draft model attends to all tokens; loading refuses a window"
        self.model, self.kv = model, target.kv
        # Ids beyond the target's cannot be proposed; they pad the draft model's vocabulary.
        self._n_tokens = min(model.vocab_size, target.vocab_size or model.vocab_size)
        self._most = model.max_context or UNBOUNDED  # tokens that it reads, drafted ones included
        self.cache = model.make_cache(self.kv)
        self._tokens = mx.zeros((0,), dtype=mx.int32)  # committed ones, the root included
        self._newest: mx.array | None = None  # [1, W] logits after the root

    @property
    def max_width(self) -> int:
        """The vocabulary; 1 where rows of the model cannot branch."""
        return 1 if self.model.chains_only else self._n_tokens

    @property
    def max_depth(self) -> int:
        """The model steps as often as it is asked to."""
        return self.model.max_depth

    @property
    def rows(self) -> int:
        """Committed tokens observed."""
        return max(self._tokens.size - 1, 0)

    @property
    def nbytes(self) -> int:
        """Bytes of the model's KV cache."""
        return self.cache.nbytes

    @property
    def buffers(self) -> list[mx.array]:
        """The arrays to evaluate when the model must be up to date."""
        return [*self.cache.buffers, self._tokens]

    def begin(self, token: mx.array) -> None:
        """Take in the first token [1] of a text."""
        assert not self._tokens.size, "the text has begun"
        self._tokens = token

    def checkpoint(self) -> None:
        """Remember the tokens so far as a place that a recurrent model can go back to."""
        self._read()
        self.cache.checkpoint()

    def observe(self, taps: mx.array | None, next_tokens: mx.array) -> None:
        """Read L committed tokens, next_tokens [L]; taps are not looked at."""
        self._tokens = mx.concatenate([self._tokens, next_tokens])
        self._read()

    def draft(self, root: mx.array, shape: TreeShape) -> DraftTree:
        """Propose the best `shape.nodes` nodes below `root` [1]."""
        if shape == PLAIN or self._levels_left < shape.depth:
            return DraftTree.chain(root)
        candidates = expand(self._children(shape.width), root, shape.depth, shape.width)
        self.cache.commit([])  # forget the drafted rows
        return to_tree(root, candidates, shape)

    def draft_static(self, root: mx.array, tree: StaticTree) -> DraftTree:
        """Propose a tree of this structure below `root` [1]; see `fixed.py`."""
        if self._levels_left < tree.depth:
            return DraftTree.chain(root)
        drafted = draft_fixed(self._children(tree.width), root, tree)
        self.cache.commit([])  # forget the drafted rows
        return drafted

    def draw(self, root: mx.array, tree: StaticTree, sampler: RatioSampler) -> DraftTree:
        """Propose a tree of this structure below `root` [1], by draws."""
        if self._levels_left < tree.depth:
            return DraftTree.chain(root)

        def logits(level: int, frontier: Frontier) -> mx.array:
            return self._logits(level, frontier)[:, : self._n_tokens]

        drawn = draw_tree(root, tree, sampler, self.rows, logits)
        self.cache.commit([])  # forget the drafted rows
        return drawn

    def greedy_path(self, k: int, depth: int) -> Generator[Level]:
        """Yield the k likeliest children of the likeliest node: one row of the model per level."""
        depth = min(depth, self._levels_left)
        if not depth:
            return
        logits = self._after_root()
        try:
            for level in range(depth):
                log_probs, tokens = self._likeliest(logits, min(k, self._n_tokens))
                yield log_probs[0], tokens[0]
                if level + 1 < depth:
                    logits = self.model(tokens[0, :1], self.cache)
        finally:
            self.cache.commit([])  # forget the drafted rows

    def trim(self, rows: int) -> None:
        """Forget everything after the first `rows` observed tokens."""
        self._tokens, self._newest = self._tokens[: rows + 1], None
        kept = self.cache.longest_restorable_prefix(min(self._tokens.size, self.cache.rows))
        if kept:
            self.cache.trim(kept)
        else:
            self.cache = self.model.make_cache(self.kv)

    def fork(self) -> Self:
        """Return a copy that shares the rows held so far."""
        twin = copy.copy(self)
        twin.cache = self.cache.fork()
        return twin

    def arrays(self) -> dict[str, mx.array]:
        """Return the tokens [1, 1, n, 1], shaped as a cache's rows are, and the cache's rows."""
        if not self._tokens.size:
            return {}
        self._read()
        return {TOKENS: self._tokens[None, None, :, None], **self.cache.arrays()}

    def restore(self, arrays: dict[str, mx.array], rows: int) -> None:
        """Hold what `arrays` returned of a drafter with `rows` observed tokens.

        Arrays that were all cut off after `rows` rows lack the newest token: then one token less
        has been observed.

        Raises:
            ValueError: if it is not what these rows need.
        """
        if not arrays and not rows:
            return
        held = {name: array for name, array in arrays.items() if name != TOKENS}
        tokens = arrays.get(TOKENS)
        is_cut = all(array.shape[2:3] == (rows,) for array in arrays.values())
        if tokens is None or tokens.size != (rows if is_cut else rows + 1):
            raise ValueError(f"the draft model has no tokens for {rows} rows")
        self.cache.restore(held, min(tokens.size, self._most))
        self._tokens, self._newest = tokens.reshape(-1), None

    @property
    def _levels_left(self) -> int:
        """Levels that it can draft before its context is full: the last token is not read."""
        return max(0, self._most - self._tokens.size + 1)

    def _read(self) -> None:
        """Run the model over the tokens that its cache lacks."""
        n = min(self._tokens.size, self._most)
        n_new = n - self.cache.rows
        last = n - 1 if n_new > FEW else n
        starts = [*range(self.cache.rows, last, PIECE), last]
        for start, end in zip(starts, [*starts[1:], n], strict=True):
            if start == end:
                continue
            logits = self.model(self._tokens[start:end], self.cache)
            self.cache.commit(range(end - start))
            self._newest = logits[-1:]

    def _after_root(self) -> mx.array:
        """Return the logits [1, W] after the root."""
        assert self._newest is not None, "observe a token before drafting"
        return self._newest

    def _likeliest(self, logits: mx.array, k: int) -> Level:
        """Return the log-probabilities and tokens, [R, k] each, by logits [R, W]."""
        log_probs, ids = likeliest(logits[:, : self._n_tokens], k)
        return log_probs, ids.astype(mx.int32)

    def _children(self, k: int) -> Callable[[int, Frontier], Level]:
        """Return what gives the k likeliest tokens after each node of a frontier."""
        return lambda level, frontier: self._likeliest(self._logits(level, frontier), k)

    def _logits(self, level: int, frontier: Frontier) -> mx.array:
        """Return the logits [F, W] after the nodes of one level; level 0 is the root."""
        if not level:
            return self._after_root()
        if not frontier.is_chain:
            self.cache.expect(frontier.open_rows(self.cache.rows))
        return self.model(frontier.tokens, self.cache)
