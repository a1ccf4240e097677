"""The EAGLE-3 draft head as an MLX module: fused taps and a token in, draft logits out.

It is the network only. How its output becomes a tree is `drafters/eagle3.py`; how published
checkpoints become its parameters is `convert/`. Follows the EAGLE-3 paper (arXiv 2503.01840),
section 3.1; the flags cover the variants that other publishers train (norms before the fusion,
normed residual, post-norm feedback).
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.llama import MLP
from mlx_lm.models.rope_utils import initialize_rope

from mlx_eagle.cache import KVCache
from mlx_eagle.errors import CheckpointError
from mlx_eagle.rope import accept_node_positions

MODEL_TYPE = "mlx_eagle_head"


@dataclass(frozen=True)
class HeadConfig:
    """Everything the forward pass of a head needs to know; nothing in it is implied.

    `taps` are boundaries of the target: boundary b is the residual stream after b decoder layers.
    """

    hidden_size: int
    target_hidden_size: int
    target_vocab_size: int
    draft_vocab_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    rope_interleaved: bool
    max_position_embeddings: int
    taps: tuple[int, ...]
    norm_before_residual: bool
    norm_before_fc: bool
    fc_norm: bool
    norm_output: bool

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "HeadConfig":
        """Read the normalised `config.json` of a converted head.

        Raises:
            CheckpointError: if keys are missing or have impossible values; the message names all.
        """
        names = [field.name for field in fields(cls)]
        missing = sorted(set(names) - set(config))
        if missing:
            raise CheckpointError(
                f"the head's config.json lacks {', '.join(missing)}; convert the head again"
            )
        values: dict[str, Any] = {name: config[name] for name in names}
        wrong = [f"{n} is {v!r:.40}" for n, v in values.items() if not _is_sound(n, v)]
        if wrong:
            raise CheckpointError(
                f"the head's config.json is unsound: {', '.join(wrong)}; convert the head again"
            )
        return cls(**values | {"taps": tuple(config["taps"])})

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of the configuration, the inverse of `from_dict`."""
        return asdict(self) | {"taps": list(self.taps)}


_FLAGS = {"rope_interleaved", "norm_before_residual", "norm_before_fc", "fc_norm", "norm_output"}
_LARGEST = 1 << 24  # more than any width or vocabulary in use, and far below overflow


def _is_sound(name: str, value: Any) -> bool:
    """Say whether `value` is possible for the field `name` of a head's configuration."""
    if name in _FLAGS:
        return isinstance(value, bool)
    if name == "taps":
        counts = isinstance(value, list | tuple) and all(type(b) is int for b in value)
        return counts and list(value) == sorted({b for b in value if b >= 0}) and bool(value)
    if name == "rope_scaling":
        return value is None or isinstance(value, dict)
    if name in ("rms_norm_eps", "rope_theta"):
        return type(value) in (int, float) and 0 < value < math.inf
    return type(value) is int and 0 < value <= _LARGEST


class Attention(nn.Module):
    """Grouped-query attention whose input is the embedding beside the hidden state: 2 h wide."""

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.n_heads = n_heads = config.num_attention_heads
        self.n_kv_heads = n_kv_heads = config.num_key_value_heads
        self.scale = config.head_dim**-0.5

        width = 2 * config.hidden_size
        self.q_proj = nn.Linear(width, n_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(width, n_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(width, n_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(n_heads * config.head_dim, config.hidden_size, bias=False)
        self.rope = initialize_rope(
            config.head_dim,
            config.rope_theta,
            config.rope_interleaved,
            config.rope_scaling,
            config.max_position_embeddings,
        )
        accept_node_positions(self.rope)

    def __call__(
        self, x: mx.array, mask: mx.array | str | None, cache: KVCache, offset: int | mx.array
    ) -> mx.array:
        """Attend from x [1, L, 2h] to the cache and to x itself, as the mask allows."""
        B, L, _ = x.shape  # noqa: N806
        queries = self.q_proj(x).reshape(B, L, self.n_heads, -1).transpose(0, 2, 1, 3)
        keys = self.k_proj(x).reshape(B, L, self.n_kv_heads, -1).transpose(0, 2, 1, 3)
        values = self.v_proj(x).reshape(B, L, self.n_kv_heads, -1).transpose(0, 2, 1, 3)
        queries, keys = self.rope(queries, offset=offset), self.rope(keys, offset=offset)
        keys, values = cache.update_and_fetch(keys, values)
        output = mx.fast.scaled_dot_product_attention(
            queries, keys, values, scale=self.scale, mask=mask
        )
        return self.o_proj(output.transpose(0, 2, 1, 3).reshape(B, L, -1))


class DecoderLayer(nn.Module):
    """The head's first layer: it reads the token's embedding and the hidden state separately."""

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.norm_before_residual = config.norm_before_residual
        self.self_attn = Attention(config)
        # mlx-lm's SwiGLU reads two sizes of its arguments, which this configuration has too.
        self.mlp = MLP(cast(Any, config))
        norms = (nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps) for _ in range(3))
        self.input_layernorm, self.hidden_norm, self.post_attention_layernorm = norms

    def __call__(
        self,
        embeddings: mx.array,
        hidden: mx.array,
        mask: mx.array | str | None,
        cache: KVCache,
        offset: int | mx.array,
    ) -> mx.array:
        """Return the layer's output [1, L, h] for embeddings and hidden of the same shape."""
        normed = self.hidden_norm(hidden)
        residual = normed if self.norm_before_residual else hidden
        x = mx.concatenate([self.input_layernorm(embeddings), normed], axis=-1)  # [1, L, 2h]
        h = residual + self.self_attn(x, mask, cache, offset)
        return h + self.mlp(self.post_attention_layernorm(h))


class HeadOutput(NamedTuple):
    """What one step gives: `normed` is for `lm_head`, `feedback` for the next step; [1, L, h]."""

    normed: mx.array
    feedback: mx.array


class Eagle3Head(nn.Module):
    """The EAGLE-3 head: `fuse` the taps, then step as often as tokens are drafted.

    The target's embedding is shared, so embeddings are an argument, not a parameter. The ids that
    `lm_head` scores are draft ids; `draft_to_target` [W] maps them to target ids (it is stored as
    absolute ids, where published heads store offsets called d2t).
    """

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.config = config
        n_taps, eps = len(config.taps), config.rms_norm_eps
        width = n_taps * config.target_hidden_size
        if config.norm_before_fc:
            self.input_norm = nn.RMSNorm(width, eps=eps)
        if config.fc_norm:
            self.fc_norm = [nn.RMSNorm(config.target_hidden_size, eps=eps) for _ in range(n_taps)]
        self.fc = nn.Linear(width, config.hidden_size, bias=False)
        self.layers = [DecoderLayer(config)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        self.draft_to_target = mx.arange(config.draft_vocab_size, dtype=mx.int32)
        self.freeze()

    def fuse(self, taps: mx.array) -> mx.array:
        """Turn taps [1, L, T * H], shallowest first, into hidden states [1, L, h]."""
        if self.config.norm_before_fc:
            taps = self.input_norm(taps)
        if self.config.fc_norm:
            parts = mx.split(taps, len(self.fc_norm), axis=-1)
            normed = [norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)]
            taps = mx.concatenate(normed, axis=-1)
        return self.fc(taps)

    def __call__(
        self,
        hidden: mx.array,
        embeddings: mx.array,
        *,
        mask: mx.array | str | None,
        cache: KVCache,
        offset: int | mx.array,
    ) -> HeadOutput:
        """Run one step: fused taps or the parent's feedback, with the token that comes next.

        Args:
            hidden: [1, L, h]; row i belongs to the position before that of `embeddings` row i.
            embeddings: [1, L, h] of the tokens, from the target's embedding.
            mask: what `mx.fast.scaled_dot_product_attention` takes for L queries.
            cache: the head's own KV cache; L rows are appended to it.
            offset: position of the first row, or [L] positions.
        """
        h = self.layers[0](embeddings, hidden, mask, cache, offset)
        normed = self.norm(h)
        return HeadOutput(normed, normed if self.config.norm_output else h)


def load_head(folder: Path) -> Eagle3Head:
    """Load a converted head; the weights are read when they are first needed.

    Raises:
        CheckpointError: if the folder is not a converted head or its tensors do not fit.
    """
    config = read_head_config(folder)
    head_config = HeadConfig.from_dict(config)
    try:
        head = Eagle3Head(head_config)
        weights = mx.load(str(folder / "model.safetensors"))
        assert isinstance(weights, dict), "safetensors load as a dictionary"
        if quantization := config.get("quantization"):
            nn.quantize(
                head,
                quantization["group_size"],
                quantization["bits"],
                class_predicate=lambda path, _: f"{path}.scales" in weights,
            )
        head.load_weights(list(weights.items()), strict=True)
        _check_draft_ids(head)
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder.name}/model.safetensors does not fit its config.json "
            f"({type(error).__name__}: {error}); convert the head again"
        ) from error
    return head


def _check_draft_ids(head: Eagle3Head) -> None:
    """Refuse a table that maps a draft id to no token of the target."""
    ids, n_tokens = head.draft_to_target, head.config.target_vocab_size
    if ids.dtype != mx.int32 or not mx.all((ids >= 0) & (ids < n_tokens)):
        raise ValueError(f"draft_to_target must hold int32 ids below {n_tokens}")


def read_head_config(folder: Path) -> dict[str, Any]:
    """Return the `config.json` of a converted head.

    Raises:
        CheckpointError: if there is none, or it describes something else.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder} has no readable config.json: {error}") from error
    if not isinstance(config, dict) or config.get("model_type") != MODEL_TYPE:
        kind = config.get("model_type") if isinstance(config, dict) else "no object"
        raise CheckpointError(
            f"{folder} is not a converted head (model_type is {kind!r}, expected "
            f"{MODEL_TYPE!r}); run: mlx-eagle convert {folder} --target TARGET --out DIR"
        )
    return config
