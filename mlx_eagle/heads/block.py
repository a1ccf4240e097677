"""A head that drafts a block of tokens at once, as an MLX module: DFlash and DSpark.

DFlash (arXiv 2602.06036): what the target computed of the committed tokens, fused, is context, of
which every layer makes keys and values. The rows of a block, the root and then masks, attend to
the context and to each other, in both directions where a layer is not causal. DSpark (DeepSpec) is
the same network with a bias for each token by the one before it (`markov.py`).
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.cache.attention_sinks import LEAST
from mlx_eagle.cache.kv import KVCache, OpenRows
from mlx_eagle.cache.model_cache import TreeCache
from mlx_eagle.heads.config import BlockConfig
from mlx_eagle.heads.eagle import Attention, DecoderLayer, HeadCache, empty_cache
from mlx_eagle.heads.markov import MarkovHead

TRAINED_LENGTH = 4096  # tokens of a text, at most, that published block heads were trained on


class BlockAttention(Attention):
    """Attention of a block to the context, which is cached, and to itself, which is not."""

    def __init__(self, config: BlockConfig, window: int | None, is_causal: bool):
        super().__init__(config, config.hidden_size, window)
        self.is_causal, self.window_from_root = is_causal, config.window_from_root
        if config.attention_sinks:
            self.attention_sink_bias = mx.zeros((config.num_attention_heads,))

    def keep(self, context: mx.array, cache: KVCache) -> None:
        """Append keys and values of the context [1, L, h]: L undecided rows."""
        keys, values = self._heads_of(self.k_proj(context)), self._heads_of(self.v_proj(context))
        cache.update_and_fetch(self.rope(self.k_norm(keys), offset=cache.offset), values)

    def __call__(self, x: mx.array, cache: Any) -> mx.array:
        """Attend from the rows x [1, R, h] of a block; they are appended, undecided."""
        B, R, _ = x.shape  # noqa: N806
        queries, keys, values = (self._heads_of(proj(x)) for proj in self.projections)
        offset = cache.offset
        queries = self.rope(self.q_norm(queries), offset=offset)
        keys = self.rope(self.k_norm(keys), offset=offset)
        mask = self._mask(R, cache)
        keys, values = cache.update_and_fetch(keys, values)
        sinks = self.attention_sink_bias if "attention_sink_bias" in self else None
        seen = mx.fast.scaled_dot_product_attention(
            queries, keys, values, scale=self.scale, mask=mask, sinks=sinks
        )
        return self.o_proj(seen.transpose(0, 2, 1, 3).reshape(B, R, -1))

    def _heads_of(self, projected: mx.array) -> mx.array:
        """Return [1, heads, L, head_dim] of what was projected [1, L, heads * head_dim]."""
        B, L, _ = projected.shape  # noqa: N806
        return projected.reshape(B, L, -1, self.head_dim).transpose(0, 2, 1, 3)

    def _mask(self, n: int, cache: KVCache) -> mx.array | str | None:
        """Return what of context and block the n rows see; None for everything."""
        if self.window is not None and self.window_from_root:
            return self._mask_from_root(n, cache, self.window)
        if self.is_causal:
            return cache.make_mask(n, window_size=self.window)
        if self.window is None:
            return None
        positions = cache.rows + mx.arange(n)
        cache.open_rows = OpenRows(positions, positions, mx.ones((n, n), dtype=mx.bool_))
        return cache.make_mask(n, window_size=self.window)

    def _mask_from_root(self, n: int, cache: KVCache, window: int) -> mx.array:
        """Return the mask [n, T + n] in which all rows see the newest `window` rows of context."""
        held = mx.arange(cache.rows - cache.held, cache.rows) >= cache.rows - window  # [T]
        own = mx.tri(n, dtype=mx.bool_) if self.is_causal else mx.ones((n, n), dtype=mx.bool_)
        return mx.concatenate([mx.broadcast_to(held, (n, held.size)), own], axis=1)


class BlockHead(nn.Module):
    """A DFlash or DSpark head; embeddings and output layer are mostly the target's.

    `draft_to_target` [W] is as in `EagleHead`.
    """

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.config = config
        h, eps = config.hidden_size, config.rms_norm_eps
        if config.own_embedding:
            self.embed_tokens = nn.Embedding(config.target_vocab_size, h)
        width = len(config.taps) * config.target_hidden_size
        self.fc = nn.Linear(width, h, bias=config.fc_bias)
        self.hidden_norm = nn.RMSNorm(h, eps=eps)
        self.layers = self._make_layers()
        self.norm = nn.RMSNorm(h, eps=eps)
        if config.own_lm_head:
            self.lm_head = nn.Linear(h, config.draft_vocab_size, bias=False)
        if config.markov != "none":
            self.markov_head = MarkovHead(config)
        self.draft_to_target = mx.arange(config.draft_vocab_size, dtype=mx.int32)
        self.freeze()

    def _make_layers(self) -> list[DecoderLayer]:
        config, layers = self.config, []
        for window, is_causal in zip(config.sliding_windows, config.causal_layers, strict=True):
            layers.append(DecoderLayer(config, window))
            layers[-1].self_attn = BlockAttention(config, window, is_causal)
        return layers

    @property
    def max_depth(self) -> int:
        """Levels that it can draft: one for each row that predicts."""
        return self.config.block_size - self._first

    @property
    def borrows(self) -> bool:
        """Whether it uses the target's embedding or output layer, which fix its width."""
        return not (self.config.own_embedding and self.config.own_lm_head)

    @property
    def default_window(self) -> int:
        """The window for `make_cache` where the user has not chosen one: its training's length."""
        return max(LEAST, min(self.config.max_position_embeddings, TRAINED_LENGTH))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Return the weights of a file; all of them are used."""
        return weights

    def make_cache(self, window: int | None = None) -> TreeCache:
        """Return an empty cache of the context for one conversation; see `EagleHead.make_cache`."""
        return empty_cache([layer.self_attn for layer in self.layers], window)

    def keep_context(self, taps: mx.array, cache: HeadCache) -> None:
        """Append what every layer makes of taps [1, L, A * D]: L undecided rows."""
        context = self.hidden_norm(self.fc(taps))
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            layer.self_attn.keep(context, layer_cache)

    def block(self, root: mx.array, depth: int) -> mx.array:
        """Return the tokens [1, R] of a block below `root` [1] that drafts `depth` levels.

        It is as long as in training, unless later rows change nothing in those that are needed.
        """
        assert depth <= self.max_depth, "a tree deeper than a block"
        config = self.config
        assert config.mask_token_id is not None, "block heads have a mask token"
        n = depth + self._first if all(config.causal_layers) else config.block_size
        return mx.concatenate([root, mx.full((n - 1,), config.mask_token_id, root.dtype)])[None]

    def __call__(self, embeddings: mx.array, cache: HeadCache, depth: int) -> mx.array:
        """Run a block: return states [1, depth, h] that the output layer reads, level by level.

        Args:
            embeddings: [1, R, h] of the tokens that `block` gives.
            cache: of the context; R undecided rows are appended, to be forgotten.
            depth: K, levels that are drafted.
        """
        x = embeddings
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            x = layer(x, layer_cache)
        states: mx.array = self.norm(x[:, self._first : self._first + depth])
        return states

    @property
    def _first(self) -> int:
        """The first row of a block that predicts."""
        return 0 if self.config.root_predicts else 1
