"""The head against a plain PyTorch implementation of the published forward pass."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_eagle.errors import CheckpointError
from mlx_eagle.heads.config import MODEL_TYPE, HeadConfig
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.load import load_head

FLAGS: list[dict[str, Any]] = [
    {},
    {"norm_before_residual": True},
    {"norm_before_fc": True},
    {"fc_norm": True},
    {"norm_output": True},
    {"rope_interleaved": True},
    {"rope_theta": 1e6, "taps": (0, 1, 2, 3, 4)},
    {"norm_before_residual": True, "norm_before_fc": True, "norm_output": True},
    {"double_norm": True},
]


def random_head(config: HeadConfig) -> EagleHead:
    mx.random.seed(1)
    head = EagleHead(config)
    values = [
        (n, v + 0.2 * mx.random.normal(v.shape))
        if v.ndim == 1 and v.dtype == mx.float32
        else (n, v)
        for n, v in tree_flatten(head.parameters())
    ]
    head.load_weights(values)
    mx.eval(head.parameters())
    return head


class TorchHead:
    """The forward pass as the reference text states it: whole sequence, no cache."""

    def __init__(self, head: EagleHead) -> None:
        torch = pytest.importorskip("torch")
        self.torch, self.config = torch, head.config
        self.w = {n: torch.tensor(np.array(v)) for n, v in tree_flatten(head.parameters())}

    def norm(self, x: Any, name: str) -> Any:
        rms = self.torch.rsqrt((x * x).mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return x * rms * self.w[f"{name}.weight"]

    def fuse(self, taps: Any) -> Any:
        if self.config.norm_before_fc:
            taps = self.norm(taps, "input_norm")
        if self.config.fc_norm:
            parts = taps.chunk(len(self.config.taps), dim=-1)
            normed = [self.norm(part, f"fc_norm.{i}") for i, part in enumerate(parts)]
            taps = self.torch.cat(normed, -1)
        return taps @ self.w["fc.weight"].T

    def rope(self, x: Any) -> Any:
        torch, d = self.torch, self.config.head_dim
        frequency = self.config.rope_theta ** (-torch.arange(0, d, 2).double() / d)
        angle = (torch.arange(x.shape[1])[:, None] * frequency).float()
        cos, sin = angle.cos(), angle.sin()
        if self.config.rope_interleaved:
            even, odd = x[..., 0::2], x[..., 1::2]
            return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
        a, b = x[..., : d // 2], x[..., d // 2 :]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def attend(self, x: Any) -> Any:
        c, torch = self.config, self.torch
        q, k, v = (
            (x @ self.w[f"layers.0.self_attn.{n}_proj.weight"].T)
            .view(x.shape[0], -1, c.head_dim)
            .transpose(0, 1)
            for n in "qkv"
        )
        share = c.num_attention_heads // c.num_key_value_heads
        k, v = self.rope(k).repeat_interleave(share, 0), v.repeat_interleave(share, 0)
        scores = self.rope(q) @ k.transpose(1, 2) * c.head_dim**-0.5
        hidden = torch.ones(x.shape[0], x.shape[0]).triu(1).bool()
        out = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
        joined = out.transpose(0, 1).reshape(x.shape[0], -1)
        return joined @ self.w["layers.0.self_attn.o_proj.weight"].T

    def __call__(self, g: Any, e: Any) -> tuple[Any, Any]:
        """Logits and feedback for hidden states g and embeddings e, both [L, h]."""
        u = self.norm(g, "layers.0.input_layernorm") if self.config.double_norm else g
        u = self.norm(u, "layers.0.hidden_norm")
        x = self.torch.cat([self.norm(e, "layers.0.input_layernorm"), u], -1)
        r = (u if self.config.norm_before_residual else g) + self.attend(x)
        y = self.norm(r, "layers.0.post_attention_layernorm")
        w = {n: self.w[f"layers.0.mlp.{n}_proj.weight"] for n in ("gate", "up", "down")}
        gate = self.torch.nn.functional.silu(y @ w["gate"].T)
        p = r + (gate * (y @ w["up"].T)) @ w["down"].T
        o = self.norm(p, "norm")
        return o @ self.w["lm_head.weight"].T, o if self.config.norm_output else p


@pytest.mark.torch
@pytest.mark.parametrize("flags", FLAGS, ids=lambda f: "+".join(f) or "plain")
def test_prompt_and_three_recurrent_steps_equal_pytorch(
    flags: dict[str, Any], head_config: HeadConfig
) -> None:
    config = replace(head_config, **flags)
    head = random_head(config)
    oracle = TorchHead(head)
    torch = oracle.torch
    mx.random.seed(2)
    taps = mx.random.normal((1, 9, len(config.taps) * 32))
    embeddings = mx.random.normal((1, 12, 32))
    cache, offset, hidden = head.make_cache(), 0, head.fuse(taps)
    g = oracle.fuse(torch.tensor(np.array(taps[0])))
    e = torch.tensor(np.array(embeddings[0]))
    for rows in (9, 1, 1, 1):
        out = head(hidden, embeddings[:, offset : offset + rows], cache)
        cache.commit(range(rows))
        offset += rows
        logits, feedback = oracle(g, e[:offset])
        assert_close(head.lm_head(out.normed)[0], logits[offset - rows :])
        assert_close(out.feedback[0], feedback[offset - rows :])
        hidden = out.feedback[:, -1:]
        g = torch.cat([g, feedback[-1:]])


def assert_close(found: mx.array, expected: Any) -> None:
    """Relative error below 1e-5 of the largest value."""
    want = expected.numpy()
    assert np.abs(np.array(found) - want).max() < 1e-5 * max(1.0, np.abs(want).max())


def save(head: EagleHead, folder: Path, quantization: dict[str, int] | None = None) -> Path:
    folder.mkdir()
    config = {"model_type": MODEL_TYPE, "quantization": quantization, **head.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(head.parameters())))
    return folder


def test_a_saved_head_loads_with_the_same_values(tmp_path: Path, head_config: HeadConfig) -> None:
    head = random_head(head_config)
    loaded = load_head(save(head, tmp_path / "head"))
    assert loaded.config == head_config
    want = dict(tree_flatten(head.parameters()))
    for name, value in tree_flatten(loaded.parameters()):
        assert mx.array_equal(value, want[name]), name


def test_a_quantized_head_loads_quantized(tmp_path: Path, head_config: HeadConfig) -> None:
    head = random_head(head_config)
    nn.quantize(head, 32, 4, class_predicate=_divisible)
    loaded = load_head(save(head, tmp_path / "head", {"group_size": 32, "bits": 4}))
    assert isinstance(loaded.fc, nn.QuantizedLinear)
    assert isinstance(loaded.layers[0].mlp.down_proj, nn.Linear), "80 columns are no groups of 32"
    assert mx.array_equal(loaded.fc.weight, head.fc.weight)


def _divisible(_: str, module: nn.Module) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0


def test_a_missing_tensor_is_named(tmp_path: Path, head_config: HeadConfig) -> None:
    folder = save(random_head(head_config), tmp_path / "head")
    weights = mx.load(str(folder / "model.safetensors"))
    weights.pop("norm.weight")
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    with pytest.raises(CheckpointError, match=r"norm\.weight"):
        load_head(folder)


def test_a_config_without_a_flag_is_refused_with_its_name(
    tmp_path: Path, head_config: HeadConfig
) -> None:
    folder = save(random_head(head_config), tmp_path / "head")
    config = json.loads((folder / "config.json").read_text())
    del config["norm_output"], config["taps"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="lacks norm_output, taps"):
        load_head(folder)


def test_a_folder_that_is_no_converted_head_says_how_to_convert(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="'llama'.*mlx-eagle convert"):
        load_head(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"taps": [5, 4, 2]}, "taps is"),
        ({"taps": [2, 2, 4]}, "taps is"),
        ({"taps": [True, 4, 5]}, "taps is"),
        ({"taps": ["2"]}, "taps is"),
        ({"taps": []}, "taps is"),
        ({"taps": 3}, "taps is 3"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"num_attention_heads": 0, "rms_norm_eps": None}, "heads is 0, rms_norm_eps is None"),
        ({"draft_vocab_size": 10**12}, "draft_vocab_size is"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"norm_output": 1}, "norm_output is 1"),
        ({"rope_theta": 1e300}, "rope_theta is 1e"),
        ({"rope_dims": 7}, "needs rope_dims even"),
        ({"rope_dims": 16}, "no more than head_dim"),
        ({"sliding_windows": []}, "needs sliding_windows for every layer"),
        ({"num_attention_heads": 5}, "needs query heads in equal groups"),
        ({"mask_token_id": 3}, "needs a mask_token_id of the target, if it drafts in"),
        ({"algorithm": "p-eagle"}, "needs a mask_token_id of the target"),
        ({"fuse_taps": False}, "needs one tap without fc"),
        ({"format_version": 1}, "another version of mlx-eagle"),
        ({"rope_scaling": {"rope_type": "nonsense"}}, "nonsense"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "KeyError"),
        ({"quantization": {"group_size": 7}}, "does not fit its config"),
        ({"quantization": "x"}, "does not fit its config"),
        ({"draft_vocab_size": 40}, "does not fit its config"),
        ({"target_vocab_size": 20}, "no more draft ids than the target has"),
    ],
)
def test_an_impossible_configuration_is_one_clear_error(
    changes: dict[str, Any], message: str, tmp_path: Path, head_config: HeadConfig
) -> None:
    folder = save(random_head(head_config), tmp_path / "head")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=message):
        load_head(folder)
