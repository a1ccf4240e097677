"""`TreeShape`: how large a draft tree may become, and how users write that: `4x2x8`.

Sizes only. The tree itself, whose arrays need MLX, is in `tree.py`.
"""

import re
from dataclasses import dataclass

# A tree must fit the slack of a window cache, and ranking compares all pairs of candidates. The
# largest trees in use, EAGLE-2's on datacenter GPUs, verify 60 nodes of 710 candidates.
MAX_NODES = 255
MAX_CANDIDATES = 4096
MAX_SIZE = 1024  # of depth, width or nodes: what comes from a command line stays computable


@dataclass(frozen=True)
class TreeShape:
    """How large a tree may become.

    Attributes:
        depth: levels below the root, i.e. the most tokens that one round can accept.
        width: children considered per node, and nodes expanded per level; 1 makes a chain.
        nodes: drafted nodes to verify (the root not counted); 0 means plain decoding.
    """

    depth: int
    width: int
    nodes: int

    def __post_init__(self) -> None:
        if (self.depth, self.width, self.nodes) == (0, 1, 0):
            return
        if min(self.depth, self.width, self.nodes) < 1:
            raise ValueError(f"{self} has a part below 1; plain decoding is TreeShape(0, 1, 0)")
        if self.nodes > self.n_candidates:
            raise ValueError(
                f"{self} asks for {self.nodes} nodes, but depth {self.depth} and width "
                f"{self.width} draft only {self.n_candidates}; raise depth or width"
            )
        if self.nodes > MAX_NODES or self.n_candidates > MAX_CANDIDATES:
            raise ValueError(
                f"{self} scores {self.n_candidates} candidates for {self.nodes} nodes; at most "
                f"{MAX_CANDIDATES} candidates (width + (depth - 1) * width * width) and "
                f"{MAX_NODES} nodes are possible"
            )

    @classmethod
    def complete(
        cls, depth: int, width: int | None = None, nodes: int | None = None
    ) -> "TreeShape":
        """Return the shape of which some sizes are given.

        Depth alone is a chain. Depth and width keep width nodes per level. Depth and nodes take
        the smallest width that has room: (4, None, 8) becomes (4, 2, 8).

        Raises:
            ValueError: if the sizes contradict each other, or are out of range.
        """
        for size in (depth, width, nodes):
            if size is not None and not 1 <= size <= MAX_SIZE:
                raise ValueError(f"{size} is no size of a tree; sizes are from 1 to {MAX_SIZE}")
        if width is None:
            width = -(-(nodes or depth) // depth)
        if nodes is None:
            nodes = depth * width
        most = width + (depth - 1) * width**2
        if not depth <= nodes <= most:
            raise ValueError(
                f"a tree of depth {depth} and width {width} has {depth} to {most} nodes, "
                f"not {nodes}"
            )
        return cls(depth, width, nodes)

    @classmethod
    def parse(cls, text: str) -> "TreeShape":
        """Return the shape that a user wrote: `4x2x8`, or `4x2`, or `4`; see `complete`.

        Raises:
            ValueError: if it is none; its message says why.
        """
        sizes = re.split(r"\s*x\s*|\s+", text.strip())
        if len(sizes) > 3 or not all(size.isascii() and size.isdigit() for size in sizes):
            raise ValueError(f"{text!r} is no tree; write DEPTHxWIDTHxNODES, such as 4x2x8")
        return cls.complete(*map(int, sizes))

    @property
    def text(self) -> str:
        """The shape as `parse` reads it."""
        return f"{self.depth}x{self.width}x{self.nodes}"

    @classmethod
    def chain(cls, depth: int) -> "TreeShape":
        """Return the shape of a chain of `depth` tokens; 0 is plain decoding."""
        return cls(depth, 1, depth)

    @property
    def n_candidates(self) -> int:
        """Nodes that are scored before the best `nodes` are kept."""
        return self.width + (self.depth - 1) * self.width**2 if self.depth else 0


PLAIN = TreeShape.chain(0)
