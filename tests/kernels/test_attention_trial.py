"""Whether the attention kernel is kept, and from which context on."""

from typing import Any

import pytest

from cases import broad
from emulated import Emulated
from mlx_eagle.kernels import attention_trial
from mlx_eagle.kernels.attention_trial import AttentionVerdict, Heads, try_attention

WHOLE = Heads(4, 2, 64, "float16", 0.125)
PACKED = WHOLE._replace(bits=8, group_size=32)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try one number of rows at two short contexts."""
    monkeypatch.setattr(attention_trial, "ROWS", (4,))
    monkeypatch.setattr(attention_trial, "CONTEXTS", (20, 40))
    monkeypatch.setattr(attention_trial, "LAYERS", 1)


def verdict(heads: Heads, *, is_timed: bool = False) -> AttentionVerdict:
    (found,) = try_attention(heads, is_timed=is_timed)
    return found


@pytest.mark.metal
@pytest.mark.parametrize("heads", [WHOLE, broad(PACKED)], ids=str)
def test_a_right_kernel_is_kept_where_time_does_not_count(heads: Heads, emulated: Emulated) -> None:
    assert verdict(heads) == AttentionVerdict(4, 20)


@pytest.mark.metal
def test_a_wrong_kernel_is_refused(emulated: Emulated) -> None:
    def blind(arguments: dict[str, Any]) -> dict[str, Any]:
        """Let siblings see one another."""
        return {**arguments, "source": arguments["source"].replace("mask[", "true || mask[")}

    emulated.edit, emulated.strict = blind, False
    assert verdict(WHOLE).least is None
    assert verdict(WHOLE).reason.startswith("wrong: an output is off by")


@pytest.mark.metal
def test_a_kernel_that_the_gpu_refuses_is_not_used(emulated: Emulated) -> None:
    emulated.options["max_threads"] = 32
    assert verdict(WHOLE).reason.startswith("refused: ")


def test_heads_that_it_does_not_serve_are_told() -> None:
    assert verdict(WHOLE._replace(head_dim=72)).reason == "not served: heads of 72 numbers"
    assert verdict(WHOLE._replace(dtype="float32")).reason == "not served: queries in float32"


@pytest.mark.metal
@pytest.mark.parametrize(
    ("ratios", "least", "reason"),
    [
        ([0.9, 0.8], 20, ""),
        ([1.1, 0.8], 40, ""),
        ([0.8, 1.1], None, "not faster"),
        ([1.1, 1.2], None, "not faster"),
    ],
)
def test_it_is_used_from_the_context_on_from_which_it_is_always_faster(
    ratios: list[float],
    least: int | None,
    reason: str,
    emulated: Emulated,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(ratios)
    monkeypatch.setattr(attention_trial, "in_turns", lambda own, stock: next(clock))
    assert verdict(WHOLE, is_timed=True) == AttentionVerdict(4, least, tuple(ratios), reason)
