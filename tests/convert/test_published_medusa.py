"""Medusa heads under every name that they were published with, against PyTorch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_eagle.convert.heads import convert_head
from mlx_eagle.heads.load import load_head

FILE = "model.safetensors"
TARGET = {"model_type": "llama", "num_hidden_layers": 12, "hidden_size": 32, "vocab_size": 48}
CONFIG: dict[str, Any] = {
    "hidden_size": 32,
    "vocab_size": 48,
    "medusa_num_heads": 2,
    "medusa_num_layers": 1,
    "base_model_name_or_path": "lmsys/vicuna-7b-v1.3",
}
NAMES = {
    "medusa_lm_head.pt": ("{k}.{j}.linear.{kind}", "{k}.{n}.weight"),
    "model.safetensors": (
        "medusa_head.{k}.{j}.linear.{kind}",
        "medusa_head.{k}.{n}.weight",
    ),
    "vllm.safetensors": ("blocks.{k}.layers.{j}.{kind}", "lm_heads.{k}.weight"),
    "modelopt.safetensors": ("medusa_heads.{k}.{j}.linear.{kind}", "medusa_heads.{k}.{n}.weight"),
}


def medusa_tensors(block: str, lm_head: str, n_blocks: int, bias: bool) -> dict[str, np.ndarray]:
    """Three heads over 32 columns with a vocabulary of 48, by the names of one publisher."""
    random, tensors = np.random.default_rng(4), {}
    for k in range(3):
        for j in range(n_blocks):
            weight = random.standard_normal((32, 32)) / 32**0.5
            tensors[block.format(k=k, j=j, kind="weight")] = weight
            if bias:
                tensors[block.format(k=k, j=j, kind="bias")] = random.standard_normal(32)
        tensors[lm_head.format(k=k, n=n_blocks)] = random.standard_normal((48, 32)) / 32**0.5
    return {name: value.astype(np.float32) for name, value in tensors.items()}


@pytest.mark.torch
@pytest.mark.parametrize("n_blocks", [1, 2], ids=["one block", "two blocks"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("file", NAMES)
def test_medusa_heads_of_every_naming_equal_pytorch(
    file: str, n_blocks: int, bias: bool, save_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    """Each block is x + SiLU(Wx + b); the tensors count the heads, a published config does not."""
    torch = pytest.importorskip("torch")
    block, lm_head = NAMES[file]
    tensors = medusa_tensors(block, lm_head, n_blocks, bias)
    config = CONFIG | {"medusa_num_layers": n_blocks}
    stored = file if file.endswith(".pt") else FILE
    source, verifier = save_checkpoint(config, stored, tensors, TARGET)
    written = convert_head(source, verifier, tmp_path / "head", bits=None)
    hidden = np.random.default_rng(5).standard_normal((1, 1, 32)).astype(np.float32)
    found = np.array(load_head(tmp_path / "head")(mx.array(hidden)))
    w = {name: torch.from_numpy(value) for name, value in tensors.items()}
    for k in range(3):
        x = torch.from_numpy(hidden[0, 0])
        for j in range(n_blocks):
            y = w[block.format(k=k, j=j, kind="weight")] @ x
            y += w.get(block.format(k=k, j=j, kind="bias"), 0.0)
            x = x + y * torch.sigmoid(y)
        expected = (w[lm_head.format(k=k, n=n_blocks)] @ x).numpy()
        assert np.abs(found[k] - expected).max() < 1e-5 * np.abs(expected).max(), k
    assert found.shape == (3, 48)
    assert (written["algorithm"], list(written["taps"])) == ("medusa", [13])


def test_a_full_medusa_model_gives_its_heads_only(
    save_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    tensors = medusa_tensors(*NAMES["model.safetensors"], 1, True)
    base = {"model.embed_tokens.weight": (48, 32), "lm_head.weight": (48, 32)}
    base |= {"model.norm.weight": (32,), "model.layers.0.self_attn.q_proj.weight": (32, 32)}
    both = tensors | {name: np.ones(shape, np.float32) for name, shape in base.items()}
    source, verifier = save_checkpoint(CONFIG | {"model_type": "medusa"}, FILE, both, TARGET)
    convert_head(source, verifier, tmp_path / "head", bits=None)
    head = load_head(tmp_path / "head")
    assert head(mx.ones((1, 1, 32))).shape == (3, 48)
    stored = {np.array(v).tobytes() for v in mx.load(str(tmp_path / "head" / FILE)).values()}
    assert stored >= {value.tobytes() for value in tensors.values()}
    assert not stored & {np.ones(shape, np.float32).tobytes() for shape in base.values()}


def test_a_token_map_restricts_the_vocabulary_of_medusa_heads(
    save_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    kept = np.arange(0, 144, 3)
    tensors = medusa_tensors(*NAMES["vllm.safetensors"], 1, False) | {"token_map": kept}
    config = CONFIG | {"vocab_size": 144, "truncated_vocab_size": 48}
    source, verifier = save_checkpoint(config, FILE, tensors, TARGET | {"vocab_size": 144})
    written = convert_head(source, verifier, tmp_path / "head", bits=None)
    assert load_head(tmp_path / "head").draft_to_target.tolist() == kept.tolist()
    assert (written["draft_vocab_size"], written["target_vocab_size"]) == (48, 144)
