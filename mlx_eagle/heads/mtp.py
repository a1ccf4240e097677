"""A target's own multi-token prediction (MTP) layer as a draft head.

Models since DeepSeek-V3 (arXiv 2412.19437, section 2.2) are trained with a layer that reads the
target's last hidden state and the token that comes next, and foresees the one after that. It is
EAGLE-1 with a norm for each of the two inputs and one for the output, so `drafters/eagle.py` drafts
with it: fed with its own output it steps on. Its block is a plain decoder layer, perhaps with gated
attention, or one of mlx-lm's class for the target (`target_block.py`): mixtures of experts, latent
attention.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_eagle.cache.model_cache import TreeCache
from mlx_eagle.cache.options import WHOLE, KVOptions
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.config import MtpConfig
from mlx_eagle.heads.eagle import (
    Attention,
    DecoderLayer,
    EagleHead,
    HeadCache,
    HeadOutput,
    LayerCache,
    TokenSide,
)
from mlx_eagle.heads.target_block import build_target_block


class ExactNorm(nn.RMSNorm):
    """A norm whose gains stay in float32, whatever it is given.

    Files store gains as differences from 1, which are small: the sum, in 16 bits, loses them.
    """

    def __call__(self, x: mx.array) -> mx.array:
        """Return x [.., h] normed, in the type that it came in."""
        normed = mx.fast.rms_norm(x.astype(mx.float32), self.weight, self.eps)
        return normed.astype(x.dtype)


class GatedAttention(Attention):
    """Attention whose output is multiplied by a gate; each query head's gate follows its query."""

    def __init__(self, config: MtpConfig, width: int, window: int | None):
        super().__init__(config, width, window)
        n_heads, bias = config.num_attention_heads, config.attention_bias
        self.q_proj = nn.Linear(width, 2 * n_heads * config.head_dim, bias=bias)

    def __call__(self, x: mx.array, cache: LayerCache) -> mx.array:
        """Attend from x [B, L, width] to the cache and to x itself, as the cache allows."""
        B, L, _ = x.shape  # noqa: N806
        pairs = self.q_proj(x).reshape(B, L, -1, 2 * self.head_dim)
        queries, gate = (part.reshape(B, L, -1) for part in mx.split(pairs, 2, axis=-1))
        seen = self.seen([queries, self.k_proj(x), self.v_proj(x)], cache)
        return self.o_proj(seen * mx.sigmoid(gate))


class MtpHead(EagleHead):
    """A multi-token prediction layer; see `EagleHead` for what it borrows from the target."""

    config: MtpConfig

    def __init__(self, config: MtpConfig):
        super().__init__(config)
        h, eps = config.hidden_size, config.rms_norm_eps
        self.pre_fc_norm_embedding = nn.RMSNorm(h, eps=eps)
        self.pre_fc_norm_hidden = nn.RMSNorm(h, eps=eps)
        self.fc = nn.Linear(2 * h, h, bias=config.fc_bias)
        for _, module in self.named_modules():
            if type(module) is nn.RMSNorm:
                module.__class__ = ExactNorm
        self.freeze()

    def _make_layers(self) -> list[nn.Module]:
        config = self.config
        if config.block_config is not None:
            return [build_target_block(config.block_config)]
        layer = DecoderLayer(config, config.sliding_windows[0])
        if config.attention_gate:
            layer.self_attn = GatedAttention(config, config.hidden_size, None)
        return [layer]

    @property
    def default_window(self) -> int:
        """Tokens that it attends to: all. It was trained with its target, on texts as long."""
        return 0

    def make_cache(self, window: int | None = None, kv: KVOptions = WHOLE) -> TreeCache:
        """Return an empty KV cache for one conversation; see `EagleHead.make_cache`.

        Args:
            window: as there.
            kv: what the target's layers keep: without a window of its own one more does likewise.

        Raises:
            EagleError: if a window is asked for that the target's block cannot keep.
        """
        if not window:
            return TreeCache([kv.make_layer()])
        if self.config.block != "plain":
            raise EagleError(
                "this head is a layer of its target, which attends to all tokens; leave out "
                "--head-window, or give 0 (max_kv_size bounds both)"
            )
        return super().make_cache(window)

    def set_dtype(
        self, dtype: mx.Dtype, predicate: Callable[[mx.Dtype], bool] | None = None
    ) -> None:
        """Cast the parameters, but for gains of norms and the router's biases."""
        kept = {
            f"{path}.{name}": array
            for path, module in self.named_modules()
            for name, array in module.items()
            if isinstance(array, mx.array)
            and (isinstance(module, ExactNorm) or name == "e_score_correction_bias")
        }
        super().set_dtype(dtype, predicate or (lambda kind: mx.issubdtype(kind, mx.floating)))
        self.update(tree_unflatten(list(kept.items())))

    def __call__(
        self, hidden: mx.array, embeddings: mx.array | TokenSide, cache: HeadCache
    ) -> HeadOutput:
        """Run one step: the target's hidden state or the parent's feedback, with the next token.

        Args:
            hidden: [B, L, h]; row i belongs to the position before that of `embeddings` row i.
            embeddings: [B, L, h] of the tokens.
            cache: the head's own; L undecided rows are appended, placed and masked as it says.
        """
        assert isinstance(embeddings, mx.array), "its tokens are not read apart"
        parts = [self.pre_fc_norm_embedding(embeddings), self.pre_fc_norm_hidden(hidden)]
        if self.config.hidden_first:
            parts.reverse()
        x = self._run_block(self.fc(mx.concatenate(parts, axis=-1)), cache.layers[0])
        normed = self.norm(x)
        return HeadOutput(normed, normed if self.config.norm_output else x)

    def _run_block(self, x: mx.array, cache: Any) -> mx.array:
        """Return the block's output [B, L, h] for x of the same shape."""
        layer = self.layers[0]
        if self.config.block_config is None:
            return layer(x, cache)  # type: ignore[no-any-return]
        # Latent attention adds the mask to scores of its own, so it needs it as an array.
        is_latent = "kv_lora_rank" in self.config.block_config
        mask = cache.make_mask(x.shape[1], return_array=is_latent)
        return layer(x, mask, cache)  # type: ignore[no-any-return]
