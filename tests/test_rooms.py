"""Every room imports only rooms below it; `[tool.importlinter]` in pyproject.toml has the order."""

import subprocess
import sys
from pathlib import Path

import pytest

from installed_tree import copy_installed_tree

ROOT = Path(__file__).resolve().parents[1]
LINT = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of pyproject.toml over the package in `folder`."""
    pytest.importorskip("importlinter", reason="install the dev extra")
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    # Python puts the working folder first with -c: the copy is read, not what is installed.
    command = [sys.executable, "-c", LINT]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_every_room_imports_only_rooms_below_it(tmp_path: Path) -> None:
    copy_installed_tree(tmp_path)
    done = lint(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_import_from_a_room_above_is_found(tmp_path: Path) -> None:
    package = copy_installed_tree(tmp_path)
    with (package / "tree.py").open("a") as file:
        file.write("\nimport mlx_eagle.engine\n")
    done = lint(tmp_path)
    assert done.returncode != 0
    assert "mlx_eagle.tree -> mlx_eagle.engine" in done.stdout
