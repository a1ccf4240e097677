"""How a configuration says that queries and keys are rotated (rope), layer by layer.

Model classes read such facts under names of their own, and leave out what they have no name for.
Here they are read under the names that files have, and become the angles that each pair of
dimensions turns from one position to the next. Formulas: RoPE (arXiv 2104.09864), YaRN
(2309.00071), LongRoPE (2402.13753), the scaling of Llama 3.1, all as transformers reads their keys.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.json_files import read_count, read_number
from mlx_eagle.files.quoting import quote_value

# They turn as plain rope does: mrope for text, dynamic up to the length of the training.
_PLAIN = ("default", "mrope", "dynamic")
_LONGROPE = ("longrope", "su")

# What the formulas below know. With another key a model's own code may rotate by its own formula.
_KNOWN = {
    *("rope_theta", "rope_type", "type", "partial_rotary_factor", "factor", "truncate"),
    *("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor"),
    *("short_factor", "long_factor", "mrope_section", "mrope_interleaved"),
    *("max_position_embeddings", "finetuned"),
}
# Likewise keys beside them, where a configuration has no rope_parameters.
_OWN_KEYS = ("rope_local_base_freq", "rope_local_theta", "swa_rope_theta", "rotary_dim")


class Rotation(NamedTuple):
    """How a layer rotates.

    Attributes:
        angles: radians per position, one for each pair of rotated dimensions; 0 is unrotated.
        amplitude: what rotated dimensions are multiplied with (YaRN, LongRoPE).
    """

    angles: tuple[float, ...]
    amplitude: float = 1.0


def layer_facts(config: dict[str, Any], layer: int) -> dict[str, Any]:
    """Return the facts of a layer's rope, as transformers names them; empty if none is announced.

    Args:
        config: of the language model.
        layer: from 0.

    Raises:
        CheckpointError: if they are malformed, or it is not told which kind of layer this is.
    """
    stated = config.get("rope_parameters")
    facts = stated or config.get("rope_scaling") or {}
    if not isinstance(facts, dict):
        raise CheckpointError(f"config.json: its rope is {quote_value(facts)}, not an object")
    by_kind = {kind: part for kind, part in facts.items() if isinstance(part, dict)}
    if by_kind:
        part = by_kind.get(_layer_kind(config, layer), {})
        return part if part.get("rope_theta") is not None else {}
    if stated and not any(facts.get(key) is not None for key in ("rope_theta", "rope_type")):
        facts = {}
    own = {key: config[key] for key in ("rope_theta", "partial_rotary_factor") if config.get(key)}
    facts = own | {key: value for key, value in facts.items() if value is not None}
    is_own = not set(facts) <= _KNOWN or (not stated and any(config.get(key) for key in _OWN_KEYS))
    return {} if is_own or "rope_theta" not in facts else facts


def _layer_kind(config: dict[str, Any], layer: int) -> str:
    """Return of which kind a layer is where kinds rotate differently."""
    kinds = config.get("layer_types")
    if not isinstance(kinds, list) or not -1 < layer < len(kinds):
        raise CheckpointError(
            "config.json: rope_parameters differ by kind of layer, and layer_types does not say "
            f"of which kind layer {layer} is"
        )
    return str(kinds[layer])


def announced_rotation(
    config: dict[str, Any], layer: int, *, long_context: bool = False
) -> Rotation | None:
    """Return how a layer rotates by its configuration; None if that says nothing.

    Args:
        config: of the language model.
        layer: from 0.
        long_context: for texts that are longer than those of the training (LongRoPE).

    Raises:
        CheckpointError: if the facts are malformed, or of a kind that is not known.
    """
    facts = layer_facts(config, layer)
    if not facts:
        return None
    kind = facts.get("rope_type") or facts.get("type") or "default"
    if not isinstance(kind, str) or kind not in _FORMULAS:
        raise CheckpointError(f"config.json: the rope_type {quote_value(kind)} is not known")
    whole, theta = head_width(config, layer), read_number(facts, "rope_theta", 10000.0)
    share = min(read_number(facts, "partial_rotary_factor", 1.0), 1.0)
    dims = whole if kind == "proportional" else int(whole * share)
    plain = [theta ** (-2 * pair / dims) for pair in range(dims // 2)]
    lengths = _trained(facts, config), _longest(config)
    return _FORMULAS[kind](_Rope(facts, plain, theta, share, *lengths, long_context))


class _Rope(NamedTuple):
    """What the formulas need: the angles of plain rope, and the facts that change them."""

    facts: dict[str, Any]
    plain: list[float]
    theta: float
    share: float  # of a head's dimensions that are rotated
    trained: int  # tokens of the training's texts
    longest: int  # tokens that are announced
    long_context: bool


def trained_length(config: dict[str, Any]) -> int | None:
    """Return up to how many tokens LongRoPE turns by its factors for short texts; None without."""
    facts = layer_facts(config, 0)
    if facts.get("rope_type", facts.get("type")) not in _LONGROPE:
        return None
    return _trained(facts, config)


def _trained(facts: dict[str, Any], config: dict[str, Any]) -> int:
    """Return the length of the training's texts; outside of the rope it comes first (Phi-3)."""
    key = "original_max_position_embeddings"
    return read_count({key: config.get(key) or facts.get(key)}, key, _longest(config))


def _longest(config: dict[str, Any]) -> int:
    """Return how many positions a configuration announces."""
    return read_count(config, "max_position_embeddings", 2048)


def head_width(config: dict[str, Any], layer: int) -> int:
    """Return how many dimensions of a head could be rotated."""
    own = (config.get("per_layer_config") or {}).get(str(layer)) or {}
    if own.get("head_dim"):
        return read_count(own, "head_dim")
    kinds = config.get("layer_types")
    is_global = isinstance(kinds, list) and kinds[layer : layer + 1] == ["full_attention"]
    if is_global and config.get("global_head_dim"):
        return read_count(config, "global_head_dim")
    if config.get("qk_rope_head_dim"):
        return read_count(config, "qk_rope_head_dim")
    if config.get("head_dim"):
        return read_count(config, "head_dim")
    return read_count(config, "hidden_size") // read_count(config, "num_attention_heads")


def _plain(rope: _Rope) -> Rotation:
    """Return plain rope."""
    return Rotation(tuple(rope.plain))


def _linear(rope: _Rope) -> Rotation:
    """Return angles that are all slowed down."""
    factor = read_number(rope.facts, "factor", 1.0)
    return Rotation(tuple(angle / factor for angle in rope.plain))


def _proportional(rope: _Rope) -> Rotation:
    """Return angles of which the last ones are none (Gemma 4)."""
    factor, n_pairs = read_number(rope.facts, "factor", 1.0), len(rope.plain)
    n_turning = int(rope.share * n_pairs)
    turning = [angle / factor for angle in rope.plain[:n_turning]]
    return Rotation((*turning, *[0.0] * (n_pairs - n_turning)))


def _llama3(rope: _Rope) -> Rotation:
    """Return angles that are slowed down where a turn takes longer than the training's texts."""
    defaults = {"factor": 1.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    factor, low, high = (read_number(rope.facts, key, value) for key, value in defaults.items())

    def slowed(angle: float) -> float:
        turns = rope.trained * angle / (2 * math.pi)  # in a text of the training
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        return (1 - smooth) * angle / factor + smooth * angle

    return Rotation(tuple(slowed(angle) for angle in rope.plain))


def _yarn(rope: _Rope) -> Rotation:
    """Return angles that are blended between plain and slowed down, and the amplitude of YaRN."""
    dims, facts = 2 * len(rope.plain), rope.facts
    factor = read_number(facts, "factor", rope.longest / rope.trained)

    def dimension(turns: float) -> float:
        """Return the dimension that turns so often in a text of the training."""
        return dims * math.log(rope.trained / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = dimension(read_number(facts, "beta_fast", 32.0))
    high = dimension(read_number(facts, "beta_slow", 1.0))
    if facts.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    span = high - low if high != low else 0.001
    slowed = [min(max((pair - low) / span, 0.0), 1.0) for pair in range(dims // 2)]
    angles = [a / factor * s + a * (1 - s) for a, s in zip(rope.plain, slowed, strict=True)]
    return Rotation(tuple(angles), _yarn_amplitude(facts, factor))


def _yarn_amplitude(facts: dict[str, Any], factor: float) -> float:
    """Return what YaRN multiplies rotated dimensions with."""

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if facts.get("attention_factor"):
        return read_number(facts, "attention_factor", 1.0)
    if facts.get("mscale") and facts.get("mscale_all_dim"):
        above, below = (read_number(facts, key, 1.0) for key in ("mscale", "mscale_all_dim"))
        return mscale(above) / mscale(below)
    return mscale(1.0)


def _longrope(rope: _Rope) -> Rotation:
    """Return angles divided one by one, by factors for short texts or for long ones."""
    key = "long_factor" if rope.long_context else "short_factor"
    factors = rope.facts.get(key)
    is_list = isinstance(factors, list) and len(factors) == len(rope.plain)
    if not is_list or not all(type(f) in (int, float) and f > 0 for f in factors or []):
        raise CheckpointError(
            f"config.json: {key} of its rope is not a list of {len(rope.plain)} positive numbers"
        )
    factor = read_number(rope.facts, "factor", rope.longest / rope.trained)
    usual = math.sqrt(1 + math.log(factor) / math.log(rope.trained)) if factor > 1 else 1.0
    angles = tuple(a / f for a, f in zip(rope.plain, factors or [], strict=True))
    return Rotation(angles, read_number(rope.facts, "attention_factor", usual))


_FORMULAS: dict[str, Callable[[_Rope], Rotation]] = {
    **dict.fromkeys(_PLAIN, _plain),
    **dict.fromkeys(_LONGROPE, _longrope),
    **dict.fromkeys(("yarn", "deepseek_yarn"), _yarn),
    "linear": _linear,
    "llama3": _llama3,
    "proportional": _proportional,
}
