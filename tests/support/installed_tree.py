"""The package laid out as it is installed: convert/ and cli/ are parts of mlx_eagle there.

An editable install has no such folder on disk, but mypy, import-linter and setuptools read one.
"""

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAPPED = ("convert", "cli")  # top-level folders that install as parts of mlx_eagle


def copy_installed_tree(destination: Path) -> Path:
    """Copy the package without its demo pair to `destination`; returns the package's folder."""
    package = destination / "mlx_eagle"
    ignore = shutil.ignore_patterns("demo", "__pycache__")
    shutil.copytree(ROOT / "mlx_eagle", package, ignore=ignore)
    for folder in MAPPED:
        shutil.copytree(ROOT / folder, package / folder, ignore=ignore)
    return package
