"""A head becomes the drafter for its kind, once it is known to fit the target."""

import mlx.core as mx

from mlx_eagle.drafters.base import Drafter
from mlx_eagle.drafters.eagle import EagleDrafter
from mlx_eagle.drafters.medusa import MedusaDrafter
from mlx_eagle.drafters.p_eagle import PEagleDrafter
from mlx_eagle.errors import CheckpointError
from mlx_eagle.heads.load import Head
from mlx_eagle.heads.medusa import MedusaHead
from mlx_eagle.target.target import Target


def check_fit(head: Head, target: Target) -> None:
    """Give the head the target's type, after checking that they belong together.

    Raises:
        CheckpointError: if sizes differ.
    """
    config, sample = head.config, target.embedding(mx.array([0]))
    vocab, hidden = target.vocab_size, sample.shape[-1]
    found = {"hidden size": (config.target_hidden_size, hidden)}
    found["vocabulary"] = (config.target_vocab_size, vocab)
    wrong = [f"{what} {a} (target: {b})" for what, (a, b) in found.items() if a != b]
    if config.hidden_size != hidden and _borrows(head):
        wrong.append(f"own hidden size {config.hidden_size} (target: {hidden})")
    if wrong:
        raise CheckpointError(
            f"the head was made for another target: {', '.join(wrong)}; "
            "give the target that the head was trained for"
        )
    head.set_dtype(sample.dtype)


def _borrows(head: Head) -> bool:
    """Say whether a head uses the target's embedding or output layer, which fix its width."""
    if isinstance(head, MedusaHead):
        return True
    return not (head.config.own_embedding and head.config.own_lm_head)


def make_drafter(head: Head, target: Target, window: int | None = None) -> Drafter:
    """Return a drafter with an empty cache of its own.

    Args:
        head: the head.
        target: for which it drafts.
        window: tokens that the head attends to; None or 0 for all.
    """
    if isinstance(head, MedusaHead):
        return MedusaDrafter(head, target)
    kind = PEagleDrafter if head.config.algorithm == "p-eagle" else EagleDrafter
    return kind(head, target, window)
