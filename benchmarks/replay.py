"""Recorded traces, what goes wrong with them, and every fixed shape replayed on them.

`record.py` makes the traces and says why they can be replayed. A trace goes wrong where the target
chooses a token that no candidate foresees, while the head is as confident as ever: tokens of the
text are marked as unforeseen, so that all policies meet the same ones, whatever their rounds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from mlx_eagle.planner.policy import Level
from mlx_eagle.tree import TreeShape

RECORDED = Path(__file__).parent / "traces" / "pydoc.npz"
NEVER = 255  # a rank that no tree reaches
PERIOD = 300  # tokens between a collapse and a recovery


@dataclass(frozen=True)
class Trace:
    """What a head drafts at T positions of each of P texts, as `record.Position` has it.

    Attributes:
        confidences: [P, T, depth, children] float32.
        hits: [P, T, depth] int8.
        ranks: by width of a tree, [P, T, depth, depth] uint8.
    """

    confidences: np.ndarray
    hits: np.ndarray
    ranks: Mapping[int, np.ndarray]

    @classmethod
    def load(cls, path: Path = RECORDED) -> "Trace":
        """Return what `record.py` wrote."""
        with np.load(path) as file:
            ranks = {width: file["ranks"][:, :, i] for i, width in enumerate((2, 3, 4))}
            return cls(file["confidences"].astype(np.float32), file["hits"], ranks)

    def reordered(self, texts: list[int]) -> "Trace":
        """Return these texts, in this order."""
        ranks = {width: ranks[texts] for width, ranks in self.ranks.items()}
        return Trace(self.confidences[texts], self.hits[texts], ranks)

    @property
    def size(self) -> tuple[int, int, int]:
        """Texts, positions of each, and drafted levels."""
        n_texts, n_positions, depth = self.hits.shape
        return n_texts, n_positions, depth

    def without(self, foreseen: np.ndarray) -> "Trace":
        """Return the trace in which some tokens are not foreseen by any candidate.

        Args:
            foreseen: [P * T] float32, for every token of the texts one after the other, the chance
                that it may be foreseen at all; the draws are the same at every call.
        """
        n_texts, n_positions, depth = self.size
        draws = np.random.default_rng(0).random(n_texts * n_positions)
        kept = (draws < foreseen).reshape(n_texts, n_positions)
        kept = np.pad(kept, ((0, 0), (0, depth)), mode="edge")
        ahead = np.stack([kept[:, k + 1 : k + 1 + n_positions] for k in range(depth)], axis=2)
        reached = np.logical_and.accumulate(ahead, axis=2)  # [P, T, depth]
        hits = np.where(reached, self.hits, -1).astype(np.int8)
        ranks = {w: np.where(reached[..., None], r, NEVER) for w, r in self.ranks.items()}
        return replace(self, hits=hits, ranks=ranks)

    @cached_property
    def chains(self) -> np.ndarray:
        """[P, T]: how many levels of the likeliest path the target follows."""
        found: np.ndarray = np.logical_and.accumulate(self.hits == 0, axis=2).sum(axis=2)
        return found

    @cached_property
    def levels(self) -> list[list[list[Level]]]:
        """By text and position, the drafted levels; the tokens are the children's numbers."""
        tokens = list(range(self.confidences.shape[3]))
        texts = self.confidences.tolist()
        return [[[Level(tokens, c) for c in place] for place in text] for text in texts]

    def accepted(self, shape: TreeShape) -> np.ndarray:
        """Return [P, T]: the tokens that a tree of this shape accepts at every position."""
        if shape.width == 1:
            found: np.ndarray = np.minimum(self.chains, shape.depth)
            return found
        ranks = self.ranks[shape.width][:, :, : shape.depth, shape.depth - 1]
        found = (ranks < shape.nodes).sum(axis=2)
        return found

    @cached_property
    def _walks(self) -> dict[TreeShape, tuple[int, int]]:
        return {}

    def walk(self, shape: TreeShape) -> tuple[int, int]:
        """Return the tokens and rounds of decoding all texts with one shape."""
        if shape not in self._walks:
            self._walks[shape] = self._walk(self.accepted(shape))
        return self._walks[shape]

    def _walk(self, accepted: np.ndarray) -> tuple[int, int]:
        n_texts, n_positions, _ = self.size
        texts, at = np.arange(n_texts), np.zeros(n_texts, dtype=int)
        tokens = rounds = 0
        while texts.size:
            steps = accepted[texts, at] + 1
            tokens, rounds = tokens + int(steps.sum()), rounds + texts.size
            at += steps
            texts, at = texts[at < n_positions], at[at < n_positions]
        return tokens, rounds


def variants(trace: Trace) -> dict[str, Trace]:
    """Return the trace as it was recorded, and with everything that may happen to a head."""
    n = trace.hits.shape[0] * trace.hits.shape[1]
    at = np.arange(n)
    return {
        "recorded": trace,
        "collapses": trace.without((at < n / 2).astype(float)),
        "collapses, recovers": trace.without((at // PERIOD % 2 == 0).astype(float)),
        "drifts": trace.without(1 - at / n),
        "dead head": trace.without(np.zeros(n)),
    }


def accepting(trace: Trace, tokens: float) -> Trace:
    """Return the trace without the texts that accept least, so that a round gives `tokens`.

    Texts are dropped one by one, by what a chain of 3 gives on them alone.

    Args:
        trace: of several texts.
        tokens: what rounds with a chain of 3 give at least on the texts that are left.
    """
    walks = [trace.reordered([i]).walk(TreeShape.chain(3)) for i in range(trace.size[0])]
    kept = sorted(range(len(walks)), key=lambda i: walks[i][0] / walks[i][1], reverse=True)
    while len(kept) > 1:
        total, rounds = (sum(walks[i][column] for i in kept) for column in (0, 1))
        if total >= tokens * rounds:
            break
        kept.pop()
    return trace.reordered(sorted(kept))


def sweep(trace: Trace, rows: Mapping[int, float]) -> dict[str, TreeShape]:
    """Return chains, and EAGLE-2's trees of every depth and width, of these numbers of rows."""
    depths = range(1, trace.size[2] + 1)
    shapes = [TreeShape.chain(depth) for depth in depths if depth + 1 in rows]
    for width in trace.ranks:
        for depth in depths:
            most = TreeShape(depth, width, 1).n_candidates
            sizes = [n - 1 for n in rows if max(depth, width) < n <= most + 1]
            shapes += [TreeShape(depth, width, nodes) for nodes in sizes]
    return {name_shape(shape): shape for shape in shapes}


def name_shape(shape: TreeShape) -> str:
    """Return how tables call a shape."""
    if shape.width == 1:
        return f"chain of {shape.depth}"
    return f"tree of {shape.nodes}, depth {shape.depth}, width {shape.width}"
