"""How configurations say that layers rotate, against transformers' own formulas; and random ones.

A fuzz over the keys that families know: the model is PyTorch's, or it is refused or limited.
"""

import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_eagle.errors import CheckpointError
from mlx_eagle.target.load import load_network
from mlx_eagle.target.rotation import announced_rotation

BASE: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 8.0},
    "longrope": {},
}
# Types of models, and the keys beside those of rope that their configurations may have.
FAMILIES: dict[str, dict[str, list[Any]]] = {
    "llama": {
        "tie_word_embeddings": [True, False],
        "head_dim": [16, 32],
        "attention_bias": [True, False],
    },
    "mistral": {"sliding_window": [None, 8], "head_dim": [16, 32]},
    "qwen2": {
        "use_sliding_window": [True, False],
        "sliding_window": [8],
        "max_window_layers": [0, 1],
    },
    "qwen3": {"head_dim": [16, 32], "tie_word_embeddings": [True, False]},
    "phi3": {"sliding_window": [None, 8]},
    "gemma2": {"sliding_window": [8], "head_dim": [16]},
    "gemma3_text": {"sliding_window": [8], "head_dim": [16]},
    "stablelm": {"use_qkv_bias": [True, False]},
    "cohere": {"logit_scale": [0.25, 0.5]},
    "olmo2": {"tie_word_embeddings": [True, False]},
    "starcoder2": {"sliding_window": [None, 8]},
    "granite": {"logits_scaling": [1.0, 4.0]},
}


# Families of which a part of each head is rotated; transformers' code for others has no such part.
PARTIAL = ("phi3", "stablelm")


def random_rope(rng: random.Random, *, may_be_partial: bool = True) -> dict[str, Any]:
    """Random facts of a rope, as transformers 5 writes them."""
    kind = rng.choice(list(KINDS))
    facts = {"rope_type": kind, "rope_theta": rng.choice([1e4, 5e5, 1e6])} | KINDS[kind]
    if kind in ("yarn", "llama3", "longrope"):
        facts["original_max_position_embeddings"] = rng.choice([32, 64])
    if kind == "yarn":
        extra = {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False, "attention_factor": 1.3}
        facts |= {key: value for key, value in extra.items() if rng.random() < 0.4}
    if may_be_partial and rng.random() < 0.3:
        facts["partial_rotary_factor"] = 0.5
    return facts


def with_factors(facts: dict[str, Any], head_dim: int, rng: random.Random) -> dict[str, Any]:
    """The same with the lists of LongRoPE, one factor for each pair."""
    if facts["rope_type"] != "longrope":
        return facts
    n_pairs = int(head_dim * facts.get("partial_rotary_factor", 1.0)) // 2
    factors = {
        key: [rng.uniform(1, 4) for _ in range(n_pairs)] for key in ("short_factor", "long_factor")
    }
    return facts | factors


@pytest.mark.torch
@pytest.mark.parametrize("seed", range(20))
def test_angles_and_amplitude_are_those_of_transformers(seed: int) -> None:
    pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rng = random.Random(seed)
    facts = with_factors(random_rope(rng), 16, rng)
    config = LlamaConfig(**BASE | {"rope_parameters": dict(facts)})
    theirs = LlamaRotaryEmbedding(config)
    ours = announced_rotation(BASE | {"rope_parameters": facts}, 0)
    assert ours is not None
    partial = facts["rope_type"] == "default" and "partial_rotary_factor" in facts
    if not partial:  # Llama's own code has no part that is not rotated
        np.testing.assert_allclose(ours.angles, theirs.inv_freq.numpy(), rtol=1e-5)
        assert ours.amplitude == pytest.approx(theirs.attention_scaling)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "rope_type 'spiral'"),
        ({"rope_parameters": "yes"}, "'yes', not an object"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "layer_types does not say"),
        (
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1]}},
            "short_factor of its rope is not a list of 8",
        ),
    ],
)
def test_facts_that_are_malformed_or_unknown_are_refused_by_name(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        announced_rotation(BASE | config, 0)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "alpha": 1000.0}},
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
    ],
)
def test_where_a_model_s_own_code_decides_nothing_is_announced(config: dict[str, Any]) -> None:
    assert announced_rotation(BASE | config, 0) is None


def random_model(family: str, config: dict[str, Any], seed: int) -> Any:
    """A random model of transformers' that can be run."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**config)).float().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim < 2 else 0, 0.15)
    model(torch.tensor([[5, 6]]))
    return model


@pytest.mark.torch
def test_random_configurations_run_as_in_pytorch_or_are_refused(
    tmp_path: Path, is_quick: bool
) -> None:
    """The logits of 24 tokens; where the context is limited, of as many."""
    torch = pytest.importorskip("torch")
    n_equal, wrong = 0, []
    for seed in range(20 if is_quick else 300):
        rng = random.Random(seed)
        family = rng.choice(list(FAMILIES))
        extra = {key: rng.choice(values) for key, values in FAMILIES[family].items()}
        config: dict[str, Any] = BASE | extra
        head_dim = config.get("head_dim", 16)
        if family != "gemma3_text":  # its layers differ; transformers has its own defaults
            config["rope_parameters"] = with_factors(
                random_rope(rng, may_be_partial=family in PARTIAL), head_dim, rng
            )
        try:
            model = random_model(family, config, seed)
        except Exception:  # transformers has no such model, and says so in many ways
            continue
        folder = tmp_path / str(seed)
        model.save_pretrained(folder)
        try:
            loaded = load_network(folder)
        except Exception:  # refused, by whichever library
            continue
        ids = [rng.randrange(3, 128) for _ in range(min(loaded.max_context or 24, 24))]
        with torch.no_grad():
            theirs = model(torch.tensor([ids])).logits[0].numpy()
        loaded.network.set_dtype(mx.float32)
        ours = np.array(loaded.network(mx.array([ids]))[0])
        if np.abs(ours - theirs).max() > 2e-3 * np.abs(theirs).max():
            wrong.append((seed, family, config, loaded.remarks))
        n_equal += 1
    assert wrong == [], "\n".join(map(str, wrong))
    assert n_equal >= (10 if is_quick else 15), "nearly everything was refused"


def test_layers_of_two_kinds_have_their_own_facts_and_sizes() -> None:
    """As Gemma 4 is saved; the factor beside is what mlx-lm is told of the other kind."""
    kinds = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {
            "rope_type": "proportional",
            "rope_theta": 1e6,
            "partial_rotary_factor": 0.25,
        },
    }
    config = BASE | {
        "rope_parameters": kinds,
        "layer_types": ["sliding_attention", "full_attention"],
        "per_layer_config": {"1": {"head_dim": 64}},
        "partial_rotary_factor": 0.25,
    }
    sliding, whole = announced_rotation(config, 0), announced_rotation(config, 1)
    assert sliding is not None and whole is not None
    assert (len(sliding.angles), sliding.angles[1]) == (8, pytest.approx(1e4 ** (-2 / 16)))
    assert (len(whole.angles), sum(angle > 0 for angle in whole.angles)) == (32, 8)
