"""What tells the contents of large files from others without reading all of them.

When a file was written is no part of it: a copy of a model is the same model, also on another
machine.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

BLOCK = 4096  # bytes that are read at a time
MOST_BLOCKS = 2048  # of a file: 8 MiB, which smaller files are read whole within


def sampled_hash(files: Iterable[Path]) -> str:
    """Return a sha256, in hexadecimal, of names, sizes and a sample of what files hold.

    A file of up to 8 MiB is read whole; of a larger one its first block, in which safetensors name
    their tensors, its last one, and blocks at equal distances between. Weights that were trained
    differ nearly everywhere, so a sample tells them apart.

    Args:
        files: in an order that is always the same.
    """
    found = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        found.update(f"{file.name}\n{size}\n".encode())
        n_blocks = -(-size // BLOCK)
        n_read = min(n_blocks, MOST_BLOCKS)
        with file.open("rb") as stream:
            for i in range(n_read):
                stream.seek(i * (n_blocks - 1) // max(n_read - 1, 1) * BLOCK)
                found.update(stream.read(BLOCK))
    return found.hexdigest()
