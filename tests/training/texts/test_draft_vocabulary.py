"""The tokens of a draft vocabulary, counted by hand, with the marks that must be in it."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from chat_templates import QWEN3, demo_tokenizer
from mlx_eagle.errors import EagleError
from mlx_eagle.training.batch import Example
from mlx_eagle.training.texts.conversations import Conversation
from mlx_eagle.training.texts.draft_vocabulary import count_tokens, draft_vocabulary, marks
from mlx_eagle.training.texts.examples import Encoder


def text(tokens: list[int], trained: list[int]) -> Example:
    return Example(np.array(tokens, dtype=np.int32), np.array(trained, dtype=bool))


def tokenizer(*eos: int, **rest: Any) -> Any:
    names = ("think_start", "think_end", "tool_call_start", "tool_call_end")
    none = {f"{name}_tokens": None for name in names}
    return SimpleNamespace(**{"eos_token_ids": set(eos), "all_special_ids": [], **none, **rest})


TEXTS = [
    text([8, 8, 8, 5, 5, 6, 2, 8], [0, 0, 0, 1, 1, 1, 1, 0]),
    text([9, 5, 7, 7, 2], [0, 1, 1, 1, 1]),
]


def test_the_most_frequent_trained_tokens_are_in_it_and_the_rest_is_counted() -> None:
    counts = count_tokens(TEXTS, 12)
    found = draft_vocabulary(counts, 3, tokenizer(2))
    assert found.ids.dtype == np.int32
    assert found.ids.tolist() == [2, 5, 7]
    assert found.coverage == pytest.approx(7 / 8)


def test_where_too_few_are_trained_those_of_questions_follow_and_then_the_first_ones() -> None:
    counts = count_tokens(TEXTS, 12)
    assert draft_vocabulary(counts, 5, tokenizer(2)).ids.tolist() == [2, 5, 6, 7, 8]
    assert draft_vocabulary(counts, 8, tokenizer(2)).ids.tolist() == [0, 1, 2, 5, 6, 7, 8, 9]
    assert draft_vocabulary(counts, 5, tokenizer(2)).coverage == 1.0


@pytest.mark.parametrize("size", [None, 12, 99])
def test_as_many_as_the_target_has_are_all(size: int | None) -> None:
    found = draft_vocabulary(count_tokens(TEXTS, 12), size, tokenizer(2))
    assert (found.ids.tolist(), found.coverage) == (list(range(12)), 1.0)


def test_marks_are_forced_in_though_they_do_not_occur() -> None:
    other = tokenizer(10, all_special_ids=[11, 99], think_end_tokens=(4,))
    found = draft_vocabulary(count_tokens(TEXTS, 12), 5, other)
    assert found.ids.tolist() == [2, 4, 5, 10, 11], "2 ends both answers, so it is one too"
    with pytest.raises(EagleError, match="of 3 tokens cannot hold the 4 marks"):
        draft_vocabulary(count_tokens(TEXTS, 12), 3, other)


def test_a_token_of_another_tokenizer_is_refused() -> None:
    for foreign in (12, -1):
        with pytest.raises(EagleError, match=f"hold token {foreign}, but the target has 12 tokens"):
            count_tokens([*TEXTS, text([1, foreign], [0, 0])], 12)


def test_nothing_trained_has_no_coverage() -> None:
    counts = count_tokens([text([], []), text([3, 3], [0, 0])], 12)
    found = draft_vocabulary(counts, 2, tokenizer(2))
    assert (found.ids.tolist(), found.coverage) == ([2, 3], 0.0)


def test_a_vocabulary_of_real_answers_is_what_counting_says() -> None:
    made = demo_tokenizer(QWEN3)
    asked = (
        {"role": "user", "content": "How?"},
        {"role": "assistant", "content": "So: " * 9 + "!"},
    )
    examples = Encoder(made).encode(Conversation(asked))
    counted = Counter(t for e in examples for t in e.tokens[e.trained].tolist())
    counts = count_tokens(examples, len(made))
    assert {i: n for i, n in enumerate(counts.trained.tolist()) if n} == dict(counted)
    forced = marks(made)
    assert {made.eos_token_id, made.think_start_id, made.think_end_id} <= forced
    found = draft_vocabulary(counts, len(forced) + 2, made)
    assert forced <= set(found.ids.tolist())
    likeliest = [t for t, _ in counted.most_common() if t not in forced][:1]
    assert set(likeliest) <= set(found.ids.tolist())
