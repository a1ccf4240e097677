"""Each family against PyTorch: a tiny random model, written as by llama.cpp, and converted."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model

from cases import broad
from gguf_files import File, byte_level, llama_facts, llama_shapes, random_tensors, write
from gguf_models import FAMILIES, make
from mlx_eagle.convert.gguf.convert import convert_gguf
from mlx_eagle.errors import CheckpointError
from mlx_eagle.target.load import load_target

TOKENS = [5, 9, 2, 30, 41, 17, 8, 8, 21, 40, 3, 60]  # longer than the windows of gemma 3
# Further cases of families that are tried anyway.
MORE = ("llama with biases", "mistral", "qwen2 with yarn", "qwen3", "phi3")
# Where mlx-lm's own class reads less than the configuration says; ours is what counts there.
READS_LESS = ("phi3 with longrope",)
# Up to how many tokens a text is right where it is not all of them: mlx-lm's gemma 2 ignores its
# window, and phi3's factors for short texts are right up to the length of those.
MOST_TOKENS = {"gemma2": 64, "phi3 with longrope": 64}


@pytest.mark.torch
@pytest.mark.parametrize("name", [broad(name) if name in MORE else name for name in FAMILIES])
def test_converted_family_has_the_logits_of_pytorch(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    model = make(name, tmp_path / "x.gguf")
    convert_gguf(tmp_path / "x.gguf", tmp_path / "out")
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0].numpy()
    loaded, _ = load_target(tmp_path / "out", "float32")
    assert loaded.max_context == MOST_TOKENS.get(name), loaded.remarks
    found = np.array(loaded.network(mx.array([TOKENS]))[0])
    assert np.abs(found - expected).max() < 2e-4 * np.abs(expected).max()
    if name not in READS_LESS:
        stock, _ = load_model(tmp_path / "out")
        stock.set_dtype(mx.float32)
        assert np.array_equal(np.array(stock(mx.array([TOKENS]))[0]), found)


def facts(**changes: int) -> File:
    """A tiny llama whose metadata has further keys."""

    def write_facts(writer) -> None:  # type: ignore[no-untyped-def]
        llama_facts(writer)
        for key, value in changes.items():
            writer.add_uint32(f"llama.{key.replace('__', '.')}", value)

    return File("llama", write_facts, random_tensors(llama_shapes()), byte_level)


def test_other_architecture_is_refused_by_name(tmp_path: Path) -> None:
    file = write(tmp_path / "x.gguf", facts()._replace(architecture="falcon"))
    with pytest.raises(
        CheckpointError, match="architecture 'falcon'; those that are .* llama, qwen2"
    ):
        convert_gguf(file, tmp_path / "out")


@pytest.mark.parametrize("key", ["expert_count", broad("attention__shared_kv_layers")])
def test_fact_that_the_family_does_not_have_is_refused_by_name(key: str, tmp_path: Path) -> None:
    file = write(tmp_path / "x.gguf", facts(**{key: 4}))
    with pytest.raises(CheckpointError, match=key.replace("__", ".")):
        convert_gguf(file, tmp_path / "out")
