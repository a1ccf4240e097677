"""The drafter for a head, or for what stands in its place, once it is known to fit the target."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_eagle.cache.model_cache import TreeCache
from mlx_eagle.drafters.base import Drafter
from mlx_eagle.drafters.block import BlockDrafter
from mlx_eagle.drafters.cached import CachedDrafter
from mlx_eagle.drafters.draft_model import DraftModelDrafter
from mlx_eagle.drafters.eagle import EagleDrafter
from mlx_eagle.drafters.joined import JoinedDrafter
from mlx_eagle.drafters.markov import MarkovDrafter
from mlx_eagle.drafters.medusa import MedusaDrafter
from mlx_eagle.drafters.ngram import NgramDrafter
from mlx_eagle.drafters.p_eagle import PEagleDrafter
from mlx_eagle.errors import CheckpointError
from mlx_eagle.heads.draft_model import DraftModel
from mlx_eagle.heads.load import AnyHead
from mlx_eagle.heads.ngram import JoinedHead, NgramHead, without_lookup
from mlx_eagle.target.target import Target

# By the algorithm of a head's configuration: what drafts with it.
DRAFTERS: dict[str, Callable[[Any, Target, int | None], Drafter]] = {
    "eagle": EagleDrafter,
    "eagle3": EagleDrafter,
    "p-eagle": PEagleDrafter,
    "medusa": MedusaDrafter,
    "draft-model": DraftModelDrafter,
    "mtp": EagleDrafter,
    "dflash": BlockDrafter,
    "dspark": MarkovDrafter,
}


def check_fit(head: AnyHead, target: Target) -> None:
    """Give the head the target's type, after checking that they belong together.

    A draft model needs nothing but the target's tokens, which were compared when it was loaded.

    Raises:
        CheckpointError: if sizes differ.
    """
    head = without_lookup(head)
    if isinstance(head, NgramHead | DraftModel):
        return
    config, sample = head.config, target.embedding(mx.array([0]))
    vocab, hidden = target.vocab_size, sample.shape[-1]
    found = {"hidden size": (config.target_hidden_size, hidden)}
    found["vocabulary"] = (config.target_vocab_size, vocab)
    wrong = [f"{what} {a} (target: {b})" for what, (a, b) in found.items() if a != b]
    if config.hidden_size != hidden and head.borrows:
        wrong.append(f"own hidden size {config.hidden_size} (target: {hidden})")
    if wrong:
        raise CheckpointError(
            f"the head was made for another target: {', '.join(wrong)}; "
            "give the target that the head was trained for"
        )
    head.set_dtype(sample.dtype)


def own_cache(drafter: Drafter | None) -> TreeCache | None:
    """Return the cache that a drafter has beside what it looks up; None if it keeps none."""
    if isinstance(drafter, JoinedDrafter):
        return own_cache(drafter.head)
    return drafter.cache if isinstance(drafter, CachedDrafter | DraftModelDrafter) else None


def make_drafter(head: AnyHead, target: Target, window: int | None = None) -> Drafter:
    """Return a drafter with an empty cache of its own.

    Args:
        head: the head.
        target: for which it drafts.
        window: tokens that the head attends to; None or 0 for all.
    """
    if isinstance(head, NgramHead):
        return NgramDrafter(target.n_logits, head.max_depth)
    if isinstance(head, JoinedHead):
        return JoinedDrafter(make_drafter(head.head, target, window))
    return DRAFTERS[head.config.algorithm](head, target, window)
