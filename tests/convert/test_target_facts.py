"""What a target's configuration says about it, wherever it says it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlx_eagle.convert.quantization import choose_quantization
from mlx_eagle.convert.target_facts import TargetFacts, read_target_facts
from mlx_eagle.convert.targets import convert_target
from mlx_eagle.errors import CheckpointError
from mlx_eagle.hub.packaged import DEMO
from shards import write_tiny

SIZES = {"model_type": "llama", "num_hidden_layers": 8, "hidden_size": 256, "vocab_size": 4096}


def folder_with(folder: Path, changes: dict[str, Any]) -> Path:
    """Write a target of which there is only the configuration."""
    (folder / "config.json").write_text(json.dumps(SIZES | changes))
    return folder


def test_facts_are_the_same_before_and_after_conversion(tmp_path: Path) -> None:
    source, _ = write_tiny(tmp_path / "tiny", "llama")
    for file in (DEMO / "target").glob("token*.json"):
        shutil.copyfile(file, source / file.name)
    convert_target(source, tmp_path / "out", choose_quantization("mxfp4"))
    before, after = read_target_facts(source), read_target_facts(tmp_path / "out")
    assert before[:5] == ("tiny", "llama", 4, 64, 128)
    assert after[1:5] == before[1:5]
    assert after.config_sha256 != before.config_sha256
    assert after.rope_theta == before.rope_theta == 10000.0
    assert TargetFacts._fields[5] == "config_sha256"


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({"rope_theta": 500000}, 500000.0),
        ({"rope_parameters": {"rope_theta": 1e6}}, 1e6),
        ({"rope_theta": None, "rope_parameters": {"rope_type": "default"}}, None),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, None),
        ({"text_config": {"rope_theta": 5e5}}, 5e5),
        ({"rope_parameters": ["odd"]}, None),
        ({"rope_theta": [5e6, 1e4]}, None),
    ],
)
def test_rope_base_of_a_target_is_read_where_configurations_keep_it(
    tmp_path: Path, changes: dict[str, Any], theta: float | None
) -> None:
    assert read_target_facts(folder_with(tmp_path, changes)).rope_theta == theta


def test_rope_base_that_is_no_number_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"rope_theta": "high"})
    with pytest.raises(CheckpointError, match="rope_theta is 'high', not a positive number"):
        read_target_facts(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draft_vocab_size": 32000}, "is a draft head, not a target"),
        ({"speculators_model_type": "eagle3"}, "is a draft head, not a target"),
        ({"model_type": None}, "config.json has no model_type"),
        ({"hidden_size": -1}, "hidden_size is -1, not a positive integer"),
    ],
)
def test_configuration_of_no_target_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_target_facts(folder_with(tmp_path, changes))
