"""Answers that are free text but for stretches under a grammar: calls of tools, after a thought.

A mark of the model, one token such as `<tool_call>`, begins a stretch in which a grammar holds, and
another ends it; elsewhere any token may follow, and no mask is made. As in `grammar.py` every node
of a draft tree has a state of its own, which depends on the tokens before it alone: so calls are
forced while drafting, and the answer with speculation equals the one without.

The grammars themselves are in `call_grammar.py`.
"""

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_eagle.errors import EagleError
from mlx_eagle.sampling.grammar import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Marks(NamedTuple):
    """The tokens with which a model sets parts of its answers apart.

    Attributes:
        call_start, call_end: around a call; None where they are no single tokens.
        thought_start, thought_end: around a thought; None likewise.
    """

    call_start: int | None = None
    call_end: int | None = None
    thought_start: int | None = None
    thought_end: int | None = None


class Mode(Enum):
    """What may follow."""

    FREE = "anything; a mark begins a call"
    THINKING = "anything but the end of the answer, until the thought ends"
    FIRST = "what must come, or a thought before it"
    CALL = "what the grammar of calls allows"
    SCHEMA = "what the grammar of the answer allows"
    END = "the end"


class State(NamedTuple):
    """Where an answer stands; `matcher` is that of the grammar that holds."""

    mode: Mode
    matcher: "LLMatcher | None" = None


class Plan(NamedTuple):
    """What an answer must be.

    Attributes:
        begin: how it begins.
        must: what must come first, or after the thought: CALL, SCHEMA, or FREE for nothing.
        after: what follows a call.
    """

    begin: Mode
    must: Mode = Mode.FREE
    after: Mode = Mode.FREE


class StagedConstraint:
    """Where one answer stands; the interface is that of `grammar.Constraint`.

    Args:
        vocabulary: of the target.
        marks: of the model.
        plan: what the answer must be.
        calls: the compiled grammar of calls; None where none are forced.
        schema: the compiled grammar of the answer; None where it has none.

    Raises:
        EagleError: by `advance`, where no token of the target continues the answer.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        marks: Marks,
        plan: Plan,
        *,
        calls: "LLMatcher | None" = None,
        schema: "LLMatcher | None" = None,
    ) -> None:
        self._vocabulary, self._marks, self._plan = vocabulary, marks, plan
        self._calls, self._schema = calls, schema
        known = [token for token in marks if token is not None]
        self._mark_row = vocabulary.pack(known)
        self._all = ~np.zeros_like(vocabulary.end_row)
        firsts = marks.thought_start, marks.call_start if calls is not None else None
        self._first = vocabulary.pack([token for token in firsts if token is not None])
        self._state = self._entered(plan.begin)

    def advance(self, tokens: Sequence[int]) -> None:
        """Take in the tokens that a round committed; what follows an end token is ignored.

        Raises:
            EagleError: if a grammar does not allow one of them.
        """
        for token in tokens:
            following = self._next(self._state, token)
            if following is None:
                raise EagleError(
                    "an answer cannot go on under its grammar: penalties, processors or the "
                    "sampler left no token that it allows; loosen them"
                )
            self._state = following

    def masks(self, tokens: Sequence[int], parents: Sequence[int]) -> mx.array | None:
        """Return which tokens may follow every node of a tree; None where all may everywhere.

        Args:
            tokens: N token ids; the root's has been given to `advance` or belongs to the prompt.
            parents: N node indices; parents come before children.

        Returns:
            [N, V] bool. The row of a node that no grammar allows after its parent means nothing.
        """
        states: list[State | None] = [self._state]
        for token, parent in zip(tokens[1:], parents[1:], strict=True):
            before = states[parent]
            states.append(None if before is None else self._next(before, token))
        if all(state is None or state.mode is Mode.FREE for state in states):
            return None
        rows = np.stack([self._row(state) for state in states])
        return self._vocabulary.unpack(rows)

    def _next(self, state: State, token: int) -> State | None:
        """Return the state after one more token; None where a grammar does not allow it."""
        marks, mode = self._marks, state.mode
        if mode is Mode.END or token in self._vocabulary.ends:
            return self._ended(state)
        if mode is Mode.THINKING:
            return self._entered(self._plan.must) if token == marks.thought_end else state
        if mode in (Mode.FREE, Mode.FIRST) and token == marks.call_start and self._calls:
            return State(Mode.CALL, self._calls.deep_copy())
        if mode is Mode.FREE:
            return state
        if mode is Mode.FIRST and token == marks.thought_start:
            return State(Mode.THINKING)
        if mode is Mode.FIRST:
            state = self._entered(self._plan.must)
        copy = state.matcher.deep_copy() if state.matcher is not None else None
        if copy is None or copy.try_consume_tokens([token]) != 1:
            return None
        if state.mode is Mode.CALL and token == marks.call_end:
            return State(self._plan.after)
        return State(state.mode, copy)

    def _ended(self, state: State) -> State | None:
        """Return the state after an end token, if the answer may end."""
        is_open = state.mode in (Mode.THINKING, Mode.FIRST, Mode.CALL)
        matcher = state.matcher
        if is_open or (state.mode is Mode.SCHEMA and matcher and not matcher.is_accepting()):
            return None
        return State(Mode.END)

    def _entered(self, mode: Mode) -> State:
        """Return the state in which a mode begins."""
        if mode is Mode.SCHEMA:
            assert self._schema is not None, "a schema was compiled"
            return State(mode, self._schema.deep_copy())
        return State(Mode.FIRST) if mode is Mode.CALL else State(mode)

    def _row(self, state: State | None) -> npt.NDArray[np.int32]:
        """Return [V / 32] words: the tokens that may follow a node."""
        vocabulary = self._vocabulary
        if state is None or state.mode is Mode.FREE:
            return self._all
        if state.mode is Mode.END:
            return vocabulary.end_row
        if state.mode is Mode.THINKING:
            return self._all & ~vocabulary.end_row
        if state.mode is Mode.FIRST and self._plan.must is Mode.CALL:
            return self._first
        own = state.matcher or self._schema
        assert own is not None, "a grammar holds"
        row: npt.NDArray[np.int32] = vocabulary.rows([own], self._mark_row)[0]
        row = row | self._first if state.mode is Mode.FIRST else row
        return row if row.any() else vocabulary.end_row
