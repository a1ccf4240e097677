"""Checkpoints of a training: all that it needs to go on as if it had never stopped, to the bit.

A checkpoint is a folder, named by its update, in a folder of checkpoints. It appears whole or not
at all, and the ones before it go once it is there. Random numbers need no place in it: every update
seeds them by its own number. What decides the training besides is its fingerprint: options, data,
head. A checkpoint of another fingerprint is refused.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import MultiOptimizer
from mlx.utils import tree_flatten

from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.files.atomic import new_folder
from mlx_eagle.files.json_files import read_count, read_json
from mlx_eagle.files.quoting import listed, one_line, quote
from mlx_eagle.files.safetensors import read_tensors

VERSION = 1
_PREFIX = "update-"
_FACTS, _WEIGHTS, _OPTIMIZER = "checkpoint.json", "weights.safetensors", "optimizer.safetensors"


class Checkpoint(NamedTuple):
    """A training after an update.

    Attributes:
        update: updates that are done.
        weights: the trained weights, by name.
        optimizer: its state, as `optimizer_arrays` names it; empty where only the weights count.
        measured: what was measured on the held-out texts with these weights, if that is known.
    """

    update: int
    weights: dict[str, mx.array]
    optimizer: dict[str, mx.array]
    measured: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, fingerprint: Mapping[str, Any]) -> Path:
    """Write a checkpoint to the disk, then remove the ones before it; returns where it is.

    One of this update that is already there was made by the same training, and stays.

    Args:
        folder: of the checkpoints; it need not exist.
        checkpoint: what to save.
        fingerprint: what it may be continued with, as JSON.

    Raises:
        EagleError: if it cannot be written; earlier checkpoints stay.
    """
    out = folder / f"{_PREFIX}{checkpoint.update:08d}"
    if not out.exists():
        with new_folder(out) as partial:
            _write(partial, checkpoint, fingerprint)
    for other in folder.iterdir():
        is_unfinished = other.name.startswith("." + _PREFIX) and other.suffix == ".partial"
        if is_unfinished or (other.name.startswith(_PREFIX) and other.name < out.name):
            shutil.rmtree(other)
    return out


def load_checkpoint(folder: Path, fingerprint: Mapping[str, Any]) -> Checkpoint | None:
    """Return the newest checkpoint of a folder, or None if it has none.

    Raises:
        CheckpointError: if it is not sound.
        EagleError: if it was made with another fingerprint; the message names the first difference.
    """
    found = newest_checkpoint(folder)
    if found is None:
        return None
    facts = read_json(found / _FACTS)
    if facts.get("version") != VERSION:
        raise CheckpointError(f"{found} is not a checkpoint of version {VERSION}: remove it")
    _check_fingerprint(found, facts.get("fingerprint"), fingerprint)
    weights, optimizer = read_tensors(found / _WEIGHTS), read_tensors(found / _OPTIMIZER)
    mx.eval(weights, optimizer)  # they are read before a later checkpoint removes the files
    return Checkpoint(read_count(facts, "update"), weights, optimizer, facts.get("measured", {}))


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the folder of the newest checkpoint, or None if there is none."""
    return max(folder.glob(f"{_PREFIX}*"), default=None)


def optimizer_arrays(optimizer: MultiOptimizer) -> dict[str, mx.array]:
    """Return the state of an optimizer by name."""
    return dict(tree_flatten(optimizer.state))


def trained_arrays(head: nn.Module) -> dict[str, mx.array]:
    """Return the trainable weights of a head by name."""
    return dict(tree_flatten(head.trainable_parameters()))


def restore(checkpoint: Checkpoint, head: nn.Module, optimizer: MultiOptimizer) -> None:
    """Put the arrays of a checkpoint into a head and its optimizer.

    Raises:
        CheckpointError: if anything is missing, superfluous, or of another shape or type.
    """
    _check_arrays("weights", checkpoint.weights, trained_arrays(head))
    _check_arrays("optimizer state", checkpoint.optimizer, optimizer_arrays(optimizer))
    head.load_weights(list(checkpoint.weights.items()), strict=False)
    for name, array in checkpoint.optimizer.items():
        *path, last = name.split(".")
        place = optimizer.state
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place[part]
        place[last] = array


def _write(folder: Path, checkpoint: Checkpoint, fingerprint: Mapping[str, Any]) -> None:
    """Write the files of a checkpoint, and read back what says whether they are complete."""
    facts = {
        "version": VERSION,
        "update": checkpoint.update,
        "fingerprint": fingerprint,
        "measured": checkpoint.measured,
    }
    (folder / _FACTS).write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")
    for name, arrays in ((_WEIGHTS, checkpoint.weights), (_OPTIMIZER, checkpoint.optimizer)):
        try:
            mx.save_safetensors(str(folder / name), arrays)
            read_tensors(folder / name)
        except (RuntimeError, CheckpointError) as error:
            raise EagleError(
                f"cannot write the checkpoint of update {checkpoint.update} in {folder.parent}: "
                f"{one_line(error)}; is the disk full?"
            ) from error


def _check_arrays(
    kind: str, found: Mapping[str, mx.array], expected: Mapping[str, mx.array]
) -> None:
    """Raise unless both have the same names, and arrays of the same shapes and types."""
    names = found.keys() ^ expected.keys()
    wrong = sorted(names) or sorted(
        name
        for name, array in found.items()
        if array.shape != expected[name].shape or array.dtype != expected[name].dtype
    )
    if wrong:
        raise CheckpointError(
            f"the checkpoint's {kind} and those of this training differ in "
            f"{listed(map(quote, wrong))}: train into another folder"
        )


def _check_fingerprint(folder: Path, saved: Any, ours: Mapping[str, Any]) -> None:
    """Raise if a checkpoint is of another training, naming the first thing that differs."""
    there, here = dict(_leaves("", saved)), dict(_leaves("", json.loads(json.dumps(ours))))
    for name in [*here, *there]:
        if name not in here or name not in there or here[name] != there[name]:
            was, now = (one_line(values.get(name, "absent"), 60) for values in (there, here))
            raise EagleError(
                f"{folder} was made with another {one_line(name, 60)}: {was} there, {now} here; "
                "go on with the same, or train into another folder"
            )


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values in a tree of JSON objects by dotted names."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, part in value.items():
        yield from _leaves(f"{name}.{key}" if name else key, part)
