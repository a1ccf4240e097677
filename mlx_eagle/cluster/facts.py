"""What must be the same on all hosts: versions of libraries, and the files of the target."""

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from mlx_eagle.files.folders import find_weights
from mlx_eagle.files.quoting import listed
from mlx_eagle.files.sampled_hash import sampled_hash

LIBRARIES = ("mlx", "mlx-lm", "mlx-eagle")


def versions() -> dict[str, str]:
    """Return the versions of what texts depend on."""
    return {name: metadata.version(name) for name in LIBRARIES}


def other_versions(own: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """Return in words which versions another host has instead of ours; "" if there are none."""
    names = sorted({*own, *theirs})
    return listed(
        f"{name} {theirs.get(name, 'missing')} (here: {own.get(name, 'missing')})"
        for name in names
        if own.get(name) != theirs.get(name)
    )


def fingerprint(folder: Path) -> str:
    """Return what tells the files of a target from those of another one.

    Raises:
        CheckpointError: if there are none.
    """
    return sampled_hash([folder / "config.json", *sorted(find_weights(folder))])
