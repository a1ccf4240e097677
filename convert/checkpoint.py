"""The weights of a published checkpoint, in either of the two formats that are read.

Safetensors are read by `files/safetensors.py`, PyTorch's `.bin` and `.pt` files by
`torch_files.py`. What the names of the tensors mean is in `dialects.py`.
"""

from pathlib import Path

import mlx.core as mx

from mlx_eagle.convert import torch_files
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.folders import PICKLES, find_weights, size_limit
from mlx_eagle.files.plain_files import check_file
from mlx_eagle.files.quoting import listed, quote
from mlx_eagle.files.safetensors import TensorInfo, read_header, read_tensors


def read_manifest(folder: Path) -> dict[str, TensorInfo]:
    """Return name, dtype and shape of every tensor in a folder, from the headers alone.

    Raises:
        CheckpointError: if a file is malformed or two files have a tensor of the same name.
    """
    manifest: dict[str, TensorInfo] = {}
    for file in find_weights(folder):
        is_pickle, limit = file.suffix in PICKLES, size_limit()
        part = torch_files.read_manifest(file, max_bytes=limit) if is_pickle else read_header(file)
        if repeated := sorted(set(part) & set(manifest)):
            raise CheckpointError(f"{file.name}: {quote(repeated[0])} is in another file as well")
        manifest |= part
    return manifest


def read_weights(file: Path) -> dict[str, mx.array]:
    """Return every tensor of one weight file by name; safetensors are mapped, not yet read.

    Raises:
        CheckpointError: if the file is malformed.
    """
    if file.suffix in PICKLES:
        check_file(file)
        return torch_files.read_tensors(file, max_bytes=size_limit())
    return read_tensors(file)


def require_finite(tensors: dict[str, mx.array]) -> None:
    """Refuse weights that are not numbers; the arrays are evaluated one after the other.

    Raises:
        CheckpointError: listing the names of the tensors with NaN or an infinity.
    """
    broken = [name for name in sorted(tensors) if not mx.isfinite(tensors[name]).all().item()]
    if broken:
        raise CheckpointError(
            f"the weights are not finite numbers in {listed(broken)}: they are "
            "damaged, get the file again"
        )
