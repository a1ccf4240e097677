"""What is installed is what is here, under one import name."""

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mlx_eagle

ROOT = Path(__file__).resolve().parents[1]
MAPPED = {"convert": "mlx_eagle.convert", "cli": "mlx_eagle.cli"}


def test_every_package_folder_is_listed() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = set()
    for top in ("mlx_eagle", *MAPPED):
        for file in (ROOT / top).rglob("__init__.py"):
            parts = file.parent.relative_to(ROOT).parts
            found.add(".".join((MAPPED.get(parts[0], parts[0]), *parts[1:])))
    assert found == set(config["tool"]["setuptools"]["packages"])


def test_public_names_resolve_and_unknown_ones_do_not() -> None:
    for name in mlx_eagle.__all__:
        assert getattr(mlx_eagle, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mlx_eagle.nonsense


def test_a_class_has_one_identity_however_it_is_reached() -> None:
    from mlx_eagle.convert import heads
    from mlx_eagle.errors import CheckpointError

    assert heads.CheckpointError is CheckpointError is mlx_eagle.CheckpointError


def test_the_generic_folder_names_are_not_importable() -> None:
    assert importlib.util.find_spec("convert") is None
    assert importlib.util.find_spec("cli") is None


def test_the_command_line_runs_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlx_eagle.cli", "--version"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert "mlx-eagle" in done.stdout


@pytest.mark.parametrize("module", ["tree", "accept"])
def test_structure_and_acceptance_import_no_model(module: str) -> None:
    source = (ROOT / "mlx_eagle" / f"{module}.py").read_text()
    imports = [line for line in source.splitlines() if line.startswith(("import", "from"))]
    assert not any("mlx_lm" in line or "mlx.nn" in line for line in imports)
    sizes = "from mlx_eagle.tree_shape import"  # numbers only: no model, no arrays
    assert not any("from mlx_eagle" in line and sizes not in line for line in imports)


def test_python_started_in_a_checkout_finds_all_parts() -> None:
    """There the folder mlx_eagle/ hides the installed package, whose parts are elsewhere."""
    code = "import mlx_eagle.convert.heads, mlx_eagle.cli.main; print(mlx_eagle.load.__module__)"
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[1:1] = {sys.path!r}; {code}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "mlx_eagle.engine", done.stderr
