"""Later turns: they go on with plain decoding's answer, as a chat does."""

from typing import Any

import pytest

from mlx_eagle.bench.asked import Asked, fits
from mlx_eagle.bench.prompts import ask, with_later_turns
from mlx_eagle.loading import load

QUESTION, LATER = "What is the signature of shutil.copyfile?", "What does zip do?"


@pytest.mark.usefixtures("small_toy_pair")
def test_a_later_turn_is_asked_as_a_session_would_ask_it() -> None:
    engine = load(calibrate=False)
    asked = Asked.of(engine, with_later_turns([ask("c", QUESTION, LATER)]))
    session = engine.session()
    said = list(session.ask(QUESTION, max_tokens=200))
    asked.note(0.0, 0, [piece.token for piece in said])
    assert said[-1].finish_reason == "stop", "the answer ends with an end token, which is left out"
    next(session.ask(LATER, max_tokens=2))
    n_prompt = len(asked.ids(0.0, 1))
    assert session.prefix.tokens[:n_prompt] == asked.ids(0.0, 1)
    assert engine.tokenizer.decode(asked.ids(0.0, 1)).count(said[0].text) > 0


def test_every_temperature_has_a_conversation_of_its_own_and_the_first_answer_stays() -> None:
    prompts = with_later_turns([ask("c", "1", "2", "3")])

    def encode(messages: Any) -> Any:
        return [message["content"] for message in messages]

    asked = Asked(prompts, encode, lambda tokens: {"content": str(tokens)})
    asked.note(0.0, 0, [7])
    asked.note(1.0, 0, [8])
    asked.note(0.0, 0, [9])
    asked.note(0.0, 1, [6])
    assert asked.ids(0.0, 0) == ["1"]
    assert asked.ids(0.0, 2) == ["1", "[7]", "2", "[6]", "3"]
    assert asked.ids(1.0, 1) == ["1", "[8]", "2"]


def test_what_follows_an_end_token_is_no_part_of_the_conversation(demo: Any) -> None:
    end = next(iter(demo.tokenizer.eos_token_ids))
    asked = Asked.of(demo, with_later_turns([ask("c", QUESTION, LATER)]))
    answer = demo.tokenizer.encode("It is so.")
    asked.note(0.0, 0, [*answer, end, *answer])
    asked.note(1.0, 0, answer)
    assert asked.ids(0.0, 1) == asked.ids(1.0, 1)


def test_a_question_fits_if_all_of_its_turns_and_answers_do(demo: Any) -> None:
    most = demo.limits.max_context
    n_first = len(Asked.of(demo, [ask("c", QUESTION)]).ids(0.0, 0))
    assert fits(demo, ask("c", QUESTION), most - n_first)
    assert not fits(demo, ask("c", QUESTION), most - n_first + 1)
    assert fits(demo, ask("c", QUESTION, LATER), most // 3)
    assert not fits(demo, ask("c", QUESTION, LATER), most // 2)
