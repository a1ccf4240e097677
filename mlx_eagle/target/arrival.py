"""Whether every tensor of a target's files has arrived in the model that was made of them.

mlx-lm's classes drop tensors that they do not know, and such as they think are tied to others. That
changes the text without an error. So what is dropped must be known to be needless, or be a copy.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.target.layouts import Weights, relayout

# Tensors that no language model needs: tables that are computed, what other senses and drafters
# read, and marks of training.
_NEEDLESS = re.compile(
    r"inv_freq$|\.masked_bias$|\.attn\.bias$|\.attention\.bias$|position_ids$|cos_cached$|sin_cached$"
    r"|(^|\.)(vision|visual|audio|image|video|speech|talker|token2wav)[^.]*\."
    r"|(^|\.)(vision_tower|multi_modal_projector|mm_projector|embed_vision|embed_audio|mtp)\."
    r"|(^|\.)mtp_(layers|block|emb_norm|hidden_norm|linear_proj)\."
    r"|\.(k|v|q|input|output)_scale$|\.rotary_emb\."
)


class Dropped(NamedTuple):
    """Tensors that a model class dropped, by their names in the files."""

    tensors: Weights
    kept: Weights


def record_dropped(network: nn.Module, model_type: str) -> Callable[[], Dropped]:
    """Let a network tell which tensors its `sanitize` drops, and give it a layout that it reads.

    A tensor is dropped if what `sanitize` returns is the same without it: it may rename tensors,
    stack or transpose them. Of tensors whose names differ in numbers alone one is tried.

    Args:
        network: before it is given its weights; `sanitize` tells once, and is then its own again.
        model_type: of the configuration.

    Returns:
        What returns the tensors once they were dropped.
    """
    dropped, kept = {}, {}
    if not hasattr(network, "sanitize"):
        return lambda: Dropped({}, {})
    sanitize = network.sanitize

    def telling(weights: Weights) -> Weights:
        weights = relayout(model_type, weights)
        before = dict(weights)
        after: Weights = sanitize(weights)
        del network.sanitize
        present = {id(array) for array in after.values()}
        lost = {name: a for name, a in before.items() if id(a) not in present}
        dropped.update(_without_effect(sanitize, before, after, lost))
        kept.update(after)
        return after

    network.sanitize = telling
    return lambda: Dropped(dropped, kept)


def _without_effect(
    sanitize: Callable[[Weights], Weights], before: Weights, after: Weights, lost: Weights
) -> Weights:
    """Return those of the lost tensors without which `sanitize` returns the same."""
    found: Weights = {}
    verdicts: dict[str, bool] = {}
    for name, array in lost.items():
        kind = re.sub(r"\d+", "#", name)
        if kind not in verdicts:
            rest = {key: value for key, value in before.items() if key != name}
            try:
                again = sanitize(rest)
            except Exception:  # model code looks for the tensor in whatever way
                again = {}
            verdicts[kind] = _kinds(again) == _kinds(after)
        if verdicts[kind]:
            found[name] = array
    return found


def _kinds(weights: Weights) -> dict[str, tuple[tuple[int, ...], mx.Dtype]]:
    """Return shape and type of every tensor."""
    return {name: (tuple(array.shape), array.dtype) for name, array in weights.items()}


def missing_tensors(dropped: Dropped, n_layers: int | None = None) -> list[str]:
    """Return the names of dropped tensors that the model's text depends on, sorted.

    Args:
        dropped: by a model class.
        n_layers: of the model; layers after them predict further tokens, for drafting alone.
    """
    return sorted(
        name
        for name, array in dropped.tensors.items()
        if not is_needless(name)
        and not _is_beyond(name, n_layers)
        and not _is_copy(array, dropped.kept)
    )


def _is_beyond(name: str, n_layers: int | None) -> bool:
    """Say whether a tensor is of a layer after the last one."""
    layer = re.search(r"(^|\.)layers\.(\d+)\.", name)
    return n_layers is not None and layer is not None and int(layer[2]) >= n_layers


def is_needless(name: str) -> bool:
    """Say whether a tensor or module of this name has no part in a language model's text."""
    return _NEEDLESS.search(name) is not None


def _is_copy(array: mx.array, kept: Weights) -> bool:
    """Say whether a tensor is one of those that are kept once more, as tied layers are saved."""
    alike = (other for other in kept.values() if other.shape == array.shape)
    return any(bool(mx.array_equal(array, other)) for other in alike)
