"""The rules: for each fact about a head of the EAGLE family, the function that decides it.

A rule reads the published head and nothing that another rule has found. Shapes overrule the
configuration, and where a publisher is known to write one thing and train another, the training
wins. What files are known to get wrong carries a doubt, with what it may be instead.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from mlx_eagle.convert.dialects import MASK_TOKEN_KEYS
from mlx_eagle.convert.facts import Fact, PublishedHead, origin_of, read_flag
from mlx_eagle.convert.rope_config import (
    DEFAULT_LENGTH,
    rope_interleaved,
    rope_scaling,
    rope_theta,
    rotated_part,
)
from mlx_eagle.convert.taps import plausible_taps, resolve_taps
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.json_files import read_count, read_number

# The facts that a tensor's presence tells.
_PARTS = {
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
_OLD_NORM_OUTPUT = "the key meant a norm before lm_head until September 2026, then normed feedback"


class _AttentionHeads(NamedTuple):
    """How the rows of the projections are divided into attention heads."""

    n_heads: int
    n_kv_heads: int
    head_dim: int


def _attention_heads(head: PublishedHead) -> _AttentionHeads:
    """Divide the projections' rows into attention heads.

    The configured head_dim is not used: published ones contradict the tensors. Where a norm of
    queries tells it, it wins over the configured number of heads as well.
    """
    sizes = head.sizes
    n_heads = read_count(head.layer_config, "num_attention_heads")
    if sizes.head_dim:
        n_heads = sizes.queries // sizes.head_dim
    head_dim = sizes.queries // n_heads if n_heads else 0
    n_kv_heads = sizes.keys // head_dim if head_dim else 0
    exact = (n_heads * head_dim, n_kv_heads * head_dim) == (sizes.queries, sizes.keys)
    if not exact or not n_kv_heads or n_heads % n_kv_heads or head_dim % 2:
        raise CheckpointError(
            f"config.json: {n_heads} query heads do not divide projections of {sizes.queries} "
            f"and {sizes.keys} rows"
        )
    return _AttentionHeads(n_heads, n_kv_heads, head_dim)


def _num_attention_heads(head: PublishedHead) -> Fact:
    """Return the number of query heads; a norm of queries tells it better than the config."""
    origin = "shape of q_norm" if head.sizes.head_dim else "config.json: num_attention_heads"
    return Fact(_attention_heads(head).n_heads, origin)


def _head_dim(head: PublishedHead) -> Fact:
    """Return the dimensions of one attention head."""
    origin = "shape of q_norm" if head.sizes.head_dim else "shape of q_proj"
    return Fact(_attention_heads(head).head_dim, origin)


def _rope_dims(head: PublishedHead) -> Fact:
    """Return the leading dimensions of an attention head that rope rotates."""
    part = rotated_part(head)
    dims = int(_attention_heads(head).head_dim * part) // 2 * 2
    return Fact(dims, "shape of q_proj" if part >= 1 else "config.json")


def _draft_vocab_size(head: PublishedHead) -> Fact:
    """Return the number of draft ids; a head without `lm_head` drafts from all of the target's."""
    if head.sizes.draft:
        return Fact(head.sizes.draft, "shape of lm_head")
    return Fact(head.target.vocab_size, "target")


def _fuse_taps(head: PublishedHead) -> Fact:
    """Return whether `fc` reads the taps."""
    if head.dialect.algorithm in ("eagle", "mtp"):
        return Fact(False, "fc joins embedding and hidden state")
    return _part("fc.weight", head)


def _part(name: str, head: PublishedHead) -> Fact:
    """Return whether the head has a part: a tensor that is there is used, whatever a flag says."""
    there = name in head.sizes.parts
    return Fact(there, f"{name} is {'there' if there else 'not there'}")


def _final_norm(head: PublishedHead) -> Fact:
    """Return whether a norm stands before `lm_head`; a flag may have said that it does not."""
    fact, dialect = _part(_PARTS["final_norm"], head), head.dialect
    says_no = "norm_output" in head.flags and not read_flag(head.flags, "norm_output", False)
    is_doubted = dialect.norm_output == "lm_head" and "norm_output" in dialect.doubted
    if fact.value and says_no and is_doubted:
        return fact.doubted(_OLD_NORM_OUTPUT, [False])
    return fact


def _norm_before_residual(head: PublishedHead) -> Fact:
    """Return whether the first layer's residual is the normed hidden state."""
    key, dialect = "norm_before_residual", head.dialect
    value = read_flag(head.flags, key, dialect.norm_before_residual)
    fact = Fact(value, origin_of(head.flags, key))
    if key not in dialect.doubted or _PARTS["hidden_norm"] not in head.sizes.parts:
        return fact
    reason = "engines disagree on a missing key, and converters stamp it unseen"
    return fact.doubted(reason, [not value])


def _norm_output(head: PublishedHead) -> Fact:
    """Return whether the next step reads the normed output; the key has had two meanings."""
    dialect = head.dialect
    claimed = read_flag(head.flags, "norm_output", False)
    means_feedback = dialect.norm_output == "feedback"
    origin = origin_of(head.flags, "norm_output")
    if claimed and not means_feedback:
        origin = "default: in this publisher's files the key says that a norm precedes lm_head"
    fact = Fact(claimed and means_feedback, origin)
    if "norm_output" not in head.flags or "norm_output" not in dialect.doubted:
        return fact
    return fact.doubted(_OLD_NORM_OUTPUT, [not fact.value])


def _double_norm(head: PublishedHead) -> Fact:
    """Return whether the hidden state passes the embedding's norm first; no file says it."""
    fact = Fact(False, "default")
    if "double_norm" not in head.dialect.doubted or _PARTS["hidden_norm"] not in head.sizes.parts:
        return fact
    reason = "trainers since December 2025 may apply the embedding's norm to the hidden state"
    return fact.doubted(reason, [True])


def _sliding_windows(head: PublishedHead) -> Fact:
    """Return how far each layer sees: a window counts where layer_types say that it is used."""
    config, n_layers = head.layer_config, head.sizes.n_layers
    kinds = config.get("layer_types")
    windows: list[int | None] = [None] * n_layers
    if config.get("sliding_window") is not None and isinstance(kinds, list):
        size = read_count(config, "sliding_window")
        for i, kind in enumerate(kinds[:n_layers]):
            windows[i] = size if kind == "sliding_attention" else None
    return Fact(windows, "config.json: layer_types" if any(windows) else "default")


def _rms_norm_eps(head: PublishedHead) -> Fact:
    """Return the epsilon of all norms."""
    eps = read_number(head.layer_config, "rms_norm_eps", 1e-6)
    return Fact(eps, origin_of(head.layer_config, "rms_norm_eps"))


def max_position_embeddings(head: PublishedHead) -> Fact:
    """Return the positions that the head knows, as its configuration says."""
    key = "max_position_embeddings"
    length = read_count(head.layer_config, key, DEFAULT_LENGTH)
    return Fact(length, origin_of(head.layer_config, key))


def _mask_token_id(head: PublishedHead) -> Fact:
    """Return the token that a P-EAGLE head reads for those it has not seen; many keys name it."""
    if head.dialect.algorithm != "p-eagle":
        return Fact(None, "not used")
    named = (key for key in MASK_TOKEN_KEYS if head.config.get(key) is not None)
    key = next(named, MASK_TOKEN_KEYS[0])
    return Fact(head.config.get(key), f"config.json: {key}")


def _taps(head: PublishedHead) -> Fact:
    """Return the boundaries to read; a head without fc reads the output of the final norm."""
    n_layers = head.target.num_hidden_layers
    if not head.fuses_taps:
        return Fact([n_layers + 1], "the head has no fc over taps")
    fact = resolve_taps(head.config, n_layers, head.n_taps)
    if fact.doubt is not None or "taps" not in head.dialect.doubted:
        return fact
    others = [list(taps) for taps in plausible_taps(tuple(fact.value), n_layers)]
    reason = "trainers of this publisher have tapped other layers than their files tell"
    return fact.doubted(reason, others)


# What decides each fact, in the order of a converted head's config.json.
RULES: dict[str, Callable[[PublishedHead], Fact]] = {
    "algorithm": lambda head: Fact(
        head.dialect.algorithm, f"the tensors are those of a {head.dialect.label}"
    ),
    "hidden_size": lambda head: Fact(head.sizes.hidden, "shape of o_proj"),
    "intermediate_size": lambda head: Fact(head.sizes.mlp, "shape of gate_proj"),
    "num_hidden_layers": lambda head: Fact(head.sizes.n_layers, "tensors"),
    "target_hidden_size": lambda head: Fact(head.target.hidden_size, "target"),
    "target_vocab_size": lambda head: Fact(head.target.vocab_size, "target"),
    "draft_vocab_size": _draft_vocab_size,
    "num_attention_heads": _num_attention_heads,
    "num_key_value_heads": lambda head: Fact(_attention_heads(head).n_kv_heads, "shape of k_proj"),
    "head_dim": _head_dim,
    "fuse_taps": _fuse_taps,
    **{fact: partial(_part, tensor) for fact, tensor in _PARTS.items()},
    "final_norm": _final_norm,
    "norm_before_residual": _norm_before_residual,
    "norm_output": _norm_output,
    "double_norm": _double_norm,
    "sliding_windows": _sliding_windows,
    "rope_theta": rope_theta,
    "rope_scaling": rope_scaling,
    "rope_dims": _rope_dims,
    "rope_interleaved": rope_interleaved,
    "rms_norm_eps": _rms_norm_eps,
    "max_position_embeddings": max_position_embeddings,
    "mask_token_id": _mask_token_id,
    "taps": _taps,
}
