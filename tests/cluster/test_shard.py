"""What cannot be divided is refused by name before a weight is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_eagle.cluster.shard import check_divisible
from mlx_eagle.errors import UnsupportedTargetError
from tiny_models import ARCHITECTURES, SMALL


def folder_of(place: Path, architecture: str, **changes: Any) -> Path:
    config = {"model_type": architecture} | SMALL | ARCHITECTURES.get(architecture, {}) | changes
    (place / "config.json").write_text(json.dumps(config))
    return place


@pytest.mark.parametrize(
    ("changes", "n_ranks", "reason"),
    [
        ({}, 3, "num_attention_heads is 4, num_key_value_heads is 2"),
        ({}, 4, "num_key_value_heads is 2"),
        ({"intermediate_size": 97}, 2, "intermediate_size is 97"),
        ({"quantization": {"group_size": 64, "bits": 4}}, 2, "intermediate_size is 96, of which"),
    ],
    ids=str,
)
def test_sizes_that_do_not_divide_are_named(
    changes: dict[str, Any], n_ranks: int, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedTargetError, match=reason):
        check_divisible(folder_of(tmp_path, "llama", **changes), n_ranks)


def test_sizes_that_divide_are_let_through(tmp_path: Path) -> None:
    check_divisible(folder_of(tmp_path, "llama"), 2)
    quantized = {"quantization": {"group_size": 32, "bits": 4}, "intermediate_size": 128}
    check_divisible(folder_of(tmp_path, "llama", **quantized), 2)


@pytest.mark.parametrize("architecture", ["gemma2", "phi3", "cohere", "olmo2", "glm4"])
def test_a_family_that_mlx_lm_does_not_divide_is_named(architecture: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTargetError, match=f"of the kind {architecture}"):
        check_divisible(folder_of(tmp_path, architecture), 2)


def test_a_kind_that_mlx_lm_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTargetError, match="no model 'nonesuch'"):
        check_divisible(folder_of(tmp_path, "nonesuch"), 2)
