"""What the target computes of a text: against PyTorch, in pieces, and logits after the output."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlx_eagle.errors import UnsupportedTargetError
from mlx_eagle.target.load import load_target
from mlx_eagle.target.target import Target
from mlx_eagle.training.features import compute as compute_module
from mlx_eagle.training.features.compute import (
    as_float32,
    as_mlx,
    as_numpy,
    compute,
    logits_after,
    tap_for_features,
    taps_of,
)
from own_heads import EAGLE, PLAIN
from training_cases import eagle_head, medusa_head

Build = Callable[..., nn.Module]
TOKENS = np.random.default_rng(0).integers(0, 128, 40).astype(np.int32)


@pytest.mark.torch
def test_taps_final_states_and_choices_are_those_of_pytorch(fixtures: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    tokens = np.random.default_rng(1).integers(0, 4096, 50)
    folder = fixtures / "pydoc-llama"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        out = model(torch.tensor(tokens)[None], output_hidden_states=True)
    states = [state[0].numpy() for state in out.hidden_states]  # the last one is after the norm
    target = tap_for_features(Target(load_target(folder, "float32")[0].network), (2, 4, 5))
    got = compute(target, tokens)
    want = np.concatenate([states[2], states[4], states[5]], axis=1)
    assert np.allclose(got.taps, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    assert np.allclose(got.final, states[8], rtol=1e-4, atol=1e-4 * np.abs(states[8]).max())
    assert got.choices.tolist() == out.logits[0].argmax(-1).tolist()
    assert (got.taps.dtype, got.choices.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])  # one with short windows
def test_a_text_in_pieces_is_computed_as_in_one(
    architecture: str, tiny_target: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tap_for_features(Target(tiny_target(architecture)), (1, 3))
    whole = compute(target, TOKENS)
    monkeypatch.setattr(compute_module, "STEP", 12)
    pieces = compute(target, TOKENS)
    assert np.allclose(pieces.taps, whole.taps, atol=1e-5)
    assert np.allclose(pieces.final, whole.final, atol=1e-5)
    assert pieces.choices.tolist() == whole.choices.tolist()


def test_choices_are_what_mlx_lm_would_generate(tiny_target: Build) -> None:
    model = tiny_target("gemma2")
    cache = make_prompt_cache(model)
    rows = [
        int(model(mx.array([[token]]), cache=cache)[0, -1].argmax()) for token in TOKENS.tolist()
    ]
    assert compute(tap_for_features(Target(model), ()), TOKENS).choices.tolist() == rows


@pytest.mark.parametrize(("taps", "n_taps"), [((), 0), ((5,), 1), ((0, 2, 5), 3)])
def test_a_head_may_read_no_tap_or_the_final_state_itself(
    taps: tuple[int, ...], n_taps: int, tiny_target: Build
) -> None:
    got = compute(tap_for_features(Target(tiny_target("llama")), taps), TOKENS)
    assert got.taps.shape == (40, n_taps * 64)
    assert got.final.shape == (40, 64)
    if taps:
        assert np.array_equal(got.taps[:, -64:], got.final)


def test_the_twin_of_a_target_leaves_it_as_it_was(tiny_target: Build) -> None:
    target = Target(tiny_target("llama"), taps=(2,))
    before = np.array(target.extend(mx.array(TOKENS), target.make_cache()))
    kinds = [type(module) for module in target.model.modules()]
    twin = tap_for_features(target, (1, 3))
    compute(twin, TOKENS)
    twin.release()
    logits_after(target)
    assert [type(module) for module in target.model.modules()] == kinds
    assert np.array_equal(np.array(target.extend(mx.array(TOKENS), target.make_cache())), before)


def test_bfloat16_passes_through_numpy_bit_by_bit(tiny_target: Build) -> None:
    model = tiny_target("llama")
    model.set_dtype(mx.bfloat16)
    target = tap_for_features(Target(model), (2,))
    got = compute(target, TOKENS)
    stream, want = as_mlx(got.taps), target.extend(mx.array(TOKENS), target.make_cache())
    assert stream.dtype == mx.bfloat16
    assert want is not None and mx.array_equal(stream, want[:, :64])
    assert np.array_equal(as_float32(got.taps), np.array(stream.astype(mx.float32)))
    assert np.array_equal(as_numpy(stream), got.taps)


def test_streams_that_overflow_are_refused_with_what_to_do(tiny_target: Build) -> None:
    model = tiny_target("llama")
    model.set_dtype(mx.float16)
    embedding = model.model.embed_tokens
    embedding.weight = embedding.weight * 6e6
    target = tap_for_features(Target(model), (1,))
    with pytest.raises(UnsupportedTargetError, match="beyond float16.*in bfloat16 or float32"):
        compute(target, TOKENS)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "architecture", ["llama", "qwen3", "phi3", "gemma2", "cohere", "granite", "gemma3_text"]
)
def test_logits_are_those_of_the_model_for_all_or_some_tokens(
    architecture: str, tied: bool, tiny_target: Build
) -> None:
    target = Target(tiny_target(architecture, tie_word_embeddings=tied))
    after = logits_after(target)
    twin = tap_for_features(target, ())
    logits, final = twin.forward(mx.array(TOKENS), twin.make_cache())
    assert final is not None
    raw = target.unembed(final)
    assert mx.allclose(after(raw), logits, rtol=1e-5, atol=1e-5)
    some = mx.array([3, 90, 17])
    assert mx.allclose(after(raw[:, some]), logits[:, some], rtol=1e-5, atol=1e-5)
    assert after(raw[None]).shape == (1, 40, 128)


@pytest.mark.parametrize(
    ("architecture", "want"),
    [
        ("llama", [1.0, 40.0, -300.0]),
        ("cohere", [0.0625, 2.5, -18.75]),
        ("granite", [0.5, 20.0, -150.0]),
        ("gemma2", [30 * np.tanh(1 / 30), 30 * np.tanh(40 / 30), -30.0]),
    ],
)
def test_factors_and_caps_are_found_in_16_bits_too(
    architecture: str, want: list[float], tiny_target: Build
) -> None:
    model = tiny_target(architecture)
    model.set_dtype(mx.bfloat16)
    got = logits_after(Target(model))(mx.array([1.0, 40.0, -300.0]))
    assert np.allclose(np.array(got), want, rtol=1e-4)


def test_a_target_that_shares_a_quantized_embedding_is_measured_too(tiny_target: Build) -> None:
    model = tiny_target("gemma2", tie_word_embeddings=True)
    nn.quantize(model, group_size=32, bits=8)
    got = logits_after(Target(model))(mx.array([40.0]))
    assert got.item() == pytest.approx(30 * np.tanh(40 / 30), rel=1e-4)


def squared(logits: mx.array) -> mx.array:
    return logits * mx.abs(logits)


def shifted(logits: mx.array) -> mx.array:
    return logits + mx.arange(logits.shape[-1])


@pytest.mark.parametrize("change", [squared, shifted])
def test_anything_else_after_the_output_layer_is_refused(
    change: Callable[[mx.array], mx.array], tiny_target: Build
) -> None:
    model = tiny_target("llama")
    plain = type(model)

    class Other(plain):  # type: ignore[valid-type,misc]
        def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
            return change(super().__call__(*args, **kwargs))

    model.__class__ = Other
    with pytest.raises(UnsupportedTargetError, match="something else than a factor or a soft cap"):
        logits_after(Target(model))


def test_a_target_whose_output_layer_is_not_called_is_refused(tiny_target: Build) -> None:
    """MiniCPM with a shared embedding multiplies by its weight, which no hook sees."""
    extra = {"dim_model_base": 32, "scale_depth": 1.4, "scale_emb": 12}
    model = tiny_target("minicpm", tie_word_embeddings=True, **extra)
    with pytest.raises(UnsupportedTargetError, match="cannot be trained yet"):
        logits_after(Target(model))


def test_a_head_that_fuses_no_taps_reads_the_final_state_alone() -> None:
    assert taps_of(eagle_head(PLAIN, taps=(1, 4, 7))) == (1, 4, 7)
    assert taps_of(eagle_head(EAGLE)) == ()
    assert taps_of(medusa_head()) == ()
