"""How often each rank of a head's proposals is right, depth by depth, on texts of its target.

Static trees are built from it (`static_tree.py`). Depths are taken for independent of each other,
as Medusa heads are (arXiv 2401.10774, section 2.3.3).
"""

from collections.abc import Sequence

import numpy as np

from mlx_eagle.doctor.score import Evidence
from mlx_eagle.drafters.ranking import likeliest
from mlx_eagle.heads.medusa import MedusaHead
from mlx_eagle.target.target import Target

RANKS = 10  # likeliest tokens of every depth


def rank_accuracies(
    head: MedusaHead, target: Target, texts: Sequence[Evidence]
) -> list[list[float]]:
    """Return, by depth and rank, the share of positions at which that token is the target's.

    Args:
        head: the heads of all depths.
        target: whose output layer they may use.
        texts: what it wrote; positions within the prompts are left out.
    """
    n_ranks = min(RANKS, head.config.draft_vocab_size)
    hits, n_positions = np.zeros((head.max_depth, n_ranks)), np.zeros((head.max_depth, 1))
    for text in texts:
        tokens, first = np.array(text.tokens), text.n_prompt - 1
        for depth, ranked in enumerate(_ranked(head, target, text, n_ranks)):
            # The root stands after the hidden state, and the tokens of this depth beyond it.
            right = ranked[: len(tokens) - 2 - depth] == tokens[2 + depth :, None]
            hits[depth] += right[first:].sum(axis=0)
            n_positions[depth] += len(right[first:])
    shares: list[list[float]] = (hits / np.maximum(n_positions, 1)).tolist()
    return [np.minimum.accumulate(ranks).tolist() for ranks in shares]


def _ranked(head: MedusaHead, target: Target, text: Evidence, k: int) -> list[np.ndarray]:
    """Return, by depth, the k likeliest tokens [L, k] at every position of a text."""
    hidden = text.taps[head.config.taps[0]]
    found = []
    for depth in head.depths:
        _, ids = likeliest(depth(hidden, target.unembed), k)
        found.append(np.array(head.draft_to_target[ids]))
    return found
