"""Thoughts end where their budget does, drafted or not, and what is demanded after them comes."""

import json
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_templates import GEMMA, R1, demo_tokenizer
from mlx_eagle.answers.answer_format import AnswerFormat
from mlx_eagle.errors import EagleError
from mlx_eagle.sampling.thought_budget import ThoughtBudget
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.session.selector import make_constraint
from mlx_eagle.tree import TreeShape
from served import ScriptedEngine, make_engine

START, END, N_LOGITS = 3, 4, 6
ASKED = [{"role": "user", "content": "What does zip do?"}]
FORCED: dict[str, Any] = {
    "json_schema": {"enum": ["yes", "no"]},
    "thinks_first": True,
    "temperature": 1,
    "seed": 4,
    "max_tokens": 40,
    "thinking_budget": 9,
}


def may_follow(text: list[int], most: int) -> list[bool]:
    """What may follow a text, written down anew: count what stands in thoughts."""
    inside, n = False, 0
    for token in text:
        if inside:
            inside, n = token != END, n + (token != END)
        else:
            inside = token == START
    return [not (inside and n >= most) or token == END for token in range(N_LOGITS)]


@given(
    committed=st.lists(st.integers(0, N_LOGITS - 1), max_size=8),
    nodes=st.lists(st.tuples(st.integers(0, N_LOGITS - 1), st.integers(0, 9)), max_size=8),
    most=st.integers(0, 3),
)
def test_every_node_is_bounded_by_the_thoughts_on_its_own_path(
    committed: list[int], nodes: list[tuple[int, int]], most: int
) -> None:
    budget = ThoughtBudget(most, (START, END), N_LOGITS)
    budget.advance(committed)
    tokens, parents, texts = [committed[-1] if committed else 0], [0], [committed]
    for token, parent in nodes:
        parents.append(parent % len(tokens))
        texts.append([*texts[parents[-1]], token])
        tokens.append(token)
    masks = budget.masks(tokens, parents)
    expected = [may_follow(text, most) for text in texts]
    found = [[True] * N_LOGITS] * len(tokens) if masks is None else masks.tolist()
    assert found == expected
    assert (masks is None) == all(map(all, expected)), "no mask is made where all may follow"


class Even:
    """A constraint that lets even tokens follow."""

    def masks(self, tokens: list[int], parents: list[int]) -> mx.array:
        return mx.broadcast_to(mx.arange(N_LOGITS) % 2 == 0, (len(tokens), N_LOGITS))

    def advance(self, tokens: list[int]) -> None:
        self.advanced = list(tokens)


def test_what_else_is_demanded_holds_but_where_a_thought_must_end() -> None:
    inner: Any = Even()
    budget = ThoughtBudget(1, (START, END), N_LOGITS, is_open=True, inner=inner)
    masks = budget.masks([0, 2], [0, 0])
    assert masks is not None
    assert masks.tolist() == [[t % 2 == 0 for t in range(6)], [t == END for t in range(6)]]
    budget.advance([2, END])
    assert inner.advanced == [2, END]
    assert budget.masks([END], [0]).tolist() == [[t % 2 == 0 for t in range(6)]]  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def engine() -> ScriptedEngine:
    """An engine whose prompts begin a thought, which it would never end by itself."""
    return make_engine(R1)


@pytest.fixture(scope="module")
def thought(engine: ScriptedEngine) -> Any:
    """An answer of plain decoding that is made to end its thought."""
    engine.tree = None
    return engine.generate(ASKED, speculate=False, **FORCED)


def test_an_answer_stops_thinking_and_answers(thought: Any, engine: ScriptedEngine) -> None:
    end = engine.tokenizer.get_vocab()["</think>"]
    assert thought.tokens.index(end) == FORCED["thinking_budget"]
    assert json.loads(engine.tokenizer.decode(thought.tokens[10:-1])) in ("yes", "no")
    assert thought.finish_reason == "stop"


@pytest.mark.parametrize("shape", [TreeShape(4, 1, 4), TreeShape(3, 3, 8)])
def test_so_it_does_with_drafts(shape: TreeShape, thought: Any, engine: ScriptedEngine) -> None:
    engine.tree = shape
    drafted = engine.generate(ASKED, **FORCED)
    assert (drafted.tokens, drafted.finish_reason) == (thought.tokens, "stop")
    assert drafted.stats.drafted > 0


def test_a_model_whose_thoughts_cannot_be_told_is_refused_by_name() -> None:
    form = AnswerFormat(demo_tokenizer(GEMMA), marks=())
    engine: Any = SimpleNamespace(answer_format=form)
    with pytest.raises(EagleError, match=r"thinking_budget .* no marks around thoughts"):
        make_constraint(GenerationOptions(thinking_budget=3), engine)
    with pytest.raises(ValueError, match="thinking_budget is -1"):
        GenerationOptions(thinking_budget=-1)
