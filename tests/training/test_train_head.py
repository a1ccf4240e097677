"""The steps of a training, from a target and texts to a head."""

import gc
import weakref
from pathlib import Path
from typing import Any

import mlx.nn as nn
import pytest

from mlx_eagle.training import train_head as module
from mlx_eagle.training.options import DataOptions, HeadOptions, LoopOptions
from mlx_eagle.training.recipe import SILENT, Recipe
from mlx_eagle.training.run.loop import Outcome, Run
from training_files import write_conversations, write_tiny_target


@pytest.mark.parametrize(("features", "is_kept"), [("disk", False), ("compute", True)])
def test_the_target_stays_in_memory_only_where_features_are_still_computed(
    features: str, is_kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = list[weakref.ref[nn.Module]]()
    plain_read = module.read_target

    def read(recipe: Recipe) -> Any:
        found = plain_read(recipe)
        networks.append(weakref.ref(found.target.model))
        return found

    alive = list[bool]()

    def train(run: Run) -> Outcome:
        gc.collect()
        alive.append(networks[0]() is not None)
        return Outcome(0, is_interrupted=True)

    monkeypatch.setattr(module, "read_target", read)
    monkeypatch.setattr(module, "train", train)
    recipe = Recipe(
        write_tiny_target(tmp_path / "target"),
        [write_conversations(tmp_path / "texts.jsonl", 4)],
        tmp_path / "out",
        data=DataOptions(length=32, draft_vocab=300, features=features),
        head=HeadOptions(steps=2),
        loop=LoopOptions(batch=1),
        head_bits=None,
    )
    module.train_head(recipe, SILENT)
    assert alive == [is_kept]
