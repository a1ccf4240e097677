"""How a head rotates queries and keys (rope): the rules for base, scaling and layout.

Configurations disagree with the training in known ways: bases that a trainer ignored, a scaling
that an exporter added afterwards, an interleaved layout that no key mentions.
"""

from typing import Any

from mlx_eagle.convert.facts import Fact, PublishedHead, origin_of
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.json_files import read_count, read_number
from mlx_eagle.files.quoting import quote_value

DEFAULT_THETA = 10000.0
DEFAULT_LENGTH = 2048  # positions that EAGLE's own heads were trained on, where no key says it

# The numbers that each scaling of mlx-lm reads; True for those that must be there.
_SCALINGS: dict[str, dict[str, bool]] = {
    "linear": {"factor": True},
    "llama3": {
        "factor": True,
        "low_freq_factor": True,
        "high_freq_factor": True,
        "original_max_position_embeddings": True,
    },
    "yarn": {
        "factor": True,
        "original_max_position_embeddings": False,
        "beta_fast": False,
        "beta_slow": False,
        "mscale": False,
        "mscale_all_dim": False,
    },
}
# They turn as plain rope does: mrope for text, dynamic up to the length of the training.
_PLAIN = ("default", "mrope", "dynamic")


def rope_theta(head: PublishedHead) -> Fact:
    """Return the base; what a trainer used wins over what its files say."""
    dialect, rope = head.dialect, rope_parameters(head.layer_config)
    config = head.layer_config | {k: v for k, v in rope.items() if k == "rope_theta"}
    configured = read_number(config, "rope_theta", DEFAULT_THETA)
    fact = Fact(configured, origin_of(config, "rope_theta"))
    trained = dialect.trained_rope_theta
    if trained is not None and configured != trained:
        origin = f"publisher: trained with {trained:g} though config.json says {configured:g}"
        fact = Fact(trained, origin)
    if "rope_theta" not in dialect.doubted:
        return fact
    theirs = head.target.rope_theta
    others = [configured, DEFAULT_THETA, *([theirs] if theirs else [])]
    reason = "this publisher's trainers have used another base than their files name"
    return fact.doubted(reason, list(dict.fromkeys(others)))


def rope_scaling(head: PublishedHead) -> Fact:
    """Return how positions are scaled, in mlx-lm's form, or None for plain rope.

    Raises:
        CheckpointError: if the scaling is malformed, or not one that mlx-lm has.
    """
    config = head.layer_config
    trained = read_count(config, "max_position_embeddings", DEFAULT_LENGTH)
    scaling = read_scaling(rope_parameters(config), trained)
    where = next((key for key in ("rope_parameters", "rope_scaling") if config.get(key)), "")
    fact = Fact(scaling, f"config.json: {where}" if where else "default")
    if scaling is None or "rope_scaling" not in head.dialect.doubted:
        return fact
    return fact.doubted("exporters add a scaling, and trainers ignored it, at some dates", [None])


def rotated_part(head: PublishedHead) -> float:
    """Return the share of an attention head's dimensions that rope rotates, from 0 to 1."""
    settings = rope_parameters(head.layer_config) | head.layer_config
    return min(read_number(settings, "partial_rotary_factor", 1.0), 1.0)


def rope_interleaved(head: PublishedHead) -> Fact:
    """Return whether pairs of rotated dimensions are neighbours; no configuration says it."""
    if not head.target.model_type.startswith("llama4"):
        return Fact(False, "default")
    interleaved = head.dialect.llama4_interleaved
    origin = "publisher: NVIDIA's heads for Llama 4 are" if interleaved else "default"
    reason = "heads for Llama 4 exist in both layouts"
    return Fact(interleaved, origin).doubted(reason, [not interleaved])


def rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """Return the rope settings under either of the two names that configurations give them."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise CheckpointError("config.json: rope_scaling is not an object")
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and kinds and isinstance(rope.get(str(kinds[0])), dict):
        return dict(rope[str(kinds[0])])  # one for each kind of layer; a head has one kind
    return rope


def read_scaling(rope: dict[str, Any], trained: int) -> dict[str, Any] | None:
    """Return the scaling in mlx-lm's form, or None for plain rope.

    Args:
        rope: the scaling as published.
        trained: positions that the head knows, where YaRN does not say how many it starts from.

    Raises:
        CheckpointError: if it is malformed, or not one that mlx-lm has.
    """
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if isinstance(kind, str) and kind in _PLAIN:
        return None
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise CheckpointError(
            f"config.json: rope scaling {quote_value(kind)} is not supported for heads, only "
            f"{', '.join((*_PLAIN, *_SCALINGS))}"
        )
    if rope.get("attention_factor") is not None:
        raise CheckpointError("config.json: an explicit attention_factor of rope is not supported")
    found: dict[str, Any] = {"rope_type": kind}
    for key, is_required in _SCALINGS[kind].items():
        if rope.get(key) in (None, 0):
            if is_required:
                raise CheckpointError(f"config.json: rope scaling {kind} lacks {key}")
            continue
        value = read_number(rope, key, 1.0)
        found[key] = int(value) if key == "original_max_position_embeddings" else value
    if kind == "yarn":
        found.setdefault("original_max_position_embeddings", trained)
    if kind == "yarn" and rope.get("truncate") is False:
        found["truncate"] = False
    return found
