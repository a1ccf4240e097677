"""Heads of the EAGLE family over whole packed rows, naive and in plain PyTorch.

It states the published forward pass with no cache and no trick: the rows of all steps so far lie
side by side in one matrix of keys, and a mask says which of them each query sees. The weights have
the names that they have in `EagleHead`; with float64 ones everything is computed in float64.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlx_eagle.heads.config import HeadConfig

Weights = dict[str, Tensor]
torch.set_num_threads(1)  # its products are tiny: threads would only wait for each other


def torch_weights(arrays: list[tuple[str, Any]], dtype: torch.dtype = torch.float64) -> Weights:
    """Return what `tree_flatten(head.parameters())` gave as tensors; floats get gradients."""
    tensors = {name: torch.tensor(np.array(array)) for name, array in arrays}
    floats = {n: t.to(dtype).requires_grad_() for n, t in tensors.items() if t.is_floating_point()}
    return tensors | floats


class Step(NamedTuple):
    """What a step gives: `normed` is for the logits, `feedback` for the next step; [B, L, h]."""

    normed: Tensor
    feedback: Tensor


def sees(texts: Tensor, step: int, window: int | None) -> Tensor:
    """Return [B, L, (step + 1) * L]: the rows of all steps that a query of this step may see.

    Column j * L + c is the row of step j that began at c, whose position is c + j; the query that
    began at t is at position t + step. Of step 0 it sees the rows of its own text up to t; of each
    later one, the row that began where it did.
    """
    length = texts.shape[1]
    start = torch.arange(length)
    before = (start[:, None] >= start)[None] & (texts[:, :, None] == texts[:, None, :])
    own = torch.eye(length, dtype=torch.bool).expand_as(before)
    blocks = [before] + [own] * step
    if window is not None:
        distance = start[:, None] - start + step
        blocks = [block & (distance - j < window)[None] for j, block in enumerate(blocks)]
    return torch.cat(blocks, -1)


class TorchHead:
    """The head's functions; `texts` [B, L] and the keys of all steps so far are arguments."""

    def __init__(self, config: HeadConfig, weights: Weights) -> None:
        self.config, self.w = config, weights

    def linear(self, x: Tensor, name: str) -> Tensor:
        out = x @ self.w[f"{name}.weight"].T
        return out + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else out

    def norm(self, x: Tensor, name: str) -> Tensor:
        """Norm x; the identity where the head has no such norm, and so no weight for it."""
        if f"{name}.weight" not in self.w:
            return x
        rms = torch.rsqrt((x * x).mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return x * rms * self.w[f"{name}.weight"]

    def fuse(self, taps: Tensor) -> Tensor:
        """Turn taps [B, L, A * D] into hidden states [B, L, h]."""
        if not self.config.fuse_taps or self.config.algorithm == "eagle":
            return taps
        if self.config.norm_before_fc:
            taps = self.norm(taps, "input_norm")
        if self.config.fc_norm:
            parts = taps.chunk(len(self.config.taps), -1)
            taps = torch.cat([self.norm(p, f"fc_norm.{i}") for i, p in enumerate(parts)], -1)
        return self.linear(taps, "fc")

    def rope(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate x [B, n, L, head_dim] by positions [L]; without scaling, or linearly scaled."""
        c, dims = self.config, self.config.rope_dims
        scaling = c.rope_scaling or {"rope_type": "default"}
        assert scaling["rope_type"] in ("default", "linear"), "the oracle knows no other scaling"
        frequencies = c.rope_theta ** (-torch.arange(0, dims, 2, dtype=x.dtype) / dims)
        angles = positions[:, None].to(x.dtype) * frequencies / scaling.get("factor", 1.0)
        cos, sin, rest = angles.cos(), angles.sin(), x[..., dims:]
        if c.rope_interleaved:
            even, odd = x[..., 0:dims:2], x[..., 1:dims:2]
            turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
        else:
            a, b = x[..., : dims // 2], x[..., dims // 2 : dims]
            turned = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
        return torch.cat([turned, rest], -1)

    def split(self, x: Tensor, name: str, n: int) -> Tensor:
        """Project x [B, L, width] for n heads: [B, n, L, head_dim]."""
        out = self.linear(x, name)
        return out.view(*x.shape[:2], n, self.config.head_dim).transpose(1, 2)

    def attend(self, x: Tensor, layer: int, past: "Past", positions: Tensor) -> Tensor:
        """Attend from x [B, L, width] to all rows of `past`, x's own included, as its mask says."""
        c, at = self.config, f"layers.{layer}.self_attn"
        queries = self.norm(self.split(x, f"{at}.q_proj", c.num_attention_heads), f"{at}.q_norm")
        keys = self.norm(self.split(x, f"{at}.k_proj", c.num_key_value_heads), f"{at}.k_norm")
        values = self.split(x, f"{at}.v_proj", c.num_key_value_heads)
        keys, values = past.add(layer, self.rope(keys, positions), values)
        share = c.num_attention_heads // c.num_key_value_heads
        keys, values = keys.repeat_interleave(share, 1), values.repeat_interleave(share, 1)
        scores = self.rope(queries, positions) @ keys.transpose(-1, -2) * c.head_dim**-0.5
        mask = past.mask(x.shape[1], keys.shape[2], c.sliding_windows[layer])
        out = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1) @ values
        return self.linear(out.transpose(1, 2).flatten(2), f"{at}.o_proj")

    def first_input(self, hidden: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first layer's residual and what its attention reads."""
        c, at = self.config, "layers.0"
        if c.algorithm == "eagle":
            x = self.linear(torch.cat([embeddings, hidden], -1), "fc")
            return x, self.norm(x, f"{at}.input_layernorm")
        normed = self.norm(hidden, f"{at}.input_layernorm") if c.double_norm else hidden
        normed = self.norm(normed, f"{at}.hidden_norm")
        joined = torch.cat([self.norm(embeddings, f"{at}.input_layernorm"), normed], -1)
        return (normed if c.norm_before_residual else hidden), joined

    def step(self, hidden: Tensor, embeddings: Tensor, past: "Past", positions: Tensor) -> Step:
        """Run all rows of one step: hidden [B, L, h], embeddings [B, L, h], positions [L]."""
        residual, x = self.first_input(hidden, embeddings)
        for layer in range(len(self.config.sliding_windows)):
            at = f"layers.{layer}"
            if layer:
                residual, x = hidden, self.norm(hidden, f"{at}.input_layernorm")
            h = residual + self.attend(x, layer, past, positions)
            y = self.norm(h, f"{at}.post_attention_layernorm")
            gate = torch.nn.functional.silu(self.linear(y, f"{at}.mlp.gate_proj"))
            up = self.linear(y, f"{at}.mlp.up_proj")
            hidden = h + self.linear(gate * up, f"{at}.mlp.down_proj")
        normed = self.norm(hidden, "norm")
        return Step(normed, normed if self.config.norm_output else hidden)


class Past:
    """Keys and values of all steps so far, by layer; every step has a row for every token."""

    def __init__(self, texts: Tensor) -> None:
        self.texts = texts
        self.rows: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put a step's rows [B, n, L, head_dim] after those of the steps before; return all."""
        if layer in self.rows:
            keys = torch.cat([self.rows[layer][0], keys], 2)
            values = torch.cat([self.rows[layer][1], values], 2)
        self.rows[layer] = keys, values
        return keys, values

    def mask(self, n_new: int, n_all: int, window: int | None) -> Tensor:
        """Return [B, new rows, all rows]: which of them the newest see."""
        return sees(self.texts, n_all // n_new - 1, window)


class Growing(Past):
    """An ordinary cache of one text: every row sees all rows before it, and itself."""

    def __init__(self) -> None:
        super().__init__(torch.empty(1, 0))

    def mask(self, n_new: int, n_all: int, window: int | None) -> Tensor:
        """Return [1, new rows, all rows]: causal, and within the window."""
        distance = torch.arange(n_all)[:, None] - torch.arange(n_all)
        seen = (distance >= 0) & (distance < (window or n_all))
        return seen[None, n_all - n_new :]
