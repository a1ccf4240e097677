"""A description of a folder with a head or target, from its configuration and headers alone.

No weights are read, and mlx-lm, which takes seconds to import, is not imported. Whether a head
could be converted is found out by the same rules that convert it.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from mlx_eagle.convert.checkpoint import read_manifest
from mlx_eagle.convert.class_fields import unread_keys
from mlx_eagle.convert.dialects import Dialect
from mlx_eagle.convert.facts import facts_as_json
from mlx_eagle.convert.identify import Kind, Manifest, identify_kind
from mlx_eagle.convert.medusa import read_medusa_sizes
from mlx_eagle.convert.mtp.facts import read_mtp_sizes
from mlx_eagle.convert.resolve_config import resolve_facts
from mlx_eagle.convert.target_facts import TargetFacts, read_target_facts
from mlx_eagle.convert.tensor_shapes import FLOATS, read_sizes
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.folders import find_weights, source_name
from mlx_eagle.files.json_files import language_config, read_count, read_json
from mlx_eagle.files.quoting import one_line
from mlx_eagle.heads.config import MODEL_TYPE
from mlx_eagle.target.lift import lift

_TARGET_KEYS = (
    *("model_type", "num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings"),
    *("rope_parameters", "rope_theta", "rope_scaling", "sliding_window", "tie_word_embeddings"),
)
_HEAD_KEYS = ("draft_vocab_size", "speculators_model_type", "eagle_config", "medusa_num_heads")
_BOOKKEEPING = ("model_type", "quantization", "origins", "doubts")


def describe_folder(folder: Path, target: Path | None = None) -> dict[str, Any]:
    """Return the facts about a head or target, converted or not, ready for JSON.

    Always there: `name`, `kind`, `role` ("head" or "target"), `converted`, `parameters`, `bytes`
    (of the weight files), `types` (tensors of each type), `quantization` (or None). A head that
    is converted, or whose target is given, has `facts`: for each a value and its `origin`, and
    `doubts`: what may be wrong. A head that cannot be converted has a `reason`.

    Args:
        folder: what to describe.
        target: the folder of the target that a head is for; only its `config.json` is read.

    Raises:
        CheckpointError: if a folder has no configuration or weights, or they are malformed.
    """
    config, manifest = read_json(folder / "config.json"), read_manifest(folder)
    kind = identify_kind(config, manifest)
    is_converted_head = config.get("model_type") == MODEL_TYPE
    found: dict[str, Any] = {
        "name": source_name(folder),
        "kind": kind.label,
        "role": kind.role,
        "converted": is_converted_head or kind.label == "MLX target",
        "parameters": _count_parameters(manifest, config.get("quantization")),
        "bytes": sum(file.stat().st_size for file in find_weights(folder)),
        "types": _count_types(manifest),
        "quantization": _quantization(config),
    }
    if kind.role == "target":
        return found | _target(config, manifest)
    if is_converted_head:
        return found | _converted_head(config, target)
    return found | _published_head(kind, config, manifest, target)


def describe_config(config: dict[str, Any], name: str, n_bytes: int) -> dict[str, Any] | None:
    """Return the facts about a target of which only the configuration is here.

    Args:
        config: its `config.json`.
        name: what it is called.
        n_bytes: of its weight files.

    Returns:
        What `describe_folder` would, but for what the tensors tell; None for what may be a head.
    """
    n_layers = language_config(config).get("num_hidden_layers")
    is_head = any(key in config for key in _HEAD_KEYS) or "agle" in str(config.get("architectures"))
    if is_head or type(n_layers) is not int or n_layers <= 1:
        return None
    found: dict[str, Any] = {
        "name": name,
        "kind": f"{identify_kind(config, {}).label}, not downloaded",
        "role": "target",
        "converted": "quantization" in config,
        "bytes": n_bytes,
        "quantization": _quantization(config),
    }
    told = _target(config, {})
    if language_config(config).get("tie_word_embeddings") is None:
        told["lifted"].pop("tie_word_embeddings", None)  # which the tensors decide
    return found | told


def _converted_head(config: dict[str, Any], target: Path | None) -> dict[str, Any]:
    """Return what the configuration of a converted head says, and whether it fits a target."""
    values = {key: _shallow(v) for key, v in config.items() if key not in _BOOKKEEPING}
    found: dict[str, Any] = {
        **values,
        "origins": _shallow(config.get("origins", {})),
        "doubts": _shallow(config.get("doubts", {})),
    }
    if target is None:
        return found
    made_for, facts = config.get("target"), read_target_facts(target)
    wrong = [] if isinstance(made_for, dict) else ["the head does not say what it was made for"]
    for key in ("hidden_size", "vocab_size", "num_hidden_layers"):
        if isinstance(made_for, dict) and made_for.get(key) != getattr(facts, key):
            wrong.append(f"{key} is {getattr(facts, key)}, not {made_for.get(key)}")
    verdict: dict[str, Any] = {"fits": not wrong}
    return found | verdict | ({"reason": f"{facts.name}: {'; '.join(wrong)}"} if wrong else {})


def _published_head(
    kind: Kind, config: dict[str, Any], manifest: Manifest, target: Path | None
) -> dict[str, Any]:
    """Return what converting a published head would find, or why it cannot be converted."""
    if kind.dialect is None:
        return {"convertible": False, "reason": kind.refusal}
    try:
        if target is None:
            return {"convertible": True, "widths": _sizes(config, manifest, kind.dialect)}
        target_facts = read_target_facts(target)
        facts = resolve_facts(config, manifest, kind.dialect, target_facts, {})
    except CheckpointError as error:
        return {"convertible": False, "reason": str(error)}
    suspicious = _suspicions(config, read_json(target / "config.json"), target_facts)
    verdict = {"convertible": True, "fits": True, "suspicious": suspicious}
    return verdict | facts_as_json(facts, {"target": target_facts._asdict()})


def _suspicions(
    config: dict[str, Any], target_config: dict[str, Any], target: TargetFacts
) -> list[str]:
    """Return what does not stop a head from running, but suggests that it is for another target."""
    found = []
    language = language_config(target_config)
    for key in ("bos_token_id", "eos_token_id"):
        ours, theirs = config.get(key), language.get(key, target_config.get(key))
        if type(ours) is int and theirs is not None and ours not in (theirs, *_listed(theirs)):
            found.append(f"{key} is {ours}, the target's {_shallow(theirs)}: another tokenizer?")
    settings = config.get("speculators_config")
    verifier = settings.get("verifier") if isinstance(settings, dict) else None
    named = verifier.get("name_or_path") if isinstance(verifier, dict) else None
    name = named if isinstance(named, str) else ""
    last = name.rstrip("/").rpartition("/")[2]
    if last and last.lower() not in target.name.lower():
        found.append(f"it says that it was made for {one_line(name, 120)}, not {target.name}")
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _sizes(config: dict[str, Any], manifest: Manifest, dialect: Dialect) -> dict[str, int]:
    """Return what the shapes of a published head tell without its target."""
    if dialect.algorithm == "medusa":
        sizes = read_medusa_sizes(manifest)._asdict()
    elif dialect.algorithm == "mtp":
        sizes = read_mtp_sizes(config, manifest)._asdict()
    else:
        sizes = read_sizes(manifest, dialect)._asdict()
    return {name: size for name, size in sizes.items() if type(size) is int and size}


def _shallow(value: Any, depth: int = 4) -> Any:
    """Return a JSON value without what is nested deeper than converters nest."""
    if isinstance(value, dict | list) and not depth:
        return "..."
    if isinstance(value, dict):
        return {key: _shallow(item, depth - 1) for key, item in value.items()}
    return [_shallow(item, depth - 1) for item in value] if isinstance(value, list) else value


def _target(config: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    """Return the sizes and facts of a target, as far as its configuration tells them.

    `lifted` is what mlx-lm is told under names that the files do not have, `unread` are the keys
    that its class does not read; what those announce is checked when the target is loaded.
    """
    lifted = lift(config, set(manifest))
    language = language_config(config) | {"model_type": config.get("model_type")}
    told = {k: v for k, v in language_config(lifted).items() if language.get(k) != v}
    return {
        **{key: _shallow(language.get(key)) for key in _TARGET_KEYS},
        "lifted": _shallow(told),
        "unread": unread_keys(language_config(lifted)),
    }


def _quantization(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return bits and group size of MLX, or the method of another library, or None."""
    ours, theirs = config.get("quantization"), config.get("quantization_config")
    if isinstance(ours, dict):
        return {key: _shallow(ours[key]) for key in ("bits", "group_size", "mode") if key in ours}
    return {"method": str(theirs.get("quant_method"))} if isinstance(theirs, dict) else None


def _count_parameters(manifest: Manifest, quantization: Any) -> int:
    """Count the weights: a packed word of a quantized layer counts as the weights in it."""
    group_sizes = quantization if isinstance(quantization, dict) else {}
    total = 0
    for name, info in manifest.items():
        layer, _, parameter = name.rpartition(".")
        packed = manifest.get(f"{layer}.weight", info).dtype == "U32"
        if packed and parameter == "scales":
            own = group_sizes.get(layer)
            group_size = read_count(own if isinstance(own, dict) else group_sizes, "group_size", 64)
            total += math.prod(info.shape) * group_size
        elif not packed and info.dtype in FLOATS:
            total += math.prod(info.shape)
    return total


def _count_types(manifest: Manifest) -> dict[str, int]:
    """Return how many tensors there are of each type, the most frequent first."""
    counts = Counter(info.dtype for info in manifest.values())
    return dict(counts.most_common())
