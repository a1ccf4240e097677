"""The tooling that every change must pass: ruff, its formatter, and mypy in strict mode."""

import subprocess
import sys
from pathlib import Path

import pytest

from installed_tree import copy_installed_tree

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ["mlx_eagle", "convert", "cli", "examples", "tests", "benchmarks"]


def run(*command: str, cwd: Path = ROOT) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_finds_nothing(command: list[str]) -> None:
    pytest.importorskip("ruff", reason="install the dev extra")
    run("ruff", *command, *FOLDERS)


def test_mypy_finds_nothing_in_strict_mode(tmp_path: Path) -> None:
    """Mypy does not follow the mapping in pyproject.toml, so it gets the tree as installed."""
    pytest.importorskip("mypy", reason="install the dev extra")
    copy_installed_tree(tmp_path)
    config = ("--config-file", str(ROOT / "pyproject.toml"))
    run("mypy", *config, "-p", "mlx_eagle", cwd=tmp_path)
    apps = sorted(str(file) for file in (ROOT / "examples").glob("*.py"))
    run("mypy", *config, *apps, cwd=tmp_path)
