"""A target's folder becomes a model and a tokenizer, read with mlx-lm's loader.

mlx-lm sees the weights that the folder's rules name (`files/folders.py`), and the configuration
with its facts under the names that it reads (`lift.py`). Afterwards it is looked at whether all of
it has arrived (`arrival.py`, `windows.py`).
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes, load_model

from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.files.folders import PICKLES, find_weights
from mlx_eagle.files.json_files import language_config, read_json
from mlx_eagle.files.quoting import listed, quote
from mlx_eagle.files.safetensors import read_header
from mlx_eagle.target.adapters import apply_adapter, check_adapter
from mlx_eagle.target.arrival import Dropped, missing_tensors, record_dropped
from mlx_eagle.target.lift import OUTPUT_LAYERS, lift, untie
from mlx_eagle.target.ropes import rotate_as_announced
from mlx_eagle.target.rotation import trained_length
from mlx_eagle.target.stage import stage
from mlx_eagle.target.tokenizer import read_tokenizer
from mlx_eagle.target.windows import unkept_window

# Linear layers, whole or one rank's part of them.
QUANTIZED = (
    nn.QuantizedLinear,
    nn.QuantizedAllToShardedLinear,
    nn.QuantizedShardedToAllLinear,
)
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


class LoadedTarget(NamedTuple):
    """A target's network, and what was found where it was compared with its files.

    Attributes:
        network: the model.
        config: with the facts under the names that mlx-lm reads.
        max_context: tokens up to which the text is right; None for as many as the files say.
        remarks: what was done differently from mlx-lm, and what limits the context, a line each.
    """

    network: nn.Module
    config: dict[str, Any]
    max_context: int | None
    remarks: tuple[str, ...]


def compute_type(name: str | None) -> mx.Dtype | None:
    """Return the type to compute in; None keeps what is stored."""
    if name is None:
        return mx.float32 if mx.default_device() == mx.cpu else None
    return DTYPES[name]


def load_target(
    folder: Path,
    dtype: str | None = None,
    *,
    max_context: int | None = None,
    adapter: Path | None = None,
) -> tuple[LoadedTarget, Any]:
    """Load model and tokenizer with mlx-lm's loader; remote code is refused.

    Args:
        folder: the model.
        dtype: of `LoadOptions`.
        max_context: tokens that a text may have, if the user says so.
        adapter: a LoRA adapter to put on it.

    Raises:
        CheckpointError: if mlx-lm cannot load it, or would not run it as its files say.
    """
    kind = compute_type(dtype)
    if adapter is not None:
        check_adapter(adapter)
    try:
        loaded = load_network(folder, max_context)
        tokenizer = read_tokenizer(folder, loaded.config.get("eos_token_id"))
    except EagleError:
        raise
    except Exception as error:  # mlx-lm, transformers and the tokenizers share no error type
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"{folder} is not a target that mlx-lm can load ({reason})"
        ) from error
    if adapter is not None:
        apply_adapter(loaded.network, adapter)
    if kind is not None:
        loaded.network.set_dtype(kind)
    return loaded, tokenizer


def load_network(folder: Path, max_context: int | None = None) -> LoadedTarget:
    """Load a model whose weights are not read yet, and compare it with its files.

    Args:
        folder: the model.
        max_context: tokens that a text may have, if the user says so.

    Raises:
        CheckpointError: if it would not run as its files say.
        Exception: whatever mlx-lm raises for files that it cannot load.
    """
    files = _safetensors(folder)
    names = {name for file in files for name in read_header(file)}
    config = lift(read_json(folder / "config.json"), names)
    n_layers = language_config(config).get("num_hidden_layers")
    n_layers = n_layers if type(n_layers) is int else None
    network, full, dropped = _build(folder, files, config)
    missing = missing_tensors(dropped, n_layers)
    if any(name.endswith(OUTPUT_LAYERS) for name in missing):
        network, full, dropped = _build(folder, files, untie(config))
        missing = missing_tensors(dropped, n_layers)
    if missing:
        raise CheckpointError(
            f"mlx-lm's model leaves out {len(missing)} tensors of {folder.name}, and would answer "
            f"otherwise without them: {listed(map(quote, missing))}"
        )
    language = language_config(full)
    remarks = rotate_as_announced(network, language, max_context)
    limit, reason = _limit(network, language, max_context)
    return LoadedTarget(network, full, limit, (*remarks, *reason))


def _safetensors(folder: Path) -> list[Path]:
    """Return the weight files of a folder, which mlx-lm can map."""
    files = find_weights(folder)
    if files[0].suffix in PICKLES:
        raise CheckpointError(
            f"{folder.name} has PyTorch weights ({files[0].name}), which are read by "
            "`mlx-eagle convert` alone: convert it first"
        )
    return files


def _build(
    folder: Path, files: list[Path], config: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any], Dropped]:
    """Let mlx-lm make a model of these files alone, and note which tensors it drops."""
    told: list[Callable[[], Dropped]] = []

    def classes(config: dict[str, Any]) -> tuple[Any, Any]:
        model_class, args_class = _get_classes(config)

        def build(args: Any) -> nn.Module:
            network: nn.Module = model_class(args)
            told.append(record_dropped(network, str(config.get("model_type"))))
            return network

        return build, args_class

    with tempfile.TemporaryDirectory(prefix="mlx-eagle-") as name:
        stage(folder, files, config, Path(name))
        network, full = load_model(Path(name), lazy=True, get_model_classes=classes)
    return network, full, told[0]()


def _limit(
    network: nn.Module, language: dict[str, Any], max_context: int | None
) -> tuple[int | None, list[str]]:
    """Return up to how many tokens the text is right, and why."""
    window, length = unkept_window(network, language), trained_length(language)
    if window is not None:
        why = "mlx-lm's class does not keep the sliding window of config.json"
        return window, [f"context limited to {window} tokens: {why}"]
    if length is not None and (max_context is None or max_context <= length):
        why = "rope's factors for short texts; a larger --max-context takes those for long ones"
        return length, [f"context limited to {length} tokens: {why}"]
    return None, []


def precision(network: nn.Module) -> str:
    """Say how a network's weights are stored, e.g. "8-bit, group 64" or "float32"."""
    kinds = {
        f"{module.bits}-bit, group {module.group_size}"
        for _, module in network.named_modules()
        if isinstance(module, QUANTIZED)
    }
    if kinds:
        return " and ".join(sorted(kinds))
    largest = max(dict(tree_flatten(network.parameters())).values(), key=lambda array: array.size)
    return str(largest.dtype).removeprefix("mlx.core.")
