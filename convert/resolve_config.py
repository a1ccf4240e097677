"""From a published configuration and the shapes of the tensors to the facts of a `HeadConfig`.

Shapes overrule the configuration, and where a publisher is known to write one thing and train
another, the training wins. Every fact carries its origin; what files are known to get wrong is
marked as doubtful, with what it may be instead.
"""

from typing import Any

from mlx_eagle.convert.dialects import Dialect
from mlx_eagle.convert.facts import Facts
from mlx_eagle.convert.rope_config import read_scaling, resolve_rope
from mlx_eagle.convert.taps import check_taps, plausible_taps, resolve_taps
from mlx_eagle.convert.targets import TargetFacts
from mlx_eagle.convert.tensor_shapes import Widths
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.json_files import read_count, read_number
from mlx_eagle.files.quoting import listed, quote_value
from mlx_eagle.heads.config import HeadConfig, problems

# What a user may decide, because no file can be trusted with it.
SETTABLE = (
    *("taps", "rope_theta", "rope_scaling", "rope_interleaved", "norm_before_residual"),
    *("norm_output", "final_norm", "double_norm", "max_position_embeddings", "mask_token_id"),
)

# The facts that a tensor's presence tells.
_PARTS = {
    "fuse_taps": "fc.weight",
    "norm_before_fc": "input_norm.weight",
    "fc_norm": "fc_norm.0.weight",
    "input_layernorm": "layers.0.input_layernorm.weight",
    "hidden_norm": "layers.0.hidden_norm.weight",
    "final_norm": "norm.weight",
    "qk_norm": "layers.0.self_attn.q_norm.weight",
    "attention_bias": "layers.0.self_attn.q_proj.bias",
    "attention_output_bias": "layers.0.self_attn.o_proj.bias",
    "mlp_bias": "layers.0.mlp.gate_proj.bias",
    "fc_bias": "fc.bias",
    "own_embedding": "embed_tokens.weight",
    "own_lm_head": "lm_head.weight",
}
# Keys by which a publisher announces that a part is missing on purpose.
_ABSENCES = {
    "use_aux_hidden_state": "fuse_taps",
    "use_input_layernorm_in_first_layer": "input_layernorm",
    "use_last_layernorm": "final_norm",
}


def resolve(
    config: dict[str, Any],
    widths: Widths,
    dialect: Dialect,
    target: TargetFacts,
    settings: dict[str, Any],
) -> Facts:
    """Return all facts about a head.

    Args:
        config: the published `config.json`.
        widths: the sizes and parts that the head's tensors have.
        dialect: whose head it is.
        target: what the target's configuration says.
        settings: facts that the user has decided, by the names in SETTABLE.

    Raises:
        CheckpointError: if the head does not fit the target, or asks for something unknown.
    """
    layer_config = config.get(dialect.nested) if dialect.nested else config
    if not isinstance(layer_config, dict):
        raise CheckpointError(f"config.json: {dialect.nested} is not an object")
    facts = Facts()
    facts.put("algorithm", dialect.algorithm, f"the tensors are those of a {dialect.label}")
    _put_sizes(facts, widths, target)
    _put_heads(facts, layer_config, widths)
    _put_parts(facts, widths)
    _put_flags(facts, config, dialect)
    _put_windows(facts, layer_config, widths)
    resolve_rope(facts, layer_config, dialect, target)
    _put_rest(facts, config, layer_config)
    _check_fit(layer_config, facts, widths, target)
    _put_taps(facts, config, widths, dialect, target, settings.get("taps"))
    _apply(facts, settings)
    if wrong := problems(HeadConfig, facts.values):
        raise CheckpointError(f"{listed(wrong)}: what config.json or --set says is impossible")
    return facts


def _put_sizes(facts: Facts, widths: Widths, target: TargetFacts) -> None:
    """Note what shapes tell, and what only the target can."""
    facts.put("hidden_size", widths.hidden, "shape of o_proj")
    facts.put("intermediate_size", widths.mlp, "shape of gate_proj")
    facts.put("num_hidden_layers", widths.n_layers, "tensors")
    facts.put("target_hidden_size", target.hidden_size, "target")
    facts.put("target_vocab_size", target.vocab_size, "target")
    draft = widths.draft or target.vocab_size
    facts.put("draft_vocab_size", draft, "shape of lm_head" if widths.draft else "target")


def _put_heads(facts: Facts, config: dict[str, Any], widths: Widths) -> None:
    """Divide the projections' rows into attention heads.

    The configured head_dim is not used: published ones contradict the tensors. Where a norm of
    queries tells it, it wins over the configured number of heads as well.
    """
    n_heads = read_count(config, "num_attention_heads")
    if widths.head_dim:
        n_heads = widths.queries // widths.head_dim
    head_dim = widths.queries // n_heads if n_heads else 0
    n_kv_heads = widths.keys // head_dim if head_dim else 0
    exact = (n_heads * head_dim, n_kv_heads * head_dim) == (widths.queries, widths.keys)
    if not exact or not n_kv_heads or n_heads % n_kv_heads or head_dim % 2:
        raise CheckpointError(
            f"config.json: {n_heads} query heads do not divide projections of {widths.queries} "
            f"and {widths.keys} rows"
        )
    by_norm = "shape of q_norm" if widths.head_dim else ""
    facts.put("num_attention_heads", n_heads, by_norm or "config.json: num_attention_heads")
    facts.put("num_key_value_heads", n_kv_heads, "shape of k_proj")
    facts.put("head_dim", head_dim, by_norm or "shape of q_proj")


def _put_parts(facts: Facts, widths: Widths) -> None:
    """Note which parts the head has: a tensor that is there is used, whatever a flag says."""
    for flag, name in _PARTS.items():
        there = name in widths.parts
        facts.put(flag, there, f"{name} is {'there' if there else 'not there'}")
    if facts.values["algorithm"] == "eagle":
        facts.put("fuse_taps", False, "fc joins embedding and hidden state")


def _put_flags(facts: Facts, config: dict[str, Any], dialect: Dialect) -> None:
    """Note what only a configuration can tell, as this publisher means it."""
    nested = config.get("eagle_config")
    settings = (nested if isinstance(nested, dict) else {}) | config
    for flag, part in (("norm_before_fc", "input_norm"), ("fc_norm", "fc_norm.0")):
        if _flag(settings, flag, False) and not facts.values[flag]:
            raise CheckpointError(f"config.json sets {flag}, but {part}.weight is missing")
    for key, fact in _ABSENCES.items():
        is_eagle3 = facts.values["algorithm"] != "eagle"
        if is_eagle3 and not facts.values[fact] and _flag(settings, key, True):
            part = _PARTS[fact]
            raise CheckpointError(f"{part} is missing, and config.json does not say {key}: false")
    residual = _flag(settings, "norm_before_residual", dialect.norm_before_residual)
    facts.put("norm_before_residual", residual, _origin(settings, "norm_before_residual"))
    if "norm_before_residual" in dialect.doubted and facts.values["hidden_norm"]:
        reason = "engines disagree on a missing key, and converters stamp it unseen"
        facts.doubt("norm_before_residual", reason, [not residual])
    _put_norm_output(facts, settings, dialect)
    facts.put("double_norm", False, "default")
    if "double_norm" in dialect.doubted and facts.values["hidden_norm"]:
        reason = "trainers since December 2025 may apply the embedding's norm to the hidden state"
        facts.doubt("double_norm", reason, [True])


def _put_norm_output(facts: Facts, settings: dict[str, Any], dialect: Dialect) -> None:
    """Note what the next step reads; the key has had two meanings."""
    claimed = _flag(settings, "norm_output", False)
    means_feedback = dialect.norm_output == "feedback"
    origin = _origin(settings, "norm_output")
    if claimed and not means_feedback:
        origin = "default: in this publisher's files the key says that a norm precedes lm_head"
    facts.put("norm_output", claimed and means_feedback, origin)
    if "norm_output" in settings and "norm_output" in dialect.doubted:
        reason = "the key meant a norm before lm_head until September 2026, then normed feedback"
        facts.doubt("norm_output", reason, [not facts.values["norm_output"]])
        if dialect.norm_output == "lm_head" and not claimed and facts.values["final_norm"]:
            facts.doubt("final_norm", reason, [False])


def _put_windows(facts: Facts, config: dict[str, Any], widths: Widths) -> None:
    """Note how far each layer sees: a window counts where layer_types say that it is used."""
    kinds = config.get("layer_types")
    window = config.get("sliding_window")
    windows: list[int | None] = [None] * widths.n_layers
    if window is not None and isinstance(kinds, list):
        size = read_count(config, "sliding_window")
        for i, kind in enumerate(kinds[: widths.n_layers]):
            windows[i] = size if kind == "sliding_attention" else None
    used = any(windows)
    facts.put("sliding_windows", windows, "config.json: layer_types" if used else "default")


def _put_rest(facts: Facts, config: dict[str, Any], layer_config: dict[str, Any]) -> None:
    """Note what is left: the norms' epsilon, the trained length, the mask token."""
    activation = layer_config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise CheckpointError(f"config.json: hidden_act is {quote_value(activation)}, not silu")
    eps = read_number(layer_config, "rms_norm_eps", 1e-6)
    facts.put("rms_norm_eps", eps, _origin(layer_config, "rms_norm_eps"))
    length = read_count(layer_config, "max_position_embeddings", 2048)
    origin = _origin(layer_config, "max_position_embeddings")
    facts.put("max_position_embeddings", length, origin)
    _put_mask(facts, config)


def _put_mask(facts: Facts, config: dict[str, Any]) -> None:
    """Note the token that a P-EAGLE head reads for those it has not seen; three keys name it."""
    if facts.values["algorithm"] != "p-eagle":
        facts.put("mask_token_id", None, "not used")
        return
    keys = ("mask_token_id", "pard_token", "ptd_token_id")
    key = next((key for key in keys if config.get(key) is not None), keys[0])
    facts.put("mask_token_id", config.get(key), f"config.json: {key}")


def _put_taps(
    facts: Facts,
    config: dict[str, Any],
    widths: Widths,
    dialect: Dialect,
    target: TargetFacts,
    decided: Any,
) -> None:
    """Note the boundaries to read; a head without fc reads the output of the final norm."""
    n_layers, size = target.num_hidden_layers, target.hidden_size
    if not facts.values["fuse_taps"]:
        facts.put("taps", [n_layers + 1], "the head has no fc over taps")
        return
    if widths.taps % size:
        raise CheckpointError(
            f"the head is not for {target.name}: fc reads {widths.taps} numbers, no multiple of "
            f"the target's hidden size {size}"
        )
    n_taps = widths.taps // size
    if decided is not None:
        check_taps(decided, "set by the user", n_layers, n_taps)
        facts.put("taps", decided, "set by the user")
        return
    taps = resolve_taps(config, n_layers, n_taps)
    facts.put("taps", list(taps.boundaries), taps.origin)
    if taps.doubt is not None:
        facts.doubt("taps", taps.doubt.reason, taps.doubt.alternatives)
    elif "taps" in dialect.doubted:
        others = [list(t) for t in plausible_taps(taps.boundaries, n_layers)]
        reason = "trainers of this publisher have tapped other layers than their files tell"
        facts.doubt("taps", reason, others)


def _check_fit(config: dict[str, Any], facts: Facts, widths: Widths, target: TargetFacts) -> None:
    """Refuse a head that was made for a target of other sizes."""
    values = facts.values
    wrong = []
    vocabulary = widths.vocabulary or read_count(config, "vocab_size", target.vocab_size)
    if vocabulary != target.vocab_size:
        wrong.append(f"vocabulary {vocabulary}, not {target.vocab_size}")
    shares = not (values["own_embedding"] and values["own_lm_head"])
    if values["hidden_size"] != target.hidden_size and (shares or not values["fuse_taps"]):
        wrong.append(f"hidden size {values['hidden_size']}, not {target.hidden_size}")
    if values["draft_vocab_size"] > target.vocab_size:
        wrong.append(
            f"a draft vocabulary of {values['draft_vocab_size']}, more than {target.vocab_size}"
        )
    if wrong:
        raise CheckpointError(f"the head is not for {target.name}: it has {'; '.join(wrong)}")


def _apply(facts: Facts, settings: dict[str, Any]) -> None:
    """Let the user's decisions stand above everything else."""
    if unknown := sorted(set(settings) - set(SETTABLE)):
        raise CheckpointError(
            f"{unknown[0]} cannot be set; what can be is {', '.join(sorted(SETTABLE))}"
        )
    if "taps" in settings and not facts.values["fuse_taps"]:
        raise CheckpointError("taps cannot be set: the head has no fc over taps")
    for name, value in settings.items():
        if name == "rope_scaling" and isinstance(value, dict):
            value = read_scaling(value, facts.values["max_position_embeddings"])
        facts.put(name, value, "set by the user")
        facts.doubts.pop(name, None)


def _flag(config: dict[str, Any], key: str, default: bool) -> bool:
    """Return a boolean of a configuration, or the default if it is absent or null."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise CheckpointError(f"config.json: {key} is {quote_value(value)}, not true or false")
    return value


def _origin(config: dict[str, Any], key: str) -> str:
    return f"config.json: {key}" if config.get(key) is not None else "default"
