"""Where in a model few-row kernels can stand."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models import gemma, llama

from mlx_eagle.kernels.sites import find_sites


def quantized_llama(**changes: Any) -> nn.Module:
    """Return a tiny model of llama's architecture in 16 bits and 4."""
    sizes: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": 160,
        "tie_word_embeddings": False,
    }
    mx.random.seed(0)
    model = llama.Model(llama.ModelArgs(**{**sizes, **changes}))
    model.set_dtype(mx.float16)
    nn.quantize(model, group_size=64, bits=4)
    return model


def shapes(model: nn.Module) -> list[str]:
    """Return the shapes of a model's sites, each once."""
    return sorted({str(site.shape) for site in find_sites(model)})


def test_projections_and_gates_are_multiplied_together_and_the_rest_alone() -> None:
    assert shapes(quantized_llama()) == [
        "128->128+64+64, 4 bits by 64, float16",  # queries, keys, values
        "128->128, 4 bits by 64, float16",  # what attention gives
        "128->160, 4 bits by 64, float16",  # logits
        "128->256+256 gated, 4 bits by 64, float16",
        "256->128, 4 bits by 64, float16",  # down
    ]


def test_an_embedding_is_a_site_only_where_it_gives_the_logits() -> None:
    tied = find_sites(quantized_llama(tie_word_embeddings=True))
    embeddings = [s for s in tied if isinstance(s.layers[0], nn.QuantizedEmbedding)]
    assert len(embeddings) == 1
    untied = find_sites(quantized_llama())
    assert not any(isinstance(s.layers[0], nn.QuantizedEmbedding) for s in untied)


def test_biases_of_projections_are_seen() -> None:
    found = find_sites(quantized_llama(attention_bias=True))
    assert {s.shape.ns for s in found if s.shape.has_bias} == {(128, 64, 64), (128,)}


def test_gates_with_another_activation_are_multiplied_without_it() -> None:
    sizes = {"hidden_size": 128, "num_hidden_layers": 1, "intermediate_size": 256}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    args = gemma.ModelArgs(model_type="gemma", rms_norm_eps=1e-6, vocab_size=128, **sizes, **heads)
    model = gemma.Model(args)  # GELU
    model.set_dtype(mx.float16)
    nn.quantize(model, group_size=64, bits=4)
    assert "128->256+256, 4 bits by 64, float16" in shapes(model)
    assert not any(site.shape.is_gated for site in find_sites(model))


@pytest.mark.parametrize(
    "change",
    [
        {"group_size": 32, "bits": 6},
        {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    ],
)
def test_other_formats_have_no_sites(change: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(128, 64, bias=False))
    model.set_dtype(mx.float16)
    nn.quantize(model, **change)
    assert find_sites(model) == []


def test_float32_has_no_sites() -> None:
    model = nn.Sequential(nn.Linear(128, 64, bias=False))
    nn.quantize(model, group_size=64, bits=4)
    assert find_sites(model) == []
