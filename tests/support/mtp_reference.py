"""Multi-token prediction layers in PyTorch, written from their published definitions.

Naive and slow on purpose: no cache, every row attends to the rows before it by a mask. `gains` of
norms are what they are multiplied by; families that store differences from 1 are shifted before.
"""

from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

T = torch.Tensor


def norm(x: T, gain: T, eps: float) -> T:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * gain


def rotate(x: T, theta: float, dims: int, interleaved: bool = False) -> T:
    """Rotate the first dims of x [L, heads, d] by the angle of row i at position i."""
    length = x.shape[0]
    angles = torch.arange(length)[:, None] * theta ** (-torch.arange(0, dims, 2) / dims)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]  # [L, 1, dims / 2]
    part, rest = x[..., :dims], x[..., dims:]
    if interleaved:
        a, b = part[..., 0::2], part[..., 1::2]
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    else:
        a, b = part[..., : dims // 2], part[..., dims // 2 :]
        turned = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    return torch.cat([turned, rest], -1)


def attend(q: T, k: T, v: T) -> T:
    """Causal attention: q [L, nh, d], k [L, nkv, d], v [L, nkv, e] to [L, nh * e]."""
    repeat = q.shape[1] // k.shape[1]
    k, v = (part.repeat_interleave(repeat, dim=1) for part in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
    length = q.shape[0]
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    return torch.einsum("hij,jhe->ihe", scores.softmax(-1), v).flatten(1)


class Reference:
    """A layer with its tensors by Qwen's names, and its target's embedding and output layer."""

    def __init__(
        self,
        facts: dict[str, Any],
        tensors: dict[str, T],
        *,
        zero_centred: bool = False,
        hidden_first: bool = False,
    ) -> None:
        self.facts, self.tensors = facts, tensors
        self.shift = 1.0 if zero_centred else 0.0
        self.hidden_first = hidden_first
        rope = facts.get("rope_parameters") or facts
        self.theta, self.share = rope["rope_theta"], rope.get("partial_rotary_factor", 1.0)
        self.eps = facts["rms_norm_eps"]

    def w(self, name: str) -> T:
        return self.tensors[f"{name}.weight"]

    def normed(self, x: T, name: str) -> T:
        return norm(x, self.w(name) + self.shift, self.eps)

    def linear(self, x: T, name: str) -> T:
        return F.linear(x, self.w(name), self.tensors.get(f"{name}.bias"))

    def step(self, hidden: T, embeddings: T) -> T:
        """Normed outputs [L, H] for hidden states and embeddings [L, H]."""
        e = self.normed(embeddings, "pre_fc_norm_embedding")
        h = self.normed(hidden, "pre_fc_norm_hidden")
        x = self.linear(torch.cat([h, e] if self.hidden_first else [e, h], -1), "fc")
        layer = "layers.0"
        x = x + self.attention(self.normed(x, f"{layer}.input_layernorm"))
        inner = self.normed(x, f"{layer}.post_attention_layernorm")
        return self.normed(x + self.mlp(inner), "norm")

    def attention(self, x: T) -> T:
        if "layers.0.self_attn.kv_b_proj.weight" in self.tensors:
            return self.latent_attention(x)
        f, prefix = self.facts, "layers.0.self_attn"
        nh, nkv, hd = f["num_attention_heads"], f["num_key_value_heads"], 16
        q = self.linear(x, f"{prefix}.q_proj").unflatten(-1, (nh, -1))
        gate = None
        if q.shape[-1] == 2 * hd:
            q, gate = q[..., :hd], q[..., hd:]
        k = self.linear(x, f"{prefix}.k_proj").unflatten(-1, (nkv, hd))
        v = self.linear(x, f"{prefix}.v_proj").unflatten(-1, (nkv, hd))
        if f"{prefix}.q_norm.weight" in self.tensors:
            q, k = self.normed(q, f"{prefix}.q_norm"), self.normed(k, f"{prefix}.k_norm")
        dims = int(hd * self.share)
        out = attend(rotate(q, self.theta, dims), rotate(k, self.theta, dims), v)
        if gate is not None:
            out = out * torch.sigmoid(gate.flatten(1))
        return self.linear(out, f"{prefix}.o_proj")

    def latent_attention(self, x: T) -> T:
        """DeepSeek-V2's, uncompressed: keys and values are made from the latent."""
        f, prefix = self.facts, "layers.0.self_attn"
        nh, nope, rope = f["num_attention_heads"], f["qk_nope_head_dim"], f["qk_rope_head_dim"]
        q = self.linear(
            self.normed(self.linear(x, f"{prefix}.q_a_proj"), f"{prefix}.q_a_layernorm"),
            f"{prefix}.q_b_proj",
        ).unflatten(-1, (nh, nope + rope))
        both = self.linear(x, f"{prefix}.kv_a_proj_with_mqa")
        latent = self.normed(both[..., : f["kv_lora_rank"]], f"{prefix}.kv_a_layernorm")
        shared = rotate(both[:, None, f["kv_lora_rank"] :], self.theta, rope, interleaved=True)
        kv = self.linear(latent, f"{prefix}.kv_b_proj").unflatten(-1, (nh, -1))
        k = torch.cat([kv[..., :nope], shared.expand(-1, nh, -1)], -1)
        q = torch.cat(
            [q[..., :nope], rotate(q[..., nope:], self.theta, rope, interleaved=True)], -1
        )
        return self.linear(attend(q, k, kv[..., nope:]), f"{prefix}.o_proj")

    def gated(self, x: T, prefix: str) -> T:
        gate, up = self.linear(x, f"{prefix}.gate_proj"), self.linear(x, f"{prefix}.up_proj")
        return self.linear(F.silu(gate) * up, f"{prefix}.down_proj")

    def mlp(self, x: T) -> T:
        prefix = "layers.0.mlp"
        if f"{prefix}.gate.weight" not in self.tensors:
            return self.gated(x, prefix)
        router = self.w(f"{prefix}.gate")
        rows = [self.experts(row, *self.route(F.linear(row, router))) for row in x]
        routed = torch.stack(rows)
        if f"{prefix}.shared_expert_gate.weight" in self.tensors:
            share = torch.sigmoid(self.linear(x, f"{prefix}.shared_expert_gate"))
            return routed + share * self.gated(x, f"{prefix}.shared_expert")
        return routed + self.gated(x, f"{prefix}.shared_experts")

    def route(self, logits: T) -> tuple[list[int], T]:
        """The experts of one row and their shares."""
        f = self.facts
        bias = self.tensors.get("layers.0.mlp.gate.e_score_correction_bias")
        k = f["num_experts_per_tok"]
        if bias is None:
            shares, chosen = logits.softmax(-1).topk(k)
            return chosen.tolist(), shares / shares.sum()
        scores = logits.sigmoid()
        groups = (scores + bias).unflatten(0, (f["n_group"], -1))
        best = groups.topk(2, -1).values.sum(-1).topk(f["topk_group"]).indices
        outside = torch.ones(f["n_group"], dtype=torch.bool)
        outside[best] = False
        masked = groups.masked_fill(outside[:, None], 0.0).flatten()
        chosen = masked.topk(k).indices
        shares = scores[chosen]
        return chosen.tolist(), shares / shares.sum() * f["routed_scaling_factor"]

    def experts(self, row: T, chosen: list[int], shares: T) -> T:
        outputs = [self.gated(row, f"layers.0.mlp.experts.{expert}") for expert in chosen]
        return sum(share * out for share, out in zip(shares, outputs, strict=True))

    def run(self, hidden: T, embeddings: T, n_steps: int) -> T:
        """Normed outputs of a text and of steps after it, [L + n_steps, H].

        Args:
            hidden: [L, H] of the target; later rows are the layer's own outputs.
            embeddings: [L + n_steps, H] of the next tokens.
            n_steps: how often the layer reads its own output.
        """
        for _ in range(n_steps):
            out = self.step(hidden, embeddings[: hidden.shape[0]])
            hidden = torch.cat([hidden, out[-1:]])
        return self.step(hidden, embeddings)
