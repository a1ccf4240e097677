"""A trained head on the disk: what was trained, to export and to decode with."""

from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_eagle.convert.export import export_head
from mlx_eagle.convert.heads import convert_head
from mlx_eagle.convert.target_facts import read_target_facts
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.load import load_head, read_head_config
from mlx_eagle.training.write_head import quantization_of, write_trained
from own_heads import PLAIN, H, write_target
from training_cases import eagle_head


def test_a_trained_head_is_written_whole_and_for_decoding(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target")
    sizes = {"hidden_size": 64, "target_hidden_size": 64, "intermediate_size": 128}
    head = eagle_head(PLAIN, **sizes, head_dim=8, rope_dims=8)
    weights = {n: w for n, w in tree_flatten(head.parameters()) if w.dtype == mx.float32}
    facts = read_target_facts(target)._replace(hidden_size=64)
    write_trained(head, facts, tmp_path, 4, {"measured": {"update": 3}})
    full = dict(tree_flatten(load_head(tmp_path / "head-full").parameters()))
    for name, weight in weights.items():
        assert mx.array_equal(full[name], weight.astype(mx.float16)), name
    config = read_head_config(tmp_path / "head")
    assert config["quantization"] == {"group_size": 32, "bits": 4}
    assert config["training"]["measured"] == {"update": 3}
    assert "layers.0.mlp.up_proj.scales" in dict(
        tree_flatten(load_head(tmp_path / "head").parameters())
    )


def test_it_is_exported_and_comes_back_as_it_was(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target")
    head = eagle_head(PLAIN)
    assert head.config.hidden_size == H
    write_trained(head, read_target_facts(target), tmp_path, None, {})
    for layout in ("safeailab", "speculators"):
        export_head(tmp_path / "head-full", tmp_path / layout, layout)
        convert_head(tmp_path / layout, target, tmp_path / f"{layout}-back", bits=None)
        ours, theirs = (
            dict(tree_flatten(load_head(tmp_path / name).parameters()))
            for name in ("head-full", f"{layout}-back")
        )
        assert ours.keys() == theirs.keys()
        assert all(mx.array_equal(ours[name], theirs[name]) for name in ours)


def test_layers_that_do_not_divide_are_refused_by_name() -> None:
    head = eagle_head(PLAIN)
    assert quantization_of(head, None) is None
    with pytest.raises(EagleError, match="layers with 16 inputs, .* give --head-bits none"):
        quantization_of(head, 4)
