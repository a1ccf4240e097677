"""Medusa heads as an MLX module: the target's last hidden state in, logits for each depth out.

Head i predicts the token i + 2 positions after the hidden state, i.e. i + 1 after the root, from
the hidden state alone: what stands between is not an input (arXiv 2401.10774, section 2.1). Its
typical acceptance is a rule of its own (`sampling/typical.py`), for all drafters alike.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.heads.config import MedusaConfig


class ResBlock(nn.Module):
    """A linear layer with SiLU, added to its input."""

    def __init__(self, config: MedusaConfig):
        super().__init__()
        self.linear = nn.Linear(config.hidden_size, config.hidden_size, bias=config.block_bias)

    def __call__(self, x: mx.array) -> mx.array:
        """Return [.., D] for x of the same shape."""
        out: mx.array = x + nn.silu(self.linear(x))
        return out


class Depth(nn.Module):
    """The head of one depth: its blocks, and its output layer if it has one of its own."""

    def __init__(self, config: MedusaConfig):
        super().__init__()
        self.blocks = [ResBlock(config) for _ in range(config.num_layers)]
        if config.own_lm_heads:
            self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)

    def __call__(self, x: mx.array, unembed: Any) -> mx.array:
        """Return logits [.., W] for hidden states x [.., D]."""
        x = self.hidden(x)
        return self.lm_head(x) if "lm_head" in self else unembed(x)

    def hidden(self, x: mx.array) -> mx.array:
        """Return what the output layer reads: states of the same shape as x [.., D]."""
        for block in self.blocks:
            x = block(x)
        return x


class MedusaHead(nn.Module):
    """All heads of a Medusa checkpoint; `draft_to_target` [W] is as in `EagleHead`."""

    def __init__(self, config: MedusaConfig):
        super().__init__()
        self.config = config
        self.depths = [Depth(config) for _ in range(config.num_heads)]
        self.draft_to_target = mx.arange(config.draft_vocab_size, dtype=mx.int32)
        self.freeze()

    @property
    def max_depth(self) -> int:
        """Levels that it can draft: one for each head."""
        return self.config.num_heads

    @property
    def borrows(self) -> bool:
        """Whether its width is the target's: it reads the target's hidden state."""
        return True

    @property
    def default_window(self) -> int:
        """Tokens that it attends to: it attends to none, so no window bounds it."""
        return 0

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Return the weights of a file; all of them are used."""
        return weights

    def __call__(self, hidden: mx.array, unembed: Any = None, depth: int | None = None) -> mx.array:
        """Return logits [K, W] of the first K heads.

        Args:
            hidden: [1, 1, D], the output of the target's final norm at the newest known token.
            unembed: the target's output layer, for heads that have none of their own.
            depth: K; None for all heads.
        """
        return mx.concatenate([head(hidden, unembed)[0] for head in self.depths[:depth]])
