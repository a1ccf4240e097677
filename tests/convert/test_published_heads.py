"""What published metadata gets wrong: one test per trap of the reference, and the tap rules."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_eagle.convert.heads import convert_head
from mlx_eagle.errors import CheckpointError

ABSENT = "(absent)"
FILE = "model.safetensors"
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 4096,
}
YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 2048}


def nested(*ids: int, **more: Any) -> dict[str, Any]:
    return {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [*ids], **more}}


def flat(*ids: int) -> dict[str, Any]:
    return {"eagle_aux_hidden_state_layer_ids": [*ids]}


@pytest.fixture
def convert(publish: Callable[..., Any], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Publish a random head and convert it; gives the configuration that was written."""

    def run(publisher: str, config: dict[str, Any] | None = None, **case: Any) -> dict[str, Any]:
        settings, change = case.pop("settings", None), case.pop("change", None)
        made = publish(publisher, config=config or {}, **{"file": FILE} | case)
        if change is not None:
            tensors = change(dict(mx.load(str(made.source / FILE))))
            mx.save_safetensors(str(made.source / FILE), tensors)
        out = tmp_path / "head"
        return dict(convert_head(made.source, made.target, out, bits=None, settings=settings))

    return run


def alternatives(written: dict[str, Any], key: str) -> list[Any]:
    assert written["doubts"][key]["reason"]
    return list(written["doubts"][key]["alternatives"])


# Publisher, what its config.json says, layers of the target, boundaries, a doubted reading.
TAP_RULES: list[tuple[str, dict[str, Any], int, list[int], list[int] | None]] = [
    ("safeailab", {}, 32, [2, 16, 29], None),
    ("specforge", {}, 36, [2, 18, 33], None),
    ("specforge", nested(1, 11, 21), 24, [2, 12, 22], None),
    ("specforge", nested(1, 17, 33), 36, [2, 18, 34], None),
    ("specforge", nested(2, 18, 33), 36, [2, 18, 33], None),
    ("specforge", nested(33, 2, 18), 36, [2, 18, 33], None),
    ("specforge", nested(3, 23, 47), 48, [4, 24, 48], [3, 23, 47]),
    ("specforge", nested(4, 20, 40), 48, [5, 21, 41], [4, 20, 40]),
    ("modelopt", nested(1, 15, 28), 32, [2, 16, 29], None),
    ("modelopt", nested(24, 30, 36), 36, [24, 30, 36], None),
    ("modelopt", nested(1, 17, 36), 36, [1, 17, 36], None),
    ("speculators", flat(2, 30, 57), 60, [2, 30, 57], None),
    ("speculators", flat(61, 2, 32), 64, [2, 32, 61], None),
    ("speculators", flat(1, 46, 90), 94, [2, 47, 91], [1, 46, 90]),
    ("speculators", {"eagle_aux_hidden_state_layer_ids": None}, 64, [2, 32, 61], None),
    ("speculators", {}, 64, [2, 32, 61], None),
    ("modelopt", {"eagle_config": ABSENT} | flat(1, 17, 32), 36, [2, 18, 33], [1, 17, 32]),
    ("angelslim", {"aux_hidden_states_layer_ids": [1, 17, 32]}, 36, [2, 18, 33], None),
    ("angelslim", {"aux_hidden_states_layer_ids": ABSENT}, 36, [2, 18, 33], None),
    ("deepspec", {"target_layer_ids": [1, 9, 17, 25, 33]}, 36, [2, 10, 18, 26, 34], None),
    ("deepspec", {"target_layer_ids": [1, 10, 19, 28, 37]}, 40, [2, 11, 20, 29, 38], None),
    ("eagle1", {}, 32, [33], None),
]


@pytest.mark.parametrize(("publisher", "config", "n", "taps", "doubted"), TAP_RULES, ids=str)
def test_ids_become_boundaries_by_the_publishers_convention(
    publisher: str,
    config: dict[str, Any],
    n: int,
    taps: list[int],
    doubted: list[int] | None,
    convert: Callable[..., dict[str, Any]],
) -> None:
    written = convert(publisher, config, facts={"n": n})
    assert list(written["taps"]) == taps
    assert written["origins"]["taps"]
    if doubted is not None:
        assert doubted in alternatives(written, "taps")


def test_taps_given_by_the_user_win(convert: Callable[..., dict[str, Any]]) -> None:
    written = convert("modelopt", nested(1, 5, 8), settings={"taps": [3, 5, 7]})
    assert list(written["taps"]) == [3, 5, 7]
    assert "taps" not in written["doubts"]


@pytest.mark.parametrize(
    ("publisher", "config"),
    [
        ("speculators", flat(2, 6)),
        ("speculators", flat(2, 4, 6, 8)),
        ("speculators", flat(2, 6, 14)),
        ("specforge", nested(1, 5, 13)),
        ("specforge", nested(-1, 5, 8)),
    ],
    ids=str,
)
def test_taps_that_fit_neither_fc_nor_target_are_refused(
    publisher: str, config: dict[str, Any], convert: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(CheckpointError, match=r"(?i)tap|layer_ids"):
        convert(publisher, config)


def test_trap_1_1_a_vicuna_config_that_counts_40_layers_has_one(
    convert: Callable[..., dict[str, Any]],
) -> None:
    written = convert("safeailab", {"num_hidden_layers": 40, "bias": True}, facts={"D": 96})
    assert (written["num_hidden_layers"], written["fc_bias"]) == (1, False)


def test_trap_1_1_without_a_rope_theta_the_base_is_10000_whatever_the_target_has(
    convert: Callable[..., dict[str, Any]],
) -> None:
    assert convert("safeailab", target={"rope_theta": 500000.0})["rope_theta"] == 10000.0


@pytest.mark.parametrize(
    ("config", "key", "found", "alternative"),
    [
        ({"rope_theta": 1000000}, "rope_theta", 1e6, 10000.0),
        ({"rope_scaling": LLAMA3}, "rope_scaling", LLAMA3, None),
        (
            {"rope_theta": ABSENT, "rope_parameters": LLAMA3 | {"rope_theta": 500000.0}},
            "rope_theta",
            5e5,
            10000.0,
        ),
    ],
    ids=["theta", "scaling", "rope_parameters"],
)
def test_trap_1_2a_rope_that_specforge_may_have_ignored_in_training_is_a_doubt(
    config: dict[str, Any],
    key: str,
    found: Any,
    alternative: Any,
    convert: Callable[..., dict[str, Any]],
) -> None:
    written = convert("specforge", config)
    assert written[key] == found
    assert alternative in alternatives(written, key)


def test_trap_1_2b_norm_output_of_old_specforge_heads_is_plain_eagle3(
    convert: Callable[..., dict[str, Any]],
) -> None:
    written = convert("specforge", {"norm_output": True})
    assert (written["norm_output"], written["final_norm"]) == (False, True)
    assert True in alternatives(written, "norm_output")


def test_trap_1_2b_norm_output_false_may_have_meant_no_norm_before_lm_head(
    convert: Callable[..., dict[str, Any]],
) -> None:
    written = convert("specforge", {"norm_output": False})
    assert (written["norm_output"], written["final_norm"]) == (False, True)
    assert False in alternatives(written, "final_norm")


@pytest.mark.parametrize("publisher", ["speculators", "automodel"])
def test_trap_1_2b_norm_output_means_post_norm_feedback_everywhere_else(
    publisher: str, convert: Callable[..., dict[str, Any]]
) -> None:
    assert convert(publisher, {"norm_output": True})["norm_output"] is True


@pytest.mark.parametrize("n", [12, 36])
def test_trap_1_2c_mid_tap_of_a_specforge_head_is_a_doubt(
    n: int, convert: Callable[..., dict[str, Any]]
) -> None:
    written = convert("specforge", facts={"n": n})
    assert list(written["taps"]) == [2, n // 2, n - 3]
    assert [2, n // 2 + 1, n - 3] in alternatives(written, "taps")


def test_trap_1_3a_norm_before_residual_is_true_where_speculators_is_silent(
    convert: Callable[..., dict[str, Any]],
) -> None:
    written = convert("speculators", {"norm_before_residual": ABSENT})
    assert written["norm_before_residual"] is True
    assert False in alternatives(written, "norm_before_residual")


def test_trap_1_3a_norm_before_residual_is_false_where_p_eagle_is_silent(
    convert: Callable[..., dict[str, Any]],
) -> None:
    assert convert("peagle")["norm_before_residual"] is False


def test_trap_1_3b_new_speculators_heads_need_window_input_norm_and_post_norm_feedback(
    convert: Callable[..., dict[str, Any]],
) -> None:
    layer = {"layer_types": ["sliding_attention"], "sliding_window": 2048}
    written = convert(
        "speculators",
        {"norm_before_fc": True, "norm_output": True, "transformer_layer_config": layer},
        facts={"norm_before_fc": True},
    )
    assert list(written["sliding_windows"]) == [2048]
    assert written["norm_before_fc"] is written["norm_output"] is True
    assert written["norm_before_residual"] is True


def test_trap_1_3b_a_window_that_no_layer_uses_is_none(
    convert: Callable[..., dict[str, Any]],
) -> None:
    layer = {"layer_types": ["full_attention"], "sliding_window": 2048}
    written = convert("speculators", {"transformer_layer_config": layer})
    assert list(written["sliding_windows"]) == [None]


def test_trap_1_3c_output_ids_at_the_top_level_are_doubted(
    convert: Callable[..., dict[str, Any]],
) -> None:
    """The key holds boundaries, but these are exactly the usual ids of layers (n = 94)."""
    written = convert("speculators", flat(1, 46, 90), facts={"n": 94})
    assert list(written["taps"]) == [2, 47, 91]
    assert [1, 46, 90] in alternatives(written, "taps")


def test_trap_1_3d_a_head_from_weak_features_is_weak_and_not_malformed(
    convert: Callable[..., dict[str, Any]],
) -> None:
    written = convert("speculators", {"speculators_version": "0.2.0"})
    assert (written["final_norm"], written["norm_output"]) == (True, False)


@pytest.mark.parametrize(
    ("ids", "taps"), [([24, 30, 36], [24, 30, 36]), ([1, 17, 32], [2, 18, 33])], ids=str
)
def test_trap_1_4_one_vendor_ships_both_tap_conventions(
    ids: list[int], taps: list[int], convert: Callable[..., dict[str, Any]]
) -> None:
    written = convert("modelopt", nested(*ids), facts={"n": 36})
    assert list(written["taps"]) == taps


def test_trap_1_4_ids_that_modelopt_omits_are_the_default_and_doubted(
    convert: Callable[..., dict[str, Any]],
) -> None:
    written = convert("modelopt", {"eagle_config": {"use_aux_hidden_state": True}}, facts={"n": 80})
    assert list(written["taps"]) == [2, 40, 77]
    assert alternatives(written, "taps")


def test_trap_1_4_double_norm_is_offered_and_off(convert: Callable[..., dict[str, Any]]) -> None:
    written = convert("modelopt")
    assert written["double_norm"] is False
    assert alternatives(written, "double_norm") == [True]


def test_trap_1_4_norm_before_residual_that_a_converter_stamped_is_doubted(
    convert: Callable[..., dict[str, Any]],
) -> None:
    written = convert("modelopt", {"norm_before_residual": True})
    assert written["norm_before_residual"] is True
    assert False in alternatives(written, "norm_before_residual")


def test_trap_1_4_yarn_that_the_export_injected_is_doubted(
    convert: Callable[..., dict[str, Any]],
) -> None:
    written = convert("modelopt", {"rope_scaling": YARN})
    assert None in alternatives(written, "rope_scaling")


@pytest.mark.parametrize(
    ("publisher", "interleaved"), [("modelopt", True), ("specforge", False)], ids=str
)
def test_trap_1_4_only_nvidias_llama_4_heads_rotate_interleaved(
    publisher: str, interleaved: bool, convert: Callable[..., dict[str, Any]]
) -> None:
    written = convert(publisher, target={"model_type": "llama4"})
    assert written["rope_interleaved"] is interleaved
    if interleaved:
        assert alternatives(written, "rope_interleaved") == [False]


def test_trap_1_4_a_reduced_vocabulary_without_d2t_fails_loudly(
    convert: Callable[..., dict[str, Any]],
) -> None:
    with pytest.raises(CheckpointError, match="d2t"):
        convert("modelopt", names={"t2d": None, "d2t": None})


def test_trap_1_5_rope_base_of_angelslim_is_10000_whatever_its_config_says(
    convert: Callable[..., dict[str, Any]],
) -> None:
    written = convert("angelslim", {"rope_theta": 1000000})
    assert written["rope_theta"] == 10000.0
    assert 1e6 in alternatives(written, "rope_theta")


def test_trap_1_5_head_dim_comes_from_the_tensor(convert: Callable[..., dict[str, Any]]) -> None:
    sizes = {"h": 80, "H": 80, "nh": 8, "nkv": 2, "hd": 16}
    written = convert("angelslim", {"head_dim": 10}, facts=sizes)
    assert (written["num_attention_heads"], written["head_dim"]) == (8, 16)


def test_trap_1_5_tied_embeddings_are_ignored(convert: Callable[..., dict[str, Any]]) -> None:
    written = convert("angelslim", {"tie_word_embeddings": True})
    assert (written["own_lm_head"], written["own_embedding"]) == (True, False)


def test_trap_1_5_mrope_is_plain_rope_for_text(convert: Callable[..., dict[str, Any]]) -> None:
    mrope = {"type": "mrope", "mrope_section": [2, 1, 1]}
    assert convert("angelslim", {"rope_scaling": mrope})["rope_scaling"] is None


def test_trap_1_5_an_fc_that_is_wider_than_the_head_is_refused(
    convert: Callable[..., dict[str, Any]],
) -> None:
    with pytest.raises(CheckpointError, match=r"fc\.weight"):
        convert("angelslim", change=lambda t: t | {"fc.weight": mx.zeros((34, 96))})


def test_trap_1_6_a_gemma_head_of_deepspec_is_refused_by_name(
    convert: Callable[..., dict[str, Any]],
) -> None:
    with pytest.raises(CheckpointError, match="(?i)gemma"):
        convert("deepspec", {"architectures": ["Gemma4Eagle3Model"]})


def test_trap_1_10_p_eagle_without_its_mask_is_refused(
    convert: Callable[..., dict[str, Any]],
) -> None:
    with pytest.raises(CheckpointError, match="mask_hidden"):
        convert("peagle", names={"mask_hidden": None})


@pytest.mark.parametrize("tensor", ["layers.0.self_attn.sinks", "layers.0.enorm.weight"])
def test_a_tensor_that_nobody_would_run_is_refused_by_name(
    tensor: str, convert: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(CheckpointError, match=tensor):
        convert("modelopt", change=lambda t: t | {tensor: mx.zeros((32,))})


def test_a_norm_that_the_config_forgot_is_used(convert: Callable[..., dict[str, Any]]) -> None:
    assert convert("modelopt", facts={"norm_before_fc": True})["norm_before_fc"] is True


@pytest.mark.parametrize("flag", ["norm_before_fc", "fc_norm"])
def test_a_norm_that_only_the_config_has_is_refused(
    flag: str, convert: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(CheckpointError, match="input_norm|fc_norm"):
        convert("speculators", {flag: True})


OWN_OUTPUT = ("lm_head.weight", "d2t", "t2d")


@pytest.mark.parametrize("publisher", ["safeailab", "specforge", "angelslim", "deepspec"])
def test_c12_a_head_without_an_output_layer_and_tables_borrows_the_targets(
    publisher: str, convert: Callable[..., dict[str, Any]]
) -> None:
    def without(tensors: dict[str, mx.array]) -> dict[str, mx.array]:
        return {name: t for name, t in tensors.items() if name not in OWN_OUTPUT}

    written = convert(publisher, {"draft_vocab_size": None}, change=without)
    assert written["own_lm_head"] is False
    assert written["draft_vocab_size"] == written["target_vocab_size"]


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (OWN_OUTPUT, "lm_head.weight is missing.*drafts from 48"),
        (OWN_OUTPUT[:1], "missing lm_head"),
    ],
)
def test_c12_a_head_that_lost_its_output_layer_is_refused(
    lost: tuple[str, ...], words: str, convert: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(CheckpointError, match=words):
        convert(
            "safeailab",
            {"draft_vocab_size": 48},
            change=lambda tensors: {n: t for n, t in tensors.items() if n not in lost},
        )
