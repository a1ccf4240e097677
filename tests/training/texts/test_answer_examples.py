"""Texts to train on hold the tokens that the target read and wrote, and no others."""

from collections.abc import Sequence
from typing import Any

from doubles import Letters
from mlx_eagle.session.prompt import encode
from mlx_eagle.training.batch import Example
from mlx_eagle.training.texts.answer_examples import answer_examples
from mlx_eagle.training.texts.answer_file import Answer, Answered

END = Letters.end
# Letters encodes "ab" as [29, 1 + 29 ...] or others; what it encodes itself comes back alike.
QUESTIONS = [{"role": "user", "content": text} for text in ("how are you", "and now")]


def conversation(first: Answer, second: Answer) -> Answered:
    replies = [
        {"role": "assistant", "content": Letters().decode([t for t in a.tokens if t != END])}
        for a in (first, second)
    ]
    messages = [QUESTIONS[0], replies[0], QUESTIONS[1], replies[1]]
    return Answered(0, messages, [first, second], None)


def pieces(example: Example) -> list[tuple[bool, list[int]]]:
    """Return stretches of a text that are trained on or not."""
    found = list[tuple[bool, list[int]]]()
    for token, trained in zip(example.tokens.tolist(), example.trained.tolist(), strict=True):
        if not found or found[-1][0] != trained:
            found.append((trained, []))
        found[-1][1].append(token)
    return found


def prompt_of(messages: Sequence[dict[str, Any]]) -> list[int]:
    return encode(Letters(), list(messages))


def test_turns_that_are_encoded_as_they_were_written_are_one_text() -> None:
    words = Letters().encode("fine")
    one = conversation(Answer([*words, END], False), Answer([3, END], False))
    [example] = answer_examples(one, Letters())
    first, last = prompt_of(one.messages[:1]), prompt_of(one.messages[:3])
    between = last[len(first) + len(words) + 1 :]
    want = [(False, first), (True, [*words, END]), (False, between), (True, [3, END])]
    assert pieces(example) == want
    assert example.tokens.dtype == "int32" and example.trained.dtype == bool


def test_turns_that_are_encoded_otherwise_are_texts_of_their_own() -> None:
    words = [token + 29 if token < 60 else token for token in Letters().encode("fine")]
    assert Letters().decode(words) == "fine" and Letters().encode("fine") != words
    one = conversation(Answer([*words, END], False), Answer([3, END], False))
    first, second = answer_examples(one, Letters())
    assert pieces(first) == [(False, prompt_of(one.messages[:1])), (True, [*words, END])]
    assert pieces(second) == [(False, prompt_of(one.messages[:3])), (True, [3, END])]


def test_an_answer_that_was_cut_is_trained_on_without_an_end() -> None:
    words = Letters().encode("fine")
    [example] = answer_examples(conversation(Answer(words, True), Answer([3], True)), Letters())
    assert [p for is_trained, p in pieces(example) if is_trained] == [words, [3]]
    assert END in pieces(example)[2][1], "the template ends it, but nobody learns that"


def test_a_conversation_without_answers_gives_no_text() -> None:
    assert not list(answer_examples(Answered(0, QUESTIONS[:1], [], "no room"), Letters()))


def test_everything_is_trained_on_where_that_is_asked_for() -> None:
    words = Letters().encode("fine")
    one = conversation(Answer([*words, END], False), Answer([3, END], False))
    [answers] = answer_examples(one, Letters())
    [everything] = answer_examples(one, Letters(), train_on="all")
    assert everything.tokens.tolist() == answers.tokens.tolist()
    assert everything.trained.all() and not answers.trained.all()
