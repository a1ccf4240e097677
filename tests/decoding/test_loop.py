"""When rounds are submitted: before the caller works, never in vain, and leaving nothing behind."""

import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from cases import rotated
from doubles import Cycle, ScriptedDrafter, wrong_every
from mlx_eagle.cache.options import KVOptions
from mlx_eagle.decoding import loop
from mlx_eagle.decoding.loop import rounds
from mlx_eagle.decoding.prefill import prefill
from mlx_eagle.decoding.rounds import Decoder
from mlx_eagle.planner.acceptance_model import Acceptance
from mlx_eagle.planner.cost_model import Costs, LiveCosts
from mlx_eagle.planner.planner import Planner
from mlx_eagle.planner.policy import FixedShape, Policy
from mlx_eagle.sampling.samplers import SeededSampler
from mlx_eagle.sampling.token_selector import TokenSelector
from mlx_eagle.target.target import Target
from mlx_eagle.tree import PLAIN, TreeShape

VOCABULARY = 128
PROMPT = [(37 * i + 11) % VOCABULARY for i in range(20)]
FREE = Costs((0,), dict.fromkeys(range(1, 9), (1.0,)), (1.0,), (0.01,) * 8, 0.0)
POLICIES: dict[str, Callable[[], Policy]] = {
    "plain": lambda: FixedShape(PLAIN),
    "chain": lambda: FixedShape(TreeShape.chain(3)),
    "tree": lambda: FixedShape(TreeShape(3, 3, 7)),
    "planner": lambda: Planner(LiveCosts(FREE), Acceptance(), max_depth=4),
    "all shapes": lambda: Cycle([PLAIN, TreeShape.chain(2), PLAIN, PLAIN, TreeShape(3, 2, 5)]),
}


@pytest.fixture(scope="module")
def target(tiny_target: Callable[..., nn.Module]) -> Target:
    return Target(tiny_target("llama"), taps=(1, 2, 3))


def make_decoder(target: Target, truth: list[int], *processors: Any) -> Decoder:
    """The parties to rounds that begin at the last token of the prompt."""
    selector = TokenSelector(SeededSampler(), processors, history=PROMPT[:-1])
    drafter = ScriptedDrafter(truth, wrong_every(4), VOCABULARY)
    decoder = Decoder(target, target.make_cache(), drafter, selector)
    prefill(decoder, PROMPT)
    return decoder


@pytest.fixture(scope="module")
def truth(target: Target) -> list[int]:
    """The prompt and 60 tokens after it, decoded plainly."""
    text, stream = list(PROMPT), rounds(make_decoder(target, PROMPT), PROMPT[-1], FixedShape(PLAIN))
    while len(text) < len(PROMPT) + 60:
        text += next(stream).tokens
    stream.close()
    return text


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every round that is submitted."""
    rows, submit = list[int](), loop.submit

    def counted(*args: Any, **kwargs: Any) -> Any:
        in_flight = submit(*args, **kwargs)
        rows.append(in_flight.tree.num_draft_tokens + 1)
        return in_flight

    monkeypatch.setattr(loop, "submit", counted)
    return rows


@pytest.mark.parametrize("name", POLICIES)
def test_the_next_round_is_submitted_before_tokens_are_handed_out(
    name: str, target: Target, truth: list[int], submitted: list[int]
) -> None:
    stream = rounds(make_decoder(target, truth), PROMPT[-1], POLICIES[name]())
    next(stream)
    is_ahead = name in ("plain", "all shapes")  # the second round is plain too
    assert len(submitted) == 1 + is_ahead, "the first token does not wait for a draft"
    for n_read in range(2, 9):
        next(stream)
        assert len(submitted) == n_read + 1
    stream.close()


@pytest.mark.parametrize("name", POLICIES)
def test_no_round_is_computed_beyond_an_end_that_is_known(
    name: str, target: Target, truth: list[int], submitted: list[int]
) -> None:
    given, n_rounds = list[int](), 0

    def is_end(tokens: Any) -> bool:
        return len(given) + len(tokens) >= 12

    decoder = make_decoder(target, truth)
    stream = rounds(decoder, PROMPT[-1], POLICIES[name](), is_end)
    while len(given) < 12:
        n_rounds, given = n_rounds + 1, given + next(stream).tokens
    assert len(submitted) == n_rounds
    stream.close()
    assert decoder.cache.rows == len(PROMPT) + len(given) - 1
    assert given == truth[len(PROMPT) :][: len(given)]


@pytest.mark.parametrize(("name", "n_rounds"), list(rotated(POLICIES, [5, 1, 2])))
def test_a_round_that_nobody_reads_leaves_nothing_behind(
    name: str, n_rounds: int, target: Target, truth: list[int]
) -> None:
    decoder, given = make_decoder(target, truth), list[int]()
    stream = rounds(decoder, PROMPT[-1], POLICIES[name]())
    for _ in range(n_rounds):
        given += next(stream).tokens
    stream.close()
    assert all(part.pending == 0 for part in decoder.cache.parts)
    # The row of the newest token may be there, but nothing that was only drafted.
    n_known = len(PROMPT) + len(given)
    assert n_known - 1 <= decoder.cache.rows <= n_known
    decoder.cache.trim(n_known - 1)
    decoder.drafter.trim(min(decoder.drafter.rows, n_known - 1))
    for one in rounds(decoder, given[-1], FixedShape(TreeShape.chain(2))):
        given += one.tokens
        if len(given) > 30:
            break
    assert given == truth[len(PROMPT) :][: len(given)]


def test_what_was_decoded_is_handed_out_before_an_error_in_the_next_round(
    target: Target, truth: list[int]
) -> None:
    n_calls = 0

    def failing(tokens: mx.array, logits: mx.array) -> mx.array:
        nonlocal n_calls
        n_calls += 1
        if n_calls > 1 + 3 * 4:  # of the first round, and of three chains of four nodes
            raise RuntimeError("no more")
        return logits

    decoder = make_decoder(target, truth, failing)
    stream = rounds(decoder, PROMPT[-1], FixedShape(TreeShape.chain(3)))
    given = [token for one in islice(stream, 4) for token in one.tokens]
    assert given == truth[len(PROMPT) :][: len(given)]
    with pytest.raises(RuntimeError, match="no more"):
        next(stream)


@pytest.mark.parametrize("name", ["plain", "chain", "planner"])
def test_a_slow_caller_does_not_count_as_time_of_the_device(
    name: str, target: Target, truth: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds take milliseconds here: of one at least the device is done before the caller is."""
    seconds = list[float | None]()
    policy = POLICIES[name]()
    record = type(policy).record

    def noted(self: Any, outcome: Any) -> Any:
        seconds.append(outcome.verify_seconds)
        return record(self, outcome)

    monkeypatch.setattr(type(policy), "record", noted)
    stream = rounds(make_decoder(target, truth), PROMPT[-1], policy)
    for _ in range(3):
        next(stream)
        time.sleep(0.1)
    stream.close()
    assert len(seconds) == 2
    assert None in seconds


def test_mlx_lms_own_caches_need_not_know_their_bytes(
    tiny_target: Callable[..., nn.Module],
) -> None:
    """A quantized one does not while it is empty, as it is before a prompt of one token."""
    target = Target(tiny_target("llama", head_dim=32), speculate=False)
    target.kv = KVOptions(bits=8, group_size=32)
    decoder = Decoder(target, target.make_cache(), None, TokenSelector(SeededSampler()))
    stream = rounds(decoder, 5, FixedShape(PLAIN))
    assert [len(next(stream).tokens) for _ in range(3)] == [1, 1, 1]
