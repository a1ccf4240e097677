"""DSpark's bias: what a token makes of the one after it, added to the logits of a block's row.

A block head foresees every depth by itself. A low-rank table of pairs of tokens, two factors of it,
mends what does not go together (DeepSpec, `markov_head`).
"""

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.heads.config import BlockConfig


class MarkovHead(nn.Module):
    """The bias of one level after another; names of parameters are the publisher's."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        rank, h = config.markov_rank, config.hidden_size
        assert rank is not None, "a bias has a rank"
        self.kind, self.rank = config.markov, rank
        self.markov_w1 = nn.Embedding(config.target_vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, config.draft_vocab_size, bias=False)
        if self.kind == "gated":
            self.gate_proj = nn.Linear(h + rank, rank)
        if self.kind == "rnn":
            self.joint_proj = nn.Linear(2 * rank + h, 3 * rank)

    def start(self, dtype: mx.Dtype) -> mx.array:
        """Return the state [1, r] in front of a block."""
        return mx.zeros((1, self.rank), dtype)

    def __call__(
        self, tokens: mx.array, row: mx.array, state: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Return the bias [F, W] of the children of F nodes, and the children's state [F, r].

        Args:
            tokens: [F] target ids of the nodes.
            row: [1, h] of the block, at the children's depth.
            state: [F, r] of the nodes, which "rnn" alone changes.
        """
        before = self.markov_w1(tokens)  # [F, r]
        row = mx.broadcast_to(row, (tokens.shape[0], row.shape[1]))
        if self.kind == "gated":
            before = mx.sigmoid(self.gate_proj(mx.concatenate([row, before], axis=-1))) * before
        if self.kind == "rnn":
            joint = self.joint_proj(mx.concatenate([state, before, row], axis=-1))
            gate, candidate, output = mx.split(joint, 3, axis=-1)
            gate = mx.sigmoid(gate)
            state = gate * state + (1 - gate) * mx.tanh(candidate)
            before = mx.tanh(output)
        return self.markov_w2(before), state
