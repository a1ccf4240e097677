"""Targets in GGUF files: named by path or in another program's store, converted once.

Conversions (made by `convert/gguf/`) are kept in the cache folder under the name of a file and what
it holds, so that one that is moved or downloaded again is not converted again.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from mlx_eagle.errors import EagleError, HubError
from mlx_eagle.files.folders import cache_folder
from mlx_eagle.files.plain_files import check_file
from mlx_eagle.files.quoting import listed, quote
from mlx_eagle.files.sampled_hash import sampled_hash
from mlx_eagle.hub.stores import find_in_store

SUFFIX = ".gguf"


def find_gguf(name: str | Path) -> Path | None:
    """Return the GGUF file that a name means, or the folder that another program's name means.

    A folder that has GGUF files and no config.json means the only one of them.

    Args:
        name: a path, or a name in another program's store.

    Returns:
        None if the name means neither.

    Raises:
        HubError: if it means several files, or none although it is another program's.
    """
    found = find_in_store(str(name))
    if found is not None:
        return found
    path = Path(os.path.expanduser(name))  # which may be too long, or impossible, as a path
    if os.path.isdir(path) and not (path / "config.json").exists():
        return _only_one(path)
    is_one = os.path.isfile(path) and (path.suffix == SUFFIX or _begins_as_one(path))
    return path if is_one else None


def _only_one(folder: Path) -> Path | None:
    """Return the GGUF file of a folder; None if it has none."""
    files = [f for f in sorted(folder.glob("*.gguf")) if not f.name.startswith("mmproj")]
    if len(files) > 1:
        names = listed(quote(file.name) for file in files)
        raise HubError(f"{folder} has {names}: name the file")
    return files[0] if files else None


def _begins_as_one(file: Path) -> bool:
    """Say whether a file begins as GGUF files do: Ollama's have no ending."""
    try:
        with file.open("rb") as stream:
            return stream.read(4) == b"GGUF"
    except OSError:
        return False


def prepare_target(
    file: Path,
    name: str,
    progress: Callable[[str, int, int], None],
    notify: Callable[[str], None],
) -> Path:
    """Return the conversion of a GGUF file in the cache, made if it is not there.

    Args:
        file: the GGUF file.
        name: what the user calls it.
        progress: called with ("convert NAME", bytes done, bytes in all).
        notify: told once, in one line, before a conversion.

    Raises:
        EagleError: if it cannot be converted.
    """
    from mlx_eagle.convert.gguf.convert import VERSION, convert_gguf

    check_file(file)
    facts = {"code": VERSION, "file": sampled_hash([file]), "beginning": _hash_beginning(file)}
    identity = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    title = file.stem if file.suffix == SUFFIX else name
    stem = re.sub(r"[^A-Za-z0-9._-]+", "--", title).strip(".-")[:80] or "target"
    out = cache_folder() / "targets" / f"{stem}-{identity}"
    if _is_whole(out):
        return out
    notify(f"converting {title}, once; it is kept in {out}")
    try:
        convert_gguf(
            file, out, progress=lambda done, all_: progress(f"convert {title}", done, all_)
        )
    except EagleError:
        if not _is_whole(out):  # another process may have done it first: the results are equal
            raise
    return out


def _hash_beginning(file: Path) -> str:
    """Return a sha256 of the bytes in which a header is: tools correct a single id in place there.

    A sample tells weights apart, which differ nearly everywhere, but not these.
    """
    from mlx_eagle.convert.gguf.structure import MAX_HEADER_BYTES

    with file.open("rb") as stream:
        return hashlib.sha256(stream.read(MAX_HEADER_BYTES)).hexdigest()


def _is_whole(out: Path) -> bool:
    """Say whether a conversion is there; folders appear whole, but users tidy up in caches.

    Raises:
        EagleError: if a part of it is missing.
    """
    has_config = (out / "config.json").is_file()
    if out.is_dir() and not (has_config and any(out.glob("model*.safetensors"))):
        raise EagleError(f"{out} is not whole: remove the folder, it will be made again")
    return has_config
