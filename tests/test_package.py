"""The wheel holds all that is here and runs away from the checkout; the sdist holds the tests."""

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAPPED = ("convert", "cli")  # top-level folders that install as parts of mlx_eagle
BUILD = "from setuptools import build_meta; build_meta.build_{}('dist')"
# What a stranger does first, in one process: imports a part of every folder, asks for the version,
# and lets the demo pair answer.
USE = """
import mlx_eagle, mlx_eagle.bench.prompts, mlx_eagle.convert.heads, mlx_eagle.hub.known_heads
from mlx_eagle.cli.main import run
print(mlx_eagle.__file__)
assert run(["--version"]) == 0
assert run(["heads"]) == 0
assert run(["generate", "--no-calibrate", "-n", "4", "What does zip do?"]) == 0
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel and the sdist of a copy of the checkout."""
    version = pytest.importorskip("setuptools", reason="install the dev extra").__version__
    if int(version.partition(".")[0]) < 77:
        pytest.skip("an older setuptools does not know the licence field; install the dev extra")
    folder = tmp_path_factory.mktemp("checkout")
    names = ["mlx_eagle", *MAPPED, "tests", "docs", "examples", "benchmarks"]
    for name in names:
        ignore = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    weights = list((folder / "mlx_eagle").rglob("*.safetensors"))
    for file in weights:
        file.write_bytes(b"")  # of the sdist the names are looked at, and packing takes its time
    for kind in ("sdist", "wheel"):
        if kind == "wheel":
            for file in weights:
                shutil.copy(ROOT / file.relative_to(folder), file)
        command = [sys.executable, "-c", BUILD.format(kind)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "absent from the `packages` configuration" not in done.stderr
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next(built.glob("*.whl"))


def files_of(*folders: str) -> set[str]:
    """Return the files below top-level folders of the checkout."""
    found = (file for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file())
    return {
        str(file.relative_to(ROOT))
        for file in found
        if "__pycache__" not in file.parts and not file.name.startswith(".")
    }


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    expected = {
        f"mlx_eagle/{file}" if file.startswith(MAPPED) else file
        for file in files_of("mlx_eagle", *MAPPED)
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected
    data = {"mlx_eagle/py.typed", "mlx_eagle/hub/known_heads.json", "mlx_eagle/bench/demo.jsonl"}
    assert data <= names


def test_the_sdist_holds_what_the_tests_and_documents_need(built: Path) -> None:
    top = "mlx_eagle", *MAPPED, "tests", "docs", "examples", "benchmarks"
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert files_of(*top) <= names
    assert {"README.md", "CHANGELOG.md", "LICENSE", "MANIFEST.in", "pyproject.toml"} <= names
    assert not any("__pycache__" in name for name in names)


def test_the_metadata_names_the_licence_and_the_description(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
        licence = name.replace("METADATA", "licenses/LICENSE")
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# mlx-eagle")


@pytest.mark.broad
def test_the_wheel_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    elsewhere.mkdir()
    path = os.pathsep.join([str(site), os.environ["PYTHONPATH"]])
    own = {"PYTHONPATH": path, "MLX_EAGLE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=elsewhere,
        env=os.environ | own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert "mlx-eagle " in done.stdout
