"""What the forward pass of a draft head must know, as it stands in a converted head's config.json.

Plain data and its validation: no arrays, no files, so that tools can describe a head without
loading MLX's models. Every flag is explicit; `convert/` decides them, `eagle.py` obeys them.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import one_line

MODEL_TYPE = "mlx_eagle_head"
FORMAT_VERSION = 2
# What a head computes, and what to call it.
ALGORITHMS = {
    "eagle": "EAGLE head",
    "eagle3": "EAGLE-3 head",
    "p-eagle": "P-EAGLE head",
    "medusa": "Medusa heads",
    "mtp": "multi-token prediction layer",
    "dflash": "DFlash block head",
    "dspark": "DSpark block head",
}
PARALLEL = ("p-eagle", "dflash", "dspark")  # heads that read a mask for tokens not drafted yet
MARKOV = ("none", "vanilla", "gated", "rnn")  # how a block head biases a token by the one before
BLOCKS = ("plain", "target")  # what a multi-token prediction layer is made of


@dataclass(frozen=True)
class HeadConfig:
    """A head of the EAGLE family; nothing in it is implied.

    Attributes:
        algorithm: "eagle" (EAGLE-1, EAGLE-2 and HASS), "eagle3" or "p-eagle".
        taps: boundaries of the target, ascending: boundary b is the residual stream after b of
            its n decoder layers, and n + 1 what its final norm makes of the last one.
        rope_dims: leading dimensions of a head that are rotated.
        sliding_windows: positions that each layer sees, or None for all.
        fuse_taps: the taps go through `fc`; otherwise the only tap is the hidden state itself.
        norm_before_fc: one norm over all taps, side by side.
        fc_norm: one norm for each tap.
        input_layernorm: the first layer norms the embedding.
        hidden_norm: the first layer norms the hidden state.
        double_norm: the hidden state passes the embedding's norm before its own.
        norm_before_residual: the first layer's residual is the normed hidden state.
        norm_output: the next step reads the normed output.
        final_norm: a norm stands before `lm_head`.
        mask_token_id: what a P-EAGLE or block head reads in place of the tokens it has not seen.
    """

    algorithm: str
    hidden_size: int
    target_hidden_size: int
    target_vocab_size: int
    draft_vocab_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    rope_interleaved: bool
    rope_dims: int
    max_position_embeddings: int
    sliding_windows: tuple[int | None, ...]
    taps: tuple[int, ...]
    fuse_taps: bool
    norm_before_fc: bool
    fc_norm: bool
    input_layernorm: bool
    hidden_norm: bool
    double_norm: bool
    norm_before_residual: bool
    norm_output: bool
    final_norm: bool
    qk_norm: bool
    attention_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    fc_bias: bool
    own_embedding: bool
    own_lm_head: bool
    mask_token_id: int | None

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Self:
        """Read the normalised `config.json` of a converted head.

        Raises:
            CheckpointError: if keys are missing or have impossible values; the message names all.
        """
        values = read_fields(cls, config)
        return cls(**values | {k: tuple(v) for k, v in values.items() if isinstance(v, list)})

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of the configuration, the inverse of `from_dict`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class MtpConfig(HeadConfig):
    """A target's own multi-token prediction layer: a norm for each input, one block, a norm.

    Attributes:
        block: "plain" is the decoder layer that `HeadConfig` describes; "target" is one of
            mlx-lm's class for the target, described by `block_config` alone.
        block_config: the configuration of the target as mlx-lm reads it; None for a plain block.
        attention_gate: what a plain block attends to is multiplied by a gate, which the queries'
            projection gives beside them.
        hidden_first: `fc` reads the hidden state before the embedding.
    """

    block: str
    block_config: dict[str, Any] | None
    attention_gate: bool
    hidden_first: bool


@dataclass(frozen=True)
class BlockConfig(HeadConfig):
    """A head that drafts a block of tokens at once: DFlash, and DSpark, which biases each token.

    Attributes:
        block_size: rows of a block: the root, then masks.
        root_predicts: the root's own row drafts the first token, and row i the token after its
            position; otherwise row i drafts the token at its position, and the root's row nothing.
        causal_layers: for each layer, whether a row of the block sees only the rows before it.
        window_from_root: a layer's window is counted back from the root for all rows of a block,
            which see the whole block besides; otherwise from each row.
        attention_sinks: each attention head has a learned score for attending to nothing.
        markov: how DSpark's bias for a token follows from the one before it: "vanilla" from it
            alone, "gated" also from the row, "rnn" from all tokens of the block; "none" in DFlash.
        markov_rank: width of the bias' factors; None without it.
    """

    block_size: int
    root_predicts: bool
    causal_layers: tuple[bool, ...]
    window_from_root: bool
    attention_sinks: bool
    markov: str
    markov_rank: int | None


@dataclass(frozen=True)
class MedusaConfig:
    """Medusa heads: residual blocks on the target's last hidden state, one head for each depth.

    Attributes:
        num_heads: tokens that are proposed after the root.
        num_layers: residual blocks of each head.
        block_bias: the blocks' linear layers have a bias.
        own_lm_heads: each head has an output layer of its own; otherwise all use the target's.
        taps: always the output of the target's final norm.
    """

    algorithm: str
    hidden_size: int
    target_hidden_size: int
    target_vocab_size: int
    draft_vocab_size: int
    num_heads: int
    num_layers: int
    block_bias: bool
    own_lm_heads: bool
    taps: tuple[int, ...]

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Self:
        """Read the normalised `config.json` of converted Medusa heads; see `HeadConfig`."""
        values = read_fields(cls, config)
        return cls(**values | {"taps": tuple(values["taps"])})

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of the configuration, the inverse of `from_dict`."""
        return asdict(self) | {"taps": list(self.taps)}


def read_fields(kind: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a dataclass' fields from a JSON object.

    Raises:
        CheckpointError: listing what is missing, or what is unsound.
    """
    names = [field.name for field in fields(kind)]
    if missing := sorted(name for name in names if name not in config):
        raise CheckpointError(
            f"the head's config.json lacks {', '.join(missing)}; convert the head again"
        )
    if wrong := problems(kind, config):
        raise CheckpointError(
            f"the head's config.json is unsound: {', '.join(wrong)}; convert the head again"
        )
    return {name: config[name] for name in names}


def problems(kind: Any, values: dict[str, Any]) -> list[str]:
    """Return what is impossible in the values of a dataclass' fields, alone or together."""
    wrong = [
        f"{field.name} is {one_line(repr(values[field.name]), 40)}"
        for field in fields(kind)
        if not _is_sound(field.name, field.type, values[field.name])
    ]
    return wrong or (_contradictions(values) if issubclass(kind, HeadConfig) else [])


def _contradictions(values: dict[str, Any]) -> list[str]:
    """Return what is impossible in sound values of a `HeadConfig` together."""
    mask, vocabulary = values["mask_token_id"], values["target_vocab_size"]
    is_parallel = values["algorithm"] in PARALLEL
    rules = {
        "sliding_windows for every layer": (
            len(values["sliding_windows"]) == values["num_hidden_layers"]
        ),
        "query heads in equal groups": (
            values["num_attention_heads"] % values["num_key_value_heads"] == 0
        ),
        "rope_dims even, and no more than head_dim": (
            values["rope_dims"] % 2 == 0 and values["rope_dims"] <= values["head_dim"]
        ),
        "one tap without fc": values["fuse_taps"] or len(values["taps"]) == 1,
        "a mask_token_id of the target, if it drafts in parallel": (
            mask is not None and mask < vocabulary if is_parallel else mask is None
        ),
        "no more draft ids than the target has": values["draft_vocab_size"] <= vocabulary,
        "a block_config for the target's block, and for no other": (
            (values.get("block") == "target") == (values.get("block_config") is not None)
        ),
    }
    if "block_size" in values:
        rules |= _block_rules(values)
    return [f"it needs {rule}" for rule, holds in rules.items() if not holds]


def _block_rules(values: dict[str, Any]) -> dict[str, bool]:
    """Return what holds of sound values of a `BlockConfig` together, by what it needs."""
    windows, rows = values["sliding_windows"], values["block_size"]
    biased = values["algorithm"] == "dspark"
    return {
        "causal_layers for every layer": (
            len(values["causal_layers"]) == values["num_hidden_layers"]
        ),
        "a block that drafts": rows > 1 or values["root_predicts"],
        "sliding_windows of a block at least": all(w is None or w >= rows for w in windows),
        "a markov bias with its rank, for DSpark alone": (
            biased == (values["markov"] != "none") == (values["markov_rank"] is not None)
        ),
        "fc over taps": values["fuse_taps"],
    }


_LARGEST = 1 << 24  # more than any width or vocabulary in use, and far below overflow


def _is_sound(name: str, kind: Any, value: Any) -> bool:
    """Say whether `value` is possible for a field of this name and annotation."""
    if name == "algorithm":
        return isinstance(value, str) and value in ALGORITHMS
    if name == "taps":
        counts = isinstance(value, list | tuple) and all(type(b) is int for b in value)
        return counts and list(value) == sorted({b for b in value if b >= 0}) and bool(value)
    if name == "sliding_windows":
        return isinstance(value, list | tuple) and all(w is None or _is_count(w) for w in value)
    if name == "causal_layers":
        return isinstance(value, list | tuple) and all(isinstance(v, bool) for v in value)
    if name == "markov":
        return value in MARKOV
    if name == "markov_rank":
        return value is None or _is_count(value)
    if name in ("rope_scaling", "block_config"):
        return value is None or isinstance(value, dict)
    if name == "block":
        return value in BLOCKS
    if name == "mask_token_id":
        return value is None or (type(value) is int and 0 <= value < _LARGEST)
    if kind is bool:
        return isinstance(value, bool)
    if kind is float:
        return type(value) in (int, float) and 1e-15 < value < 1e15
    return _is_count(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= _LARGEST
