"""Loading a converted head: configuration and weights are read strictly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.json_files import read_json
from mlx_eagle.files.quoting import one_line, quote_value
from mlx_eagle.files.safetensors import read_tensors
from mlx_eagle.heads.block import BlockHead
from mlx_eagle.heads.config import (
    FORMAT_VERSION,
    MODEL_TYPE,
    BlockConfig,
    HeadConfig,
    MedusaConfig,
    MtpConfig,
)
from mlx_eagle.heads.draft_model import DraftModel
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.medusa import MedusaHead
from mlx_eagle.heads.mtp import MtpHead
from mlx_eagle.heads.ngram import JoinedHead, NgramHead

Head = EagleHead | MedusaHead | BlockHead
AnyHead = Head | NgramHead | JoinedHead | DraftModel  # whatever an engine drafts with

# By the algorithm of a configuration: what reads it, and the network.
HEADS: dict[str, tuple[Any, Any]] = {
    "eagle": (HeadConfig, EagleHead),
    "eagle3": (HeadConfig, EagleHead),
    "p-eagle": (HeadConfig, EagleHead),
    "medusa": (MedusaConfig, MedusaHead),
    "mtp": (MtpConfig, MtpHead),
    "dflash": (BlockConfig, BlockHead),
    "dspark": (BlockConfig, BlockHead),
}


def load_head(folder: Path) -> Head:
    """Load a converted head; the weights are read when they are first needed.

    Raises:
        CheckpointError: if the folder is not a converted head or its tensors do not fit.
    """
    config = read_head_config(folder)
    weights = read_tensors(folder / "model.safetensors")
    try:
        return assemble(config, weights)
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder.name}/model.safetensors does not fit its config.json "
            f"({type(error).__name__}: {one_line(error, 800)}); convert the head again"
        ) from error


def assemble(config: dict[str, Any], weights: dict[str, mx.array]) -> Head:
    """Return the head that a normalised configuration describes, with these weights.

    Raises:
        ValueError: if the weights do not fit; also what MLX raises for them.
    """
    head = _build(config)
    weights = head.sanitize(weights)
    if quantization := config.get("quantization"):
        group_size, bits = quantization["group_size"], quantization["bits"]
        stored = _stored_quantized(weights, quantization)
        nn.quantize(head, group_size, bits, class_predicate=stored)
    head.load_weights(list(weights.items()), strict=True)
    _check_draft_ids(head)
    return head


def _build(config: dict[str, Any]) -> Head:
    """Return a head without weights; what is wrong with its configuration, that says."""
    algorithm = str(config.get("algorithm"))
    config_type, module = HEADS.get(algorithm, HEADS["eagle3"])
    head: Head = module(config_type.from_dict(config))
    return head


def _stored_quantized(
    weights: dict[str, mx.array], quantization: dict[str, Any]
) -> Callable[[str, nn.Module], bool | dict[str, Any]]:
    """Return what tells which layers are quantized in the file, and how where one differs."""
    return lambda path, _: f"{path}.scales" in weights and quantization.get(path, True)


def _check_draft_ids(head: Head) -> None:
    """Refuse a table that maps a draft id to no token of the target."""
    ids, n_tokens = head.draft_to_target, head.config.target_vocab_size
    if ids.dtype != mx.int32 or not mx.all((ids >= 0) & (ids < n_tokens)):
        raise ValueError(f"draft_to_target must hold int32 ids below {n_tokens}")


def read_head_config(folder: Path) -> dict[str, Any]:
    """Return the `config.json` of a converted head.

    Raises:
        CheckpointError: if there is none, or it describes something else.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"{folder} is not a converted head (model_type is "
            f"{quote_value(config.get('model_type'))}, expected "
            f"{MODEL_TYPE!r}); run: mlx-eagle convert {folder} --target TARGET --out DIR"
        )
    if config.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} was converted by another version of mlx-eagle; convert the head again"
        )
    return config
