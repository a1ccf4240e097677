"""The token embedding of a target, from its files alone: the model is not built."""

from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_eagle.convert.checkpoint import read_manifest, read_weights
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.folders import find_weights, source_name
from mlx_eagle.files.json_files import read_json

_NAME = "embed_tokens.weight"
_PARTS = ("weight", "scales", "biases")


def read_target_embedding(target: Path, shape: tuple[int, int]) -> mx.array:
    """Return the embedding [V, D] of a target, with its quantization undone.

    Args:
        target: folder with `config.json` and the weights, Hugging Face's or mlx-lm's.
        shape: what it must have.

    Raises:
        CheckpointError: if there is no embedding of that shape.
    """
    name = source_name(target)
    names = [n for n in read_manifest(target) if f".{n}".endswith(f".{_NAME}")]
    if len(names) != 1:
        raise CheckpointError(f"{name} has {len(names)} tensors called *.{_NAME}, expected one")
    layer = names[0].removesuffix(".weight")
    parts: dict[str, mx.array] = {}
    for file in find_weights(target):
        tensors = read_weights(file)
        parts |= {p: tensors[f"{layer}.{p}"] for p in _PARTS if f"{layer}.{p}" in tensors}
    config = read_json(target / "config.json")
    found = _dequantized(parts, config, layer) if "scales" in parts else parts["weight"]
    if found.shape != shape or not mx.issubdtype(found.dtype, mx.floating):
        raise CheckpointError(
            f"{name}: {names[0]} is {found.dtype} {list(found.shape)}, expected {list(shape)}"
        )
    return found


def _dequantized(parts: dict[str, mx.array], config: dict[str, Any], layer: str) -> mx.array:
    """Return a quantized embedding as numbers; a layer may have settings of its own."""
    settings = config.get("quantization")
    if not isinstance(settings, dict):
        raise CheckpointError(f"config.json: {layer} is quantized, and `quantization` is missing")
    own = settings.get(layer)
    settings = own if isinstance(own, dict) else settings
    try:
        return mx.dequantize(
            parts["weight"],
            parts["scales"],
            parts.get("biases"),
            group_size=settings.get("group_size"),
            bits=settings.get("bits"),
            mode=settings.get("mode", "affine"),
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{layer} is not quantized as config.json says") from error
