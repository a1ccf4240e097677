"""Targets that other libraries quantized: kept or decoded where mlx-lm reads them, else refused."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_eagle
from mlx_eagle.convert.checkpoint import read_manifest
from mlx_eagle.convert.quantization import Quantization, choose_quantization
from mlx_eagle.convert.targets import convert_target
from mlx_eagle.errors import CheckpointError

PROMPT = mx.array([[5, 99, 102, 7, 40, 12]])
DEMO = Path(mlx_eagle.__file__).parent / "demo" / "target"
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_hidden_layers": 2}
EIGHT_BITS = choose_quantization(bits=8)
Tensors = dict[str, mx.array]


def save_source(folder: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    """Write a target as Hugging Face has it."""
    folder.mkdir()
    for file in DEMO.glob("token*.json"):
        shutil.copyfile(file, folder / file.name)
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "pt"})
    return folder


def logits(folder: Path) -> mx.array:
    """Return the logits [1, L, V] of PROMPT, by mlx-lm's own loader."""
    from mlx_lm import load

    model, _ = load(str(folder))
    return model(PROMPT)


def error(found: mx.array, expected: mx.array) -> float:
    """Return the largest difference as a part of the largest value."""
    difference: float = (mx.abs(found - expected).max() / mx.abs(expected).max()).item()
    return difference


@pytest.fixture
def llama(tiny_target: Callable[..., nn.Module]) -> tuple[dict[str, Any], Tensors]:
    """Configuration and float32 weights of a tiny llama."""
    model = tiny_target("llama", **WIDE)
    return dataclasses.asdict(model.args), dict(tree_flatten(model.parameters()))


def _pack_awq(weight: np.ndarray) -> dict[str, np.ndarray]:
    """Quantize [rows, columns] float32 to 4 bits in groups of 128 as AutoAWQ stores it."""
    groups = weight.reshape(weight.shape[0], -1, 128)
    low, high = groups.min(-1), groups.max(-1)
    scales = ((high - low) / 15).astype(np.float16).astype(np.float32)  # [rows, n_groups]
    zeros = np.clip(np.round(-low / scales), 0, 15)
    values = np.clip(np.round(groups / scales[..., None]) + zeros[..., None], 0, 15)
    packed = {"qweight": values.reshape(weight.shape).T, "qzeros": zeros.T}
    words = {name: _pack_words(value.astype(np.uint32)) for name, value in packed.items()}
    again = ((values - zeros[..., None]) * scales[..., None]).reshape(weight.shape)
    return words | {"scales": scales.T.astype(np.float16), "again": again.astype(np.float32)}


def _pack_words(values: np.ndarray) -> np.ndarray:
    """Pack eight columns into a word, in AutoAWQ's order."""
    octets = values.reshape(values.shape[0], -1, 8)
    words = np.zeros(octets.shape[:2], dtype=np.uint32)
    for place, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        words |= octets[..., column] << np.uint32(4 * place)
    return words.view(np.int32)


def pack(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Return what AutoAWQ makes of weights, in float16, and what that stands for, in float32."""
    packed, decoded = {}, dict(tensors)
    for name, value in tensors.items():
        if "_proj.weight" not in name:
            packed[name] = value.astype(mx.float16)
            decoded[name] = packed[name].astype(mx.float32)
            continue
        parts = _pack_awq(np.array(value))
        decoded[name] = mx.array(parts.pop("again"))
        packed |= {name.replace("weight", key): mx.array(part) for key, part in parts.items()}
    return packed, decoded


@pytest.mark.parametrize("quantization", [None, EIGHT_BITS])
def test_awq_weights_stay_as_they_are_and_the_rest_is_quantized(
    llama: tuple[dict[str, Any], Tensors], tmp_path: Path, quantization: Quantization | None
) -> None:
    config, tensors = llama
    packed, decoded = pack(tensors)
    expected = logits(save_source(tmp_path / "decoded", config, decoded))
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}
    source = save_source(tmp_path / "source", config | {"quantization_config": awq}, packed)
    convert_target(source, tmp_path / "out", quantization, dtype="float32")
    manifest = read_manifest(tmp_path / "out")
    assert manifest["model.layers.0.self_attn.q_proj.weight"].shape == (128, 16)
    assert ("lm_head.scales" in manifest) == (quantization is not None)
    # mlx-lm rounds the product of zero point and scale to 16 bits.
    assert error(logits(tmp_path / "out"), expected) < (2e-3 if quantization is None else 0.03)


@pytest.mark.parametrize("has_order", [True, False])
def test_gptq_is_refused_since_mlx_lm_would_read_it_as_awq(
    llama: tuple[dict[str, Any], Tensors], tmp_path: Path, has_order: bool
) -> None:
    config, tensors = llama
    for name in [n for n in tensors if "_proj.weight" in n]:
        rows, columns = tensors.pop(name).shape
        packed = {"qweight": mx.zeros((columns // 8, rows), mx.int32)}
        packed |= {"qzeros": mx.zeros((columns // 128, rows // 8), mx.int32)}
        packed |= {"scales": mx.ones((columns // 128, rows), mx.float16)}
        if has_order:
            packed |= {"g_idx": mx.arange(columns, dtype=mx.int32) // 128}
        tensors |= {name.replace("weight", key): value for key, value in packed.items()}
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    source = save_source(tmp_path / "source", config, tensors)
    with pytest.raises(ValueError, match="g_idx" if has_order else "number of bits 0"):
        logits(source)
    with pytest.raises(CheckpointError, match="is quantized by the method 'gptq', .* 16-bit"):
        convert_target(source, tmp_path / "out")


def pack_experts(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Return gpt_oss weights with mxfp4 experts as published, and what those stand for."""
    packed = {name: value for name, value in tensors.items() if ".experts." not in name}
    decoded = dict(tensors)
    for layer in range(WIDE["num_hidden_layers"]):
        stem = f"model.layers.{layer}.mlp.experts"
        gate, up, down = (f"{stem}.{part}_proj" for part in ("gate", "up", "down"))
        for kind in ("weight", "bias"):
            both = [tensors[f"{part}.{kind}"] for part in (gate, up)]
            turns = mx.stack(both, axis=2).flatten(1, 2)  # [E, 2 * M, D]: gate and up in turn
            if kind == "bias":
                packed |= {f"{stem}.gate_up_proj_bias": turns}
                packed |= {f"{stem}.down_proj_bias": tensors[f"{down}.bias"]}
                continue
            parts, again = _pack_mxfp4(f"{stem}.gate_up_proj", turns)
            decoded |= {f"{gate}.weight": again[:, ::2], f"{up}.weight": again[:, 1::2]}
            down_parts, decoded[f"{down}.weight"] = _pack_mxfp4(
                f"{stem}.down_proj", tensors[f"{down}.weight"]
            )
            packed |= parts | down_parts
    return packed, decoded


def _pack_mxfp4(name: str, weight: mx.array) -> tuple[Tensors, mx.array]:
    """Return blocks and scales of weights [E, rows, columns], and what they stand for."""
    words, scales = mx.quantize(weight, mode="mxfp4")
    blocks = words.view(mx.uint8).reshape(*weight.shape[:2], -1, 16)
    again = mx.dequantize(words, scales, mode="mxfp4", dtype=mx.float32)
    return {f"{name}_blocks": blocks, f"{name}_scales": scales}, again


def test_mxfp4_experts_of_gpt_oss_stay_as_they_are_and_the_rest_is_quantized(
    tmp_path: Path, tiny_target: Callable[..., nn.Module]
) -> None:
    model = tiny_target("gpt_oss", **(WIDE | {"intermediate_size": 64}))
    config = dataclasses.asdict(model.args)
    packed, decoded = pack_experts(dict(tree_flatten(model.parameters())))
    expected = logits(save_source(tmp_path / "decoded", config, decoded))
    config["quantization_config"] = {"quant_method": "mxfp4"}
    convert_target(save_source(tmp_path / "source", config, packed), tmp_path / "full")
    assert error(logits(tmp_path / "full"), expected) < 1e-5
    convert_target(tmp_path / "source", tmp_path / "out", EIGHT_BITS)
    written = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert written["mode"] == "mxfp4"
    assert written["lm_head"] == {"bits": 8, "group_size": 64, "mode": "affine"}
    assert error(logits(tmp_path / "out"), expected) < 0.03


def _call_float8(file: Path) -> None:
    """Let a header call bytes float8, as publishers do: MLX writes none."""
    data = file.read_bytes()
    n_header = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + n_header].replace(b'"U8"', b'"F8_E4M3"')
    assert len(header) > n_header
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + n_header :])


def test_float8_blocks_are_decoded_where_mlx_lm_does_it(tmp_path: Path) -> None:
    from mlx_lm.models.minimax import Model, ModelArgs

    sizes = {"hidden_size": 256, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 64}
    sizes |= {"num_key_value_heads": 2, "num_experts_per_tok": 1, "num_local_experts": 2}
    sizes |= {"shared_intermediate_size": 128, "num_hidden_layers": 1, "rotary_dim": 32}
    config = {"model_type": "minimax", "max_position_embeddings": 512, "vocab_size": 128, **sizes}
    config |= {"rms_norm_eps": 1e-5, "rope_theta": 1e4}
    mx.random.seed(1)
    plain = dict(tree_flatten(Model(ModelArgs.from_dict(config)).parameters()))
    published: Tensors = {}
    for name in [n for n in plain if "self_attn" in n and n.endswith("_proj.weight")]:
        rows, columns = plain[name].shape
        scales = mx.random.uniform(0.5, 2, (rows // 128, columns // 128))
        words = mx.to_fp8(plain[name])
        spread = mx.repeat(mx.repeat(scales, 128, axis=0), 128, axis=1)
        plain[name] = (mx.from_fp8(words, dtype=mx.bfloat16) * spread).astype(mx.bfloat16)
        published |= {name: words, f"{name}_scale_inv": scales}
    expected = logits(save_source(tmp_path / "decoded", config, plain))
    method = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config["quantization_config"] = method
    source = save_source(tmp_path / "source", config, plain | published)
    _call_float8(source / "model.safetensors")
    convert_target(source, tmp_path / "out", dtype="float32")
    assert error(logits(tmp_path / "out"), expected) < 1e-5


def test_result_that_mlx_lm_cannot_load_is_an_error_and_leaves_nothing(
    llama: tuple[dict[str, Any], Tensors], tmp_path: Path
) -> None:
    config, tensors = llama
    for name in [n for n in tensors if "_proj.weight" in n]:
        rows, columns = tensors[name].shape
        tensors[name] = mx.zeros((rows // 4, columns), mx.uint8)  # four ternary weights in a byte
        tensors[f"{name}_scale"] = mx.ones(1)
    bitnet = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}
    source = save_source(tmp_path / "source", config | {"quantization_config": bitnet}, tensors)
    # mlx-lm's converter forgets the method where it quantizes the rest, and says nothing.
    with pytest.raises(CheckpointError, match="not in model.* is quantized as bitnet: convert its"):
        convert_target(source, tmp_path / "out", EIGHT_BITS)
    assert [item.name for item in tmp_path.iterdir()] == ["source"]
    convert_target(source, tmp_path / "out")
