"""Rounds on a tiny target: what is committed, what the drafter sees of it, what is counted."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.generate import generate_step

from doubles import Cycle, ScriptedDrafter, always_right, always_wrong, wrong_every
from mlx_eagle.decoding.loop import rounds
from mlx_eagle.decoding.prefill import prefill_steps
from mlx_eagle.decoding.rounds import Decoder, Round, finish, outcome, round_times, submit
from mlx_eagle.planner.policy import Plan
from mlx_eagle.sampling.samplers import SeededSampler
from mlx_eagle.sampling.token_selector import TokenSelector
from mlx_eagle.target.target import Target
from mlx_eagle.tree import PLAIN, TreeShape

VOCABULARY, N_TOKENS = 128, 40
PROMPT = [(37 * i + 11) % VOCABULARY for i in range(20)]
SHAPES = [TreeShape(3, 3, 7), PLAIN, TreeShape.chain(3), PLAIN, PLAIN, TreeShape(4, 2, 8)]


class Noting(ScriptedDrafter):
    """Keeps what it observes."""

    def __init__(self, truth: list[int], n_right: Callable[[int], int]) -> None:
        super().__init__(truth, n_right, VOCABULARY)
        self.taps, self.next_tokens = list[mx.array](), list[int]()

    def observe(self, taps: mx.array | None, next_tokens: mx.array) -> None:
        super().observe(taps, next_tokens)
        assert taps is not None
        self.taps.append(taps)
        self.next_tokens += next_tokens.tolist()


@pytest.fixture(scope="module")
def target(tiny_target: Callable[..., nn.Module]) -> Target:
    return Target(tiny_target("llama"), taps=(1, 2, 3))


@pytest.fixture(scope="module")
def truth(tiny_target: Callable[..., nn.Module]) -> list[int]:
    """The prompt and what mlx-lm says after it."""
    steps = generate_step(mx.array(PROMPT), tiny_target("llama"), max_tokens=N_TOKENS + 9)
    return [*PROMPT, *(int(token) for token, _ in steps)]


def decode(target: Target, drafter: Noting | None) -> tuple[list[Round], Decoder]:
    """Decode N_TOKENS tokens or more in rounds of all shapes."""
    decoder = Decoder(target, target.make_cache(), drafter, TokenSelector(SeededSampler()))
    for _ in prefill_steps(decoder, PROMPT, 8):
        pass
    made, stream = list[Round](), rounds(decoder, PROMPT[-1], Cycle(SHAPES))
    while sum(len(round_.tokens) for round_ in made) < N_TOKENS:
        made.append(next(stream))
    stream.close()
    return made, decoder


@pytest.mark.parametrize("n_right", [always_right, wrong_every(4), always_wrong])
def test_the_drafter_observes_every_committed_token_once_with_its_own_taps(
    n_right: Any, target: Target, truth: list[int]
) -> None:
    drafter = Noting(truth, n_right)
    made, decoder = decode(target, drafter)
    text = [*PROMPT, *(token for round_ in made for token in round_.tokens)]
    assert text == truth[: len(text)]
    n = decoder.cache.rows
    assert len(text) - 1 <= n <= len(text), "one round may have been submitted ahead"
    assert drafter.next_tokens == truth[1 : len(drafter.next_tokens) + 1]
    assert len(text) - 1 <= len(drafter.next_tokens) <= n
    whole = target.extend(mx.array(truth[: len(drafter.next_tokens)]), target.make_cache())
    np.testing.assert_allclose(mx.concatenate(drafter.taps), whole, rtol=1e-3, atol=1e-4)


def test_what_was_decided_without_a_draft_is_known_to_the_next_draft(
    target: Target, truth: list[int]
) -> None:
    """Or a drafter that knows the text would be wrong after plain rounds."""
    made, _ = decode(target, Noting(truth, always_right))
    for round_ in made:
        assert round_.n_accepted == round_.depth, "the greedy path is right all the way down"


def test_rounds_count_what_they_drafted_and_how_deep(target: Target, truth: list[int]) -> None:
    made, _ = decode(target, Noting(truth, wrong_every(4)))
    counts = {(round_.depth, round_.n_drafted) for round_ in made}
    assert counts == {(shape.depth, shape.nodes) for shape in SHAPES}
    for round_ in made:
        tokens = round_.tree.tokens.tolist()
        assert [tokens[node] for node in round_.path[1:]] == round_.tokens[:-1]
        assert round_.n_accepted == len(round_.path) - 1
        assert round_.log_probs.argmax(-1).tolist() == round_.tokens


def test_without_a_drafter_one_row_is_committed_per_token(target: Target, truth: list[int]) -> None:
    made, decoder = decode(target, None)
    assert [token for round_ in made for token in round_.tokens] == truth[20 : 20 + len(made)]
    assert decoder.cache.rows - (len(PROMPT) - 1) - len(made) in (0, 1)


@pytest.mark.parametrize("shape", [PLAIN, TreeShape.chain(3)])
def test_a_time_counts_where_the_device_still_worked_when_the_caller_was_done(
    shape: TreeShape, target: Target, truth: list[int]
) -> None:
    drafter = Noting(truth, always_right)
    decoder = Decoder(target, target.make_cache(), drafter, TokenSelector(SeededSampler()))
    for _ in prefill_steps(decoder, PROMPT):
        pass
    root = mx.array(PROMPT[-1:], dtype=mx.int32)
    in_flight = submit(decoder, root, Plan(shape), is_overlapped=shape == PLAIN)
    done = finish(decoder, in_flight)
    times = round_times(in_flight, done, in_flight.start)

    def learnt(waited: float, caller_seconds: float) -> float | None:
        asked = done.read - waited * times.until_read
        return outcome(in_flight, done._replace(asked=asked), times, caller_seconds).verify_seconds

    assert learnt(0.5, 10.0) == learnt(0.0, 0.0) == times.until_read
    assert learnt(0.0, 10.0) is None
