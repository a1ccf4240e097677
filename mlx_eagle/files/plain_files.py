"""Files that are plain files of their own folder, or of the hub's cache."""

import hashlib
import os
import stat
from pathlib import Path

from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import quote

_WEIGHTS = (".safetensors", ".bin", ".pt")


def check_file(file: Path) -> int:
    """Return the size of a file in bytes, once it is known to be a plain file of its folder.

    It may be a link to another file of the folder; from a snapshot in the Hugging Face cache, to a
    blob of the same repository, which is how the cache stores files; and in a folder that the user
    has made, to a file of the user's that is meant (see `_is_meant`).

    Raises:
        CheckpointError: if it is missing, not a regular file, or a link that leads elsewhere.
    """
    where = f"{file.parent.name}/{file.name}" if file.name.isprintable() else quote(file.name)
    folder, real = Path(os.path.realpath(file.parent)), Path(os.path.realpath(file))
    is_inside = folder in real.parents or real.parent == _blobs(folder)
    if not is_inside and not _is_meant(file.name, folder, real):
        raise CheckpointError(
            f"{where} is a link to {quote(str(real))}, which is outside of its folder: put a copy "
            "in its place if you trust it"
        )
    try:
        status = file.stat()
    except FileNotFoundError as error:
        raise CheckpointError(f"{where} does not exist") from error
    except OSError as error:
        raise CheckpointError(f"{where} is not readable: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode) or not file.name.isprintable():
        raise CheckpointError(f"{where} is not a regular file, expected one with a plain name")
    return status.st_size


def _is_meant(name: str, folder: Path, real: Path) -> bool:
    """Say whether a link out of a folder was made by the user, who means the file that it leads to.

    Not in a downloaded repository: its links are its author's, and could lead to anything. A link
    leads to a file of the same name, to weights, or into the cache (as the hub once made folders).
    """
    is_downloaded = _blobs(folder) is not None or any(
        (parent / mark).exists()
        for parent in (folder, *folder.parents[:2])
        for mark in (".git", ".cache/huggingface/download")
    )
    if is_downloaded or not real.is_file() or real.stat().st_uid != os.getuid():
        return False
    is_weights = real.suffix in _WEIGHTS and real.suffix == Path(name).suffix
    is_cached = real.parent.name == "blobs" and real.parents[1].name.startswith("models--")
    return real.name == name or is_weights or is_cached


def _blobs(folder: Path) -> Path | None:
    """Return where the Hugging Face cache keeps the contents of a snapshot that has a folder."""
    for snapshot in (folder, *folder.parents):
        repo = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and repo.name.startswith("models--"):
            return repo / "blobs"
    return None


def hash_file(file: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
