"""Ropes of a loaded target, measured and set to what its configuration announces.

What a rope does is measured, not read off its class: which facts of a configuration a class of
mlx-lm takes cannot be told from outside. A rope that turns otherwise is replaced by one that turns
as announced.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.errors import CheckpointError
from mlx_eagle.target.arrival import is_needless
from mlx_eagle.target.positions import is_rope
from mlx_eagle.target.rotation import Rotation, announced_rotation, head_width, trained_length

# Angles may differ by this share of themselves: rounding, and formulas written another way.
TOLERANCE = 1e-3


class AnnouncedRope(nn.Module):
    """A rope that turns as a configuration says."""

    def __init__(self, rotation: Rotation, interleaved: bool) -> None:
        super().__init__()
        self.dims = 2 * len(rotation.angles)
        self.traditional = interleaved
        self.amplitude = rotation.amplitude
        self._freqs = mx.array([1 / angle if angle else math.inf for angle in rotation.angles])

    def __call__(self, x: mx.array, offset: int | mx.array = 0) -> mx.array:
        """Rotate x [batch, heads, N, head_dim], whose row i stands at position offset + i."""
        if self.amplitude != 1.0:
            x = x.at[..., : self.dims].multiply(self.amplitude)
        return mx.fast.rope(
            x,
            self.dims,
            traditional=self.traditional,
            base=None,
            scale=1.0,
            offset=offset,
            freqs=self._freqs,
        )


def rotate_as_announced(
    network: nn.Module, config: dict[str, Any], max_context: int | None
) -> list[str]:
    """Let every rope turn as the configuration says; one that does already stays as it is.

    Args:
        network: changed in place.
        config: of the language model.
        max_context: tokens that a text may have, if the user says so.

    Returns:
        What was replaced, in a line; nothing where all was right.

    Raises:
        CheckpointError: if the configuration announces something that is not known.
    """
    length = trained_length(config)
    is_long = length is not None and max_context is not None and max_context > length
    replaced = []
    for path, layer, rope in list(ropes(network)):
        announced = announced_rotation(config, layer, long_context=is_long)
        if announced is None:
            continue
        if _dims(rope) and not _is_alike(measured_rotation(rope), announced):
            _check_width(path, rope, head_width(config, layer))
            _replace(network, path, AnnouncedRope(announced, is_interleaved(rope)))
            replaced.append(path)
    if not replaced:
        return []
    return [f"rope set as config.json says in {len(replaced)} layers: mlx-lm's class reads less"]


def _check_width(path: str, rope: nn.Module, width: int) -> None:
    """Refuse to replace a rope where model and configuration disagree on the size of a head."""
    if _dims(rope) > width:
        raise CheckpointError(
            f"{path} rotates {_dims(rope)} dimensions of a head, and by config.json a head has "
            f"{width}: which of them is right is not known"
        )


def _is_alike(one: Rotation, other: Rotation) -> bool:
    """Say whether two ropes turn the same, up to rounding."""
    if not math.isclose(one.amplitude, other.amplitude, rel_tol=TOLERANCE):
        return False
    turning = [_turning(rotation) for rotation in (one, other)]
    return len(turning[0]) == len(turning[1]) and all(
        math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(*turning, strict=True)
    )


def _turning(rotation: Rotation) -> list[float]:
    """Return the angles of the pairs that turn at all."""
    return [angle for angle in rotation.angles if angle > 0]


def _replace(network: nn.Module, path: str, rope: nn.Module) -> None:
    """Put a module in the place of another, by its path."""
    *parents, name = path.split(".")
    holder: Any = network
    for part in parents:
        holder = holder[int(part)] if isinstance(holder, list) else holder[part]
    holder[name] = rope


def ropes(network: nn.Module) -> Iterator[tuple[str, int, nn.Module]]:
    """Yield every rope of a language model, by its path, with the layer that it is of.

    A rope that all layers share counts as that of the first.
    """
    for path, module in network.named_modules():
        if is_rope(module) and not is_needless(path + "."):
            number = re.search(r"(?:^|\.)(\d+)\.", path + ".")
            yield path, int(number[1]) if number else 0, module


def measured_rotation(rope: nn.Module) -> Rotation:
    """Return how a rope rotates, by what it does to a vector of ones at position 1.

    Only rotated dimensions are looked at; angles are between 0 and pi.
    """
    dims = _dims(rope)
    marks = mx.zeros((dims,)).at[_first_halves(rope, dims)].add(1.0)
    turned = rope(marks.reshape(1, 1, 1, dims), offset=1).reshape(dims).tolist()
    still = rope(marks.reshape(1, 1, 1, dims), offset=0).reshape(dims).tolist()
    first, second = _halves(rope, dims)
    pairs = [(turned[a], turned[b]) for a, b in zip(first, second, strict=True)]
    amplitude = max(abs(still[a]) for a in first)
    return Rotation(tuple(math.atan2(sine, cosine) for cosine, sine in pairs), amplitude)


def _dims(rope: nn.Module) -> int:
    """Return how many dimensions a rope rotates; 0 for what rotates none (layers without rope)."""
    dims = getattr(rope, "dims", None) or getattr(rope, "dim", None)
    return dims if isinstance(dims, int) else 0


def _halves(rope: nn.Module, dims: int) -> tuple[list[int], list[int]]:
    """Return the first and the second dimensions of the pairs that turn together."""
    if is_interleaved(rope):
        return list(range(0, dims, 2)), list(range(1, dims, 2))
    return list(range(dims // 2)), list(range(dims // 2, dims))


def _first_halves(rope: nn.Module, dims: int) -> mx.array:
    return mx.array(_halves(rope, dims)[0])


def is_interleaved(rope: nn.Module) -> bool:
    """Say whether neighbouring dimensions turn together, and not one of each half."""
    dims = _dims(rope)
    if dims < 4:
        return False  # the same
    mark = mx.zeros((dims,)).at[0].add(1.0)
    turned = rope(mark.reshape(1, 1, 1, dims), offset=1).reshape(dims).tolist()
    return bool(abs(turned[1]) > abs(turned[dims // 2]))
