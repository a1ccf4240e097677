"""Which files of a folder are its weights, what a folder is called, and where caches are kept."""

import os
import sys
from pathlib import Path

from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.files.json_files import read_json
from mlx_eagle.files.plain_files import check_file
from mlx_eagle.files.quoting import listed, quote

MAX_TOTAL_BYTES = 256 << 30  # of all weight files of a folder: 120 billion parameters in 16 bits
MAX_BYTES_VARIABLE = "MLX_EAGLE_MAX_BYTES"
MAX_INDEX_BYTES = 24 << 20  # that of a target with 200,000 tensors
MAX_SHARDS = 10_000
PICKLES = (".bin", ".pt")


def find_weights(folder: Path) -> list[Path]:
    """Return the weight files of a folder: safetensors if there are any, else PyTorch's.

    They are plain files of this folder, and together within the limit of their size.

    Raises:
        CheckpointError: if there are none, an index names a file that is missing or elsewhere, or
            they are too large.
    """
    files = _list_weights(folder)
    n_bytes, limit = sum(check_file(file) for file in files), size_limit()
    if n_bytes > limit:
        raise CheckpointError(
            f"{folder.name} has {n_bytes} bytes of weights, more than the limit of {limit}: set "
            f"{MAX_BYTES_VARIABLE}={n_bytes} if you trust it"
        )
    return files


def _list_weights(folder: Path) -> list[Path]:
    """Return the weight files that a folder's names or its index tell; they are not checked.

    A whole file comes first, then what an index names, as in transformers.
    """
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        index = folder / f"{stem}{suffix}.index.json"
        if os.path.lexists(whole := folder / f"{stem}{suffix}"):
            return [whole]
        if os.path.lexists(index):
            return _shards(index, suffix)
        if files := sorted(folder.glob(stem + "*" + suffix)):
            return files
    files = sorted(folder.glob("*.pt"))
    if len(files) > 1:
        names = listed(quote(file.name) for file in files)
        raise CheckpointError(f"{folder.name} has {names}: keep the one that holds the weights")
    if not files:
        raise CheckpointError(
            f"{folder.name} has no weights: looked for model*.safetensors, pytorch_model*.bin "
            "and *.pt"
        )
    return files


def size_limit() -> int:
    """Return how many bytes of weights a folder may have: the environment may raise it.

    Raises:
        EagleError: if the environment has something else than a number.
    """
    text = os.environ.get(MAX_BYTES_VARIABLE, str(MAX_TOTAL_BYTES))
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise EagleError(f"{MAX_BYTES_VARIABLE} is {quote(text)}, not a number of bytes")
    return int(text)


def _shards(index: Path, suffix: str) -> list[Path]:
    """Return the files that an index names: files of its own folder, and nothing else."""
    weight_map = read_json(index, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index.name} has no weight_map")
    names = list(weight_map.values())
    for name in names:
        if not isinstance(name, str) or not _is_plain(name) or not name.endswith(suffix):
            raise CheckpointError(
                f"{index.name} names {quote(name)}, which is not a {suffix} file of its folder"
            )
    if (n_files := len(set(names))) > MAX_SHARDS:
        raise CheckpointError(f"{index.name} names {n_files} files, more than {MAX_SHARDS}")
    files = sorted(index.parent / name for name in set(names))
    if missing := [quote(file.name) for file in files if not os.path.lexists(file)]:
        raise CheckpointError(
            f"{index.parent.name} lacks {listed(missing)}, which its index names: its download is "
            "incomplete, start it again to get the rest"
        )
    return files


def _is_plain(name: str) -> bool:
    """Say whether a name is that of a file in a folder on every system: no path, drive or URL."""
    return name.isprintable() and not set(name) & set("/\\:") and not name.startswith(".")


def source_name(folder: Path) -> str:
    """Return the repository that a folder of the Hugging Face cache is of, else its own name."""
    folder = Path(os.path.abspath(folder))
    cached = folder.parent.parent.name
    if folder.parent.name == "snapshots" and cached.startswith("models--"):
        return cached.removeprefix("models--").replace("--", "/", 1)
    return folder.name


def cache_folder() -> Path:
    """Return where conversions are kept: MLX_EAGLE_CACHE, or where the platform keeps caches."""
    if own := os.environ.get("MLX_EAGLE_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "darwin":
        return Path("~/Library/Caches/mlx-eagle").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mlx-eagle"
