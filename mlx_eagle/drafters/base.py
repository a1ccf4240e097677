"""What every drafter offers; one module per drafter stands beside this one."""

from collections.abc import Generator, Sequence
from typing import Protocol, Self, runtime_checkable

import mlx.core as mx

from mlx_eagle.planner.policy import Level as NodeChildren
from mlx_eagle.sampling.ratio import RatioSampler
from mlx_eagle.static_tree import StaticTree
from mlx_eagle.tree import DraftTree, TreeShape

Level = tuple[mx.array, mx.array]  # log-probabilities and target ids, [K] each, likeliest first


class Drafter(Protocol):
    """Proposes trees from what has been committed; it sees tokens and taps, never the target.

    Of n committed tokens a drafter has processed 0..n-2, which `rows` counts; token n-1, the root,
    it has seen only as the next token of n-2.
    """

    @property
    def max_width(self) -> int:
        """The widest tree it can make: how many tokens it chooses among."""

    @property
    def max_depth(self) -> int:
        """The deepest tree it can make."""

    @property
    def rows(self) -> int:
        """Committed tokens observed."""

    @property
    def nbytes(self) -> int:
        """Bytes of the drafter's own cache."""

    @property
    def buffers(self) -> Sequence[mx.array]:
        """The arrays to evaluate when the drafter must be up to date."""

    def observe(self, taps: mx.array | None, next_tokens: mx.array) -> None:
        """Take in L newly committed tokens.

        Args:
            taps: [L, A * D] the target's taps at these tokens; None if the target is untapped.
            next_tokens: [L] int32, the token that follows each.
        """

    def draft(self, root: mx.array, shape: TreeShape) -> DraftTree:
        """Propose a tree below `root` [1] int32, the next token that was observed last."""

    def greedy_path(self, k: int, depth: int) -> Generator[Level]:
        """Yield, level by level, the k likeliest children of the likeliest node, lazily.

        The log-probabilities are given the parent. What is drafted ends when the caller stops, at
        `depth` levels at the latest; the caller closes the generator.
        """

    def trim(self, rows: int) -> None:
        """Forget everything after the first `rows` observed tokens."""


@runtime_checkable
class ReadsText(Protocol):
    """What a drafter offers besides, if it reads the text itself.

    `observe` brings the token after each committed one, and so every token but the first.
    """

    def begin(self, token: mx.array) -> None:
        """Take in the first token [1] int32 of a text, before anything is observed."""

    def checkpoint(self) -> None:
        """Remember the end of a prompt as a place to go back to, where that takes remembering."""


@runtime_checkable
class Draws(Protocol):
    """What a drafter offers besides, if it can draw its drafts instead of choosing them."""

    def draw(self, root: mx.array, tree: StaticTree, sampler: RatioSampler) -> DraftTree:
        """Propose a tree of this structure below `root` [1], by draws; see `sampling/ratio.py`."""


@runtime_checkable
class DraftsStatic(Protocol):
    """What a drafter offers besides, if it can draft trees of a fixed structure."""

    def draft_static(self, root: mx.array, tree: StaticTree) -> DraftTree:
        """Propose a tree of this structure below `root` [1]."""


@runtime_checkable
class Lookup(Protocol):
    """What a drafter offers besides, if it can look continuations up instead of computing them."""

    def lookup(self, depth: int, width: int, nodes: int) -> list[NodeChildren]:
        """Return what the text suggests below the newest token, on the host; often nothing.

        Args:
            depth: most levels below the root.
            width: most children of a node.
            nodes: of all continuations the likeliest so many, parents before children.
        """

    def draft_alone(self, root: mx.array, shape: TreeShape) -> DraftTree:
        """Propose a tree below `root` [1] without looking anything up."""


@runtime_checkable
class Restorable(Protocol):
    """What a drafter offers besides, if what it has observed can be copied and written to a file.

    The rows of a drafter without it are computed again from taps where they are needed.
    """

    def fork(self) -> Self:
        """Return a copy that shares what has been observed so far, and then goes its own way."""

    def arrays(self) -> dict[str, mx.array]:
        """Return what a file must hold for `restore`, by name."""

    def restore(self, arrays: dict[str, mx.array], rows: int) -> None:
        """Hold what `arrays` returned of a drafter with `rows` observed tokens.

        A token must be observed before the next draft.
        """
