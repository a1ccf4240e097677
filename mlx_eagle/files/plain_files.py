"""Files that are plain files of their own folder, or of the hub's cache."""

import hashlib
import os
import stat
from pathlib import Path

from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import quote


def check_file(file: Path) -> int:
    """Return the size of a file in bytes, once it is known to be a plain file of its folder.

    It may be a link to another file of the folder or, from a snapshot in the Hugging Face cache,
    to a blob of the same repository: that is how the cache stores files.

    Raises:
        CheckpointError: if it is missing, not a regular file, or a link that leads elsewhere.
    """
    where = f"{file.parent.name}/{file.name}" if file.name.isprintable() else quote(file.name)
    folder, real = Path(os.path.realpath(file.parent)), Path(os.path.realpath(file))
    if folder not in real.parents and real.parent != _blobs(folder):
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
