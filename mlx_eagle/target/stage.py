"""A folder that mlx-lm is shown instead of a target's own: the weights that count, and no code."""

import json
import shutil
from pathlib import Path
from typing import Any

from mlx_eagle.files.plain_files import check_file

# What mlx-lm reads beside config.json where it loads a model.
_SETTINGS = ("generation_config.json", "hf_quant_config.json")


def stage(source: Path, files: list[Path], config: dict[str, Any], place: Path) -> None:
    """Fill a folder with links to weights, a configuration, and what belongs to that.

    Args:
        source: the target.
        files: its weights, safetensors that were checked.
        config: what config.json shall say.
        place: the folder, which exists.
    """
    for number, file in enumerate(files, start=1):
        link_weights(file, number, len(files), place)
    (place / "config.json").write_text(json.dumps(config, indent=4))
    for name in _SETTINGS:
        if (source / name).exists():
            check_file(source / name)
            shutil.copyfile(source / name, place / name)


def link_weights(file: Path, number: int, n_files: int, place: Path) -> None:
    """Link to one of several weight files, under the name that mlx-lm looks for."""
    (place / shard_name(number, n_files)).symlink_to(file.resolve())


def shard_name(number: int, n_files: int) -> str:
    """Return how a weight file is called, the first of which is number 1."""
    return f"model-{number:05}-of-{n_files:05}.safetensors"
