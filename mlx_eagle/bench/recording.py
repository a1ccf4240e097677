"""When each token of an answer came: the same question, answered by plain decoding and another way.

Times are read where a caller gets the tokens, so that all of a round's come together, as they do in
the chat.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mlx_eagle.bench.contestants import Setting
from mlx_eagle.engine import Engine
from mlx_eagle.sampling.options import MATCH
from mlx_eagle.static_tree import Tree


class Arrival(NamedTuple):
    """One token as it came.

    Attributes:
        text: that it added; "" where its bytes are not a character yet.
        token: its id.
        is_draft: it was drafted and accepted.
        seconds: since the question was asked.
    """

    text: str
    token: int
    is_draft: bool
    seconds: float


class Recording(NamedTuple):
    """An answer as it came.

    Attributes:
        contestant: who answered.
        arrivals: its tokens, in order.
        acceptance_length: mean tokens per target forward; 1 where nothing was drafted.
    """

    contestant: str
    arrivals: list[Arrival]
    acceptance_length: float

    @property
    def tokens(self) -> list[int]:
        """Its tokens."""
        return [arrival.token for arrival in self.arrivals]

    @property
    def seconds(self) -> float:
        """How long it took, the reading of the question included."""
        return self.arrivals[-1].seconds


class Played(NamedTuple):
    """A question, and its answers: plain decoding's first."""

    question: str
    answers: list[Recording]

    @property
    def is_same_text(self) -> bool:
        """Whether the answers are the same, token by token."""
        return self.answers[0].tokens == self.answers[1].tokens


class Way(NamedTuple):
    """A way to answer: its name, the engine, and what it is asked for."""

    name: str
    engine: Engine
    options: dict[str, Any]

    @classmethod
    def drafting(cls, name: str, engine: Engine, shape: Tree | None, rule: str = MATCH) -> "Way":
        """Return the way that drafts trees of a shape; None leaves every round's to the engine."""
        return cls(name, engine, {"acceptance": rule} | ({"tree": shape} if shape else {}))


def record(
    ways: Sequence[Way],
    prompt: list[int],
    setting: Setting,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Recording]:
    """Return an answer of every way: of its repeats, which take turns, the one of median length.

    Args:
        ways: plain decoding and another.
        prompt: token ids of the question.
        setting: how long, and how it is sampled.
        repeats: how often each answers.
        clock: tells the seconds.
    """
    done: list[list[Recording]] = [[] for _ in ways]
    for repeat in range(repeats):
        order = range(len(ways))
        for index in reversed(order) if repeat % 2 else order:
            done[index].append(_record(ways[index], prompt, setting, clock))
    return [sorted(group, key=lambda r: r.seconds)[(len(group) - 1) // 2] for group in done]


def _record(way: Way, prompt: list[int], setting: Setting, clock: Callable[[], float]) -> Recording:
    """Return one answer of one way."""
    arrivals, stats = [], None
    started = clock()
    for piece in way.engine.stream_generate(prompt, **way.options, **setting._asdict()):
        seconds = clock() - started
        arrivals.append(Arrival(piece.text, piece.token, piece.from_draft, seconds))
        stats = piece.stats or stats
    assert stats is not None, "the last token comes with them"
    return Recording(way.name, arrivals, stats.acceptance_length)
