"""What a folder is, decided from names and shapes before configurations are believed."""

from typing import Any

import pytest

from mlx_eagle.convert.dialects import AXES, CONVERTED_HEAD, SAFEAILAB, measure, recognise, rename
from mlx_eagle.convert.pickles import TensorInfo
from mlx_eagle.errors import CheckpointError
from mlx_eagle.head import MODEL_TYPE

H = 64
SIZES = {"taps": 3 * H, "2 hidden": 2 * H, "hidden": H, "queries": H, "keys": 32, "mlp": 96}
HEAD = {
    name.replace("layers.0.", "midlayer."): TensorInfo(
        "F16", tuple(SIZES.get(axis, 16) for axis in axes)
    )
    for name, axes in AXES.items()
}


def info(*shape: int) -> TensorInfo:
    return TensorInfo("F16", shape)


OTHER_HEADS: dict[str, tuple[dict[str, Any], dict[str, TensorInfo]]] = {
    "speculators head ('eagle3')": ({"speculators_model_type": "eagle3"}, HEAD),
    "DeepSpec EAGLE-3 head": ({"architectures": ["Qwen3Eagle3Model"]}, HEAD),
    "block-diffusion drafter (DFlash, DSpark or Domino)": ({"dflash_config": {}}, HEAD),
    "P-EAGLE head": ({}, HEAD | {"mask_hidden": info(1, 1, 3 * H)}),
    "Medusa head": ({}, {"medusa_head.0.0.linear.weight": info(H, H)}),
    "EAGLE-3 head with multi-head latent attention": (
        {},
        HEAD | {"midlayer.self_attn.kv_a_proj_with_mqa.weight": info(8, 2 * H)},
    ),
    "EAGLE-1, EAGLE-2 or HASS head": (
        {"architectures": ["LlamaForCausalLM"]},
        {"fc.weight": info(H, 2 * H), "layers.0.self_attn.q_proj.weight": info(H, H)},
    ),
    "ModelOpt or SpecForge EAGLE-3 head": ({"eagle_config": {}}, HEAD),
    "AngelSlim EAGLE-3 head": ({"aux_hidden_states_layer_ids": [1, 3, 5]}, HEAD),
    "EAGLE-3 head with its own choice of taps": (
        {"eagle_aux_hidden_state_layer_ids": [2, 4, 6]},
        HEAD,
    ),
    "EAGLE-3 variant with fc_norm, norm_output": ({"fc_norm": True, "norm_output": True}, HEAD),
    "EAGLE-3 head with its own embedding": ({}, HEAD | {"embed_tokens.weight": info(48, H)}),
    "EAGLE head of an unknown publisher": (
        {},
        {name.replace("midlayer.", "layers.0."): tensor for name, tensor in HEAD.items()},
    ),
    "converted EAGLE-3 head": ({"model_type": MODEL_TYPE}, {}),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "block-diffusion drafter (DFlash, DSpark or Domino)": {"block_size": 16},
    "Medusa head": {"medusa_num_heads": 2},
    "DeepSpec EAGLE-3 head": {"ttt_length": 7, "target_layer_ids": [1], "num_target_layers": 9},
}


@pytest.mark.parametrize("label", OTHER_HEADS)
def test_head_that_cannot_be_converted_is_known_by_name(label: str) -> None:
    kind = recognise(*OTHER_HEADS[label])
    assert (kind.label, kind.role, kind.dialect) == (label, "head", None)


@pytest.mark.parametrize("label", CONFIGS)
def test_configuration_alone_can_give_a_head_away(label: str) -> None:
    assert recognise(CONFIGS[label], HEAD).label == label


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "LlamaForCausalLMEagle3", "Nonsense"])
def test_safeailab_head_is_known_by_its_tensors_whatever_it_calls_itself(architecture: str) -> None:
    assert recognise({"architectures": [architecture]}, HEAD).dialect is SAFEAILAB
    one = {"midlayer.mlp.up_proj.weight": info(2, 2)}
    assert recognise({"architectures": [architecture]}, one).dialect is SAFEAILAB


def test_anything_else_is_a_target() -> None:
    layer = {"model.layers.0.self_attn.q_proj.weight": info(2, 2), "lm_head.weight": info(2, 2)}
    kind = recognise({"architectures": ["LlamaForCausalLMEagle3"]}, layer)
    assert (kind.label, kind.role) == ("Hugging Face target", "target")
    assert recognise({"quantization": {}}, layer).label == "MLX target"
    deepseek = {"model.layers.0.self_attn.kv_a_proj_with_mqa.weight": info(2, 2)}
    assert recognise({"block_size": 128}, deepseek).role == "target"


def test_name_of_converted_heads_is_that_of_the_runtime() -> None:
    assert CONVERTED_HEAD == MODEL_TYPE


def test_published_names_become_the_parameters_of_the_head() -> None:
    assert rename("model.midlayer.mlp.up_proj.weight", SAFEAILAB) == "layers.0.mlp.up_proj.weight"
    assert rename("norm.weight", SAFEAILAB) == "norm.weight"
    assert {rename(name, SAFEAILAB) for name in HEAD} == set(AXES)


def test_all_sizes_come_from_shapes() -> None:
    widths = measure(HEAD, SAFEAILAB)
    assert widths._asdict() == {
        "hidden": H,
        "taps": 3 * H,
        "queries": H,
        "keys": 32,
        "mlp": 96,
        "draft": 16,
    }


@pytest.mark.parametrize("name", HEAD)
def test_every_tensor_must_be_there_with_its_shape(name: str) -> None:
    ours = rename(name, SAFEAILAB)
    with pytest.raises(CheckpointError, match=f"missing {ours}$"):
        measure({k: v for k, v in HEAD.items() if k != name}, SAFEAILAB)
    with pytest.raises(CheckpointError, match=f"{ours} has shape .*, expected . axes"):
        measure(HEAD | {name: info(1, 2, 3)}, SAFEAILAB)
    with pytest.raises(CheckpointError, match="expected"):
        measure(HEAD | {name: info(*(0 for _ in HEAD[name].shape))}, SAFEAILAB)
