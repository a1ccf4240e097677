"""Multi-token prediction layers of every family and form against PyTorch."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mtp_files
from mlx_eagle.convert.checkpoint import read_manifest
from mlx_eagle.convert.heads import convert_head
from mlx_eagle.convert.identify import identify_kind
from mlx_eagle.convert.mtp.extract import LocalCheckpoint, find_layer, write_layer
from mlx_eagle.errors import CheckpointError
from mlx_eagle.heads.load import load_head
from mlx_eagle.heads.mtp import MtpHead
from mlx_eagle.hub.native_mtp import norm_settings

L, STEPS = 9, 3
rng = np.random.default_rng(1)
HIDDEN = rng.standard_normal((L, mtp_files.H)).astype(np.float32)
EMBEDDINGS = rng.standard_normal((L + STEPS, mtp_files.H)).astype(np.float32)
OUTPUT = rng.standard_normal((mtp_files.V, mtp_files.H)).astype(np.float32)


def extracted(source: Path, out: Path) -> Path:
    checkpoint = LocalCheckpoint(source, source.name)
    write_layer(checkpoint, find_layer(checkpoint), out)
    return out


def target_folder(folder: Path, family: str) -> Path:
    return mtp_files.save(folder, {}, mtp_files.CONFIGS[family])


def logits(head: MtpHead) -> np.ndarray:
    """Logits [L + STEPS, V] over a text and STEPS steps, as a drafter runs it."""
    cache, found = head.make_cache(), []
    out = head(mx.array(HIDDEN)[None], mx.array(EMBEDDINGS[:L])[None], cache)
    cache.commit(range(L))
    found.append(out.normed[0])
    for i in range(L, L + STEPS):
        out = head(out.feedback[:, -1:], mx.array(EMBEDDINGS[i : i + 1])[None], cache)
        found.append(out.normed[0])
    return np.array(mx.concatenate(found) @ mx.array(OUTPUT).T)


def reference(family: str, layer: dict[str, np.ndarray]) -> np.ndarray:
    torch = pytest.importorskip("torch")
    from mtp_reference import Reference

    tensors = {name: torch.from_numpy(value) for name, value in layer.items()}
    model = Reference(
        mtp_files.text_config(family),
        tensors,
        zero_centred=family in mtp_files.ZERO_CENTRED,
        hidden_first=family == "mimo",
    )
    out = model.run(torch.from_numpy(HIDDEN), torch.from_numpy(EMBEDDINGS), STEPS)
    return (out @ torch.from_numpy(OUTPUT).T).numpy()


def check(
    source: Path,
    tmp_path: Path,
    family: str,
    layer: dict[str, np.ndarray],
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Convert a layer and compare its logits with PyTorch's; returns the head's configuration."""
    target = target_folder(tmp_path / "target", family)
    config = convert_head(source, target, tmp_path / "head", bits=None, settings=settings)
    head = load_head(tmp_path / "head")
    assert isinstance(head, MtpHead)
    found, expected = logits(head), reference(family, layer)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    return config


@pytest.mark.torch
@pytest.mark.parametrize("family", list(mtp_files.CONFIGS))
def test_a_layer_of_an_original_checkpoint_gives_pytorchs_logits(
    family: str, tmp_path: Path
) -> None:
    layer = mtp_files.random_layer(family)
    original = mtp_files.save_original(tmp_path / "original", family, layer)
    config = check(extracted(original, tmp_path / "layer"), tmp_path, family, layer)
    assert config["taps"] == [mtp_files.N + 1] and config["norm_output"]
    assert config["doubts"] == {}


@pytest.mark.torch
@pytest.mark.parametrize("family", ["qwen3_5_moe", "qwen3_next"])
def test_fused_experts_give_pytorchs_logits(family: str, tmp_path: Path) -> None:
    layer = mtp_files.random_layer(family)
    original = mtp_files.save_original(tmp_path / "original", family, mtp_files.fused(layer))
    check(extracted(original, tmp_path / "layer"), tmp_path, family, layer)


def cases() -> list[Any]:
    """Every form with norms in every state; by default each of either once."""
    forms, states = ("standalone", "quantized", "sidecar", "embedded"), ("raw", "shifted", "mixed")
    return [
        pytest.param(form, norms, marks=[] if (i + j) % 3 == 0 else pytest.mark.broad)
        for i, form in enumerate(forms)
        for j, norms in enumerate(states)
    ]


@pytest.mark.torch
def test_fp8_blocks_are_multiplied_by_their_scales(tmp_path: Path) -> None:
    packed, values = mtp_files.in_fp8(mtp_files.random_layer("glm4_moe"))
    original = mtp_files.save_original(tmp_path / "original", "glm4_moe", packed)
    check(extracted(original, tmp_path / "layer"), tmp_path, "glm4_moe", values)


@pytest.mark.torch
@pytest.mark.parametrize(("form", "norms"), cases())
def test_copies_for_mlx_give_pytorchs_logits_whatever_their_norms_are(
    form: str, norms: str, tmp_path: Path
) -> None:
    family = "qwen3_5"
    layer = mtp_files.random_layer(family)
    original = mtp_files.save_original(tmp_path / "original", family, layer)
    stored, start = {"raw": (layer, "no norm"), "shifted": (layer, ""), "mixed": (layer, "norm")}[
        norms
    ]
    stored = mtp_files.with_ones(stored, start)
    if form == "quantized":
        packed, layer = mtp_files.quantized(stored, 4)
        layer |= {n: a for n, a in mtp_files.random_layer(family).items() if a.ndim == 1}
        settings = {"group_size": 32, "bits": 4}
        source = mtp_files.save_standalone(tmp_path / "copy", family, packed, quantization=settings)
    elif form == "standalone":
        source = mtp_files.save_standalone(tmp_path / "copy", family, stored)
    elif form == "sidecar":
        copy = mtp_files.save_sidecar(tmp_path / "copy", family, stored)
        source = extracted(copy, tmp_path / "layer")
    else:
        model = mtp_files.make_target(family)
        copy = mtp_files.save_target(tmp_path / "copy", family, model, stored)
        source = extracted(copy, tmp_path / "layer")
    told: list[str] = []
    settings = norm_settings(source, original, told.append)
    config = check(source, tmp_path, family, layer, settings)
    summed = {"raw": 7, "shifted": 0, "mixed": 6}[norms]
    assert len(config["norms_summed"]) == summed and told == []
    assert config["origins"]["norms_summed"] == f"compared with the norms of {original}"
    assert config["doubts"] == {}


def test_norms_of_a_copy_that_nothing_is_compared_with_are_in_doubt(tmp_path: Path) -> None:
    source = mtp_files.save_standalone(
        tmp_path / "copy", "qwen3_5", mtp_files.random_layer("qwen3_5")
    )
    target = target_folder(tmp_path / "target", "qwen3_5")
    config = convert_head(source, target, tmp_path / "head", bits=None)
    assert config["norms_summed"] == []
    assert len(config["doubts"]["norms_summed"]["alternatives"]) == 2


def test_norms_of_another_model_are_refused(tmp_path: Path) -> None:
    layer = mtp_files.random_layer("qwen3_5")
    original = mtp_files.save_original(tmp_path / "original", "qwen3_5", layer)
    layer["norm.weight"] = layer["norm.weight"] + 0.5
    source = mtp_files.save_standalone(tmp_path / "copy", "qwen3_5", layer)
    with pytest.raises(CheckpointError, match=r"no copy of the one in .*original: norm\.weight"):
        norm_settings(source, original, lambda line: None)


def test_gains_stay_in_float32_beside_16_bits(tmp_path: Path) -> None:
    layer = mtp_files.random_layer("qwen3_5")
    layer["norm.weight"] = np.full(mtp_files.H, 2.0**-10, np.float32)
    original = mtp_files.save_original(tmp_path / "original", "qwen3_5", layer)
    source = extracted(original, tmp_path / "layer")
    convert_head(source, target_folder(tmp_path / "t", "qwen3_5"), tmp_path / "head", bits=8)
    head = load_head(tmp_path / "head")
    head.set_dtype(mx.bfloat16)
    assert head.norm.weight[0].item() == 1 + 2.0**-10
    out = head(
        mx.zeros((1, 1, 64), mx.bfloat16), mx.ones((1, 1, 64), mx.bfloat16), head.make_cache()
    )
    assert out.normed.dtype == mx.bfloat16


REFUSED = {
    "no layer though announced": ({}, {}, "config.json announces one, and no file holds it"),
    "several layers": (
        {},
        {"mtp.layers.1.input_layernorm.weight": (64,)},
        "a layer for every step",
    ),
    "half a layer": ({}, {"mtp.fc.weight": (64, 128)}, "not a whole layer of Qwen3.5"),
    "another width": ({"hidden_size": 48}, None, "hidden size 64, not 48"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_such_layer_is_refused_by_name(case: str, tmp_path: Path) -> None:
    changes, tensors, message = REFUSED[case]
    layer = mtp_files.random_layer("qwen3_5")
    named = {f"mtp.{name}": value for name, value in layer.items()}
    if tensors is not None:
        keeps = case == "several layers"
        named = (named if keeps else {}) | {n: np.ones(s, np.float32) for n, s in tensors.items()}
    files = {"model.safetensors": named | {"model.norm.weight": np.ones(4, np.float32)}}
    source = mtp_files.save(tmp_path / "source", files, mtp_files.CONFIGS["qwen3_5"], format="pt")
    target = mtp_files.save(tmp_path / "target", {}, mtp_files.text_config("qwen3_5") | changes)
    with pytest.raises(CheckpointError, match=message):
        convert_head(extracted(source, tmp_path / "layer"), target, tmp_path / "head", bits=None)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [("nemotron_h", "two half layers"), ("deepseek_v4", "several streams"), ("step3p5", "own for")],
)
def test_families_that_are_not_run_are_refused_by_name(
    model_type: str, reason: str, tmp_path: Path
) -> None:
    config = mtp_files.text_config("qwen3_5") | {"model_type": model_type}
    source = mtp_files.save(tmp_path / "s", {"model.safetensors": {"mtp.a": np.ones(4)}}, config)
    kind = identify_kind(config, read_manifest(source))
    assert kind.role == "head" and kind.dialect is None and reason in kind.refusal
