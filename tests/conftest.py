"""Tiny random targets and heads, and the trained fixture pair where it is present."""

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_eagle.head import HeadConfig

ROOT = Path(__file__).resolve().parents[1]
# `python -m pytest` puts the checkout first; the tests always see the installed package.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}

# What each architecture needs beyond SMALL. The windows are shorter than the prompts of the tests.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
    },
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 64,
        "sliding_window": 8,
    },
    "gemma2": {"query_pre_attn_scalar": 16.0},
    "gemma3_text": {"sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16},
    "phi3": {},
    "cohere": {"layer_norm_eps": 1e-5},
    "olmo2": {},
    "glm4": {"partial_rotary_factor": 0.5},
    "granite": {
        "logits_scaling": 2.0,
        "attention_multiplier": 0.25,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
    },
    "smollm3": {},
}


def build_target(architecture: str, **overrides: Any) -> nn.Module:
    """Build a tiny random float32 model with one of mlx-lm's own architectures."""
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    config = {"model_type": architecture} | SMALL | ARCHITECTURES.get(architecture, {}) | overrides
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))
    # mlx starts gpt-oss' sinks and all norms at constants; random ones hide fewer mistakes.
    noisy = [
        (name, value + 0.1 * mx.random.normal(value.shape)) if value.ndim == 1 else (name, value)
        for name, value in tree_flatten(model.parameters())
    ]
    model.load_weights(noisy)
    model.set_dtype(mx.float32)
    model.eval()
    mx.eval(model.parameters())
    return model


@pytest.fixture
def tiny_target() -> Callable[..., nn.Module]:
    return build_target


@pytest.fixture(scope="session")
def head_config() -> HeadConfig:
    """A head so small that its forward pass can be followed by hand."""
    return HeadConfig(
        hidden_size=32,
        target_hidden_size=32,
        target_vocab_size=64,
        draft_vocab_size=48,
        intermediate_size=80,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        rope_interleaved=False,
        max_position_embeddings=512,
        taps=(1, 2, 3),
        norm_before_residual=False,
        norm_before_fc=False,
        fc_norm=False,
        norm_output=False,
    )


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of the trained pair; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("MLX_EAGLE_FIXTURES", ROOT.parent / "shared" / "fixtures"))
    if not (folder / "pydoc-llama" / "model.safetensors").is_file():
        pytest.skip(f"no fixture pair in {folder}; set MLX_EAGLE_FIXTURES to its folder")
    return folder


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """The 60 held-out prompts for the trained pair."""
    lines = (ROOT / "tests" / "data" / "prompts.jsonl").read_text().splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--exactness",
        choices=["quick", "broad", "full"],
        default="quick",
        help="quick: 60 runs of 64 tokens; broad: 240 of 256 (half an hour), and all rounds of the "
        "reference; full: every prompt with every shape and drafter, 2400 of 256 (hours)",
    )


@pytest.fixture(scope="session")
def trained_head(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture head, converted without quantization."""
    from mlx_eagle.convert.heads import convert_head

    out = tmp_path_factory.mktemp("converted") / "head"
    convert_head(fixtures / "pydoc-eagle3", fixtures / "pydoc-llama", out, bits=None)
    return out


@pytest.fixture(scope="session")
def engine(fixtures: Path, trained_head: Path) -> Any:
    """The trained pair in float32."""
    import mlx_eagle

    return mlx_eagle.load(fixtures / "pydoc-llama", trained_head, dtype="float32")


@pytest.fixture(scope="session")
def demo() -> Any:
    """The demo pair that ships in the package."""
    import mlx_eagle

    return mlx_eagle.load()
