"""Targets in folders, which followers read, and rank 0's side of them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_eagle.cluster.cluster import Cluster
from mlx_eagle.cluster.leader import LeadingTarget
from mlx_eagle.load_options import TENSOR
from mlx_eagle.target.self_check import check_tree_verification
from tiny_models import ARCHITECTURES, SMALL, build_target

KINDS = json.loads((Path(__file__).parents[1] / "data" / "families.json").read_text())
FAMILIES: dict[str, dict[str, Any]] = {
    name: config for kind in KINDS.values() for name, config in kind.items()
} | {"llama": {}, "qwen3": {}}


def architecture_of(family: str) -> str:
    """Return what mlx-lm calls the model of a family of families.json."""
    return re.sub(r".*\((\w+)\)", r"\1", family)


def write_model(folder: Path, model: nn.Module, config: dict[str, Any]) -> Path:
    """Write a model as mlx-lm reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_tiny(
    folder: Path,
    architecture: str,
    bits: int | None = None,
    own_groups: Mapping[str, int] | None = None,
    **changes: Any,
) -> tuple[Path, nn.Module]:
    """Write a tiny random model, and return it as well.

    Args:
        folder: where it goes.
        architecture: what mlx-lm calls it.
        bits: if it is to be quantized, in groups of 32.
        own_groups: layers with groups of another size.
        **changes: of config.json.
    """
    model = build_target(architecture, **changes)
    config = {"model_type": architecture} | SMALL | ARCHITECTURES.get(architecture, {}) | changes
    if bits is not None:
        how: dict[str, Any] = {"group_size": 32, "bits": bits}
        own = {name: how | {"group_size": size} for name, size in (own_groups or {}).items()}
        nn.quantize(
            model,
            **how,
            class_predicate=lambda name, module: (
                own.get(name, True) if hasattr(module, "to_quantized") else False
            ),
        )
        config["quantization"] = how | own
    return write_model(folder, model, config), model


def lead(
    cluster: Cluster, folder: Path, taps: tuple[int, ...] = (), parallel: str = TENSOR
) -> LeadingTarget:
    """Load a target on all ranks and let them check it together."""
    divided = cluster.load(folder, folder.name, "float32", parallel=parallel)
    target = LeadingTarget(cluster, divided, taps)
    check_tree_verification(target)
    return target
