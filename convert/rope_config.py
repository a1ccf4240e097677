"""How a head rotates queries and keys: base, scaling and layout, as it was trained.

Configurations disagree with the training in known ways: bases that a trainer ignored, a scaling
that an exporter added afterwards, an interleaved layout that no key mentions.
"""

from typing import Any

from mlx_eagle.convert.dialects import Dialect
from mlx_eagle.convert.facts import Facts
from mlx_eagle.convert.targets import TargetFacts
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.json_files import read_count, read_number
from mlx_eagle.files.quoting import quote_value

DEFAULT_THETA = 10000.0

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


def resolve_rope(
    facts: Facts, config: dict[str, Any], dialect: Dialect, target: TargetFacts
) -> None:
    """Note everything about rope.

    Args:
        facts: `head_dim` is known already.
        config: the layer's own configuration.
        dialect: whose head it is.
        target: its rope base is an alternative, and Llama 4's layout a fact of its heads.

    Raises:
        CheckpointError: if the scaling is malformed, or not one that mlx-lm has.
    """
    rope = _parameters(config)
    where = next((key for key in ("rope_parameters", "rope_scaling") if config.get(key)), "")
    _put_base(facts, config | {k: v for k, v in rope.items() if k == "rope_theta"}, dialect, target)
    scaling = read_scaling(rope, read_count(config, "max_position_embeddings", 2048))
    facts.put("rope_scaling", scaling, f"config.json: {where}" if where else "default")
    if scaling is not None and "rope_scaling" in dialect.doubted:
        reason = "exporters add a scaling, and trainers ignored it, at some dates"
        facts.doubt("rope_scaling", reason, [None])
    part = read_number(rope | config, "partial_rotary_factor", 1.0)
    dims = int(facts.values["head_dim"] * min(part, 1.0)) // 2 * 2
    facts.put("rope_dims", dims, "shape of q_proj" if part >= 1 else "config.json")
    _put_layout(facts, dialect, target)


def _put_base(facts: Facts, config: dict[str, Any], dialect: Dialect, target: TargetFacts) -> None:
    """Note the base; what a trainer used wins over what its files say."""
    configured = read_number(config, "rope_theta", DEFAULT_THETA)
    origin = "config.json: rope_theta" if config.get("rope_theta") is not None else "default"
    theta = configured
    if dialect.trained_rope_theta is not None and configured != dialect.trained_rope_theta:
        theta = dialect.trained_rope_theta
        origin = f"publisher: trained with {theta:g} though config.json says {configured:g}"
    facts.put("rope_theta", theta, origin)
    if "rope_theta" in dialect.doubted:
        others = [configured, DEFAULT_THETA, *([target.rope_theta] if target.rope_theta else [])]
        reason = "this publisher's trainers have used another base than their files name"
        facts.doubt("rope_theta", reason, list(dict.fromkeys(others)))


def _put_layout(facts: Facts, dialect: Dialect, target: TargetFacts) -> None:
    """Note whether pairs of rotated dimensions are neighbours; no configuration says it."""
    is_llama4 = target.model_type.startswith("llama4")
    interleaved = is_llama4 and dialect.format.startswith("modelopt")
    origin = "publisher: NVIDIA's heads for Llama 4 are" if interleaved else "default"
    facts.put("rope_interleaved", interleaved, origin)
    if is_llama4:
        reason = "heads for Llama 4 exist in both layouts"
        facts.doubt("rope_interleaved", reason, [not interleaved])


def _parameters(config: dict[str, Any]) -> dict[str, Any]:
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
