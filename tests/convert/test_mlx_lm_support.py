"""What mlx-lm can run, and what it would get wrong: named, and refused before any conversion."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_eagle.convert.mlx_lm_support import Source, check_source, runnable_types
from mlx_eagle.errors import CheckpointError

CONFIG = {"model_type": "llama", "num_hidden_layers": 1}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}


def folder_of(path: Path, changes: dict[str, Any], **tensors: mx.array) -> Path:
    """Write a target of one tensor with a configuration."""
    folder = path / "model"
    folder.mkdir()
    config = {key: value for key, value in (CONFIG | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = tensors or {"model.norm.weight": mx.ones(4)}
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    return folder


def test_plain_target_is_let_through_under_its_name(tmp_path: Path) -> None:
    assert check_source(folder_of(tmp_path, {})) == Source("model", "")
    assert check_source(tmp_path / "model") == Source("model", "")


@pytest.mark.parametrize("settings", [{}, None])
def test_empty_quantization_config_is_none(tmp_path: Path, settings: Any) -> None:
    assert check_source(folder_of(tmp_path, {"quantization_config": settings})).method == ""


def test_every_type_that_is_listed_has_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    from mlx_lm.utils import _get_classes

    known = runnable_types()
    assert {"llama", "qwen3", "mistral", "gpt_oss", "phi-msft", "lfm2-vl"} <= set(known)
    assert not {"cache", "base", "switch_layers"} & set(known)
    assert len(known) > 100
    for name in known:
        assert len(_get_classes({"model_type": name})) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("model_type", "close"),
    [("lama", "llama"), ("Qwen3", "qwen3"), ("gpt_j", "gptj"), ("bert", r"[a-z0-9_]+")],
)
def test_unknown_type_is_named_with_the_closest_that_mlx_lm_runs(
    tmp_path: Path, model_type: str, close: str
) -> None:
    expected = (
        rf"mlx-lm has no model of the type '{model_type}', which model is: version [0-9.]+ runs "
        rf"1[0-9][0-9] types, such as .*{close}.*; a newer one may run it"
    )
    with pytest.raises(CheckpointError, match=expected) as raised:
        check_source(folder_of(tmp_path, {"model_type": model_type}))
    assert len(str(raised.value)) < 250


@pytest.mark.parametrize(
    "model_type", ["cache", "../llama", "llama.llama", "x" * 500, ..., 7, None, "", ["llama"]]
)
def test_type_that_is_no_name_of_a_model_is_refused(tmp_path: Path, model_type: Any) -> None:
    with pytest.raises(CheckpointError, match="mlx-lm has no model of the type") as raised:
        check_source(folder_of(tmp_path, {"model_type": model_type}))
    assert len(str(raised.value)) < 300


def test_type_whose_module_ends_the_program_is_refused_like_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlx_lm.models.olmo2")
    if "olmo" in runnable_types():
        pytest.skip("ai2-olmo is installed")
    with pytest.raises(CheckpointError, match=r"type 'olmo', .* such as olmo"):
        check_source(folder_of(tmp_path, {"model_type": "olmo"}))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_file": "evil.py"}, "brings its own model code, which is never run"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "already quantized for MLX"),
        ({"quantization_config": {"bits": 4, "group_size": 64}}, "already quantized for MLX"),
        (
            {"speculators_model_type": "eagle3"},
            r"is a speculators EAGLE-3 head: to convert it, name",
        ),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, and there are 1 tensors"),
        ({"n_layers": 2}, "n_layers is 2, and there are 1 tensors"),
        (
            {"text_config": {"num_hidden_layers": 10**9}},
            "num_hidden_layers is 1000000000, and there are 1 tensors",
        ),
    ],
)
def test_target_that_cannot_be_converted_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_source(folder_of(tmp_path, changes))


@pytest.mark.parametrize(
    "settings",
    [{"quant_method": name, "bits": 4} for name in ("gptq", "bitsandbytes", "hqq", "\x1b[31m")]
    + [{"bits": 4}, {"quant_method": ["awq"]}, {"quant_method": None}, "awq", [1]],
)
def test_quantization_that_mlx_lm_does_not_read_is_refused_by_name(
    tmp_path: Path, settings: Any
) -> None:
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    named = repr(method) if isinstance(method, str) else ""
    with pytest.raises(CheckpointError, match="is quantized by the method .*16-bit") as raised:
        check_source(folder_of(tmp_path, {"quantization_config": settings}))
    assert named in str(raised.value)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("where", ["config", "text_config", "hf_quant_config.json"])
def test_quantization_is_found_wherever_mlx_lm_looks_for_it(tmp_path: Path, where: str) -> None:
    changes = {"config": {"quantization_config": AWQ}}.get(where, {})
    if where == "text_config":
        changes = {"text_config": {"quantization_config": AWQ}}
    folder = folder_of(tmp_path, changes)
    if where == "hf_quant_config.json":
        (folder / where).write_text(json.dumps(AWQ))
    assert check_source(folder) == Source("model", "awq")


@pytest.mark.parametrize(
    ("model_type", "settings", "is_read"),
    [
        ("deepseek_v3", {"weight_block_size": [128, 128]}, True),
        ("kimi_k2", {"weight_block_size": [128, 128]}, True),
        ("deepseek_v3", {"weight_block_size": [64, 64]}, False),
        ("deepseek_v3", {}, False),
        ("llama", {"weight_block_size": [128, 128]}, False),
        ("ministral3", {"weight_block_size": [128, 128]}, False),
        ("llama", {"weight_block_size": [32, 32], "scale_fmt": "ue8m0"}, True),
        ("llama", {"weight_block_size": [32, 32]}, False),
    ],
)
def test_float8_is_let_through_only_where_mlx_lm_decodes_it(
    tmp_path: Path, model_type: str, settings: dict[str, Any], is_read: bool
) -> None:
    fp8 = {"quantization_config": {"quant_method": "fp8", **settings}}
    folder = folder_of(tmp_path, {"model_type": model_type, **fp8})
    if is_read:
        assert check_source(folder).method == "fp8"
    else:
        with pytest.raises(CheckpointError, match=f"'fp8', .* and not for '{model_type}'"):
            check_source(folder)


def test_float8_weights_without_a_word_about_their_scales_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {})
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    data = len(header).to_bytes(8, "little") + header + b"\x38\x40\x44\x48"
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="has float8 weights, and no quantization_config"):
        check_source(folder)
