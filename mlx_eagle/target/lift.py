"""The facts of a configuration under the names that mlx-lm's classes read.

transformers 5 writes all facts of rope into `rope_parameters`. Most of mlx-lm's classes look for
the older names, and take a default where they find none. Nothing is removed: a class that reads
`rope_parameters` itself still finds it.
"""

from typing import Any

from mlx_eagle.files.json_files import language_config
from mlx_eagle.target.rotation import layer_facts

# Names that mlx-lm reads, and those that transformers writes for the same.
_OTHER_NAMES = {"num_experts": "num_local_experts", "n_ctx": "n_positions"}
OUTPUT_LAYERS = ("lm_head.weight", "embed_out.weight")


def lift(config: dict[str, Any], tensor_names: set[str]) -> dict[str, Any]:
    """Return a configuration with the facts under their older names as well.

    Args:
        config: of a target; left as it is.
        tensor_names: what the files hold.

    Raises:
        CheckpointError: if the facts of its rope are malformed.
    """
    language = language_config(config)
    facts = _left_out(language) | _rope_facts(language) | _tied(language, tensor_names)
    if not facts:
        return config
    if isinstance(config.get("text_config"), dict):
        return config | {"text_config": config["text_config"] | facts}
    return config | facts


def untie(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration whose output layer is not the embedding."""
    text = config.get("text_config")
    own = {"tie_word_embeddings": False}
    return config | own | ({"text_config": text | own} if isinstance(text, dict) else {})


def _rope_facts(language: dict[str, Any]) -> dict[str, Any]:
    """Return what `rope_parameters` says, under the names that were used before."""
    stated = language.get("rope_parameters")
    if not isinstance(stated, dict):
        return {}
    by_kind = {kind: part for kind, part in stated.items() if isinstance(part, dict)}
    if by_kind:
        whole, local = by_kind.get("full_attention", {}), by_kind.get("sliding_attention", {})
        local_names = ("rope_local_base_freq", "rope_local_theta", "swa_rope_theta")
        found = dict.fromkeys(local_names, local.get("rope_theta"))
        found |= _flat_facts(whole, language)
    else:
        found = _flat_facts(layer_facts(language, 0), language)
    return {key: value for key, value in found.items() if value is not None}


def _flat_facts(rope: dict[str, Any], language: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of one rope under the names that were used before."""
    theta, share = rope.get("rope_theta"), rope.get("partial_rotary_factor")
    found = dict.fromkeys(("rope_theta", "rotary_emb_base", "rope_embedding_base"), theta)
    found |= dict.fromkeys(("partial_rotary_factor", "rotary_pct", "rope_pct"), share)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default":
        found["rope_scaling"] = {"type": kind, "rope_type": kind} | rope
    length = "original_max_position_embeddings"
    return found | {length: language.get(length) or rope.get(length)}


def _left_out(language: dict[str, Any]) -> dict[str, Any]:
    """Return what some classes of mlx-lm demand and files leave out or call otherwise."""
    found: dict[str, Any] = {"rope_scaling": None} if "rope_parameters" in language else {}
    width, n_heads = language.get("hidden_size"), language.get("num_attention_heads")
    if isinstance(width, int) and isinstance(n_heads, int) and n_heads:
        found["head_dim"] = width // n_heads
    for name, other in _OTHER_NAMES.items():
        if language.get(other) is not None:
            found[name] = language[other]
    return {name: value for name, value in found.items() if name not in language}


def _tied(language: dict[str, Any], tensor_names: set[str]) -> dict[str, Any]:
    """Return whether the output layer is the embedding, where the configuration does not say."""
    if language.get("tie_word_embeddings") is not None:
        return {}
    return {"tie_word_embeddings": not any(n.endswith(OUTPUT_LAYERS) for n in tensor_names)}
