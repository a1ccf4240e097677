"""Trees against paths, on every architecture that speculation is claimed for."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import ChunkedKVCache, make_prompt_cache

from cases import broad, rotated
from mlx_eagle.errors import UnsupportedTargetError
from mlx_eagle.target.positions import is_rope, rotates_rows_alike
from mlx_eagle.target.self_check import check_tree_verification
from mlx_eagle.target.target import Target
from mlx_eagle.tree import DraftTree, TreeShape

ARCHITECTURES = [
    "llama",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gpt_oss",
    "gemma2",
    "gemma3_text",
    "phi3",
    "cohere",
    "olmo2",
    "glm4",
    "granite",
    "smollm3",
]
PREFIX = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 19]
TOKENS = [71, 69, 39, 93, 75, 10, 58, 20, 97]
PARENTS = [0, 0, 0, 1, 1, 2, 3, 3, 6]
Build = Callable[..., nn.Module]


def quantized() -> Iterator[Any]:
    """(architecture, bits): all of both, by default one of each kind."""
    few = {("llama", 4), ("gemma3_text", 8), ("qwen3_moe", 8), ("gpt_oss", 4)}
    for case in product(ARCHITECTURES, (4, 8)):
        yield case if case in few else broad(*case)


def path_to(node: int) -> list[int]:
    """The nodes from the root to `node`."""
    path = [node]
    while path[0]:
        path.insert(0, PARENTS[path[0]])
    return path


def plain_logits(model: nn.Module, path: list[int]) -> mx.array:
    """Logits at the nodes of one path, the path run row by row with mlx-lm's own caches."""
    cache = make_prompt_cache(model)
    model(mx.array([PREFIX]), cache=cache)
    rows = [model(mx.array([[TOKENS[node]]]), cache=cache)[0, -1] for node in path]
    return mx.stack(rows)


def tree_logits(target: Target, cache: Any) -> mx.array:
    target.extend(mx.array(PREFIX), cache)
    return target.verify(DraftTree.static(mx.array(TOKENS), PARENTS), cache).logits


def assert_tree_equals_paths(model: nn.Module, tolerance: float) -> None:
    expected = {node: plain_logits(model, path_to(node)) for node in (4, 5, 7, 8)}
    mx.eval(expected)
    target = Target(model)
    found = tree_logits(target, target.make_cache())
    for node, want in expected.items():
        got = found[mx.array(path_to(node))]
        np.testing.assert_allclose(np.array(got), np.array(want), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tree_verification_equals_running_every_path_plainly(
    architecture: str, tiny_target: Build
) -> None:
    assert_tree_equals_paths(tiny_target(architecture), tolerance=2e-5)


@pytest.mark.parametrize(("architecture", "bits"), list(quantized()))
def test_tree_verification_equals_paths_on_quantized_targets(
    architecture: str, bits: int, tiny_target: Build
) -> None:
    model = tiny_target(architecture)
    nn.quantize(model, 32, bits)
    assert_tree_equals_paths(model, tolerance=5e-5)


@pytest.mark.bitwise
def test_llama_trees_equal_paths_bit_for_bit(tiny_target: Build) -> None:
    model = tiny_target("llama")
    want = plain_logits(model, path_to(8))
    mx.eval(want)
    target = Target(model)
    got = tree_logits(target, target.make_cache())[mx.array(path_to(8))]
    assert mx.array_equal(got, want)


@pytest.mark.bitwise
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt_oss"])
def test_committing_a_path_leaves_the_cache_of_plain_decoding(
    architecture: str, tiny_target: Build
) -> None:
    target = Target(tiny_target(architecture))
    tree_cache, plain_cache = target.make_cache(), target.make_cache()
    tree_logits(target, tree_cache)
    tree_cache.commit([0, 1, 3, 6])
    target.extend(mx.array(PREFIX), plain_cache)
    for node in (0, 1, 3, 6):
        target.extend(mx.array([TOKENS[node]]), plain_cache)
    after = [target.extend(mx.array([1]), c) or c for c in (tree_cache, plain_cache)]
    for got, want in zip(after[0].layers, after[1].layers, strict=True):
        assert got.rows == want.rows == len(PREFIX) + 5
        lowest = max(0, got.rows - getattr(got, "window", got.rows))
        for ours, theirs in ((got.keys, want.keys), (got.values, want.values)):
            a, b = lowest - getattr(got, "first", 0), got.rows - getattr(got, "first", 0)
            c, d = lowest - getattr(want, "first", 0), want.rows - getattr(want, "first", 0)
            assert mx.array_equal(ours[..., a:b, :], theirs[..., c:d, :])


def test_taps_are_the_residual_stream_at_each_boundary(tiny_target: Build) -> None:
    model = tiny_target("llama")
    stream = [model.model.embed_tokens(mx.array([PREFIX]))]
    for layer in model.layers:
        stream.append(layer(stream[-1], "causal", None))
    boundaries = range(len(stream))
    target = Target(model, taps=boundaries)
    taps = target.extend(mx.array(PREFIX), target.make_cache())
    assert taps is not None
    for boundary, tap in enumerate(mx.split(taps, len(stream), axis=-1)):
        assert mx.allclose(tap, stream[boundary][0], atol=1e-5), f"boundary {boundary}"


@pytest.mark.parametrize(("architecture", "tied"), list(rotated(ARCHITECTURES, [False, True])))
def test_the_last_tap_is_what_mlx_lms_inner_model_returns(
    architecture: str, tied: bool, tiny_target: Build
) -> None:
    """Boundary n + 1, after the final norm; and the output layer turns it into logits."""
    model = tiny_target(architecture, tie_word_embeddings=tied)
    tokens = mx.array(PREFIX)
    want = model.model(tokens[None])[0]
    logits = model(tokens[None])[0]
    target = Target(model, taps=(5,))
    verified = target.verify(DraftTree.chain(tokens), target.make_cache())
    assert verified.taps is not None
    assert mx.allclose(verified.taps, want, atol=1e-5)
    shared = target.unembed(want)
    scaled = {"gemma2", "cohere", "granite"}  # they cap or scale logits afterwards
    if architecture in scaled:
        assert mx.array_equal(shared.argmax(-1), logits.argmax(-1))
    else:
        assert mx.allclose(shared, logits, atol=1e-4)


def test_an_output_layer_by_another_name_is_found(tiny_target: Build) -> None:
    model = tiny_target("internlm2", bias=False, tie_word_embeddings=False)
    tokens = mx.array(PREFIX)
    target = Target(model, taps=(5,))
    verified = target.verify(DraftTree.chain(tokens), target.make_cache())
    assert verified.taps is not None
    assert mx.allclose(target.unembed(verified.taps), verified.logits, atol=1e-4)


def test_tapping_leaves_parameters_and_attributes_alone(tiny_target: Build) -> None:
    model = tiny_target("gemma3_text")
    names = [name for name, _ in tree_flatten(model.parameters())]
    Target(model, taps=(0, 2, 4))
    assert [name for name, _ in tree_flatten(model.parameters())] == names
    assert [layer.self_attn.is_sliding for layer in model.layers] == [True, False, True, False]


def test_a_tap_outside_the_target_is_refused_with_the_range(tiny_target: Build) -> None:
    with pytest.raises(UnsupportedTargetError, match="taps boundary 6.*has boundaries 0 to 4"):
        Target(tiny_target("llama"), taps=(2, 6))


def test_the_probe_passes_every_architecture_claimed(tiny_target: Build) -> None:
    for architecture in ARCHITECTURES:
        check_tree_verification(Target(tiny_target(architecture)))


def test_a_target_with_a_cache_of_another_kind_is_refused_by_its_name(tiny_target: Build) -> None:
    model = tiny_target("llama")
    model.make_cache = lambda: [ChunkedKVCache(8) for _ in model.layers]
    with pytest.raises(UnsupportedTargetError, match="ChunkedKVCache.*no way back.*plainly"):
        Target(model)


def test_a_target_that_reads_the_offset_itself_is_refused_at_load(tiny_target: Build) -> None:
    """Rope whose base depends on the offset cannot take a vector of positions."""
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    target = Target(tiny_target("llama", rope_scaling=scaling))
    with pytest.raises(UnsupportedTargetError, match="mlx-lm's llama model.*without a head"):
        check_tree_verification(target)


class Deaf(nn.Module):
    """Attention that is not told which rows it may see, but for masks in words if it `reads`."""

    def __init__(self, inner: nn.Module, reads: bool) -> None:
        super().__init__()
        self.inner, self.reads = inner, reads

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        return self.inner(x, mask if self.reads and isinstance(mask, str) else None, cache)


def test_a_target_that_ignores_the_mask_of_a_tree_verifies_chains_only(tiny_target: Build) -> None:
    model = tiny_target("llama")
    for layer in model.layers:
        layer.self_attn = Deaf(layer.self_attn, reads=True)
    target = Target(model)
    check_tree_verification(target)
    assert target.chains_only
    target.check_shape(TreeShape.chain(4))
    with pytest.raises(UnsupportedTargetError, match="width 2 was asked for.*chains only"):
        target.check_shape(TreeShape(4, 2, 8))


def test_a_target_that_ignores_every_mask_is_refused_at_load(tiny_target: Build) -> None:
    model = tiny_target("llama")
    for layer in model.layers:
        layer.self_attn = Deaf(layer.self_attn, reads=False)
    target = Target(model)
    with pytest.raises(UnsupportedTargetError, match="other logits for a tree"):
        check_tree_verification(target)
    assert not target.chains_only


@pytest.mark.parametrize(
    ("scaling", "is_alike"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, False),
        ({"rope_type": "linear", "factor": 2.0}, True),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}, True),
    ],
)
def test_rope_by_the_length_of_the_text_is_noticed(
    scaling: dict[str, Any], is_alike: bool, tiny_target: Build
) -> None:
    target = Target(tiny_target("llama", rope_scaling=scaling))
    ropes = [module for _, module in target.model.named_modules() if is_rope(module)]
    assert len(ropes) == 4
    assert all(rotates_rows_alike(rope) == is_alike for rope in ropes)
