"""Heads: what is published goes in, what `heads/load.py` loads comes out, or one clear error."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_eagle.convert.draft_ids import draft_to_target
from mlx_eagle.convert.heads import convert_head
from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.files.plain_files import hash_file
from mlx_eagle.heads.config import FORMAT_VERSION, MODEL_TYPE, HeadConfig
from mlx_eagle.heads.load import load_head

H, MLP, V, W, LAYERS = 64, 96, 48, 16, 9
TARGET = {"model_type": "llama", "hidden_size": H, "num_hidden_layers": LAYERS, "vocab_size": V}
HEAD = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": H,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 40,  # published configurations lie about this
    "vocab_size": V,
    "draft_vocab_size": W,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
IDS = np.array([1, 2, 3, 5, 8, 9, 13, 14, 21, 22, 30, 31, 34, 40, 44, 47])


def published_tensors() -> dict[str, mx.array]:
    """Return a random head under the names of SafeAILab."""
    shapes = {
        "fc.weight": (H, 3 * H),
        "midlayer.hidden_norm.weight": (H,),
        "midlayer.input_layernorm.weight": (H,),
        "midlayer.post_attention_layernorm.weight": (H,),
        "midlayer.self_attn.q_proj.weight": (128, 2 * H),  # head_dim 32, twice what h / 4 gives
        "midlayer.self_attn.k_proj.weight": (64, 2 * H),
        "midlayer.self_attn.v_proj.weight": (64, 2 * H),
        "midlayer.self_attn.o_proj.weight": (H, 128),
        "midlayer.mlp.gate_proj.weight": (MLP, H),
        "midlayer.mlp.up_proj.weight": (MLP, H),
        "midlayer.mlp.down_proj.weight": (H, MLP),
        "norm.weight": (H,),
        "lm_head.weight": (W, H),
    }
    mx.random.seed(0)
    tensors = {name: mx.random.normal(shape).astype(mx.float16) for name, shape in shapes.items()}
    marks = np.isin(np.arange(V), IDS)
    return tensors | {"d2t": mx.array(IDS - np.arange(W)), "t2d": mx.array(marks)}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return write_config(tmp_path / "target", TARGET)


@pytest.fixture
def convert(tmp_path: Path, target: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that writes a head with changes and converts it to `tmp_path / "out"`."""

    def run(
        config: dict[str, Any] | None = None,
        tensors: dict[str, mx.array | None] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        changed = published_tensors() | (tensors or {})
        source = write_config(tmp_path / "head", HEAD | (config or {}))
        kept = {name: array for name, array in changed.items() if array is not None}
        mx.save_safetensors(str(source / "model.safetensors"), kept)
        return convert_head(source, target, tmp_path / "out", **{"bits": None} | options)

    return run


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def ours(name: str) -> str:
    return name.replace("midlayer.", "layers.0.")


def test_unquantized_head_loads_with_the_published_bits(
    tmp_path: Path, convert: Callable[..., dict[str, Any]]
) -> None:
    written = convert()
    head = load_head(tmp_path / "out")
    found = dict(tree_flatten(head.parameters()))
    expected = {ours(k): v for k, v in published_tensors().items() if k not in ("d2t", "t2d")}
    assert set(found) == set(expected) | {"draft_to_target"}
    for name, array in expected.items():
        assert found[name].dtype == mx.float16
        assert mx.array_equal(found[name], array), name
    assert found["draft_to_target"].dtype == mx.int32
    assert found["draft_to_target"].tolist() == IDS.tolist()
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == written


def test_configuration_is_explicit_and_comes_from_shapes(
    tmp_path: Path,
    target: Path,
    convert: Callable[..., dict[str, Any]],
    head_config: HeadConfig,
) -> None:
    written = convert({"head_dim": 16, "intermediate_size": 7, "draft_vocab_size": 7})
    assert HeadConfig.from_dict(written) == replace(
        head_config,
        hidden_size=H,
        target_hidden_size=H,
        target_vocab_size=V,
        draft_vocab_size=W,
        intermediate_size=MLP,
        head_dim=32,
        rope_dims=32,
        taps=(2, 4, 6),
    )
    origins = written.pop("origins")
    assert set(origins) == set(HeadConfig.from_dict(written).to_dict())
    assert (origins["head_dim"], origins["rope_theta"]) == ("shape of q_proj", "default")
    rest = set(written) - set(HeadConfig.from_dict(written).to_dict())
    assert {key: written[key] for key in rest} == {
        "model_type": MODEL_TYPE,
        "format_version": FORMAT_VERSION,
        "quantization": None,
        "doubts": {},
        "source": {
            "format": "safeailab-eagle3",
            "name": "head",
            "files": [
                {
                    "name": name,
                    "bytes": (tmp_path / "head" / name).stat().st_size,
                    "sha256": hash_file(tmp_path / "head" / name),
                }
                for name in ("config.json", "model.safetensors")
            ],
            "draft_to_target": "d2t, offsets",
        },
        "target": {
            "name": "target",
            "model_type": "llama",
            "num_hidden_layers": LAYERS,
            "hidden_size": H,
            "vocab_size": V,
            "rope_theta": None,
            "config_sha256": hash_file(target / "config.json"),
        },
    }
    assert str(tmp_path) not in json.dumps(written)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_head_has_every_linear_layer_quantized_as_mlx_does(
    tmp_path: Path, convert: Callable[..., dict[str, Any]], bits: int
) -> None:
    written = convert(bits=bits, group_size=32)
    assert written["quantization"] == {"group_size": 32, "bits": bits}
    found = dict(tree_flatten(load_head(tmp_path / "out").parameters()))
    for name, array in published_tensors().items():
        if name in ("d2t", "t2d"):
            continue
        layer = ours(name).removesuffix(".weight")
        expected = mx.quantize(array, 32, bits) if array.ndim == 2 else (array,)
        parts = [f"{layer}.{part}" for part in ("weight", "scales", "biases")]
        for part, value in zip(parts, expected, strict=False):
            assert mx.array_equal(found.pop(part), value), part
    assert set(found) == {"draft_to_target"}


def test_layer_that_does_not_divide_into_groups_is_refused_with_the_way_out(
    tmp_path: Path, convert: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(EagleError, match=r"96 inputs .* groups of 64: use a smaller group size"):
        convert(bits=4, group_size=64)
    with pytest.raises(EagleError, match="5 bits in groups of 32: use 4 or 8 bits"):
        convert(bits=5, group_size=32)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prefix", ["model.", "eagle_module.", "draft_model.", "module."])
def test_prefixes_of_wrappers_are_dropped(
    tmp_path: Path, convert: Callable[..., dict[str, Any]], prefix: str
) -> None:
    tensors = published_tensors()
    convert(tensors=dict.fromkeys(tensors) | {prefix + k: v for k, v in tensors.items()})
    found = dict(tree_flatten(load_head(tmp_path / "out").parameters()))
    assert mx.array_equal(found["fc.weight"], tensors["fc.weight"])


def test_all_unknown_missing_and_misshapen_tensors_are_in_one_error(
    tmp_path: Path, convert: Callable[..., dict[str, Any]]
) -> None:
    changes = {
        "midlayer.self_attn.q_norm.weight": mx.ones(32),
        "midlayer.self_attn.rotary.bias": mx.ones(128),
        "midlayer.mlp.up_proj.bias": mx.ones(MLP),
        "midlayer.mlp.up_proj.weight": None,
        "midlayer.self_attn.v_proj.weight": mx.ones((32, 128)),
        "midlayer.mlp.down_proj.weight": mx.ones((MLP, H)),
        "midlayer.hidden_norm.weight": mx.ones((H, 1)),
        "lm_head.weight": mx.ones((W, H), dtype=mx.int32),
        "d2t": mx.zeros(W),
        "model.fc.weight": mx.ones((H, 3 * H)),
    }
    with pytest.raises(CheckpointError) as caught:
        convert(tensors=changes)
    assert not (tmp_path / "out").exists()
    for problem in (
        "missing layers.0.self_attn.k_norm.weight",
        "unknown 'layers.0.self_attn.rotary.bias' [128]",
        "missing layers.0.mlp.down_proj.bias",
        "is a second fc.weight",
        "missing layers.0.mlp.up_proj.weight",
        "layers.0.self_attn.v_proj.weight has shape [32, 128], expected [64, 128]",
        "layers.0.mlp.down_proj.weight has shape [96, 64], expected [64, 96]",
        "layers.0.hidden_norm.weight has shape [64, 1], expected 1 axes",
        "lm_head.weight has the type I32, expected F16 or BF16 or F32",
        "d2t has the type F32, expected I64 or I32",
    ):
        assert problem in str(caught.value)


def test_weights_that_are_not_finite_are_refused_by_name(
    tmp_path: Path, convert: Callable[..., dict[str, Any]]
) -> None:
    tensors = published_tensors()
    tensors["norm.weight"][3] = float("nan")
    tensors["fc.weight"][0, 7] = float("-inf")
    with pytest.raises(CheckpointError, match=r"not finite numbers in fc\.weight, norm\.weight"):
        convert(tensors=tensors)
    assert list(tmp_path.glob("*out*")) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 32}, "the head is not for target: it has hidden size 64, not 32"),
        ({"vocab_size": 64}, "it has vocabulary 48, not 64"),
        ({"num_hidden_layers": 6}, r"taps are \[2, 3, 3\].*reads 3 of the boundaries 0 to 6"),
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
        ({"hidden_size": "64"}, "hidden_size is '64', not a positive integer"),
        ({"model_type": None}, "has no model_type"),
        ({"draft_vocab_size": 16}, "target is a draft head, not a target"),
    ],
)
def test_head_for_another_target_is_refused(
    tmp_path: Path, target: Path, convert: Callable[..., Any], changes: Any, message: str
) -> None:
    write_config(target, TARGET | changes)
    with pytest.raises(CheckpointError, match=message):
        convert()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("n_layers", [7, 8, 32, 80])
def test_taps_are_the_published_default_boundaries(
    target: Path, convert: Callable[..., dict[str, Any]], n_layers: int
) -> None:
    sizes = {**TARGET, "num_hidden_layers": n_layers}
    write_config(target, {"model_type": "gemma3", "text_config": sizes, "quantization": {}})
    assert convert()["taps"] == [2, n_layers // 2, n_layers - 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 3}, "3 query heads do not divide"),
        ({"num_attention_heads": None}, "num_attention_heads is missing"),
        ({"num_attention_heads": 1 << 40}, "not a positive integer"),
        ({"vocab_size": 49}, "it has vocabulary 49, not 48"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', not silu"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope scaling 'longrope'"),
        ({"rope_scaling": [1]}, "rope_scaling is not an object"),
    ],
)
def test_configuration_that_cannot_be_right_is_refused(
    convert: Callable[..., Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert(changes)


def test_rope_of_the_configuration_is_kept(
    convert: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    written = convert({"rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 2}})
    assert (written["rope_theta"], written["rope_scaling"]) == (
        500000.0,
        {"rope_type": "linear", "factor": 2.0},
    )
    assert load_head(tmp_path / "out").config.rope_theta == 500000.0


def test_other_kinds_of_heads_are_refused_by_name(convert: Callable[..., Any]) -> None:
    with pytest.raises(CheckpointError, match="DFlash 2 block head, not supported: it needs"):
        convert({"dflash_config": {}, "model_type": "dflash2"})


def test_targets_and_converted_heads_are_not_taken_for_heads(
    tmp_path: Path, target: Path, convert: Callable[..., Any]
) -> None:
    mx.save_safetensors(
        str(target / "model.safetensors"), {"model.layers.0.self_attn.q_proj.weight": mx.ones(2)}
    )
    with pytest.raises(CheckpointError, match="target is a target, not a draft head"):
        convert_head(target, target, tmp_path / "out")
    convert()
    with pytest.raises(CheckpointError, match="out is converted already"):
        convert_head(tmp_path / "out", target, tmp_path / "again")


OFFSETS = IDS - np.arange(W)
MARKS = np.isin(np.arange(V), IDS)


@pytest.mark.parametrize(
    ("d2t", "t2d", "origin"),
    [
        (OFFSETS, MARKS, "d2t, offsets"),
        (OFFSETS.astype(np.int32), None, "d2t, offsets"),
        (IDS, MARKS, "d2t, absolute ids"),
        (IDS, None, "d2t, absolute ids"),  # as offsets they would lead beyond the vocabulary
        (None, MARKS, "t2d"),
        (np.zeros(W, np.int64), MARKS, "t2d"),
        (np.arange(W), MARKS, "t2d"),
        (OFFSETS + V, MARKS, "t2d"),
        (np.full(W, -3), MARKS, "t2d"),
    ],
)
def test_draft_vocabulary_is_found_in_every_published_form(
    d2t: np.ndarray | None, t2d: np.ndarray | None, origin: str
) -> None:
    ids, found_origin = draft_to_target(d2t, t2d, W, V)
    assert ids.tolist() == IDS.tolist()
    assert (ids.dtype, found_origin) == (np.int32, origin)


def test_first_ids_are_a_draft_vocabulary_if_t2d_says_so() -> None:
    ids, _ = draft_to_target(np.zeros(W, np.int64), np.arange(V) < W, W, V)
    assert ids.tolist() == list(range(W))


def test_full_draft_vocabulary_is_the_identity_whatever_the_tables_say() -> None:
    ids, origin = draft_to_target(np.zeros(V, np.int64), np.zeros(V, np.bool_), V, V)
    assert (ids.tolist(), origin) == (list(range(V)), "identity")


def test_full_draft_vocabulary_in_another_order_is_kept() -> None:
    reverse = np.arange(V)[::-1]
    ids, _ = draft_to_target(reverse - np.arange(V), None, V, V)
    assert ids.tolist() == reverse.tolist()


@pytest.mark.parametrize(
    ("d2t", "t2d", "message"),
    [
        (None, None, "d2t is missing: which 16 of 48"),
        (np.zeros(W, np.int64), None, "not usable: it is all zeros or"),
        (np.arange(W), None, "not usable: it is all zeros or"),
        (OFFSETS + V, None, "it leads to id 95 of 48"),
        (OFFSETS - 2, None, "it leads to id -1 of 48"),
        (np.r_[OFFSETS[:-1], 25], None, "names a target id twice"),
        (np.r_[OFFSETS[:-1], 26], MARKS, "d2t and t2d name different ids"),
        (OFFSETS[:-1], MARKS, r"d2t is int64 \[15\], expected integers \[16\]"),
        (OFFSETS.astype(np.float32), MARKS, "d2t is float32"),
        (OFFSETS, MARKS[:-1], r"t2d is bool \[47\], expected bool \[48\]"),
        (OFFSETS, MARKS.astype(np.int32), "t2d is int32"),
        (OFFSETS, np.arange(V) < W + 1, "t2d marks 17 ids, the head drafts from 16"),
    ],
)
def test_unusable_draft_vocabulary_is_refused_with_its_reason(
    d2t: np.ndarray | None, t2d: np.ndarray | None, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        draft_to_target(d2t, t2d, W, V)


@pytest.mark.torch
def test_fixture_head_keeps_the_values_that_torch_reads(tmp_path: Path, fixtures: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    source = fixtures / "pydoc-eagle3"
    written = convert_head(source, fixtures / "pydoc-llama", tmp_path / "out", bits=None)
    expected = torch.load(source / "pytorch_model.bin", weights_only=True)
    found = dict(tree_flatten(load_head(tmp_path / "out").parameters()))
    ids = torch.arange(2048) + expected.pop("d2t")
    assert found.pop("draft_to_target").tolist() == ids.tolist()
    assert expected.pop("t2d").nonzero().flatten().tolist() == ids.tolist()
    assert set(found) == {ours(name) for name in expected}
    for name, array in expected.items():
        assert np.array_equal(np.array(found[ours(name)]), array.numpy()), name
    assert written["taps"] == [2, 4, 5]
    assert written["source"]["name"] == "pydoc-eagle3"
