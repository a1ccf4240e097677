"""A target's folder becomes a model and a tokenizer, read with mlx-lm's loader."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model, load_tokenizer

from mlx_eagle.errors import CheckpointError

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def _dtype(name: str | None) -> mx.Dtype | None:
    """Return the type to compute in; None keeps what is stored."""
    if name is None:
        return mx.float32 if mx.default_device() == mx.cpu else None
    return DTYPES[name]


def load_target(folder: Path, dtype: str | None = None) -> tuple[nn.Module, Any]:
    """Load model and tokenizer with mlx-lm's loader; remote code is refused.

    Args:
        folder: the model.
        dtype: of `LoadOptions`.

    Raises:
        CheckpointError: if mlx-lm cannot load it.
    """
    compute_type = _dtype(dtype)
    try:
        network, config = load_model(folder, lazy=True)
        tokenizer = load_tokenizer(
            folder, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id")
        )
    except Exception as error:  # mlx-lm, transformers and the tokenizers share no error type
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"{folder} is not a target that mlx-lm can load ({reason})"
        ) from error
    if compute_type is not None:
        network.set_dtype(compute_type)
    return network, tokenizer


def precision(network: nn.Module) -> str:
    """Say how a network's weights are stored, e.g. "8-bit, group 64" or "float32"."""
    kinds = {
        f"{module.bits}-bit, group {module.group_size}"
        for _, module in network.named_modules()
        if isinstance(module, nn.QuantizedLinear)
    }
    if kinds:
        return " and ".join(sorted(kinds))
    largest = max(dict(tree_flatten(network.parameters())).values(), key=lambda array: array.size)
    return str(largest.dtype).removeprefix("mlx.core.")
