"""Layouts: what cannot be said about a head is refused by name, and nothing is written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_eagle.convert.export import export_head
from mlx_eagle.errors import CheckpointError
from mlx_eagle.heads.config import HeadConfig
from own_heads import (
    BIASED,
    EAGLE,
    LINEAR,
    LLAMA3,
    PARALLEL,
    PLAIN,
    V,
    W,
    name_of,
    write_head,
    write_target,
)

EIGHT = {"head_dim": 8, "rope_dims": 8}
# What a layout cannot say, and the words in which it is refused.
UNSUPPORTED: list[tuple[str, HeadConfig, dict[str, Any], str]] = [
    ("safeailab", PLAIN, {"taps": (2, 5, 9)}, "taps are 2, 5, 9, not 2, 6, 9; use the layout spec"),
    ("safeailab", PLAIN, {"fc_norm": True}, "fc_norm is true; use the layout specforge or specul"),
    ("safeailab", PLAIN, {"norm_before_fc": True}, "norm_before_fc is true"),
    ("safeailab", PLAIN, {"norm_before_residual": True}, "norm_before_residual is true"),
    ("safeailab", PLAIN, {"norm_output": True}, "norm_output is true; use the layout speculators"),
    ("safeailab", PLAIN, {"qk_norm": True}, "qk_norm is true"),
    ("safeailab", PLAIN, BIASED, "attention_bias is true, attention_output_bias is true"),
    ("safeailab", PLAIN, {"rope_scaling": LLAMA3}, "rope_scaling is .*llama3"),
    ("safeailab", PLAIN, {"rope_scaling": LINEAR, "rope_theta": 5e5}, "with the base 500000"),
    ("safeailab", PLAIN, {"sliding_windows": (64,)}, r"sliding_windows is \[64\]"),
    (
        "safeailab",
        PLAIN,
        {"num_hidden_layers": 2, "sliding_windows": (None, None)},
        "num_hidden_layers is 2; use the layout speculators",
    ),
    (
        "safeailab",
        PLAIN,
        EIGHT,
        "head_dim is 8 with 4 query heads, not 4; use the layout specforge",
    ),
    ("safeailab", EAGLE, EIGHT, "head_dim is 8 with 4 query heads, not 4; no other layout can"),
    ("safeailab", EAGLE, {"norm_output": True}, "norm_output is true; no other layout can either"),
    (
        "safeailab",
        EAGLE,
        {"own_lm_head": True, "draft_vocab_size": W},
        "own_lm_head is true, draft",
    ),
    ("safeailab", PARALLEL, {}, "it is of the kind P-EAGLE head; use the layout speculators"),
    ("specforge", EAGLE, {}, "it is of the kind EAGLE head; use the layout safeailab"),
    ("specforge", PLAIN, {"taps": (0, 6, 9)}, "taps are 0, 6, 9; use the layout speculators"),
    ("specforge", PLAIN, {"taps": (2, 6, 13)}, "taps are 2, 6, 13; no other layout"),
    ("specforge", PLAIN, {"taps": (2, 4, 6, 9)}, "taps are 2, 4, 6, 9; use the layout speculators"),
    ("specforge", PLAIN, {"taps": (3, 7, 10)}, "taps are 3, 7, 10"),
    ("specforge", PLAIN, {"norm_output": True}, "norm_output is true without fc_norm; use the"),
    ("specforge", PLAIN, {"own_embedding": True}, "own_embedding is true; use the layout safeail"),
    ("specforge", PLAIN, {"norm_before_residual": True}, "norm_before_residual is true"),
    ("specforge", PLAIN, {"sliding_windows": (64,)}, "sliding_windows is"),
    ("speculators", PLAIN, {"taps": (1, 5, 8)}, "taps are 1, 5, 8; use the layout specforge"),
    ("speculators", PLAIN, {"taps": (2, 6, 13)}, "taps are 2, 6, 13"),
    ("speculators", PLAIN, {"double_norm": True}, "double_norm is true; no other layout can"),
    ("speculators", PLAIN, {"fc_bias": True}, "fc_bias is true"),
    ("speculators", PLAIN, {"rope_interleaved": True}, "rope_interleaved is true"),
    ("speculators", PLAIN, {"rope_dims": 2}, "rope_dims is 2 of 4"),
    ("speculators", PLAIN, {"attention_bias": True}, "attention_output_bias is false"),
    ("speculators", PLAIN, {"mlp_bias": True, "qk_norm": True}, "beside norms of queries and keys"),
    ("speculators", PLAIN, {"norm_before_fc": True, "fc_norm": True}, "are both true"),
    ("speculators", PLAIN, {"final_norm": False}, "final_norm is false"),
    ("speculators", PLAIN, {"own_lm_head": False, "draft_vocab_size": V}, "own_lm_head is false"),
    (
        "speculators",
        PLAIN,
        {"num_hidden_layers": 2, "sliding_windows": (32, 64)},
        r"sliding_windows is \[32, 64\]",
    ),
]


@pytest.mark.parametrize(("layout", "base", "changes", "words"), UNSUPPORTED, ids=name_of)
def test_what_a_layout_cannot_say_is_refused_by_name(
    layout: str, base: HeadConfig, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    source = write_head(tmp_path / "head", replace(base, **changes))
    with pytest.raises(CheckpointError, match=f"the layout {layout} cannot say this: .*{words}"):
        export_head(source, tmp_path / "out", layout)
    assert [path.name for path in tmp_path.iterdir()] == ["head"]


def test_sglang_reads_ids_for_deepseek_as_layers_only_if_the_first_is_1(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target", model_type="deepseek_v3")
    for taps, is_refused in (((2, 5, 9), False), ((3, 6, 11), True)):
        source = write_head(tmp_path / f"head-{taps[0]}", replace(PLAIN, taps=taps))
        out = tmp_path / f"out-{taps[0]}"
        if is_refused:
            with pytest.raises(CheckpointError, match="taps are 3, 6, 11; use the layout specul"):
                export_head(source, out, "specforge", target=target)
        else:
            export_head(source, out, "specforge", target=target)
