"""The probe with rounding like a GPU's: good targets pass, faults of positions are found."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from cases import broad
from mlx_eagle.cache.options import KVOptions
from mlx_eagle.errors import UnsupportedTargetError
from mlx_eagle.target import positions, self_check
from mlx_eagle.target.self_check import check_kv_options, check_tree_verification
from mlx_eagle.target.target import Target
from noisy import STEP, noise_on

Build = Callable[..., Any]
# Experts run in float32 only on this backend; their routers are noisy all the same.
CASES = [
    ("llama", mx.bfloat16),
    *(broad("llama", dtype) for dtype in (mx.float16, mx.float32)),
    ("gemma3_text", mx.float16),
    broad("gemma3_text", mx.bfloat16),
    broad("qwen3_moe", mx.float32),
    ("gpt_oss", mx.float32),
]
DEEP = {"llama": {"num_hidden_layers": 24}, "qwen3_moe": {"num_hidden_layers": 24}}


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge as on a GPU, where float32 is no more exact than the products are."""
    monkeypatch.setattr(self_check, "TOLERANCE", self_check.TOLERANCE_16_BIT)


@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize(("architecture", "dtype"), CASES, ids=str)
def test_rounding_is_no_reason_to_refuse_a_target(
    architecture: str, dtype: mx.Dtype, tiny_target: Build
) -> None:
    model = tiny_target(architecture, **DEEP.get(architecture, {}))
    model.set_dtype(dtype)
    with noise_on(model):
        target = Target(model)
        check_tree_verification(target)
    assert not target.chains_only


def in_sequence(plain: Any, self: Any, x: mx.array, offset: Any = 0, *args: Any) -> mx.array:
    """Rotate rows one after the other from the first node's place, whatever their own is."""
    first = offset if not isinstance(offset, mx.array) or offset.ndim == 0 else offset[0]
    return plain(self, x, first, *args)


@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize(("architecture", "dtype"), CASES, ids=str)
def test_nodes_that_are_placed_in_a_row_are_noticed_under_the_noise(
    architecture: str, dtype: mx.Dtype, tiny_target: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positions, "_rotate", in_sequence)
    model = tiny_target(architecture)
    model.set_dtype(dtype)
    with noise_on(model):
        target = Target(model)
        check_tree_verification(target)
    assert target.chains_only, "a chain stands in a row anyway"


def test_a_model_that_differs_from_itself_is_not_excused_by_that(tiny_target: Build) -> None:
    model = tiny_target("llama")
    model.set_dtype(mx.bfloat16)
    with noise_on(model, scale=400 * STEP), pytest.raises(UnsupportedTargetError, match="logits"):
        check_tree_verification(Target(model))


def test_a_machine_that_is_lost_is_not_taken_for_a_model_that_cannot_be_verified(
    tiny_target: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: Any) -> None:
        raise RuntimeError("[ring] connection to a peer was lost")

    target = Target(tiny_target("llama"))
    monkeypatch.setattr(target, "_run", lose)
    with pytest.raises(UnsupportedTargetError, match="in a way that trees break .*lost"):
        check_tree_verification(target)
    monkeypatch.setattr(target, "foreign_errors", (RuntimeError,))
    with pytest.raises(RuntimeError, match="peer was lost"):
        check_tree_verification(target)
    target.kv = KVOptions(8)
    with pytest.raises(RuntimeError, match="peer was lost"):
        check_kv_options(target)
