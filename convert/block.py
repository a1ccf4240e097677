"""The facts about a head that drafts a block of tokens at once, by the names of `BlockConfig`.

Publishers write the same network down in four ways, with settings at the top level, in
`dflash_config`, or in both. What is known to change the forward pass and is not implemented is
refused by name.
"""

from collections.abc import Mapping
from typing import Any

from mlx_eagle.convert.facts import Fact, PublishedHead, origin_of, read_flag
from mlx_eagle.convert.rules import RULES
from mlx_eagle.convert.taps import check_taps
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.json_files import read_count
from mlx_eagle.files.quoting import listed, quote_value
from mlx_eagle.heads.config import BlockConfig, problems

BLOCK_SETTABLE = (
    *("taps", "rope_theta", "rope_scaling", "rope_interleaved", "max_position_embeddings"),
    *("mask_token_id", "block_size", "root_predicts", "causal_layers", "own_lm_head"),
)
_TAP_KEYS = ("target_layer_ids", "aux_hidden_state_layer_ids")
_CAUSAL_KEYS = ("causal", "is_causal", "dflash_query_causal")
DEFAULT_ROWS = 16  # of a block, where no key says it, as z-lab's code has it
# Keys that change what is computed, by what they would need; their harmless values.
_NOT_IMPLEMENTED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "fc_layernorm": ("a norm of its own after fc", (False,)),
    "log_snr_conditioning": ("an embedding of each row's noise", (False,)),
    "input_embedding_scale": ("scaled embeddings", (1, 1.0)),
    "output_multiplier": ("scaled logits", (1, 1.0)),
    "final_logit_softcapping": ("capped logits", (0, 0.0)),
    "projector_type": ("Domino's correction of a block", ("dflash", "dspark")),
}


def resolve_block_facts(head: PublishedHead, decided: Mapping[str, Fact]) -> dict[str, Fact]:
    """Return all facts about a block head.

    Args:
        head: with the sizes that its tensors tell.
        decided: facts that the user has decided.

    Raises:
        CheckpointError: if its configuration asks for something unknown or impossible.
    """
    settings = block_settings(head.config)
    _check_implemented(head, settings)
    rules = {name: rule(head) for name, rule in RULES.items() if name != "taps"}
    facts = rules | _own_facts(head, settings) | dict(decided)
    if wrong := problems(BlockConfig, {name: fact.value for name, fact in facts.items()}):
        raise CheckpointError(f"{listed(wrong)}: what config.json or --set says is impossible")
    n_drafted, n_tokens = facts["draft_vocab_size"].value, head.target.vocab_size
    if n_drafted != n_tokens and not facts["own_lm_head"].value:
        raise CheckpointError(
            f"lm_head.weight is missing, and the head drafts from {n_drafted} tokens of "
            f"{n_tokens}: fetch the head again"
        )
    sinks = "layers.0.self_attn.attention_sink_bias"
    if read_flag(settings, "attention_sink_bias", False) and sinks not in head.sizes.parts:
        raise CheckpointError(f"config.json sets attention_sink_bias, but {sinks} is missing")
    return facts


def block_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with the keys of a nested `dflash_config`, which win."""
    nested = config.get("dflash_config")
    return config | (nested if isinstance(nested, dict) else {})


def _check_implemented(head: PublishedHead, settings: dict[str, Any]) -> None:
    """Refuse what changes the forward pass and is not implemented."""
    if head.target.model_type.startswith("gemma"):
        raise CheckpointError(
            "block heads for Gemma's targets are not supported: engines disagree on whether they "
            "read scaled embeddings, and no file says it"
        )
    for key, (need, harmless) in _NOT_IMPLEMENTED.items():
        value = settings.get(key)
        if value is not None and value not in harmless:
            raise CheckpointError(
                f"config.json: {key} is {quote_value(value)}: the head needs {need}, which is not "
                "implemented"
            )


def _own_facts(head: PublishedHead, settings: dict[str, Any]) -> dict[str, Fact]:
    """Return the facts that no other head has, and those that are otherwise in all of these."""
    parts, dialect = head.sizes.parts, head.dialect
    markov = _markov(head, settings)
    windows = _sliding_windows(head, settings)
    reduced = head.sizes.draft not in (0, head.target.vocab_size)
    theirs = "publisher: a copy of the target's, which stands in"
    return {
        "algorithm": Fact("dflash" if markov.value == "none" else "dspark", markov.origin),
        "taps": _taps(head, settings),
        "mask_token_id": Fact(settings.get("mask_token_id"), "config.json: mask_token_id"),
        "rope_interleaved": _rope_interleaved(settings),
        # A target's partial_rotary_factor gets copied into files, and Qwen3's layers ignore it.
        "rope_dims": RULES["head_dim"](head)._replace(origin="all of a head's dimensions"),
        "own_embedding": Fact(False, theirs if "embed_tokens.weight" in parts else "target"),
        "own_lm_head": Fact(
            reduced and "lm_head.weight" in parts,
            "tensors" if reduced else theirs if "lm_head.weight" in parts else "target",
        ),
        "sliding_windows": windows,
        "block_size": Fact(
            read_count(settings, "block_size", DEFAULT_ROWS), origin_of(settings, "block_size")
        ),
        "root_predicts": _root_predicts(settings, dialect.root_predicts),
        "causal_layers": _causal_layers(settings, windows.value),
        "window_from_root": Fact(dialect.window_from_root, "publisher"),
        "attention_sinks": Fact("layers.0.self_attn.attention_sink_bias" in parts, "tensors"),
        "markov": markov,
        "markov_rank": Fact(head.sizes.rank or None, "shape of markov_w1"),
    }


def _taps(head: PublishedHead, settings: dict[str, Any]) -> Fact:
    """Return the boundaries: ids count layers whose output is read, or boundaries themselves."""
    key = next((key for key in _TAP_KEYS if settings.get(key) is not None), _TAP_KEYS[0])
    ids, offset = settings.get(key), head.dialect.tap_offset
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise CheckpointError(
            f"config.json: {key} is {quote_value(ids)}, not the layers that the head reads"
        )
    kind = "boundaries" if offset == 0 else "layers whose output is read"
    fact = Fact([i + offset for i in ids], f"config.json: {key}, {kind}")
    check_taps(fact.value, fact.origin, head.target.num_hidden_layers, head.n_taps)
    other = [i + 1 - offset for i in ids]
    is_possible = other[0] >= 0 and other[-1] <= head.target.num_hidden_layers
    reason = "publishers count layers and boundaries under the same keys"
    return fact.doubted(reason, [other] if is_possible else [])


def _sliding_windows(head: PublishedHead, settings: dict[str, Any]) -> Fact:
    """Return how far each layer sees; one key gives all layers the same window."""
    if not read_flag(settings, "use_swa", True):
        return Fact([None] * head.sizes.n_layers, "config.json: use_swa")
    if settings.get("swa_window_size") is None:
        return RULES["sliding_windows"](head)
    size = read_count(settings, "swa_window_size")
    return Fact([size] * head.sizes.n_layers, "config.json: swa_window_size")


def _causal_layers(settings: dict[str, Any], windows: list[int | None]) -> Fact:
    """Return in which layers a row sees only the rows before it: all, or those with a window."""
    for key in _CAUSAL_KEYS:
        if settings.get(key) is not None:
            value = read_flag(settings, key, False)
            return Fact([value] * len(windows), f"config.json: {key}")
    if read_flag(settings, "sliding_window_non_causal", False):
        return Fact([False] * len(windows), "config.json: sliding_window_non_causal")
    fact = Fact([window is not None for window in windows], "default: layers with a window are")
    reason = "engines disagree on blocks in layers with a window"
    return fact.doubted(reason, [[False] * len(windows)])


def _root_predicts(settings: dict[str, Any], default: bool) -> Fact:
    """Return whether the root's own row drafts the first token."""
    if settings.get("dspark_bonus_anchor") is not None:
        value = not read_flag(settings, "dspark_bonus_anchor", False)
        fact = Fact(value, "config.json: dspark_bonus_anchor")
    else:
        value = read_flag(settings, "sample_from_anchor", default)
        fact = Fact(value, origin_of(settings, "sample_from_anchor"))
    return fact.doubted("a block may draft from its first row on, or from its second", [not value])


def _rope_interleaved(settings: dict[str, Any]) -> Fact:
    """Return whether pairs of rotated dimensions are neighbours; one key says that they are not."""
    value = not read_flag(settings, "rope_is_neox_style", True)
    return Fact(value, origin_of(settings, "rope_is_neox_style"))


def _markov(head: PublishedHead, settings: dict[str, Any]) -> Fact:
    """Return what DSpark's bias follows from; the tensors tell it."""
    parts = {name.split(".")[1] for name in head.sizes.parts if name.startswith("markov_head.")}
    kinds = {"gate_proj": "gated", "joint_proj": "rnn"}
    found = [kind for part, kind in kinds.items() if part in parts]
    if parts and not ({"markov_w1", "markov_w2"} <= parts and len(found) < 2):
        raise CheckpointError(
            f"markov_head has the parts {listed(sorted(parts))}, which is no bias"
        )
    value = (found or ["vanilla" if parts else "none"])[0]
    claimed = settings.get("markov_head_type")
    if parts and claimed is not None and str(claimed).lower() != value:
        raise CheckpointError(
            f"config.json: markov_head_type is {quote_value(claimed)}, and the tensors are those "
            f"of {value}"
        )
    if settings.get("markov_rank") not in (None, 0) and not parts:
        raise CheckpointError("config.json sets markov_rank, but markov_head is missing")
    return Fact(value, "tensors of markov_head" if parts else "the tensors have no markov_head")
