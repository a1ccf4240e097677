"""A trained head on the disk: a folder to train on from and to export, and one to decode with."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_eagle.convert.heads import quantized, write_head
from mlx_eagle.convert.target_facts import TargetFacts
from mlx_eagle.errors import EagleError
from mlx_eagle.files.atomic import new_folder
from mlx_eagle.files.json_files import read_json
from mlx_eagle.files.quoting import one_line
from mlx_eagle.heads.config import FORMAT_VERSION, MODEL_TYPE
from mlx_eagle.heads.load import Head, load_head

FULL, FOR_DECODING = "head-full", "head"
GROUP_SIZES = (64, 32, 128)  # weights that share a scale: the first one that divides all layers


def write_trained(
    head: Head, target: TargetFacts, out: Path, bits: int | None, training: dict[str, Any]
) -> None:
    """Write a head into two folders below `out`; ones that are there already stay.

    Args:
        head: its weights are rounded to float16 here.
        target: what it was trained for.
        out: the folder of the training.
        bits: 4 or 8 to quantize the one for decoding; None leaves it as it is.
        training: how it was trained, and what was measured, as JSON.

    Raises:
        EagleError: if it cannot be written, or not be quantized that way.
    """
    config = {
        "model_type": MODEL_TYPE,
        "format_version": FORMAT_VERSION,
        **head.config.to_dict(),
        "quantization": None,
        "source": {
            "format": "trained",
            "name": out.name,
            "files": [],
            "draft_to_target": "counted",
        },
        "target": target._asdict(),
        "training": training,
        "origins": {},
        "doubts": {},
    }
    head.set_dtype(mx.float16)
    weights: dict[str, mx.array] = dict(tree_flatten(head.parameters()))
    too_large = [name for name, weight in weights.items() if not mx.isfinite(weight).all()]
    if too_large:
        raise EagleError(f"weights of the head are beyond float16: {', '.join(too_large)}")
    if not (out / FULL).exists():
        _write(head, config, out / FULL)
    quantization = quantization_of(head, bits)
    if not (out / FOR_DECODING).exists():
        copy = quantized(load_head(out / FULL), quantization)
        _write(copy, config | {"quantization": quantization}, out / FOR_DECODING)


def quantization_of(head: Head, bits: int | None) -> dict[str, int] | None:
    """Return how a head is quantized for decoding, or None.

    Args:
        head: whose linear layers are quantized, its embedding too.
        bits: 4, 8 or None.

    Raises:
        EagleError: if its layers cannot be.
    """
    if bits is None:
        return None
    kinds = (nn.Linear, nn.Embedding)
    inputs = [m.weight.shape[1] for _, m in head.named_modules() if isinstance(m, kinds)]
    for size in GROUP_SIZES:
        if all(n % size == 0 for n in inputs):
            return {"group_size": size, "bits": bits}
    raise EagleError(
        f"the head has layers with {min(inputs)} inputs, which do not divide into groups of "
        f"{', '.join(map(str, GROUP_SIZES))}: give --head-bits none"
    )


def read_measured(out: Path) -> dict[str, Any]:
    """Return what was measured with the weights of a trained head: at least `update`.

    Args:
        out: the folder of the training.
    """
    training = read_json(out / FOR_DECODING / "config.json").get("training")
    return dict(training["measured"]) if isinstance(training, dict) else {}


def _write(head: Head, config: dict[str, Any], out: Path) -> None:
    """Write a head into a new folder.

    Raises:
        EagleError: if it cannot be written.
    """
    try:
        with new_folder(out) as folder:
            write_head(head, config, folder)
    except RuntimeError as error:  # MLX's
        raise EagleError(
            f"cannot write {out}: {one_line(error)}; is the disk full? The same command again "
            "writes it"
        ) from error
