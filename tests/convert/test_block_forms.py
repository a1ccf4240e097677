"""Heads that draft blocks, as every publisher writes them, against PyTorch."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from block_files import FORMS, MASK, ROWS, H, V, Written, write
from mlx_eagle.convert.heads import convert_head
from mlx_eagle.errors import CheckpointError
from mlx_eagle.heads.block import BlockHead
from mlx_eagle.heads.load import load_head

L, ACCEPTED = 9, (0, 3, 1)  # tokens of a prompt, and of each block before the next
rng = np.random.default_rng(2)
TAPS = rng.standard_normal((L + 3 + sum(ACCEPTED), 3 * H)).astype(np.float32)
EMBEDDING = rng.standard_normal((V, H)).astype(np.float32)
OUTPUT = rng.standard_normal((V, H)).astype(np.float32)
PATH = rng.integers(V, size=ROWS).tolist()


def starts() -> list[int]:
    """How much context each of three successive blocks has."""
    found = [L]
    for n in ACCEPTED[:-1]:
        found.append(found[-1] + n + 1)
    return found


def blocks(head: BlockHead, root: int) -> list[np.ndarray]:
    """Logits [depth, W] of three successive blocks after a prompt, as a drafter runs them."""
    cache, found, depth = head.make_cache(), [], head.max_depth
    output = head.lm_head.weight if head.config.own_lm_head else mx.array(OUTPUT)
    for start in starts():
        new = mx.array(TAPS[cache.rows : start])[None]
        head.keep_context(new, cache)
        cache.commit(range(new.shape[1]))
        tokens = head.block(mx.array([root], dtype=mx.int32), depth)
        states = head(mx.array(EMBEDDING)[tokens], cache, depth)
        cache.commit([])
        logits = (states @ output.T)[0]
        if head.config.markov != "none":
            logits = logits + bias(head, root, states[0])
        found.append(np.array(logits))
    return found


def bias(head: BlockHead, root: int, states: mx.array) -> mx.array:
    state, rows = head.markov_head.start(states.dtype), []
    for i, token in enumerate([root, *PATH[: states.shape[0] - 1]]):
        row, state = head.markov_head(mx.array([token]), states[i : i + 1], state)
        rows.append(row)
    return mx.concatenate(rows)


def reference(name: str, written: Written, root: int) -> list[np.ndarray]:
    torch = pytest.importorskip("torch")
    from block_reference import BlockReference

    tensors = {key: torch.from_numpy(value) for key, value in written.tensors.items()}
    form = FORMS[name]
    output = tensors["lm_head.weight"] if form.n_drafted < V else torch.from_numpy(OUTPUT)
    model = BlockReference(form.truth, tensors, torch.from_numpy(EMBEDDING), output)
    path = PATH[: ROWS - 1 - (not form.truth.root_predicts)]
    taps = torch.from_numpy(TAPS)
    return [model.logits(taps[:start], root, path).numpy() for start in starts()]


@pytest.mark.torch
@pytest.mark.parametrize("name", list(FORMS))
def test_blocks_after_a_prompt_have_pytorchs_logits(name: str, tmp_path: Path) -> None:
    written, truth = write(tmp_path, name), FORMS[name].truth
    config = convert_head(written.source, written.target, tmp_path / "head", bits=None)
    head = load_head(tmp_path / "head")
    assert isinstance(head, BlockHead)
    assert tuple(config["taps"]) == truth.boundaries
    assert config["mask_token_id"] == MASK
    assert config["algorithm"] == ("dflash" if truth.markov == "none" else "dspark")
    assert head.max_depth == ROWS - (not truth.root_predicts)
    for found, expected in zip(blocks(head, 7), reference(name, written, 7), strict=True):
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fc_layernorm": True}, "fc_layernorm is True: the head needs a norm of its own after fc"),
        ({"log_snr_conditioning": True}, "needs an embedding of each row's noise"),
        ({"output_multiplier": 2.0}, "needs scaled logits"),
        ({"final_logit_softcapping": 30.0}, "needs capped logits"),
        ({"projector_type": "other"}, "needs Domino's correction"),
        ({"markov_rank": 4}, "sets markov_rank, but markov_head is missing"),
        ({"attention_sink_bias": True}, "sets attention_sink_bias, but layers.0.self_attn"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', not silu"),
        ({"is_causal": 1}, "is_causal is 1, not true or false"),
        ({"block_size": 1}, "it needs a block that drafts"),
        ({"use_swa": True, "swa_window_size": 3}, "needs sliding_windows of a block at least"),
        ({"dflash_config": {"mask_token_id": MASK}}, "target_layer_ids is missing, not the layers"),
        ({"dflash_config": {"target_layer_ids": [0, 2, 5]}}, "needs a mask_token_id"),
        (
            {"dflash_config": {"target_layer_ids": [0, 5, 2], "mask_token_id": MASK}},
            r"the head's taps are \[1, 6, 3\]",
        ),
        (
            {"dflash_config": {"target_layer_ids": [0, 2, 6], "mask_token_id": MASK}},
            r"boundaries 0 to 6 of the target",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    written = write(tmp_path, "z-lab", **changes)
    with pytest.raises(CheckpointError, match=words):
        convert_head(written.source, written.target, tmp_path / "head", bits=None)
    assert not (tmp_path / "head").exists()


def test_a_target_that_scales_its_embeddings_is_refused(tmp_path: Path) -> None:
    written = write(tmp_path, "z-lab")
    target = json.loads((written.target / "config.json").read_text())
    (written.target / "config.json").write_text(json.dumps(target | {"model_type": "gemma3_text"}))
    with pytest.raises(CheckpointError, match="block heads for Gemma's targets are not supported"):
        convert_head(written.source, written.target, tmp_path / "head", bits=None)


def test_a_bias_of_another_kind_than_announced_is_refused(tmp_path: Path) -> None:
    written = write(tmp_path, "DeepSpec DSpark, gated", markov_head_type="vanilla")
    with pytest.raises(CheckpointError, match="'vanilla', and the tensors are those of gated"):
        convert_head(written.source, written.target, tmp_path / "head", bits=None)


def test_copies_of_the_targets_layers_are_left_out_unless_told(tmp_path: Path) -> None:
    written = write(tmp_path, "DeepSpec DSpark")
    config = convert_head(written.source, written.target, tmp_path / "head", bits=None)
    weights = mx.load(str(tmp_path / "head" / "model.safetensors"))
    assert not [name for name in weights if name.startswith(("embed", "lm_head", "confidence"))]
    assert config["origins"]["own_lm_head"].startswith("publisher: a copy of the target's")
    kept = convert_head(
        written.source,
        written.target,
        tmp_path / "kept",
        bits=None,
        settings={"own_lm_head": True, "root_predicts": False},
    )
    head = load_head(tmp_path / "kept")
    assert kept["own_lm_head"] and "lm_head" in head and "embed_tokens" not in head
    assert head.max_depth == ROWS - 1
    with pytest.raises(CheckpointError, match="norm_output cannot be set; what can be is block_"):
        convert_head(written.source, written.target, tmp_path / "x", settings={"norm_output": True})


def test_what_files_are_known_to_get_wrong_is_in_doubt(tmp_path: Path) -> None:
    written = write(tmp_path, "z-lab with windows")
    config = convert_head(written.source, written.target, tmp_path / "head", bits=None)
    doubts = {name: doubt["alternatives"] for name, doubt in config["doubts"].items()}
    assert doubts == {
        "taps": [[0, 2, 5]],
        "root_predicts": [True],
        "causal_layers": [[False, False, False]],
    }


def test_a_partial_rotation_copied_from_the_target_is_not_the_heads(tmp_path: Path) -> None:
    written = write(tmp_path, "DeepSpec DSpark", partial_rotary_factor=0.25)
    config = convert_head(written.source, written.target, tmp_path / "head", bits=None)
    assert config["rope_dims"] == config["head_dim"] == 16


def test_a_quantized_head_drafts(tmp_path: Path) -> None:
    written = write(tmp_path, "z-lab, causal")
    convert_head(written.source, written.target, tmp_path / "head", bits=8, group_size=32)
    convert_head(written.source, written.target, tmp_path / "plain", bits=None)
    heads = [load_head(tmp_path / name) for name in ("head", "plain")]
    found, expected = (blocks(head, 7)[0] for head in heads if isinstance(head, BlockHead))
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
