"""For how many tokens a model was made, by its config.json."""

from typing import Any

from mlx_eagle.files.json_files import language_config, read_count, read_number
from mlx_eagle.target.rotation import layer_facts

STRETCHING = ("linear", "dynamic", "yarn", "llama3")  # kinds of rope that a factor makes longer
CONTEXT_KEYS = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "n_positions")


def model_context_length(config: dict[str, Any]) -> int | None:
    """Return for how many tokens a model was made, by its config.json; None if it does not say."""
    known = language_config(config)
    sizes = [known[key] for key in CONTEXT_KEYS if type(known.get(key)) is int]
    stated = next((size for size in sizes if size > 0), None)
    return stated if stated is None else max(stated, _stretched(known, stated))


def _stretched(config: dict[str, Any], stated: int) -> int:
    """Return for how many tokens rope is scaled, which some files do not count as positions."""
    facts = layer_facts(config, 0)
    if facts.get("rope_type", facts.get("type")) not in STRETCHING:
        return 0
    trained = read_count(facts, "original_max_position_embeddings", stated)
    return int(trained * read_number(facts, "factor", 1.0))
