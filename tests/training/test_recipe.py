"""What decides a head's weights: what models hold, and not where they are alone."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_eagle.errors import EagleError
from mlx_eagle.training.options import HeadOptions, LoopOptions
from mlx_eagle.training.recipe import Recipe, to_publish
from own_heads import PLAIN, write_head
from training_files import write_tiny_target


def test_weights_that_are_changed_in_place_make_another_training(tmp_path: Path) -> None:
    target, head = write_tiny_target(tmp_path / "target"), write_head(tmp_path / "head", PLAIN)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    for seed, folder in enumerate((target, adapter, head)):
        mx.save_safetensors(str(folder / "adapters.safetensors"), {"a": mx.zeros(4)})
        recipe = Recipe(target, [], tmp_path / "out", adapter=adapter, start=head)
        before = recipe.as_json()
        assert recipe.as_json() == before
        file = "adapters.safetensors" if folder == adapter else "model.safetensors"
        mx.random.seed(seed)
        weights = {n: mx.random.normal(a.shape) for n, a in mx.load(str(folder / file)).items()}
        mx.save_safetensors(str(folder / file), weights)
        after = recipe.as_json()
        changed = {name for name in before if before[name] != after[name]}
        assert changed == {"contents"}
        names = ("target", "adapter", "start")
        assert [n for n in names if before["contents"][n] != after["contents"][n]] == [names[seed]]


def test_a_target_without_weights_or_configuration_is_refused(tmp_path: Path) -> None:
    target = write_tiny_target(tmp_path / "target")
    recipe = Recipe(target, [], tmp_path / "out")
    shutil.move(target / "config.json", tmp_path)
    with pytest.raises(EagleError, match=r"target/config\.json does not exist"):
        recipe.as_json()
    shutil.move(tmp_path / "config.json", target)
    (target / "model.safetensors").unlink()
    with pytest.raises(EagleError, match="target has no weights"):
        recipe.as_json()


@pytest.mark.parametrize("algorithm", ["eagle", "hass", "medusa"])
def test_options_that_would_have_no_effect_are_refused_by_name(
    algorithm: str, tmp_path: Path
) -> None:
    head = HeadOptions(algorithm=algorithm, feature_weight=0.5)
    loop = LoopOptions(recompute=True)
    recipe = Recipe(tmp_path, (), tmp_path / "out", head=head, loop=loop)
    with pytest.raises(EagleError, match=f"--recompute, --feature-weight: .* this is {algorithm};"):
        recipe.refuse_idle_options(algorithm)
    recipe.refuse_idle_options("eagle3")


def test_what_is_published_of_a_training_has_no_paths(tmp_path: Path) -> None:
    target = write_tiny_target(tmp_path / "target")
    files = [tmp_path / "a" / "texts.jsonl", tmp_path / "b" / "texts.jsonl", tmp_path / "c.jsonl"]
    for n, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"text {n}")
    recipe = Recipe(target, files, tmp_path / "out")
    own = recipe.as_json()
    published = to_publish(own)
    assert str(tmp_path) in json.dumps(own)
    assert str(tmp_path) not in json.dumps(published)
    assert published["target"] == "target"
    assert sorted(published["texts"].values()) == sorted(own["texts"].values())
