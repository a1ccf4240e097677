"""The draft head as an MLX module: features of the target and a token in, draft logits out.

It is the network only. How its output becomes a tree is `drafters/`; how published checkpoints
become its parameters is `convert/`. One module covers the family, a flag of `HeadConfig` for each
difference: EAGLE-3 (arXiv 2503.01840, section 3.1) with the variants that publishers train,
EAGLE-1 and 2 (2401.15077, 2406.16858) and HASS (2408.15766), and P-EAGLE (2602.01469).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.rope_utils import initialize_rope

from mlx_eagle.cache.attention_sinks import LEAST, SINKS, MovingSinkKVCache
from mlx_eagle.cache.kv import KVCache
from mlx_eagle.cache.model_cache import TreeCache
from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.heads.exponential import swiglu
from mlx_eagle.target.positions import accept_node_positions, keep_fractional_bounds
from mlx_eagle.tree import MAX_NODES

TRAINED_LENGTH = 2048  # tokens of a text, at most, that most heads were trained on


def _norm(size: int, config: HeadConfig, present: bool = True) -> nn.Module:
    """Return a norm over the last axis, or the identity where this head has none."""
    return nn.RMSNorm(size, eps=config.rms_norm_eps) if present else nn.Identity()


class LayerCache(Protocol):
    """What attention needs of a layer's keys and values: a KV cache, or `unroll.UnrolledKeys`."""

    @property
    def offset(self) -> int | mx.array:
        """Where rope places the next rows."""

    def attend(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: float,
        window: int | None,
    ) -> mx.array:
        """Take in keys and values of new rows and return what their queries [B, .., L, ..] see."""


class HeadCache(Protocol):
    """The caches of a head's layers."""

    @property
    def layers(self) -> Sequence[Any]:
        """A `LayerCache` for each layer."""


class Attention(nn.Module):
    """Grouped-query attention over inputs `width` wide: 2 h in an EAGLE-3 head's first layer."""

    def __init__(self, config: HeadConfig, width: int, window: int | None):
        super().__init__()
        n_heads, n_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        self.window = window

        bias = config.attention_bias
        self.q_proj = nn.Linear(width, n_heads * config.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, n_kv_heads * config.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, n_kv_heads * config.head_dim, bias=bias)
        self.o_proj = nn.Linear(
            n_heads * config.head_dim, config.hidden_size, bias=config.attention_output_bias
        )
        self.q_norm = _norm(config.head_dim, config, config.qk_norm)
        self.k_norm = _norm(config.head_dim, config, config.qk_norm)
        self.rope = initialize_rope(
            config.rope_dims,
            config.rope_theta,
            config.rope_interleaved,
            config.rope_scaling,
            config.max_position_embeddings,
        )
        if config.rope_scaling and config.rope_scaling.get("truncate") is False:
            keep_fractional_bounds(self.rope, config.rope_theta, config.rope_scaling)
        accept_node_positions(self.rope)

    def __call__(self, x: mx.array, cache: LayerCache) -> mx.array:
        """Attend from x [B, L, width] to the cache and to x itself, as the cache allows."""
        return self.attend([proj(x) for proj in self.projections], cache)

    @property
    def projections(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """What makes queries, keys and values."""
        return self.q_proj, self.k_proj, self.v_proj

    def attend(self, projected: Sequence[mx.array], cache: LayerCache) -> mx.array:
        """Attend with queries, keys and values [B, L, heads * head_dim], as projected."""
        return self.o_proj(self.seen(projected, cache))

    def seen(self, projected: Sequence[mx.array], cache: LayerCache) -> mx.array:
        """Return what the queries see, [B, L, heads * head_dim], before the output projection."""
        B, L, _ = projected[0].shape  # noqa: N806
        queries, keys, values = (part.reshape(B, L, -1, self.head_dim) for part in projected)
        queries = self.q_norm(queries).transpose(0, 2, 1, 3)
        keys = self.k_norm(keys).transpose(0, 2, 1, 3)
        values = values.transpose(0, 2, 1, 3)
        offset = cache.offset
        queries, keys = self.rope(queries, offset=offset), self.rope(keys, offset=offset)
        output = cache.attend(queries, keys, values, self.scale, self.window)
        return output.transpose(0, 2, 1, 3).reshape(B, L, -1)


def empty_cache(attentions: Sequence[Attention], window: int | None) -> TreeCache:
    """Return an empty KV cache for the layers of a head; see `EagleHead.make_cache`."""
    if not window:
        return TreeCache([KVCache() for _ in attentions])
    # A layer that was trained with a window of its own has never seen the first tokens stay.
    sinks = [SINKS if attention.window is None else 0 for attention in attentions]
    return TreeCache(
        [MovingSinkKVCache(a.rope, window, n) for a, n in zip(attentions, sinks, strict=True)]
    )


class MLP(nn.Module):
    """The gated MLP of a decoder layer (SwiGLU)."""

    def __init__(self, config: HeadConfig):
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        """Return [.., h] for x of the same shape."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class DecoderLayer(nn.Module):
    """An ordinary pre-norm layer; in an EAGLE-1 head the first one has no norm in front."""

    def __init__(self, config: HeadConfig, window: int | None, input_layernorm: bool = True):
        super().__init__()
        self.self_attn = Attention(config, config.hidden_size, window)
        self.mlp = MLP(config)
        self.input_layernorm = _norm(config.hidden_size, config, input_layernorm)
        self.post_attention_layernorm = _norm(config.hidden_size, config)

    def __call__(self, x: mx.array, cache: LayerCache) -> mx.array:
        """Return the layer's output [B, L, h] for x of the same shape."""
        h = x + self.self_attn(self.input_layernorm(x), cache)
        return h + self.mlp(self.post_attention_layernorm(h))


TokenSide = Sequence[mx.array]  # the tokens' share of q, k and v: [B, L, heads * head_dim] each


class FirstLayer(nn.Module):
    """The first layer of an EAGLE-3 head: it reads embedding and hidden state side by side."""

    def __init__(self, config: HeadConfig, window: int | None):
        super().__init__()
        self.norm_before_residual = config.norm_before_residual
        self.double_norm = config.double_norm
        self.self_attn = Attention(config, 2 * config.hidden_size, window)
        self.mlp = MLP(config)
        self.input_layernorm = _norm(config.hidden_size, config, config.input_layernorm)
        self.hidden_norm = _norm(config.hidden_size, config, config.hidden_norm)
        self.post_attention_layernorm = _norm(config.hidden_size, config)

    def __call__(
        self, tokens: mx.array | TokenSide, hidden: mx.array, cache: LayerCache
    ) -> mx.array:
        """Return the layer's output [B, L, h] for hidden [B, L, h] and the tokens' embeddings.

        The tokens' side may have been projected before (`token_side`): a training reads each token
        in all of its steps.
        """
        normed = self.hidden_norm(self.input_layernorm(hidden) if self.double_norm else hidden)
        residual = normed if self.norm_before_residual else hidden
        if isinstance(tokens, mx.array):
            x = mx.concatenate([self.input_layernorm(tokens), normed], axis=-1)  # [B, L, 2h]
            attended = self.self_attn(x, cache)
        else:
            attended = self.self_attn.attend(self._beside(tokens, normed), cache)
        h = residual + attended
        return h + self.mlp(self.post_attention_layernorm(h))

    def token_side(self, embeddings: mx.array) -> TokenSide:
        """Return the tokens' share of queries, keys and values, for weights that are not quantized.

        A product with two vectors side by side is the sum of two products.
        """
        x = self.input_layernorm(embeddings)
        h = x.shape[-1]
        return [x @ proj.weight[:, :h].T for proj in self.self_attn.projections]

    def _beside(self, tokens: TokenSide, normed: mx.array) -> list[mx.array]:
        h = normed.shape[-1]
        projected = []
        for side, proj in zip(tokens, self.self_attn.projections, strict=True):
            side = side + proj.bias if "bias" in proj else side
            projected.append(side + normed @ proj.weight[:, h:].T)
        return projected


class HeadOutput(NamedTuple):
    """What one step gives: `normed` is for the logits, `feedback` for the next step; [B, L, h]."""

    normed: mx.array
    feedback: mx.array


class EagleHead(nn.Module):
    """A head of the EAGLE family: `fuse` the taps, then step as often as tokens are drafted.

    Embeddings are an argument, because most heads share the target's, and so is what turns
    `normed` into logits where a head has no `lm_head`. The ids that are scored are draft ids;
    `draft_to_target` [W] maps them to target ids (absolute, where published heads store offsets
    called d2t).
    """

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.config = config
        n_taps, h = len(config.taps), config.hidden_size
        width = n_taps * config.target_hidden_size
        if config.own_embedding:
            self.embed_tokens = nn.Embedding(config.target_vocab_size, h)
        if config.norm_before_fc:
            self.input_norm = _norm(width, config)
        if config.fc_norm:
            self.fc_norm = [_norm(config.target_hidden_size, config) for _ in range(n_taps)]
        if config.algorithm == "eagle":
            self.fc = nn.Linear(2 * h, h, bias=config.fc_bias)
        elif config.fuse_taps:
            self.fc = nn.Linear(width, h, bias=config.fc_bias)
        if config.algorithm == "p-eagle":
            self.mask_hidden = mx.zeros((width,))
        self.layers = self._make_layers()
        self.norm = _norm(h, config, config.final_norm)
        if config.own_lm_head:
            self.lm_head = nn.Linear(h, config.draft_vocab_size, bias=False)
        self.draft_to_target = mx.arange(config.draft_vocab_size, dtype=mx.int32)
        self.freeze()

    def _make_layers(self) -> list[nn.Module]:
        config, windows = self.config, self.config.sliding_windows
        later = [DecoderLayer(config, window) for window in windows[1:]]
        if config.algorithm == "eagle":
            return [DecoderLayer(config, windows[0], config.input_layernorm), *later]
        return [FirstLayer(config, windows[0]), *later]

    @property
    def max_depth(self) -> int:
        """Levels that it can draft: it steps as often as it is asked to."""
        return MAX_NODES

    @property
    def borrows(self) -> bool:
        """Whether it uses the target's embedding or output layer, which fix its width."""
        return not (self.config.own_embedding and self.config.own_lm_head)

    @property
    def default_window(self) -> int:
        """The window for `make_cache` where the user has not chosen one.

        A head proposes ever worse where it attends over distances that it was not trained on. How
        long its training texts were, its configuration does not say: `max_position_embeddings` is
        2048 in EAGLE's own heads, which are trained on texts of that length, and often just the
        target's in others, whose texts are about as long. So it counts only below that. Rope
        itself has no end: every kind that heads have turns by an angle in proportion to the
        position, with no table.
        """
        return max(LEAST, min(self.config.max_position_embeddings, TRAINED_LENGTH))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Return the weights of a file without those that this head does not use.

        The doctor may find that a head runs without the final norm that its file has.
        """
        unused = () if self.config.final_norm else ("norm.weight",)
        return {name: array for name, array in weights.items() if name not in unused}

    def make_cache(self, window: int | None = None) -> TreeCache:
        """Return an empty KV cache for one conversation.

        Args:
            window: most committed tokens that are attended to, the first few and the newest, so
                that a step costs the same however long the text is; None or 0 for all of them.

        Raises:
            EagleError: if the window is too short.
        """
        return empty_cache([layer.self_attn for layer in self.layers], window)

    def fuse(self, taps: mx.array) -> mx.array:
        """Turn taps [B, L, A * D], shallowest first, into hidden states [B, L, h]."""
        if not self.config.fuse_taps:
            return taps
        if self.config.norm_before_fc:
            taps = self.input_norm(taps)
        if self.config.fc_norm:
            parts = mx.split(taps, len(self.fc_norm), axis=-1)
            normed = [norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)]
            taps = mx.concatenate(normed, axis=-1)
        return self.fc(taps)

    def masked(self, n: int) -> tuple[mx.array, mx.array]:
        """Return what a P-EAGLE head reads at n positions whose tokens are not drafted yet.

        Returns:
            Hidden states [1, n, h] and token ids [1, n].
        """
        token = self.config.mask_token_id
        assert token is not None, "only P-EAGLE heads have a mask token"
        hidden = self.fuse(self.mask_hidden[None, None])
        return mx.broadcast_to(hidden, (1, n, self.config.hidden_size)), mx.full((1, n), token)

    def token_side(self, embeddings: mx.array) -> TokenSide:
        """Return what an EAGLE-3 head's step can do with embeddings [B, L, h] alone.

        A training's steps all read the same tokens, so this is computed once for all of them; a
        step takes it, moved along, in the place of embeddings. The weights may not be quantized.
        """
        first = self.layers[0]
        assert isinstance(first, FirstLayer), "only an EAGLE-3 head reads them apart"
        return first.token_side(embeddings)

    def __call__(
        self, hidden: mx.array, embeddings: mx.array | TokenSide, cache: HeadCache
    ) -> HeadOutput:
        """Run one step: fused taps or the parent's feedback, with the token that comes next.

        Args:
            hidden: [B, L, h]; row i belongs to the position before that of `embeddings` row i. B is
                1 but in training.
            embeddings: [B, L, h] of the tokens, or their `token_side`.
            cache: the head's own; L undecided rows are appended, placed and masked as it says.
        """
        first, *later = self.layers
        if self.config.algorithm == "eagle":
            assert isinstance(embeddings, mx.array), "its tokens are not read apart"
            joined = self.fc(mx.concatenate([embeddings, hidden], axis=-1))  # [B, L, h]
            x = first(joined, cache.layers[0])
        else:
            x = first(embeddings, hidden, cache.layers[0])
        for layer, layer_cache in zip(later, cache.layers[1:], strict=True):
            x = layer(x, layer_cache)
        normed = self.norm(x)
        return HeadOutput(normed, normed if self.config.norm_output else x)
