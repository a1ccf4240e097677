"""What is installed is what is here, under one import name."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mlx_eagle
from benchmark_modules import load_benchmark
from cases import broad

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ROOT / "tests" / "support" / "programs"
MAPPED = {"convert": "mlx_eagle.convert", "cli": "mlx_eagle.cli"}


def test_every_package_folder_is_listed() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = set()
    for top in ("mlx_eagle", *MAPPED):
        for file in (ROOT / top).rglob("__init__.py"):
            parts = file.parent.relative_to(ROOT).parts
            found.add(".".join((MAPPED.get(parts[0], parts[0]), *parts[1:])))
    assert found == set(config["tool"]["setuptools"]["packages"])


def modules() -> list[Path]:
    """Every module of ours, as a path in the checkout."""
    files = (file for top in ("mlx_eagle", *MAPPED) for file in (ROOT / top).rglob("*.py"))
    named = (file.relative_to(ROOT) for file in files if not file.name.startswith("__"))
    return [file for file in named if "demo" not in file.parts]


def own_test(module: Path) -> Path:
    """The file that tests this module and no other, whether it exists or not."""
    home = Path(*module.parts[1:]) if module.parts[0] == "mlx_eagle" else module
    return ROOT / "tests" / home.with_name(f"test_{home.name}")


def test_every_module_has_a_test_file_or_stands_in_the_list_with_the_one_that_covers_it() -> None:
    lines = (ROOT / "tests" / "data" / "covered_by.txt").read_text().splitlines()
    assert lines == sorted(lines)
    covered_by = dict(line.split() for line in lines)
    alone = {str(module) for module in modules() if not own_test(module).is_file()}
    assert alone == set(covered_by)
    missing = [file for file in covered_by.values() if not (ROOT / "tests" / file).is_file()]
    assert missing == []


def install(folder: Path, without: str = "") -> Path:
    """Copy the packages that pyproject.toml lists, as an installation does; all but one.

    What is in that one is left out as well: it would make a package without modules of it.
    """
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for package in tools["packages"]:
        if without and f"{package}.".startswith(f"{without}."):
            continue
        known = tools["package-dir"].get(package, package.replace(".", "/"))
        place = folder / package.replace(".", "/")
        place.mkdir(parents=True, exist_ok=True)
        for file in (ROOT / known).glob("*.py"):
            shutil.copyfile(file, place / file.name)
    return folder


@pytest.mark.parametrize("without", [broad(""), "mlx_eagle.convert", broad("mlx_eagle.decoding")])
def test_pytest_in_a_checkout_tests_what_was_installed(without: str, tmp_path: Path) -> None:
    """A package that is left out of the list is missing, though it stands in the checkout."""
    site = install(tmp_path, without)
    test = {"mlx_eagle.convert": "convert/test_dialects.py"}.get(without, "decoding/test_accept.py")
    options = ["-n", "0", "-p", "no:cacheprovider", "--collect-only", "-q", "--no-header"]
    # Without its site an interpreter does not know of an editable installation of this checkout.
    options += ["-p", "sitecustomize"]
    command = [sys.executable, "-S", "-m", "pytest", *options, str(Path("tests", test))]
    path = os.pathsep.join([str(site), str(PROGRAMS), *sys.path])
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == (not without), done.stdout + done.stderr
    if without:
        assert f"No module named '{without}'" in done.stdout + done.stderr


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


@pytest.mark.parametrize("module", ["tree.py", "decoding/accept.py"])
def test_structure_and_acceptance_import_no_model(module: str) -> None:
    source = (ROOT / "mlx_eagle" / module).read_text()
    imports = [line for line in source.splitlines() if line.startswith(("import", "from"))]
    assert not any("mlx_lm" in line or "mlx.nn" in line for line in imports)
    sizes = "from mlx_eagle.tree_shape import"  # numbers only: no model, no arrays
    assert not any("from mlx_eagle" in line and sizes not in line for line in imports)


def test_python_started_in_a_checkout_finds_all_parts() -> None:
    """There the folder mlx_eagle/ hides the installed package, whose parts are elsewhere."""
    code = "import mlx_eagle.convert.dialects, mlx_eagle.cli.main; print(mlx_eagle.HubError)"
    start = f"import sys; sys.path[1:1] = {[str(PROGRAMS), *sys.path]!r}; import sitecustomize"
    command = [sys.executable, "-S", "-c", f"{start}; {code}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "<class 'mlx_eagle.errors.HubError'>", done.stderr


def test_every_mistake_that_mutations_plants_finds_its_text() -> None:
    """`benchmarks/mutations.py` is slow and seldom run: what it replaces must still stand there."""
    for mutation in load_benchmark("mutations").MUTATIONS:
        file = next(
            f for f in (ROOT / "mlx_eagle" / mutation.file, ROOT / mutation.file) if f.exists()
        )
        assert file.read_text().count(mutation.old) == 1, mutation.name
