"""Which gains of norms are stored as differences from 1, and are summed when a head is converted.

Some families multiply by 1 + w (Qwen3-Next and later), and copies of them occur in every state: as
published, with 1 added, and mixed. Magnitudes do not tell: trained gains of both states overlap. So
a copy's norms are compared with those of the original, number by number.
"""

from typing import NamedTuple

import mlx.core as mx

from mlx_eagle.convert.facts import Fact
from mlx_eagle.convert.mtp.layouts import Layout, is_norm
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import listed

# By which a number may differ from itself once it was stored in bfloat16, as a share.
ROUNDING = 2**-7
FACT = "norms_summed"


class StoredNorms(NamedTuple):
    """What is known of the norms of a layer before they are looked at.

    Attributes:
        names: of their parameters.
        is_original: the file is as its publisher wrote it, not a copy for MLX.
        is_standalone: it is a repository of its own, which tools for MLX write.
    """

    names: list[str]
    is_original: bool
    is_standalone: bool


def norms_summed(layout: Layout, stored: StoredNorms) -> Fact:
    """Return the norms to which 1 is added, as far as that is known without the original.

    A copy for MLX leaves a doubt: `mlx-eagle doctor` measures it.
    """
    every = sorted(stored.names)
    if not layout.zero_centred:
        return Fact([], f"{layout.label} stores its norms as they are used")
    if stored.is_original:
        return Fact(every, f"{layout.label} stores norms as differences from 1")
    inner = [name for name in every if name.startswith("layers.")]
    likely = [] if stored.is_standalone else every
    fact = Fact(likely, "custom of tools for MLX; not compared with the original")
    reason = f"copies of {layout.label} store norms with and without the 1 that is to be added"
    return fact.doubted(reason, [every, [], inner])


def compare_norms(copy: dict[str, mx.array], original: dict[str, mx.array], name: str) -> list[str]:
    """Return the norms of a copy that are stored as differences from 1, as the original's are.

    Args:
        copy: its tensors by the names of `MtpHead`'s parameters.
        original: likewise, of the publisher's checkpoint.
        name: of the original, for errors.

    Raises:
        CheckpointError: if a norm is neither the original's nor that plus 1.
    """
    raw, strangers = [], []
    for norm in sorted(filter(is_norm, copy)):
        ours, theirs = copy[norm].astype(mx.float32), original.get(norm)
        if theirs is None or theirs.shape != ours.shape:
            strangers.append(norm)
        elif _is_rounded(ours, theirs.astype(mx.float32)):
            raw.append(norm)
        elif not _is_rounded(ours, theirs.astype(mx.float32) + 1):
            strangers.append(norm)
    if strangers:
        raise CheckpointError(
            f"the head is no copy of the one in {name}: {listed(strangers)} are neither its norms "
            "nor those plus 1; name the original that it was made from, or leave it open "
            "(`mlx-eagle doctor` measures what drafts best)"
        )
    return raw


def _is_rounded(ours: mx.array, theirs: mx.array) -> bool:
    """Say whether numbers [D] are others [D] as 16 bits hold them."""
    return bool(mx.all(mx.abs(ours - theirs) <= ROUNDING * mx.abs(theirs) + 1e-6).item())


def with_sums(tensors: dict[str, mx.array], summed: list[str]) -> dict[str, mx.array]:
    """Return tensors in which the norms are whole: 1 is added to those named, in float32."""
    norms = {name: tensors[name].astype(mx.float32) for name in filter(is_norm, tensors)}
    return tensors | {name: a + 1 if name in summed else a for name, a in norms.items()}
