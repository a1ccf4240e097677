"""Heads that draft blocks, as every publisher writes them, against PyTorch."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from block_files import FORMS, MASK, ROWS, H, V, Written, write
from mlx_eagle.convert.heads import convert_head
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
