"""What a head must know about its target, from the target's `config.json` alone."""

from pathlib import Path
from typing import Any, NamedTuple

from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.folders import source_name
from mlx_eagle.files.json_files import language_config, read_count, read_json, read_number
from mlx_eagle.files.plain_files import hash_file


class TargetFacts(NamedTuple):
    """Sizes of a target and its rope base, and what identifies its configuration."""

    name: str
    model_type: str
    num_hidden_layers: int
    hidden_size: int
    vocab_size: int
    config_sha256: str
    rope_theta: float | None = None


def read_target_facts(folder: Path) -> TargetFacts:
    """Return the facts in a target's `config.json`, Hugging Face's or mlx-lm's.

    Raises:
        CheckpointError: if it is missing, malformed or not that of a target.
    """
    config = read_json(folder / "config.json")
    name = source_name(folder)
    if "draft_vocab_size" in config or "speculators_model_type" in config:
        raise CheckpointError(f"{name} is a draft head, not a target")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(f"{name}: config.json has no model_type")
    language = language_config(config)
    return TargetFacts(
        name=name,
        model_type=model_type,
        num_hidden_layers=read_count(language, "num_hidden_layers"),
        hidden_size=read_count(language, "hidden_size"),
        vocab_size=read_count(language, "vocab_size"),
        config_sha256=hash_file(folder / "config.json"),
        rope_theta=_rope_theta(language),
    )


def _rope_theta(language: dict[str, Any]) -> float | None:
    """Return the rope base of a language model, or None if it names none, or one for each layer."""
    for part in (language, language.get("rope_parameters")):
        stated = part.get("rope_theta") if isinstance(part, dict) else None
        if stated is not None and not isinstance(stated, list):
            theta: float = read_number({"rope_theta": stated}, "rope_theta", 0.0)
            return theta
    return None
