"""Export: what a layout can say comes back as it was, and what it cannot say is refused by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from safetensors import safe_open

from cases import broad
from mlx_eagle.convert.export import export_head
from mlx_eagle.convert.heads import convert_head
from mlx_eagle.convert.publisher_layouts import LAYOUTS
from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.files.safetensors import read_header
from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.heads.load import load_head
from own_heads import (
    BIASED,
    EAGLE,
    LINEAR,
    LLAMA3,
    PARALLEL,
    PLAIN,
    TARGET,
    WIDE,
    YARN,
    H,
    N,
    V,
    W,
    name_of,
    write_head,
    write_target,
)


def round_trip(work: Path, config: HeadConfig, layout: str, **head: Any) -> None:
    """Export a head, convert the result, and compare everything with the head."""
    source = write_head(work / "head", config, **head)
    export_head(source, work / "published", layout)
    convert_head(work / "published", write_target(work / "target"), work / "back", bits=None)
    before, after = load_head(source), load_head(work / "back")
    assert after.config == config
    old, new = dict(tree_flatten(before.parameters())), dict(tree_flatten(after.parameters()))
    assert set(old) == set(new)
    for name, array in old.items():
        assert array.dtype == new[name].dtype
        assert mx.array_equal(array, new[name]), name


EIGHT = {"head_dim": 8, "rope_dims": 8}
# Everything that a layout can say beyond the plainest head, alone; and some of it together.
SUPPORTED: dict[str, list[tuple[HeadConfig, dict[str, Any]]]] = {
    "safeailab": [
        (PLAIN, {}),
        (PLAIN, {"rope_theta": 5e5, "rms_norm_eps": 1e-6, "num_attention_heads": 2} | EIGHT),
        (PLAIN, {"rope_scaling": LINEAR, "max_position_embeddings": 2048}),
        (PLAIN, {"own_embedding": True}),
        (PLAIN, {**WIDE, **EIGHT, "draft_vocab_size": V}),
        (EAGLE, {}),
        (EAGLE, {"fc_bias": True, "attention_bias": True, "own_embedding": True}),
        (EAGLE, {"num_hidden_layers": 2, "sliding_windows": (None, None)}),
        (EAGLE, {"rope_theta": 5e5}),
    ],
    "specforge": [
        (PLAIN, {}),
        (PLAIN, {"taps": (2, 5, 12), "rope_theta": 1e6}),
        (PLAIN, {"taps": (1, 4, 7), "rope_scaling": LLAMA3}),
        (PLAIN, {"fc_norm": True, "rope_scaling": YARN}),
        (PLAIN, {"fc_norm": True, "norm_output": True, "taps": (4, 8, 12)}),
        (PLAIN, {"rope_scaling": LINEAR, "draft_vocab_size": V}),
        (PLAIN, WIDE),
        (PLAIN, EIGHT),
    ],
    "speculators": [
        (PLAIN, {}),
        (PLAIN, {"norm_before_residual": True, "norm_before_fc": True, "norm_output": True}),
        (PLAIN, {"fc_norm": True, "taps": (0, 1, 5, 8, 12), "qk_norm": True}),
        (PLAIN, {"taps": (7,), "own_embedding": True, "draft_vocab_size": V}),
        (PLAIN, {"num_hidden_layers": 3, "sliding_windows": (32, None, 32), "qk_norm": True}),
        (PLAIN, {"sliding_windows": (32,), "rope_scaling": YARN}),
        (PLAIN, {**BIASED, "mlp_bias": True, "rope_scaling": LLAMA3, "rope_theta": 5e5}),
        (PLAIN, {**BIASED, "qk_norm": True, "rope_scaling": LINEAR}),
        (PLAIN, WIDE),
        (PLAIN, EIGHT),
        (PARALLEL, {}),
        (PARALLEL, {"num_hidden_layers": 2, "sliding_windows": (None, None), "fc_norm": True}),
        (PARALLEL, {"norm_before_residual": True, "norm_before_fc": True, "qk_norm": True}),
    ],
}
# By default every other one.
CASES = [
    broad(layout, *case) if n % 2 else (layout, *case)
    for layout, cases in SUPPORTED.items()
    for n, case in enumerate(cases)
]


@pytest.mark.parametrize(("layout", "base", "changes"), CASES, ids=name_of)
def test_what_a_layout_can_say_comes_back_bit_for_bit(
    layout: str, base: HeadConfig, changes: dict[str, Any], tmp_path: Path
) -> None:
    round_trip(tmp_path, replace(base, **changes), layout)


FLAGS = [name for name, kind in HeadConfig.__annotations__.items() if kind is bool]


@given(data=st.data())
def test_any_head_comes_back_as_it_was_or_is_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Flags, taps, windows and rope at random: nothing is written down as something else."""
    flags = data.draw(st.sets(st.sampled_from(FLAGS), max_size=3))
    n_layers = data.draw(st.sampled_from([1, 1, 2]))
    taps = data.draw(st.sets(st.integers(0, N + 1), min_size=3, max_size=4))
    base = data.draw(st.sampled_from([PLAIN, PLAIN, PARALLEL]))
    window = st.sampled_from([None, None, 16])
    config = replace(
        base,
        **{flag: not getattr(base, flag) for flag in flags},
        num_hidden_layers=n_layers,
        sliding_windows=tuple(data.draw(window) for _ in range(n_layers)),
        taps=data.draw(st.sampled_from([(2, 6, 9), (1, 5, 8), (3, 7, 10), tuple(sorted(taps))])),
        rope_scaling=data.draw(st.sampled_from([None, LINEAR, LLAMA3, YARN])),
    )
    if not config.fuse_taps:
        config = replace(config, taps=(N + 1,))
    layout = data.draw(st.sampled_from(list(LAYOUTS)))
    work = tmp_path_factory.mktemp("any")
    try:
        export_head(write_head(work / "tried", config), work / "any", layout)
    except CheckpointError as error:
        refusal = str(error)
    else:
        round_trip(work, config, layout)
        return
    assert "cannot say" in refusal
    assert not (work / "any").exists()


@pytest.mark.parametrize(
    ("ids", "layout"),
    [([*range(W - 1, -1, -1)], "specforge"), ([*range(W - 1), 3], "speculators")],
    ids=["descending", "twice"],
)
def test_draft_ids_that_are_not_ascending_are_refused(
    ids: list[int], layout: str, tmp_path: Path
) -> None:
    source = write_head(tmp_path / "head", PLAIN, ids=ids)
    with pytest.raises(CheckpointError, match="its draft ids are not ascending; no other"):
        export_head(source, tmp_path / "out", layout)


@pytest.mark.parametrize("ids", [[*range(W)], [*range(0, 2 * W, 2)]], ids=["first", "doubled"])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_tables_that_look_like_a_trainers_bug_come_back(
    layout: str, ids: list[int], tmp_path: Path
) -> None:
    """Offsets of 0, 0, 0, ... and 0, 1, 2, ... are read with the mask beside them."""
    round_trip(tmp_path, PLAIN, layout, ids=ids)


@pytest.mark.parametrize("dtype", [mx.float16, mx.float32], ids=str)
def test_the_type_of_the_weights_stays(dtype: mx.Dtype, tmp_path: Path) -> None:
    round_trip(tmp_path, PLAIN, "safeailab", dtype=dtype)
    config = json.loads((tmp_path / "published" / "config.json").read_text())
    assert config["torch_dtype"] == str(dtype).rpartition(".")[2]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"quantization": {"bits": 4, "group_size": 64}}, "head is quantized, .*--head-bits none"),
        ({"algorithm": "medusa"}, "head has Medusa heads, for which there is no layout"),
        ({"target": None}, "does not say what it was made for: name it with --target"),
        ({"target": {"name": "x"}}, "does not say what it was made for"),
        ({"format_version": 1}, "convert the head again"),
        ({"model_type": "llama"}, "not a converted head"),
    ],
)
def test_what_is_no_head_to_export_is_refused(
    more: dict[str, Any], words: str, tmp_path: Path
) -> None:
    source = write_head(tmp_path / "head", PLAIN, **more)
    with pytest.raises(CheckpointError, match=words):
        export_head(source, tmp_path / "out", "safeailab")
    assert not (tmp_path / "out").exists()


def test_a_head_that_does_not_name_its_target_is_exported_for_the_one_that_is_given(
    tmp_path: Path,
) -> None:
    source, target = write_head(tmp_path / "head", PLAIN, target=None), write_target(tmp_path / "t")
    written = export_head(source, tmp_path / "out", "specforge", target=target).config
    assert written["target_model_type"] == "llama"


@pytest.mark.parametrize("change", [{"num_hidden_layers": 14}, {"hidden_size": 8}], ids=str)
def test_a_head_is_not_exported_for_another_target(change: dict[str, int], tmp_path: Path) -> None:
    source, target = write_head(tmp_path / "head", PLAIN), write_target(tmp_path / "t", **change)
    with pytest.raises(CheckpointError, match="the head is not for t: it expects hidden size 16"):
        export_head(source, tmp_path / "out", "specforge", target=target)


def test_an_existing_folder_is_not_touched_and_a_layout_must_exist(tmp_path: Path) -> None:
    source = write_head(tmp_path / "head", PLAIN)
    (tmp_path / "out").mkdir()
    with pytest.raises(EagleError, match="never overwritten"):
        export_head(source, tmp_path / "out", "specforge")
    with pytest.raises(EagleError, match="there is no layout 'vllm': the layouts are safeailab, "):
        export_head(source, tmp_path / "new", "vllm")


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_with_its_target_a_speculators_head_has_a_copy_of_the_embedding(
    bits: int | None, tmp_path: Path
) -> None:
    """Of a quantized target it is what the quantized weights stand for."""
    sizes = {"hidden_size": 32, "target_hidden_size": 32}
    source = write_head(
        tmp_path / "head",
        replace(PLAIN, **sizes),
        target={"name": "a/b"}
        | {k: TARGET[k] for k in ("model_type",)}
        | {"num_hidden_layers": N, "hidden_size": 32, "vocab_size": V},
    )
    embedding = mx.random.normal((V, 32)).astype(mx.bfloat16)
    layer, tensors = "language_model.model.embed_tokens", {"lm_head.weight": mx.zeros((V, 32))}
    changes: dict[str, Any] = {"hidden_size": 32}
    if bits is None:
        tensors[f"{layer}.weight"] = embedding
    else:
        parts = mx.quantize(embedding, group_size=32, bits=bits)
        names = [f"{layer}.{part}" for part in ("weight", "scales", "biases")]
        tensors |= dict(zip(names, parts, strict=True))
        embedding = mx.dequantize(*parts, group_size=32, bits=bits)
        changes["quantization"] = {"group_size": 64, "bits": 2, layer: {"group_size": 32}}
        changes["quantization"][layer]["bits"] = bits
    target = write_target(tmp_path / "target", **changes)
    mx.save_safetensors(str(target / "model.safetensors"), tensors)
    done = export_head(source, tmp_path / "out", "speculators", target=target)
    assert done.has_embedding
    assert done.config["speculators_config"]["verifier"]["architectures"] == ["LlamaForCausalLM"]
    convert_head(tmp_path / "out", target, tmp_path / "back", bits=None)
    back = load_head(tmp_path / "back")
    assert back.config == replace(PLAIN, **sizes, own_embedding=True)
    assert mx.array_equal(dict(tree_flatten(back.parameters()))["embed_tokens.weight"], embedding)


def test_a_target_without_one_embedding_is_refused(tmp_path: Path) -> None:
    source, target = write_head(tmp_path / "head", PLAIN), write_target(tmp_path / "target")
    file = str(target / "model.safetensors")
    for tensors, words in (
        ({"wte.weight": mx.zeros((V, H))}, r"target has 0 tensors called \*\.embed_tokens\.weight"),
        ({"embed_tokens.weight": mx.zeros((V, 2))}, r"expected \[24, 16\]"),
        (
            {"embed_tokens.weight": mx.zeros((V, H)), "embed_tokens.scales": mx.zeros((V, 1))},
            "quantized, and `quantization` is missing",
        ),
    ):
        mx.save_safetensors(file, tensors)
        with pytest.raises(CheckpointError, match=words):
            export_head(source, tmp_path / "out", "speculators", target=target)


def test_safeailab_reads_these_keys_and_tensors(tmp_path: Path) -> None:
    source = write_head(tmp_path / "head", replace(PLAIN, rope_scaling=LINEAR))
    written = export_head(source, tmp_path / "out", "safeailab").config
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == written
    assert written == {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"},
        **{"hidden_size": H, "intermediate_size": 20, "num_hidden_layers": 1},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4},
        **{"max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0},
        **{"rope_scaling": {"type": "linear", "factor": 2.0}, "vocab_size": V},
        **{"draft_vocab_size": W, "tie_word_embeddings": False, "torch_dtype": "bfloat16"},
    }
    found = read_header(tmp_path / "out" / "model.safetensors")
    layer = ("input_layernorm", "hidden_norm", "post_attention_layernorm")
    layer += tuple(f"self_attn.{x}_proj" for x in "qkvo")
    layer += tuple(f"mlp.{x}_proj" for x in ("gate", "up", "down"))
    names = {f"midlayer.{name}.weight" for name in layer}
    assert set(found) == names | {"fc.weight", "norm.weight", "lm_head.weight", "d2t", "t2d"}
    assert (found["d2t"], found["t2d"]) == (("I64", (W,)), ("BOOL", (V,)))


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_the_tables_are_offsets_and_marks_of_the_draft_ids(layout: str, tmp_path: Path) -> None:
    """As engines read them: draft token i is the target's i + d2t[i], and t2d marks those."""
    ids = [0, 2, 3, 7, 11, 12, 13, 17, 20, V - 1]
    source = write_head(tmp_path / "head", PLAIN, ids=ids)
    export_head(source, tmp_path / "out", layout)
    with safe_open(tmp_path / "out" / "model.safetensors", "numpy") as written:
        offsets, marks = written.get_tensor("d2t"), written.get_tensor("t2d")
    assert (np.arange(W) + offsets).tolist() == ids
    assert np.flatnonzero(marks).tolist() == ids


def test_sglang_is_told_layers_where_vllm_is_told_boundaries(tmp_path: Path) -> None:
    source, key = write_head(tmp_path / "head", replace(PLAIN, taps=(3, 6, 11))), "eagle_config"
    layers = export_head(source, tmp_path / "a", "specforge").config[key]
    assert layers == {"eagle_aux_hidden_state_layer_ids": [2, 5, 10]}
    boundaries = export_head(source, tmp_path / "b", "speculators", verifier="owner/name").config
    assert boundaries["eagle_aux_hidden_state_layer_ids"] == [3, 6, 11]
    assert boundaries["speculators_config"]["verifier"]["name_or_path"] == "owner/name"
    assert boundaries["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == 3


def test_the_usual_taps_are_left_to_the_engines_which_agree_on_them(tmp_path: Path) -> None:
    """An id under this key means a layer to SGLang and a boundary to some versions of vLLM."""
    source = write_head(tmp_path / "head", PLAIN)
    assert "eagle_config" not in export_head(source, tmp_path / "out", "specforge").config
