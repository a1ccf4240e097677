"""What a target's files say is what runs (reports: mlx-lm 1563, mlx-vlm 459, vllm 6595, ...).

PyTorch's own continuation is the oracle where transformers makes the files; elsewhere the model
that the files were written from.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from runpy import run_path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step

import mlx_eagle
from cases import narrowed
from mlx_eagle.convert.targets import convert_target
from mlx_eagle.errors import CheckpointError
from mlx_eagle.hub.packaged import DEMO
from mlx_eagle.target.load import LoadedTarget, load_network
from mlx_eagle.target.positions import is_rope
from mlx_eagle.target.ropes import measured_rotation
from mlx_eagle.target.windows import unkept_window

PROMPT = mx.array([[5, 9, 2, 30, 41, 17]])
N_TOKENS = 24
# An output layer of its own, a scaling, a part that is rotated, two kinds of layers, and experts in
# a layout with a rope that mlx-lm does not read.
KINDS = ("llama_own_output_layer", "llama3_scaling", "phi3_partial", "gemma3_text", "gpt_oss")
REST = (
    "llama",
    "llama_tied",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "mixtral",
    "cohere",
    "stablelm",
)
MADE = narrowed((*KINDS, *REST), ("llama_own_output_layer", "gemma3_text", "gpt_oss"))
CONVERTED = narrowed((*KINDS, *REST), ("gpt_oss",))


@pytest.fixture(scope="module")
def made(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny target as transformers 5 saves it, with PyTorch's continuation beside it."""
    pytest.importorskip("torch", reason="PyTorch is the oracle")
    script = run_path(str(fixtures / "transformers5" / "make.py"))
    place = tmp_path_factory.mktemp("made")

    def make(name: str) -> Path:
        if not (place / name).exists():
            script["make"](place, name, *script["CASES"][name])
        return place / name

    return make


def continuation(loaded: LoadedTarget, prompt: list[int], n_tokens: int = N_TOKENS) -> list[int]:
    loaded.network.set_dtype(mx.float32)
    steps = generate_step(mx.array(prompt), loaded.network, max_tokens=n_tokens)
    return [int(token) for token, _ in steps]


@pytest.mark.torch
@pytest.mark.parametrize("name", MADE)
def test_a1_a_target_saved_by_transformers_5_answers_as_in_pytorch(
    name: str, made: Callable[[str], Path]
) -> None:
    folder = made(name)
    oracle = json.loads((folder / "oracle.json").read_text())
    loaded = load_network(folder)
    assert loaded.max_context is None
    assert continuation(loaded, oracle["prompt"]) == oracle["tokens"]


@pytest.mark.torch
@pytest.mark.parametrize("name", CONVERTED)
def test_a1_converted_it_answers_as_in_pytorch_too(
    name: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = made(name)
    oracle = json.loads((folder / "oracle.json").read_text())
    convert_target(folder, tmp_path / "out", dtype="float32")
    assert continuation(load_network(tmp_path / "out"), oracle["prompt"]) == oracle["tokens"]


@pytest.mark.torch
def test_a5_a_window_that_the_class_ignores_limits_the_context_and_is_told(
    made: Callable[[str], Path],
) -> None:
    folder = made("mistral_window")
    loaded = load_network(folder)
    assert loaded.max_context == 16
    assert loaded.remarks == (
        "context limited to 16 tokens: mlx-lm's class does not keep the sliding window of "
        "config.json",
    )
    engine = mlx_eagle.load(folder, "none")
    assert engine.limits.max_context == 16
    assert engine.info.remarks == loaded.remarks
    result = engine.generate([5, 9, 30], max_tokens=40, ignore_eos=True)
    assert result.stats.prompt_tokens + len(result.tokens) == 16


@pytest.mark.parametrize("is_windowed", [True, False])
def test_a5_a_window_that_the_class_keeps_limits_nothing(
    is_windowed: bool, publish: Callable[..., Path]
) -> None:
    kinds = ["sliding_attention", "full_attention"] * 2 if is_windowed else ["full_attention"] * 4
    folder = publish("llama", sliding_window=16, layer_types=kinds)
    assert load_network(folder).max_context is None


@pytest.mark.parametrize(("period", "limit"), [(2, None), (3, 8)])
def test_a5_a_pattern_tells_which_layers_have_the_window(
    period: int, limit: int | None, publish: Callable[..., Path]
) -> None:
    """Gemma 3 has no list of layers: the class goes by the pattern, in its file one of 2."""
    folder = publish("gemma3_text")
    network, config, *_ = load_network(folder)
    assert config["sliding_window_pattern"] == 2 and "layer_types" not in config
    assert unkept_window(network, config | {"sliding_window_pattern": period}) == limit


def test_a2_a_file_with_an_output_layer_of_its_own_is_not_tied(
    publish: Callable[..., Path],
) -> None:
    for said in (True, None):
        folder = publish("llama", name=f"tied-{said}", tie_word_embeddings=said)
        own = mx.load(str(folder / "model.safetensors"))["lm_head.weight"]
        network = load_network(folder).network
        assert mx.array_equal(network.lm_head.weight, own)


def test_a2_an_output_layer_that_is_the_embedding_once_more_may_be_tied(
    publish: Callable[..., Path],
) -> None:
    folder = publish("llama", tie_word_embeddings=True)
    tensors = dict(mx.load(str(folder / "model.safetensors")))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    assert not hasattr(load_network(folder).network, "lm_head")


def test_a2_a_tensor_that_would_vanish_is_refused_by_name(
    publish: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class that drops what it has no place for, as some of mlx-lm's do."""
    folder, name = publish("llama"), "model.layers.1.mlp.gate.bias"

    def sanitize(self: nn.Module, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        return {key: array for key, array in weights.items() if key != name}

    monkeypatch.setattr("mlx_lm.models.llama.Model.sanitize", sanitize)
    add_tensor(folder, name, mx.ones(4))
    with pytest.raises(CheckpointError, match=f"leaves out 1 tensors of target.*'{name}'"):
        load_network(folder)


def test_a2_what_no_text_depends_on_may_vanish(publish: Callable[..., Path]) -> None:
    folder = publish("llama")
    expected = load_network(folder).network(PROMPT)
    mx.eval(expected)  # before its file is replaced
    add_tensor(folder, "model.layers.0.self_attn.rotary_emb.inv_freq", mx.ones(8))
    assert mx.array_equal(load_network(folder).network(PROMPT), expected)


def test_a1_layers_without_rope_stay_without(publish: Callable[..., Path]) -> None:
    facts = {"rope_type": "default", "rope_theta": 5e5}
    folder = publish("smollm3", rope_parameters=facts, no_rope_layers=[1, 0, 1, 0])
    layers = load_network(folder).network.layers
    angles = [len(measured_rotation(layer.self_attn.rope).angles) for layer in layers[::2]]
    assert angles == [8, 8]
    assert [is_rope(layer.self_attn.rope) for layer in layers[1::2]] == [True, True]
    x = mx.ones((1, 1, 2, 16))
    assert all(mx.array_equal(layer.self_attn.rope(x, offset=3), x) for layer in layers[1::2])


def test_a3_a_left_over_file_beside_an_index_is_not_read(publish: Callable[..., Path]) -> None:
    folder = publish("llama")
    expected = load_network(folder).network(PROMPT)
    tensors = dict(mx.load(str(folder / "model.safetensors")))
    mx.save_safetensors(str(folder / "model-00001-of-00001.safetensors"), tensors)
    zeros = {name: mx.zeros_like(array) for name, array in tensors.items()}
    mx.save_safetensors(str(folder / "model-old.safetensors"), zeros)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert mx.array_equal(load_network(folder).network(PROMPT), expected)


def test_a6_a_whole_file_comes_before_a_stale_index(
    publish: Callable[..., Path], tmp_path: Path
) -> None:
    folder = publish("llama")
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    expected = load_network(folder).network(PROMPT)
    convert_target(folder, tmp_path / "out")
    assert mx.array_equal(load_network(tmp_path / "out").network(PROMPT), expected)


def test_a8_a_download_that_is_incomplete_is_called_so(publish: Callable[..., Path]) -> None:
    folder = publish("llama")
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks .*00001-of-00002.* download is incomplete"):
        mlx_eagle.load(folder, "none")


def test_a4_weights_that_do_not_fit_the_type_are_refused_by_name(
    publish: Callable[..., Path], tmp_path: Path
) -> None:
    folder = publish("llama", torch_dtype="float16")
    add_tensor(folder, "model.norm.weight", mx.full((64,), 1e6))
    with pytest.raises(CheckpointError, match=r"1 tensors .*'model\.norm\.weight'.*bfloat16"):
        convert_target(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert_target(folder, tmp_path / "out", dtype="bfloat16")


def test_weights_of_pytorch_are_sent_to_the_converter(publish: Callable[..., Path]) -> None:
    folder = publish("llama")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="convert it first"):
        load_network(folder)


def add_tensor(folder: Path, name: str, array: mx.array) -> None:
    file = folder / "model.safetensors"
    mx.save_safetensors(str(file), dict(mx.load(str(file))) | {name: array})


@pytest.fixture
def publish(tmp_path: Path, tiny_target: Callable[..., nn.Module]) -> Callable[..., Path]:
    """Write a tiny random target as a folder; keys that are None are left out of its config."""

    def write(architecture: str, *, name: str = "target", **changes: Any) -> Path:
        model = tiny_target(architecture)
        folder = tmp_path / name
        folder.mkdir()
        for file in DEMO.glob("target/token*.json"):
            shutil.copyfile(file, folder / file.name)
        config = vars(model.args) | changes
        config = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config))
        tensors = dict(tree_flatten(model.parameters()))
        mx.save_safetensors(str(folder / "model.safetensors"), tensors)
        return folder

    return write
