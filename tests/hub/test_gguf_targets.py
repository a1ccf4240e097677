"""A GGUF file by its path, folder or name in a store: converted once, wherever a model is named."""

import json
import os
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf import GGMLQuantizationType as Kind

import mlx_eagle
from gguf_files import tiny_llama, write
from mlx_eagle.convert.gguf import convert
from mlx_eagle.errors import CheckpointError, EagleError, HubError
from mlx_eagle.hub import gguf_targets
from mlx_eagle.hub.download import fetch, list_files
from mlx_eagle.hub.fit import foresee
from mlx_eagle.hub.gguf_targets import find_gguf


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny llama in a folder of its own, and a cache that is empty."""
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    (tmp_path / "models").mkdir()
    return write(tmp_path / "models" / "tiny.Q8_0.gguf", tiny_llama(Kind.Q8_0))


def test_file_is_converted_once_and_told_of_once(file: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    told: list[str] = []
    folder = fetch(file, progress=lambda *call: calls.append(call), notify=told.append)
    assert folder.parent == tmp_path / "cache" / "targets"
    assert told == [f"converting tiny.Q8_0, once; it is kept in {folder}"]
    assert {phase for phase, *_ in calls} == {"convert tiny.Q8_0"}
    assert calls[-1][1] == calls[-1][2] > 0
    before = folder.stat().st_mtime_ns
    assert fetch(str(file), notify=told.append) == folder
    assert folder.stat().st_mtime_ns == before
    assert len(told) == 1


def test_file_that_is_moved_is_not_converted_again(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch(file)
    (tmp_path / "other").mkdir()
    moved = file.rename(tmp_path / "other" / file.name)
    os.utime(moved, (1, 1))
    monkeypatch.setattr(convert, "convert_gguf", None)
    assert fetch(moved) == fetch(moved.parent) == folder


def test_file_that_changes_is_converted_again(file: Path) -> None:
    first = fetch(file)
    write(file, tiny_llama(Kind.Q4_0))
    assert fetch(file) != first


def test_a_single_id_that_is_corrected_in_place_makes_another_conversion(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a large file no sample of the bytes need see it."""
    monkeypatch.setattr(gguf_targets, "sampled_hash", lambda _: "the same")
    first = fetch(file)
    reader = gguf.GGUFReader(file, "r+")
    field = reader.fields["tokenizer.ggml.eos_token_id"]
    field.parts[field.data[0]][0] -= 1
    reader.data.flush()
    second = fetch(file)
    ids = [json.loads((f / "config.json").read_text())["eos_token_id"] for f in (first, second)]
    assert ids[0][0] == ids[1][0] + 1


def test_model_of_ollama_is_converted(file: Path, tmp_path: Path) -> None:
    blobs = tmp_path / ".ollama/models/blobs"
    manifest = tmp_path / ".ollama/models/manifests/registry.ollama.ai/library/tiny/1b"
    blobs.mkdir(parents=True)
    manifest.parent.mkdir(parents=True)
    digest = "0" * 64
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    manifest.write_text(json.dumps({"layers": [layer]}))
    file.rename(blobs / f"sha256-{digest}")
    told: list[str] = []
    assert (fetch("ollama:tiny:1b", notify=told.append) / "config.json").is_file()
    assert told[0].startswith("converting ollama:tiny:1b, once")


def test_file_can_be_spoken_with(file: Path) -> None:
    engine = mlx_eagle.load(file, calibrate=False)
    assert "8-bit, group 32" in engine.info.target_precision
    answer = engine.generate("a the", max_tokens=4)
    assert answer is not None
    assert list_files(file).sizes["model.safetensors"] > 0
    assert foresee(str(file)).weights > 0


def test_part_of_the_cache_that_is_missing_is_told(file: Path) -> None:
    folder = fetch(file)
    (folder / "config.json").unlink()
    with pytest.raises(EagleError, match="is not whole: remove the folder, it will be made again"):
        fetch(file)


def test_file_that_cannot_be_converted_leaves_nothing(file: Path, tmp_path: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="its download is incomplete"):
        fetch(file)
    assert not list((tmp_path / "cache").glob("*/*"))


def test_folder_with_several_files_asks_which(file: Path) -> None:
    write(file.with_name("tiny.Q4_0.gguf"), tiny_llama(Kind.Q4_0))
    with pytest.raises(HubError, match=r"has 'tiny.Q4_0.gguf', 'tiny.Q8_0.gguf': name the file"):
        fetch(file.parent)


@pytest.mark.parametrize("name", ["config.json", "nothing.gguf"])
def test_other_file_and_missing_file_are_refused(name: str, file: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(HubError, match="is a file; give the folder|there is no file"):
        fetch(tmp_path / name)


def test_folder_of_a_model_is_none(file: Path) -> None:
    (file.parent / "config.json").write_text("{}")
    found: Any = find_gguf(file.parent)
    assert found is None
