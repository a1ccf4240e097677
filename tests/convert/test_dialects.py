"""What a folder is, decided from names and shapes before configurations are believed."""

import re
from dataclasses import replace
from typing import Any

import pytest
from mlx.utils import tree_flatten

from mlx_eagle.convert import dialects
from mlx_eagle.convert.dialects import Dialect, parameter_name
from mlx_eagle.convert.identify import identify_kind
from mlx_eagle.convert.medusa import MedusaSizes, expected_shapes
from mlx_eagle.convert.tensor_shapes import expected_axes, read_sizes
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.safetensors import TensorInfo
from mlx_eagle.heads.config import HeadConfig, MedusaConfig
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.medusa import MedusaHead

H, QUERIES, KEYS, MLP, DRAFT = 64, 64, 32, 96, 16


def info(*shape: int, dtype: str = "F16") -> TensorInfo:
    return TensorInfo(dtype, shape)


HEAD = {
    "fc.weight": info(H, 3 * H),
    "midlayer.hidden_norm.weight": info(H),
    "midlayer.input_layernorm.weight": info(H),
    "midlayer.post_attention_layernorm.weight": info(H),
    "midlayer.self_attn.q_proj.weight": info(QUERIES, 2 * H),
    "midlayer.self_attn.k_proj.weight": info(KEYS, 2 * H),
    "midlayer.self_attn.v_proj.weight": info(KEYS, 2 * H),
    "midlayer.self_attn.o_proj.weight": info(H, QUERIES),
    "midlayer.mlp.gate_proj.weight": info(MLP, H),
    "midlayer.mlp.up_proj.weight": info(MLP, H),
    "midlayer.mlp.down_proj.weight": info(H, MLP),
    "norm.weight": info(H),
    "lm_head.weight": info(DRAFT, H),
}
LAYERS = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in HEAD.items()}
BLOCK = {
    name.replace(".0.hidden_norm", ".0.input_layernorm"): info(*tensor.shape[:1], H)
    if tensor.shape == (tensor.shape[0], 2 * H)
    else tensor
    for name, tensor in LAYERS.items()
    if "lm_head" not in name
} | {"hidden_norm.weight": info(H)}
BIAS = {"markov_head.markov_w1.weight": info(9, 4), "markov_head.markov_w2.weight": info(9, 4)}
NORMS = {f"fc_norm.{i}.weight": info(H) for i in range(3)}

# What each publisher's heads are told by: a configuration, tensors, and the dialect.
PUBLISHERS: dict[str, tuple[dict[str, Any], dict[str, TensorInfo], Dialect]] = {
    "plain names": ({"architectures": ["LlamaForCausalLM"]}, HEAD, dialects.SAFEAILAB),
    "nonsense": ({"architectures": ["Nonsense"]}, HEAD, dialects.SAFEAILAB),
    "specforge": ({"architectures": ["LlamaForCausalLMEagle3"]}, HEAD, dialects.SPECFORGE),
    "specforge, nested ids": (
        {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 3, 5]}},
        HEAD,
        dialects.SPECFORGE,
    ),
    "modelopt, its own keys": (
        {"eagle_config": {"use_aux_hidden_state": True}},
        HEAD,
        dialects.MODELOPT,
    ),
    "modelopt, its own names": (
        {"architectures": ["LlamaForCausalLMEagle3"]},
        LAYERS,
        dialects.MODELOPT,
    ),
    "angelslim": ({"architectures": ["Eagle3LlamaForCausalLM"]}, HEAD, dialects.ANGELSLIM),
    "angelslim, ids": ({"aux_hidden_states_layer_ids": [1, 3, 5]}, HEAD, dialects.ANGELSLIM),
    "speculators": ({"speculators_model_type": "eagle3"}, LAYERS, dialects.SPECULATORS),
    "speculators, parallel": (
        {"speculators_model_type": "peagle"},
        LAYERS,
        dialects.SPECULATORS_PEAGLE,
    ),
    "deepspec": ({"architectures": ["Qwen3Eagle3Model"]}, LAYERS, dialects.DEEPSPEC),
    "deepspec, keys": (
        {"ttt_length": 7, "target_layer_ids": [1], "num_target_layers": 9},
        LAYERS,
        dialects.DEEPSPEC,
    ),
    "eagle 3.1": ({}, HEAD | NORMS, dialects.EAGLE31),
    "unnamed": ({"architectures": ["LlamaForCausalLM"]}, LAYERS, dialects.UNNAMED),
    "mask tensor": ({}, LAYERS | {"mask_hidden": info(1, 1, 3 * H)}, dialects.PEAGLE),
    "eagle 1": (
        {"architectures": ["LlamaForCausalLMEagle3"]},
        {"fc.weight": info(H, 2 * H), "layers.0.self_attn.q_proj.weight": info(H, H)},
        dialects.EAGLE,
    ),
    "z-lab block": ({"dflash_config": {}}, BLOCK, dialects.DFLASH),
    "block, by tensors": ({"block_size": 16}, BLOCK, dialects.DFLASH),
    "dspark": ({"dflash_config": {}}, BLOCK | BIAS, dialects.DSPARK),
    "deepspec block": ({"architectures": ["Qwen3DSparkModel"]}, BLOCK, dialects.DEEPSPEC_BLOCK),
    "speculators dflash": (
        {"speculators_model_type": "dflash"},
        BLOCK,
        dialects.SPECULATORS_DFLASH,
    ),
    "speculators dspark": (
        {"speculators_model_type": "dspark"},
        BLOCK | BIAS,
        dialects.SPECULATORS_DSPARK,
    ),
    "medusa": ({}, {"0.0.linear.weight": info(H, H)}, dialects.MEDUSA),
    "medusa, wrapped": ({}, {"medusa_head.0.0.linear.weight": info(H, H)}, dialects.MEDUSA),
    "medusa, by config": ({"medusa_num_heads": 2}, HEAD, dialects.MEDUSA),
}
# What is known and refused: configuration, tensors, and words of the reason.
REFUSED: dict[str, tuple[dict[str, Any], dict[str, TensorInfo], str]] = {
    "dflash 2": ({"model_type": "dflash2"}, BLOCK, "grouped dynamic convolutions"),
    "dflash 2, by tensors": (
        {"block_size": 8},
        BLOCK | {"candidate_selector.hidden_projection.weight": info(4, H)},
        "selector of candidates",
    ),
    "speculators dflash 2": ({"speculators_model_type": "dflash2"}, BLOCK, "selector of"),
    "domino": ({"dflash_config": {"projector_type": "domino"}}, BLOCK, "recurrent correction"),
    "stages": (
        {"architectures": ["DeepseekV41DSpark"]},
        {"mtp.0.main_proj.weight": info(H, 3 * H)},
        "layers of that target",
    ),
    "gemma 4 block": ({"architectures": ["Gemma4DSparkModel"]}, BLOCK, "are Gemma 4's"),
    "gated block": (
        {"block_size": 8},
        BLOCK | {"layers.0.self_attn.q_proj.weight": info(2 * QUERIES, H)},
        "needs a gate",
    ),
    "fp8 block": (
        {"dflash_config": {}, "quantization_config": {"quant_method": "fp8"}},
        BLOCK,
        "16-bit head",
    ),
    "gemma 4 assistant": (
        {"model_type": "gemma4_assistant"},
        {"pre_projection.weight": info(H, 2 * H)},
        "target's own keys and values",
    ),
    "speculators eagle": (
        {"speculators_model_type": "eagle"},
        LAYERS,
        "only the types eagle3, peagle, dflash, dspark",
    ),
    "speculators list": (
        {"speculators_model_type": [1]},
        LAYERS,
        "only the types eagle3, peagle, dflash, dspark",
    ),
    "speculators mtp": ({"speculators_model_type": "mtp"}, LAYERS, "layer of its target"),
    "mtp": ({}, {"mtp.fc.weight": info(H, 2 * H)}, "layer of its target"),
    "mla": (
        {},
        HEAD | {"midlayer.self_attn.kv_a_proj_with_mqa.weight": info(8, 2 * H)},
        "latent attention",
    ),
    "gemma 4": ({"architectures": ["Gemma4Eagle3Model"]}, LAYERS, "Gemma 4's"),
    "fp8": ({"quantization_config": {"quant_method": "fp8"}}, HEAD, "16-bit head"),
    "scales": ({}, HEAD | {"fc.weight_scale": info(1)}, "16-bit head"),
}


@pytest.mark.parametrize("name", PUBLISHERS)
def test_every_publisher_is_recognised(name: str) -> None:
    config, tensors, dialect = PUBLISHERS[name]
    kind = identify_kind(config, tensors)
    assert (kind.role, kind.dialect, kind.label) == ("head", dialect, dialect.label)


@pytest.mark.parametrize("name", REFUSED)
def test_head_that_cannot_be_run_is_known_by_name_and_reason(name: str) -> None:
    config, tensors, reason = REFUSED[name]
    kind = identify_kind(config, tensors)
    assert (kind.role, kind.dialect) == ("head", None)
    assert reason in kind.refusal


def test_one_tensor_is_enough_to_know_a_damaged_head() -> None:
    one = {"midlayer.mlp.up_proj.weight": info(2, 2)}
    assert identify_kind({}, one).dialect is dialects.SAFEAILAB


def test_anything_else_is_a_target() -> None:
    layer = {"model.layers.0.self_attn.q_proj.weight": info(2, 2), "lm_head.weight": info(2, 2)}
    kind = identify_kind({"architectures": ["LlamaForCausalLMEagle3"]}, layer)
    assert (kind.label, kind.role) == ("Hugging Face target", "target")
    assert identify_kind({"quantization": {}}, layer).label == "MLX target"
    deepseek = {"model.layers.0.self_attn.kv_a_proj_with_mqa.weight": info(2, 2)}
    assert identify_kind({"block_size": 128}, deepseek).role == "target"


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("model.midlayer.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("midlayer.1.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight"),
        ("midlayer.1.hidden_norm.weight", "layers.1.input_layernorm.weight"),
        ("layers.2.hidden_norm.weight", "layers.2.input_layernorm.weight"),
        ("layers.0.hidden_norm.weight", "layers.0.hidden_norm.weight"),
        ("aux_norm_mid.weight", "fc_norm.1.weight"),
        ("eagle_module.norm.weight", "norm.weight"),
        ("module.model.fc.weight", "fc.weight"),
        ("model.module.fc.weight", "fc.weight"),
    ],
)
def test_published_names_become_the_parameters_of_the_head(published: str, ours: str) -> None:
    assert parameter_name(published) == ours


def test_all_sizes_come_from_shapes() -> None:
    sizes = read_sizes(HEAD, dialects.SAFEAILAB)
    assert sizes._asdict() | {"parts": None} == {
        "hidden": H,
        "taps": 3 * H,
        "queries": QUERIES,
        "keys": KEYS,
        "mlp": MLP,
        "draft": DRAFT,
        "vocabulary": 0,
        "head_dim": 0,
        "n_layers": 1,
        "parts": None,
        "rank": 0,
    }
    assert sizes.parts == set(LAYERS)


@pytest.mark.parametrize("name", HEAD)
def test_every_tensor_must_be_there_with_its_shape(name: str) -> None:
    ours = parameter_name(name)
    tables = {"d2t": info(DRAFT)}  # without one the target's output layer would do
    with pytest.raises(CheckpointError, match=f"missing {ours}"):
        read_sizes({k: v for k, v in HEAD.items() if k != name} | tables, dialects.SAFEAILAB)
    with pytest.raises(CheckpointError, match=f"{ours} has shape .*, expected . axes"):
        read_sizes(HEAD | {name: info(1, 2, 3)}, dialects.SAFEAILAB)
    with pytest.raises(CheckpointError, match="expected"):
        read_sizes(HEAD | {name: info(*(0 for _ in HEAD[name].shape))}, dialects.SAFEAILAB)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"midlayer.self_attn.q_norm.weight": info(16)}, "missing layers.0.self_attn.k_norm"),
        ({"midlayer.self_attn.q_proj.bias": info(QUERIES)}, "missing layers.0.self_attn.k_proj.b"),
        ({"fc_norm.0.weight": info(H)}, f"1 norms of {H} for fc's {3 * H}"),
        ({"fc_norm.1.weight": info(H)}, "missing fc_norm.0.weight"),
        ({"input_norm.weight": info(H)}, "input_norm.weight has shape"),
        ({"layers.2.mlp.up_proj.weight": info(MLP, H)}, "has the layers 0, 2, not 0, 1, 2"),
        ({"parallel_draft_heads.0.weight": info(H)}, "unknown 'parallel_draft_heads.0.weight'"),
        ({"model.norm.weight": info(H)}, "'model.norm.weight' is a second norm.weight"),
        ({"d2t": info(DRAFT)}, "d2t has the type F16"),
    ],
)
def test_part_of_an_option_is_an_error_that_names_it(
    extra: dict[str, TensorInfo], message: str
) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_sizes(HEAD | extra, dialects.SAFEAILAB)


def test_later_layers_need_their_norm_and_ordinary_widths() -> None:
    second = {
        name.replace("midlayer.", "layers.1."): tensor
        for name, tensor in HEAD.items()
        if "midlayer." in name and "hidden_norm" not in name
    }
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.q_proj\.weight has shape"):
        read_sizes(HEAD | second, dialects.SAFEAILAB)
    for name in ("q", "k", "v"):
        key = f"layers.1.self_attn.{name}_proj.weight"
        second[key] = info(second[key].shape[0], H)
    assert read_sizes(HEAD | second, dialects.SAFEAILAB).n_layers == 2
    del second["layers.1.input_layernorm.weight"]
    with pytest.raises(CheckpointError, match=r"missing layers\.1\.input_layernorm\.weight"):
        read_sizes(HEAD | second, dialects.SAFEAILAB)


# Parts that a head may have, by the facts of `HeadConfig`, and what else they need.
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "norms of queries and keys": {"qk_norm": True},
    "biases": {
        **dict.fromkeys(("attention_bias", "attention_output_bias", "mlp_bias", "fc_bias"), True)
    },
    "one norm over all taps": {"norm_before_fc": True},
    "a norm for each tap": {"fc_norm": True},
    "an embedding of its own": {"own_embedding": True},
    "three layers": {"num_hidden_layers": 3, "sliding_windows": (None,) * 3},
}


TAP_NORMS = ("one norm over all taps", "a norm for each tap")  # EAGLE-1 heads read no taps
MODULES = [
    *(("eagle", option) for option in OPTIONS if option not in TAP_NORMS),
    *((algorithm, option) for algorithm in ("eagle3", "p-eagle") for option in OPTIONS),
]


@pytest.mark.parametrize(("algorithm", "options"), MODULES)
def test_expected_tensors_are_the_parameters_of_the_module(
    algorithm: Any, options: str, head_config: HeadConfig
) -> None:
    """The table of `tensor_shapes` and `EagleHead` name the same tensors with the same shapes."""
    changes = dict(OPTIONS[options])
    if algorithm == "eagle":
        changes |= dict.fromkeys(("fuse_taps", "input_layernorm", "hidden_norm"), False)
        changes |= dict.fromkeys(("final_norm", "own_lm_head"), False) | {"taps": (9,)}
    elif algorithm == "p-eagle":
        changes |= {"mask_token_id": 1, "own_embedding": True}
    # With a head_dim of 10 no two sizes of the head are equal.
    head = EagleHead(replace(head_config, algorithm=algorithm, head_dim=10, **changes))
    parameters = {name: array.shape for name, array in tree_flatten(head.parameters())}
    del parameters["draft_to_target"]
    if "mask_hidden" in parameters:
        parameters["mask_hidden"] = (1, 1, *parameters["mask_hidden"])
    tensors = {name: info(*shape) for name, shape in parameters.items()}
    dialect = dialects.SAFEAILAB._replace(algorithm=algorithm)
    sizes = read_sizes(tensors, dialect)
    assert sizes.parts == set(tensors)
    expected = expected_axes(dialect, tensors, sizes.n_layers)
    assert set(expected.required) <= set(tensors) <= set(expected.required | expected.optional)
    for name in tensors:
        with pytest.raises(CheckpointError, match=f"{re.escape(name)} has shape"):
            read_sizes(tensors | {name: info(*(7, 1, 1, 1))}, dialect)


@pytest.mark.parametrize("block_bias", [True, False])
@pytest.mark.parametrize("own_lm_heads", [True, False])
def test_expected_tensors_of_medusa_heads_are_the_parameters_of_the_module(
    block_bias: bool, own_lm_heads: bool
) -> None:
    sizes = MedusaSizes(H, DRAFT if own_lm_heads else 0, 3, 2, block_bias, own_lm_heads)
    config = MedusaConfig("medusa", H, H, 48, DRAFT, 3, 2, block_bias, own_lm_heads, (9,))
    parameters = dict(tree_flatten(MedusaHead(config).parameters()))
    del parameters["draft_to_target"]
    assert expected_shapes(sizes) == {name: array.shape for name, array in parameters.items()}
