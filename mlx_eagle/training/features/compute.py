"""What a head learns from, computed by the target: its taps, its final states and its choices.

A text runs through the target once, as the target would read it: a piece after another through one
cache. The target's distribution is not kept. It is recomputed from the final state with the output
layer, and with what some models do to logits after that layer (`logits_after`).
"""

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_eagle.errors import UnsupportedTargetError
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.load import Head
from mlx_eagle.target.hooks import wrap_method
from mlx_eagle.target.target import Target
from mlx_eagle.training.batch import Features

STEP = 512  # tokens of a text that run together: their logits are held at once

LogitMap = Callable[[mx.array], mx.array]


def taps_of(head: Head) -> tuple[int, ...]:
    """Return the boundaries whose streams a head reads beside the target's final state."""
    fuses = isinstance(head, EagleHead) and head.config.fuse_taps
    return tuple(head.config.taps) if fuses else ()


def tap_for_features(target: Target, taps: Sequence[int]) -> Target:
    """Return a twin of a target that `compute` can read; release it when all is computed.

    Args:
        target: the target on whose model the twin is.
        taps: boundaries that the head reads, ascending; a head may read none.

    Raises:
        UnsupportedTargetError: if the model cannot be tapped there.
    """
    return target.twin((*taps, len(target.model.layers) + 1))


def compute(target: Target, tokens: np.ndarray) -> Features:
    """Return what the target computes of one text.

    Args:
        target: as `tap_for_features` returns it.
        tokens: [L] int32, L at least 1.

    Returns:
        Taps and final states in the precision of the target (bfloat16 as in `as_numpy`).

    Raises:
        UnsupportedTargetError: if a stream of the target is not finite.
    """
    assert target.taps[-1:] == (len(target.model.layers) + 1,), "the last tap is the final norm's"
    ids = mx.array(np.asarray(tokens, dtype=np.int32))
    cache = target.make_cache()
    streams, choices = [], []
    for start in range(0, len(tokens), STEP):
        logits, taps = target.forward(ids[start : start + STEP], cache)
        assert taps is not None, "the target is tapped"
        likeliest, is_finite = logits.argmax(axis=-1).astype(mx.int32), mx.isfinite(taps).all()
        mx.eval(taps, likeliest, is_finite, cache.buffers)
        _refuse_overflow(is_finite, taps.dtype)
        streams.append(as_numpy(taps))
        choices.append(np.array(likeliest))
    joined = np.concatenate(streams)
    width = joined.shape[1] // len(target.taps)
    return Features(joined[:, :-width], joined[:, -width:], np.concatenate(choices))


def _refuse_overflow(is_finite: mx.array, dtype: mx.Dtype) -> None:
    """Raise if there was a stream that a head cannot learn from."""
    if not is_finite.item():
        raise UnsupportedTargetError(
            f"a residual stream of the target has values beyond {_name(dtype)}, from which no head "
            "can learn: load the target in bfloat16 or float32 (--dtype)"
        )


def _name(dtype: mx.Dtype) -> str:
    """Return what a type is called in messages and on disk."""
    return str(dtype).removeprefix("mlx.core.")


def as_numpy(array: mx.array) -> np.ndarray:
    """Return an array of MLX's as one of NumPy's; bfloat16, which NumPy lacks, as its bits."""
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def as_mlx(array: np.ndarray) -> mx.array:
    """Return an array that `as_numpy` gave, or a part of it, as one of MLX's: uint16 are bits."""
    found = mx.array(array)
    return found.view(mx.bfloat16) if array.dtype == np.uint16 else found


def as_float32(array: np.ndarray) -> np.ndarray:
    """Return an array that `as_numpy` gave, or a part of it, in float32, without MLX."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def logits_after(target: Target) -> LogitMap:
    """Return what the target does to logits after its output layer.

    Most models do nothing. Some scale all logits (Cohere, Granite), some cap them softly (Gemma 2):
    cap * tanh(logits / cap). It is found by measuring: the output layer is made to give known
    values, and what the model returns for them is compared with each of these forms.

    Returns:
        A function of logits [..] of `target.unembed`, of any of the tokens, that returns as many.

    Raises:
        UnsupportedTargetError: if the target does something else.
    """
    known = _known_logits(target)
    found = _returned_for(target, known)
    scale = float(found[known == 1.0][0])
    cap = float(found.max())
    forms: list[LogitMap] = [lambda logits: logits, lambda logits: logits * scale]
    if cap > 0:
        forms.append(lambda logits: mx.tanh(logits / cap) * cap)
    for form in forms:
        if np.allclose(np.array(form(mx.array(known))), found, rtol=1e-4, atol=1e-5):
            _check_final(target, form)
            return form
    raise UnsupportedTargetError(
        "this target changes logits after its output layer by something else than a factor or a "
        "soft cap, so its distribution cannot be recomputed from stored states: heads for it "
        "cannot be trained yet"
    )


def _known_logits(target: Target) -> np.ndarray:
    """Return [V] float32: zero, one, values as logits have them, and one beyond any cap."""
    known = np.linspace(-80, 80, target.n_logits, dtype=np.float32)
    known[:3] = 0, 1, 1e6
    return known


def _returned_for(target: Target, known: np.ndarray) -> np.ndarray:
    """Return the logits [V] float32 of the target when its output layer gives `known` [V]."""
    unembed = target.unembed
    layer = unembed if isinstance(unembed, nn.Module) else target.embedding
    name = "__call__" if layer is unembed else "as_linear"

    def give_known(plain: Callable[..., mx.array], self: nn.Module, x: mx.array) -> mx.array:
        plain(self, x)  # whoever taps what the layer is given still sees it
        return mx.broadcast_to(mx.array(known), (*x.shape[:-1], len(known)))

    undo = wrap_method(layer, name, give_known)
    try:
        logits = target.forward(mx.array([0]), target.make_cache()).logits
        return np.array(logits[0].astype(mx.float32))
    finally:
        undo()


def _check_final(target: Target, form: LogitMap) -> None:
    """Refuse a target whose logits are not what `form` makes of its final states.

    Raises:
        UnsupportedTargetError: if they differ.
    """
    twin = tap_for_features(target, ())
    try:
        tokens = mx.arange(min(8, target.n_logits))
        logits, final = twin.forward(tokens, twin.make_cache())
    finally:
        twin.release()
    assert final is not None, "the twin is tapped"
    ours = form(target.unembed(final)).astype(mx.float32)
    largest = float(mx.abs(ours).max())
    if float(mx.abs(ours - logits.astype(mx.float32)).max()) > 0.01 * largest:
        raise UnsupportedTargetError(
            "this target's logits are not what its output layer gives for the states after its "
            "final norm, from which they are recomputed: heads for it cannot be trained yet"
        )
