"""Facts and their rules: one rule for each field, and the user's decision above all of them."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from mlx_eagle.convert.facts import Doubt, Fact, facts_as_json
from mlx_eagle.convert.heads import convert_head
from mlx_eagle.convert.rules import RULES
from mlx_eagle.heads.config import HeadConfig


def test_every_field_of_a_head_has_one_rule() -> None:
    assert sorted(RULES) == sorted(field.name for field in fields(HeadConfig))


def test_what_a_value_is_already_is_no_alternative() -> None:
    assert Fact(3, "x").doubted("why", [3, 4]).doubt == Doubt("why", [4])
    assert Fact(3, "x").doubted("why", [3]) == Fact(3, "x")


def test_facts_are_written_with_origins_and_doubts() -> None:
    facts = {"a": Fact(1, "there"), "b": Fact(2, "here").doubted("why", [5])}
    assert facts_as_json(facts, {"c": 3}) == {
        "a": 1,
        "b": 2,
        "c": 3,
        "origins": {"a": "there", "b": "here"},
        "doubts": {"b": {"reason": "why", "alternatives": [5]}},
    }


@pytest.mark.parametrize(
    ("config", "fact", "value"),
    [
        ({"rope_theta": "much"}, "rope_theta", 5e5),
        ({"rope_scaling": {"type": "longrope"}}, "rope_scaling", None),
        ({"norm_before_residual": 1}, "norm_before_residual", True),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": "all"}}, "taps", [2, 5, 7]),
    ],
)
def test_a_fact_that_the_user_decides_is_not_read_from_the_file(
    config: dict[str, Any], fact: str, value: Any, publish: Callable[..., Any], tmp_path: Path
) -> None:
    made = publish("specforge", config=config, file="model.safetensors")
    written = convert_head(
        made.source, made.target, tmp_path / "head", bits=None, settings={fact: value}
    )
    assert (written[fact], written["origins"][fact]) == (value, "set by the user")
    assert fact not in written["doubts"]


def test_a_scaling_that_the_user_sets_starts_from_the_length_that_the_user_sets(
    publish: Callable[..., Any], tmp_path: Path
) -> None:
    made = publish("specforge", config={}, file="model.safetensors")
    yarn = {"rope_type": "yarn", "factor": 2.0}
    for number, names in enumerate((("rope_scaling", "length"), ("length", "rope_scaling"))):
        values = {"rope_scaling": ("rope_scaling", yarn), "length": ("max_position_embeddings", 77)}
        settings = dict(values[name] for name in names)
        out = tmp_path / f"head-{number}"
        written = convert_head(made.source, made.target, out, bits=None, settings=settings)
        assert written["rope_scaling"]["original_max_position_embeddings"] == 77
