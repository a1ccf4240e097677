"""Multi-token prediction layers of every family and form against PyTorch."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mtp_files
from mlx_eagle.convert.heads import convert_head
from mlx_eagle.convert.mtp.extract import LocalCheckpoint, find_layer, write_layer
from mlx_eagle.heads.load import load_head
from mlx_eagle.heads.mtp import MtpHead

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
    source: Path, tmp_path: Path, family: str, layer: dict[str, np.ndarray]
) -> dict[str, Any]:
    target = target_folder(tmp_path / "target", family)
    config = convert_head(source, target, tmp_path / "head", bits=None)
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
