"""LoRA adapters as mlx-lm makes them, put on a target; mlx-lm's own loader applies them.

Hidden features and logits are then those of the adapted target, so its text is what is verified. A
head that was made for the base model goes on drafting, and is right less often.
"""

from pathlib import Path

import mlx.nn as nn
from mlx_lm.tuner.utils import load_adapters

from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.files.json_files import read_json
from mlx_eagle.files.quoting import one_line
from mlx_eagle.files.safetensors import read_header

FILES = ("adapter_config.json", "adapters.safetensors")


def check_adapter(folder: Path) -> None:
    """Refuse what is no adapter of mlx-lm's, before anything large is read.

    Raises:
        EagleError: if there is no such folder.
        CheckpointError: naming what it lacks.
    """
    if not folder.is_dir():
        raise EagleError(f"there is no folder {folder} with an adapter")
    if (folder / "adapter_model.safetensors").exists():
        raise CheckpointError(
            f"{folder.name} is an adapter of PEFT (adapter_model.safetensors), which mlx-lm does "
            "not read: merge it into its base model and convert that"
        )
    if missing := [name for name in FILES if not (folder / name).exists()]:
        raise CheckpointError(f"{folder.name} is no adapter of mlx-lm's: it lacks {missing[0]}")
    read_json(folder / FILES[0])
    read_header(folder / FILES[1])


def apply_adapter(network: nn.Module, folder: Path) -> None:
    """Put an adapter on a target.

    Args:
        network: changed in place; its layers get adapters beside them.
        folder: that mlx-lm's training has written.

    Raises:
        CheckpointError: if it is no adapter, or of another model.
        EagleError: if there is no such folder.
    """
    check_adapter(folder)
    try:
        load_adapters(network, str(folder))
    except Exception as error:  # mlx-lm raises whatever its code meets
        raise CheckpointError(
            f"{folder.name} is no adapter for this target: {one_line(error, 300)}"
        ) from error
