"""Few-row kernels on a target's layers: when they run, what they give, and that nothing stays."""

from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_map

from mlx_eagle.cache.options import KVOptions
from mlx_eagle.errors import UnsupportedTargetError
from mlx_eagle.kernels.attention_trial import Heads
from mlx_eagle.kernels.shapes import CONVERT, Variant
from mlx_eagle.kernels.sites import find_sites
from mlx_eagle.kernels.verdicts import Plan
from mlx_eagle.kernels.watchdog import ENOUGH
from mlx_eagle.target.target import Target
from mlx_eagle.tree import DraftTree
from tiny_models import build_target

PROMPT = mx.array([3, 1, 4, 1, 5, 9, 2, 6], dtype=mx.int32)
TREE = DraftTree.static(mx.array([7, 8, 9, 10, 11, 12], dtype=mx.int32), [0, 0, 0, 1, 1, 2])
HEADS = Heads(4, 2, 64, "float16", 64**-0.5)
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 64}


def model_in_16_bits() -> nn.Module:
    model = build_target("llama", **SIZES)
    model.set_dtype(mx.float16)
    nn.quantize(model, group_size=32, bits=4)
    return model


def in_float32(model: nn.Module) -> nn.Module:
    """Return the same model, which computes in float32."""

    def widened(array: mx.array) -> mx.array:
        return array.astype(mx.float32) if array.dtype == mx.float16 else array

    wide = build_target("llama", **SIZES)
    nn.quantize(wide, group_size=32, bits=4)
    wide.update(tree_map(widened, model.parameters()))
    return wide


def plan(model: nn.Module, rows: range) -> Plan:
    variants = dict.fromkeys(rows, Variant(2, 2, CONVERT))
    attention = {HEADS: dict.fromkeys(rows, 0)}
    return Plan({site.shape: variants for site in find_sites(model)}, attention)


def logits(target: Target, tree: DraftTree = TREE) -> mx.array:
    cache = target.make_cache()
    target.extend(PROMPT, cache)
    return target.verify(tree, cache).logits


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return model_in_16_bits()


@pytest.fixture
def target(model: nn.Module, emulated: None) -> Iterator[Target]:
    target = Target(model, taps=(0, 1, 2))
    yield target
    target.release()


def rms(array: mx.array) -> float:
    return float(mx.sqrt(mx.mean(array.astype(mx.float32) ** 2)))


@pytest.mark.metal
def test_a_verification_with_kernels_is_nearer_to_float32_and_plain_decoding_stays_as_it_was(
    target: Target,
) -> None:
    model = target.model
    exact = logits(Target(in_float32(model)))
    stock, one = logits(target), logits(target, DraftTree.chain(PROMPT[:1]))
    prompt = model(PROMPT[None])
    target.few_rows.put_on(model, plan(model, range(2, 17)))
    found = logits(target)
    assert rms(found - exact) < 0.8 * rms(stock - exact)
    # One row, prompts and forward passes of others are computed by MLX, to the last bit.
    assert mx.array_equal(logits(target, DraftTree.chain(PROMPT[:1])), one)
    assert mx.array_equal(model(PROMPT[None]), prompt)
    target.few_rows.release()
    assert mx.array_equal(logits(target), stock)


@pytest.mark.metal
def test_taking_them_off_leaves_no_trace(target: Target) -> None:
    kinds = {name: type(m) for name, m in target.model.named_modules()}
    state = {name: dict(vars(m)) for name, m in target.model.named_modules()}
    target.few_rows.put_on(target.model, plan(target.model, range(2, 9)))
    assert {name: type(m) for name, m in target.model.named_modules()} != kinds
    target.few_rows.release()
    assert {name: type(m) for name, m in target.model.named_modules()} == kinds
    assert {name: dict(vars(m)) for name, m in target.model.named_modules()} == state


@pytest.mark.metal
def test_hooks_that_were_put_on_later_stay_when_kernels_are_taken_off(target: Target) -> None:
    n_layers = len(target.model.layers)
    target.few_rows.put_on(target.model, plan(target.model, range(2, 9)))
    twin = target.twin(taps=(n_layers + 1,))  # on the layer that gives the logits
    cache = twin.make_cache()
    twin.few_rows.release()
    twin.extend(PROMPT, cache)
    assert twin.verify(TREE, cache).taps is not None
    twin.release()


@pytest.mark.metal
def test_layers_that_read_the_same_rows_are_one_launch(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = []

    def counted(**options: object) -> object:
        make = original(**options)

        def run(**arguments: object) -> object:
            launched.append(options["name"])
            return make(**arguments)

        return run

    original = mx.fast.metal_kernel
    monkeypatch.setattr(mx.fast, "metal_kernel", counted)
    target.few_rows.put_on(target.model, plan(target.model, range(2, 9)))
    mx.eval(logits(target))
    n_layers = len(target.model.layers)
    # queries, keys and values; attention; what it gives; gate and up; down; and the logits once
    assert len(launched) == 5 * n_layers + 1


@pytest.mark.metal
def test_the_tap_of_what_the_output_layer_is_given_is_not_lost(
    model: nn.Module, emulated: None
) -> None:
    target = Target(model, taps=(1, len(model.layers) + 1))
    target.few_rows.put_on(model, plan(model, range(2, 9)))
    cache = target.make_cache()
    target.extend(PROMPT, cache)
    assert target.verify(TREE, cache).taps is not None
    target.release()


@pytest.mark.metal
def test_a_twin_that_is_given_up_leaves_the_kernels_on(target: Target) -> None:
    target.few_rows.put_on(target.model, plan(target.model, range(2, 9)))
    target.twin(taps=(1,)).release()
    with pytest.raises(UnsupportedTargetError):
        target.twin(taps=(99,))
    assert target.few_rows.rows == list(range(2, 9))


@pytest.mark.metal
def test_what_not_all_layers_took_is_dropped_after_the_verification(target: Target) -> None:
    target.few_rows.put_on(target.model, plan(target.model, range(2, 9)))
    attention = target.model.layers[0].self_attn
    rows = mx.zeros((1, 4, SIZES["hidden_size"]), dtype=mx.float16)
    with target.few_rows.verifying():
        attention.q_proj(rows)
        assert any(shared._left for shared in target.few_rows._shared)
    assert not any(shared._left for shared in target.few_rows._shared)


@pytest.mark.metal
def test_a_conversation_with_another_cache_is_not_taken_for_one_that_is_served(
    target: Target,
) -> None:
    target.few_rows.put_on(target.model, Plan({}, {HEADS: {6: 0}}))
    mx.eval(logits(target))  # whole rows are served
    quantized = target.twin()
    for bits in (8, 4):
        quantized.kv = KVOptions(bits, 32)
        target.few_rows.is_on = False
        stock = logits(quantized)
        target.few_rows.is_on = True
        assert mx.array_equal(logits(quantized), stock)


def test_rounds_that_stall_switch_them_off_and_are_told_once() -> None:
    target, told = Target(model_in_16_bits()), []
    target.few_rows.rows = [6]
    target.few_rows._on_stall = lambda: told.append("stall")
    for seconds in [0.1] * ENOUGH + [1.0, 1.0]:
        target.few_rows.watch(6, seconds)
    assert not target.few_rows.is_on
    assert told == ["stall"]
    assert "mlx-eagle calibrate" in target.few_rows.take_advice()
    assert target.few_rows.take_advice() == ""
