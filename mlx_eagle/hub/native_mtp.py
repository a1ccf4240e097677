"""The multi-token prediction layer of a model by its name: `mtp:` before that of any model.

Of a checkpoint on the hub only the layer is fetched (`ranges.py`, `convert/mtp/extract.py`); what
was taken out is kept in the cache folder.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_eagle.convert.checkpoint import read_weights
from mlx_eagle.convert.mtp.extract import (
    Checkpoint,
    Layer,
    LocalCheckpoint,
    find_layer,
    only_norms,
    write_layer,
)
from mlx_eagle.convert.mtp.facts import SOURCE
from mlx_eagle.convert.mtp.layouts import LAYOUTS, family_of, head_names
from mlx_eagle.convert.mtp.norms import FACT, compare_norms
from mlx_eagle.errors import CheckpointError, EagleError, HubError
from mlx_eagle.files.folders import cache_folder, source_name
from mlx_eagle.files.json_files import read_json
from mlx_eagle.hub.download import Listing, Notify, Progress, fetch, parse_repo
from mlx_eagle.hub.known_heads import original_of
from mlx_eagle.hub.ranges import RemoteCheckpoint

PREFIX = "mtp:"
OWN = "mtp"  # as a head: the layer of the target itself


def is_layer(name: str | Path) -> bool:
    """Say whether a name means the layer of a model."""
    return str(name).startswith(PREFIX)


def fetch_layer(name: str, progress: Progress, notify: Notify) -> Path:
    """Return the folder of a layer, taken out of its checkpoint once.

    Args:
        name: `mtp:` and a folder, or `owner/name` on the hub.
        progress: called with ("download mtp:NAME", bytes done, bytes in all).
        notify: told in one line if the copy in the cache has to do.

    Raises:
        EagleError: if there is none, or it cannot be had.
    """
    return _take_out(name.removeprefix(PREFIX), "", lambda layer: layer, progress, notify)


def list_layer(name: str) -> Listing:
    """Return the bytes of a layer, as they would be fetched, without fetching them.

    Raises:
        EagleError: if there is none, or the hub cannot be asked.
    """
    checkpoint = _checkpoint(name.removeprefix(PREFIX))
    n_bytes = sum(tensor.end - tensor.start for tensor in find_layer(checkpoint).tensors)
    is_here = isinstance(checkpoint, LocalCheckpoint) or _place(checkpoint, "").is_dir()
    return Listing({"model.safetensors": n_bytes}, 0 if is_here else n_bytes)


def find_own_layer(model: str | Path, folder: Path) -> str:
    """Return the name of the layer of a target: its own, else that of the model it is a copy of.

    Args:
        model: the target, as the user named it.
        folder: where it is; the hub is asked only if the layer is not there.

    Raises:
        EagleError: saying why there is none.
    """
    if has_layer(folder):
        return f"{PREFIX}{folder}"
    original = original_of(model)
    is_afar = not os.path.isdir(os.path.expanduser(model)) and str(model).count("/") == 1
    reason = f"{model} has no multi-token prediction layer in its files"
    for name in [*[str(model)] * is_afar, *([original] if original else [])]:
        try:
            find_layer(_checkpoint(name))
        except EagleError as error:
            reason = str(error)
        else:
            return f"{PREFIX}{name}"
    raise HubError(
        f"{reason}; name one: --head owner/name, or --head {PREFIX}owner/name for the layer "
        "inside of another checkpoint"
    )


def has_layer(folder: Path) -> bool:
    """Say whether the files of a target on this machine hold a layer that can be run."""
    try:
        layer = find_layer(LocalCheckpoint(folder, source_name(folder)))
    except EagleError:
        return False
    family = family_of(layer.config)
    return bool(family) and not LAYOUTS[family].refusal


def norm_settings(layer: Path, original: str | Path | None, notify: Notify) -> dict[str, Any]:
    """Return which norms of a copy are differences from 1, by the norms of its original.

    Args:
        layer: folder of a copy; any other head has no such settings.
        original: of which it is a copy: a folder or `owner/name`; None where that is not known.
        notify: told in one line if they cannot be compared.

    Returns:
        Settings for `convert_head`; nothing where nothing is to be decided.

    Raises:
        CheckpointError: if it is no copy of that.
    """
    config = read_json(layer / "config.json")
    family, source = family_of(config), config.get(SOURCE)
    is_original = isinstance(source, dict) and source.get("is_original") is True
    if not family or not LAYOUTS[family].zero_centred or is_original or original is None:
        return {}
    try:
        folder = _take_out(str(original), "-norms", only_norms, _silent, notify)
    except HubError as error:
        notify(f"the norms of the head are not compared with those of {original}: {error}")
        return {}
    theirs = read_json(folder / "config.json")[SOURCE]
    if not theirs["is_original"]:
        raise CheckpointError(f"{original} is a copy itself, not the original of the head")
    summed = compare_norms(_parameters(layer), _parameters(folder), str(original))
    return {FACT: {"summed": summed, "origin": f"compared with the norms of {original}"}}


def _parameters(folder: Path) -> dict[str, Any]:
    """Return the tensors of a layer's folder by the names of `MtpHead`'s parameters."""
    config = read_json(folder / "config.json")
    tensors: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= read_weights(file)
    return {ours: tensors[name] for name, ours in head_names(tensors, config).items()}


def _take_out(
    name: str,
    part: str,
    choose: Callable[[Layer], Layer],
    progress: Progress,
    notify: Notify,
) -> Path:
    """Return the folder of a layer, or of a part of it, in the cache."""
    checkpoint = _checkpoint(name)
    try:
        out = _place(checkpoint, part)
    except HubError as error:
        kept = _kept(name, part)
        if kept is None:
            raise
        notify(f"{PREFIX}{name}: {error}; the copy in the cache is used")
        return kept
    if not out.is_dir():
        layer = choose(find_layer(checkpoint))
        write_layer(
            checkpoint,
            layer,
            out,
            lambda done, total: progress(f"download mtp:{name}", done, total),
        )
    return out


def _checkpoint(name: str) -> Checkpoint:
    """Return the checkpoint of a name: a folder here, or on the hub."""
    folder = Path(os.path.expanduser(name))
    if folder.is_dir() or "/" not in name or ":" in name:
        folder = fetch(name)
        return LocalCheckpoint(folder, source_name(folder))
    return RemoteCheckpoint(parse_repo(name))


def _place(checkpoint: Checkpoint, part: str) -> Path:
    """Return where a layer is kept: a folder for each state of the checkpoint."""
    if isinstance(checkpoint, RemoteCheckpoint):
        state = checkpoint.commit
    else:
        assert isinstance(checkpoint, LocalCheckpoint), "there are no others"
        files = {name: checkpoint.folder / name for name in sorted(checkpoint.files)}
        facts = [(name, f.stat().st_size, f.stat().st_mtime_ns) for name, f in files.items()]
        state = hashlib.sha256(repr((str(checkpoint.folder), facts)).encode()).hexdigest()
    return _cache() / f"{_plain(checkpoint.name)}-{state[:16]}{part}"


def _kept(name: str, part: str) -> Path | None:
    """Return the newest layer of a model that is in the cache, whatever its commit."""
    pattern = f"{_plain(parse_repo(name).name)}-{'[0-9a-f]' * 16}{part}"
    found = sorted(_cache().glob(pattern), key=lambda folder: folder.stat().st_mtime)
    return found[-1] if found else None


def _cache() -> Path:
    return cache_folder() / "mtp"


def _plain(name: str) -> str:
    """Return a name as that of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "--", name).strip(".-")[:80] or "model"


def _silent(phase: str, done: int, total: int) -> None:
    """Report nothing."""
