"""What a publisher recommends is the default of the command line, and told by the library (B6)."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import mlx_eagle
from command_line import run_here
from mlx_eagle.cli.settings import with_recommended
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.session.recommended import read_recommended

QWEN = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "eos_token_id": 2}


@pytest.mark.parametrize(
    ("config", "recommended"),
    [
        (QWEN, {"temperature": 0.6, "top_p": 0.95, "top_k": 20}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": True, "temperature": 0.5, "repetition_penalty": 1.0}, {"temperature": 0.5}),
        (
            {"do_sample": True, "repetition_penalty": 1.1},
            {"temperature": 1.0, "repetition_penalty": 1.1},
        ),
        ({"do_sample": True, "temperature": "hot", "top_p": 7}, {}),
        (QWEN | {"do_sample": False}, {}),
        ({"temperature": 0.6}, {}),
    ],
)
def test_b6_what_generation_config_recommends(
    config: dict[str, Any], recommended: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert read_recommended(tmp_path) == recommended
    assert read_recommended(tmp_path / "none") == {}


def test_b6_what_a_person_has_decided_stays_and_the_next_model_has_its_own() -> None:
    before = GenerationOptions(temperature=0.2, top_k=5, max_tokens=9)
    options = with_recommended(before, {"temperature": 0.6, "top_p": 0.9}, {"temperature"})
    assert (options.temperature, options.top_p, options.top_k) == (0.2, 0.9, 0)
    assert options.max_tokens == 9
    assert with_recommended(options, {}, {"temperature"}).top_p == 1.0


@pytest.fixture
def target(turning_target: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(turning_target, tmp_path / "target"))
    (folder / "generation_config.json").write_text(json.dumps(QWEN))
    return folder


def test_b6_the_command_line_samples_as_recommended_and_the_library_does_not(target: Path) -> None:
    command = ["generate", "hello", "--model", str(target), "--head", "none", "--json", "-n", "3"]
    stats = json.loads(run_here(*command).stdout)
    assert stats["seed"] is not None
    stats = json.loads(run_here(*command, "--temp", "0").stdout)
    assert stats["seed"] is None
    engine = mlx_eagle.load(target, "none")
    assert dict(engine.info.recommended) == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert engine.generate("hello", max_tokens=3).stats.seed is None
