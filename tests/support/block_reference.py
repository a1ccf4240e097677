"""Heads that draft blocks in PyTorch, written from their published definitions.

Naive and slow on purpose: nothing is cached, every block sees its whole context anew, and masks are
filled one pair of positions after another.
"""

from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from block_files import MASK, ROWS, Truth
from mtp_reference import norm

T = torch.Tensor
THETA, EPS, HEADS, KV_HEADS, DIM = 5000.0, 1e-6, 4, 2, 16


def frequencies(scaling: dict[str, Any] | None) -> tuple[T, float]:
    """Angle per position of each pair, and what rotated vectors are multiplied by (YaRN)."""
    plain = THETA ** (-torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)
    if scaling is None:
        return plain, 1.0
    factor, length = scaling["factor"], scaling["original_max_position_embeddings"]

    def dim_of(turns: float) -> float:
        ratio = torch.log(torch.tensor(length / (turns * 2 * torch.pi)))
        return float(DIM * ratio / (2 * torch.log(torch.tensor(THETA))))

    low = max(int(torch.tensor(dim_of(32.0)).floor()), 0)
    high = min(int(torch.tensor(dim_of(1.0)).ceil()), DIM - 1)
    ramp = ((torch.arange(DIM // 2) - low) / max(high - low, 1e-3)).clamp(0, 1)
    mixed = plain / factor * ramp + plain * (1 - ramp)
    return mixed, 0.1 * float(torch.log(torch.tensor(factor))) + 1.0


def rotate(x: T, positions: T, truth: Truth) -> T:
    """Rotate x [L, heads, DIM], row i standing at positions[i]."""
    per_position, scale = frequencies(truth.scaling)
    angles = positions.double()[:, None, None] * per_position
    cos, sin = (scale * angles.cos()).float(), (scale * angles.sin()).float()
    if truth.interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    a, b = x[..., : DIM // 2], x[..., DIM // 2 :]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class BlockReference:
    """A head with its tensors by published names, and its target's embedding and output layer."""

    def __init__(self, truth: Truth, tensors: dict[str, T], embedding: T, output: T) -> None:
        self.truth, self.tensors = truth, tensors
        self.embedding, self.output = embedding, output

    def linear(self, x: T, name: str) -> T:
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def normed(self, x: T, name: str) -> T:
        return norm(x, self.tensors[f"{name}.weight"], EPS)

    def attention(self, i: int, x: T, context: T) -> T:
        prefix, n, t = f"layers.{i}.self_attn", x.shape[0], context.shape[0]
        both = torch.cat([context, x])
        q = self.linear(x, f"{prefix}.q_proj").unflatten(-1, (HEADS, DIM))
        k = self.linear(both, f"{prefix}.k_proj").unflatten(-1, (KV_HEADS, DIM))
        v = self.linear(both, f"{prefix}.v_proj").unflatten(-1, (KV_HEADS, DIM))
        places = torch.arange(t + n)
        q = rotate(self.normed(q, f"{prefix}.q_norm"), places[t:], self.truth)
        k = rotate(self.normed(k, f"{prefix}.k_norm"), places, self.truth)
        k, v = (part.repeat_interleave(HEADS // KV_HEADS, dim=1) for part in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q, k) / DIM**0.5
        window, causal = self.truth.windows[i], self.truth.causal[i]
        for row in range(n):
            for column in range(t + n):
                ahead = column - (t + row)
                is_old = window is not None and -ahead >= window
                if self.truth.from_root:
                    is_old = window is not None and column < t - window
                hidden = (causal and ahead > 0) or is_old
                if hidden:
                    scores[:, row, column] = -torch.inf
        if self.truth.sinks:
            sinks = self.tensors[f"{prefix}.attention_sink_bias"][:, None, None].expand(-1, n, 1)
            weights = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        seen = torch.einsum("hij,jhd->ihd", weights, v).flatten(1)
        return self.linear(seen, f"{prefix}.o_proj")

    def states(self, taps: T, root: int) -> T:
        """What the output layer reads of each row that predicts, after context taps [t, A * H]."""
        context = self.normed(self.linear(taps, "fc"), "hidden_norm")
        x = self.embedding[torch.tensor([root] + [MASK] * (ROWS - 1))]
        for i in range(3):
            prefix = f"layers.{i}"
            x = x + self.attention(i, self.normed(x, f"{prefix}.input_layernorm"), context)
            inner = self.normed(x, f"{prefix}.post_attention_layernorm")
            gate = F.silu(self.linear(inner, f"{prefix}.mlp.gate_proj"))
            up = self.linear(inner, f"{prefix}.mlp.up_proj")
            x = x + self.linear(gate * up, f"{prefix}.mlp.down_proj")
        out = self.normed(x, "norm")
        return out if self.truth.root_predicts else out[1:]

    def logits(self, taps: T, root: int, path: list[int]) -> T:
        """Logits [depth, W] of a block; DSpark's bias is that of the tokens `path` [depth - 1]."""
        states = self.states(taps, root)
        logits = F.linear(states, self.output)
        if self.truth.markov == "none":
            return logits
        state = torch.zeros(self.tensors["markov_head.markov_w1.weight"].shape[1])
        rows = []
        for row, token in zip(states, [root, *path], strict=True):
            bias, state = self.bias(token, row, state)
            rows.append(bias)
        return logits + torch.stack(rows)

    def bias(self, token: int, row: T, state: T) -> tuple[T, T]:
        before = self.tensors["markov_head.markov_w1.weight"][token]
        if self.truth.markov == "gated":
            gate = self.linear(torch.cat([row, before]), "markov_head.gate_proj")
            before = torch.sigmoid(gate) * before
        if self.truth.markov == "rnn":
            joint = self.linear(torch.cat([state, before, row]), "markov_head.joint_proj")
            keep, new, out = joint.chunk(3)
            state = torch.sigmoid(keep) * state + (1 - torch.sigmoid(keep)) * torch.tanh(new)
            before = torch.tanh(out)
        return self.linear(before, "markov_head.markov_w2"), state
