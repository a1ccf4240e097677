"""The steps of a training, from a target and texts to a head."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import mlx.nn as nn
import pytest

from mlx_eagle.training import train_head as module
from mlx_eagle.training.options import DataOptions, HeadOptions, LoopOptions
from mlx_eagle.training.recipe import SILENT, Recipe
from mlx_eagle.training.run.loop import Outcome, Run
from toy_training import free_ports
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


def start_in_two(place: Path, data: Path) -> list[subprocess.Popen[str]]:
    """Start the command in two processes on loopback, as `mlx.launch` would."""
    hosts, target = place / "hosts.json", write_tiny_target(place / "target")
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    files = ["--model", str(target), "--data", str(data), "--out", str(place / "out")]
    command = [sys.executable, "-m", "mlx_eagle.cli", "train", *files, "--answer-tokens", "200"]
    places = [os.environ | {"MLX_RANK": str(r), "MLX_HOSTFILE": str(hosts)} for r in range(2)]
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(command, env=env, **pipes) for env in places]


@pytest.mark.broad
def test_where_the_first_process_is_stopped_while_it_writes_answers_the_other_ends(
    tmp_path: Path,
) -> None:
    data = write_conversations(tmp_path / "asked.jsonl", 400, answered=False)
    programs = start_in_two(tmp_path, data)
    try:
        while not (tmp_path / "out" / "answers-train.jsonl").exists():
            time.sleep(0.1)
        programs[0].send_signal(signal.SIGINT)
        said = [program.communicate(timeout=60)[1] for program in programs]
    finally:
        for program in programs:
            program.kill()
    assert [program.returncode for program in programs] == [130, 1], said
    assert "error: the process of rank 0 failed or was stopped" in said[1]
    hidden = [file.name for file in (tmp_path / "out").glob(".*")]
    assert not hidden, "nobody works any more"
