"""A target as training reads it: answers and features are those of these weights alone."""

import shutil
from pathlib import Path

import mlx.core as mx

from mlx_eagle.training.read_target import read_target
from mlx_eagle.training.recipe import Recipe
from training_files import write_adapter, write_tiny_target


def test_a_target_or_an_adapter_that_is_trained_in_place_is_another_one(tmp_path: Path) -> None:
    target, adapter = write_tiny_target(tmp_path / "target"), tmp_path / "adapter"

    def identity(with_adapter: Path | None = None) -> str:
        return read_target(Recipe(target, [], tmp_path / "out", adapter=with_adapter)).identity

    write_adapter(adapter, 0.1)
    found = [identity(), identity(adapter)]
    write_adapter(adapter, 0.2)
    found.append(identity(adapter))
    weights = mx.load(str(target / "model.safetensors"))
    weights["model.layers.0.mlp.up_proj.weight"] += 1
    mx.save_safetensors(str(target / "new.safetensors"), weights)
    (target / "new.safetensors").replace(target / "model.safetensors")
    found.append(identity())
    assert len(set(found)) == 4


def test_a_copy_of_a_target_is_the_same_one(tmp_path: Path) -> None:
    target = write_tiny_target(tmp_path / "target")
    shutil.copytree(target, tmp_path / "copy" / "target", copy_function=shutil.copyfile)
    first, second = (
        read_target(Recipe(folder, [], tmp_path / "out")).identity
        for folder in (target, tmp_path / "copy" / "target")
    )
    assert first == second
