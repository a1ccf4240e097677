"""Weights found in a folder: its own files, of one format, and not too large."""

import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.files.folders import MAX_BYTES_VARIABLE, find_weights, source_name


def sharded(folder: Path, weight_map: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(1, 5):
        file = folder / f"model-0000{number}-of-00004.safetensors"
        mx.save_safetensors(str(file), {f"{number}": mx.zeros(2)})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_that_an_index_names_are_the_weights(tmp_path: Path) -> None:
    names = [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    folder = sharded(tmp_path / "model", dict(zip("1234", names, strict=True)))
    assert [file.name for file in find_weights(folder)] == names


@pytest.mark.parametrize(
    "name",
    [
        "../model-00001-of-00004.safetensors",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "C:model.safetensors",
        "https://example.org/model.safetensors",
        "model\0.safetensors",
        "model\n.safetensors",
        ".model.safetensors",
        "..",
        "",
        "config.json",
        "model.bin",
        7,
        None,
    ],
)
def test_index_that_names_anything_but_a_weight_file_of_its_folder_is_refused(
    tmp_path: Path, name: Any
) -> None:
    folder = sharded(tmp_path / "model", {"a.weight": name})
    with pytest.raises(CheckpointError, match="file of its folder"):
        find_weights(folder)


def test_index_with_a_missing_shard_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model", {"a": "model-00009-of-00009.safetensors"})
    with pytest.raises(CheckpointError, match="model lacks 'model-00009-of-00009.safetensors'"):
        find_weights(folder)


def test_index_that_names_thousands_of_files_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model", {f"{i}": f"{i}.safetensors" for i in range(10_001)})
    with pytest.raises(CheckpointError, match="names 10001 files, more than 10000"):
        find_weights(folder)


def test_safetensors_are_preferred_to_pickles(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights"):
        find_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert [file.name for file in find_weights(tmp_path)] == ["pytorch_model.bin"]
    (tmp_path / "model.safetensors").touch()
    assert [file.name for file in find_weights(tmp_path)] == ["model.safetensors"]


def test_single_pt_file_is_the_weights_where_there_are_no_others(tmp_path: Path) -> None:
    (tmp_path / "medusa_lm_head.pt").touch()
    assert [file.name for file in find_weights(tmp_path)] == ["medusa_lm_head.pt"]
    (tmp_path / "optimizer.pt").touch()
    with pytest.raises(CheckpointError, match="has 'medusa_lm_head.pt', 'optimizer.pt': keep"):
        find_weights(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert [file.name for file in find_weights(tmp_path)] == ["model.safetensors"]


def test_weights_beyond_the_limit_are_refused_with_the_way_to_raise_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors"):
        mx.save_safetensors(str(tmp_path / name), {name: mx.zeros(2)})
    n_bytes = sum(file.stat().st_size for file in tmp_path.iterdir())
    monkeypatch.setenv(MAX_BYTES_VARIABLE, str(n_bytes - 1))
    with pytest.raises(
        CheckpointError, match=f"{n_bytes} bytes .* set MLX_EAGLE_MAX_BYTES={n_bytes}"
    ):
        find_weights(tmp_path)
    monkeypatch.setenv(MAX_BYTES_VARIABLE, str(n_bytes))
    assert len(find_weights(tmp_path)) == 2
    for text in ("64GB", "-1", "", "\u0663", "9" * 19):
        monkeypatch.setenv(MAX_BYTES_VARIABLE, text)
        with pytest.raises(EagleError, match="not a number of bytes"):
            find_weights(tmp_path)


def test_names_are_those_of_the_repository_or_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = Path("/cache/hub/models--yuhuili--EAGLE3-LLaMA3.1/snapshots/0123abc")
    assert source_name(cached) == "yuhuili/EAGLE3-LLaMA3.1"
    (tmp_path / "head").mkdir()
    monkeypatch.chdir(tmp_path / "head")
    assert source_name(Path(".")) == "head"
    assert os.sep not in source_name(tmp_path / "head")
