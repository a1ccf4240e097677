"""What tells rows of one target and head from those of others."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from mlx_eagle.engine import Engine
from mlx_eagle.session.identity import identify, identify_settings


def test_one_changed_number_tells_networks_apart(tiny_target: Callable[..., Any]) -> None:
    model = tiny_target("llama")
    before = identify(model)
    assert before == identify(tiny_target("llama"))
    weight = model.model.layers[2].mlp.up_proj.weight
    weight[17, 23] = weight[17, 23] + 1e-6
    assert identify(model) != before
    model = tiny_target("llama")
    model.set_dtype(mx.bfloat16)
    assert identify(model) != before, "so does their type"


def test_the_settings_are_those_of_target_head_libraries_and_device(
    turning: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, head = turning.target.model, turning.head
    before = identify_settings(model, head)
    assert before == identify_settings(model, head)
    found = {before, identify_settings(model, None)}
    with monkeypatch.context() as patch:
        patch.setattr(head, "config", replace(head.config, norm_output=not head.config.norm_output))
        found.add(identify_settings(model, head))
    with monkeypatch.context() as patch:
        patch.setattr(model.layers[0].self_attn, "scale", 0.5)
        found.add(identify_settings(model, head))
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda name: f"{name} of tomorrow")
        found.add(identify_settings(model, head))
    with monkeypatch.context() as patch:
        patch.setattr("mlx.core.default_device", lambda: mx.Device(mx.gpu))
        found.add(identify_settings(model, head))
    assert len(found) == 6
