"""What a conversation asks, and what becomes of answers that are none."""

from pathlib import Path
from typing import Any

from chat_templates import demo_tokenizer
from doubles import Letters
from mlx_eagle.answers.answer_format import AnswerFormat, read_format
from mlx_eagle.session.prompt import PLAIN_TEMPLATE
from mlx_eagle.training.texts.answer_file import Answered
from mlx_eagle.training.texts.dialogue import Dialogue, questions

SYSTEM = {"role": "system", "content": "be brief"}
FORM = read_format(Letters())
SPACE = Letters.letters.index(" ")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def answer(dialogue: Dialogue, *answers: list[int]) -> Answered:
    """Let a dialogue be answered with these tokens."""
    for tokens in answers:
        assert dialogue.ask(FORM, PLAIN_TEMPLATE, 100)
        dialogue.tokens = tokens
        dialogue.end_answer(FORM, is_cut=False)
    assert dialogue.is_over
    return dialogue.result()


def test_every_message_of_a_user_is_a_question_and_given_answers_are_left_out() -> None:
    given = [SYSTEM, user("a"), said("x"), user("b"), user("c"), said("y"), SYSTEM]
    assert questions(given) == [[SYSTEM, user("a")], [user("b")], [user("c")]]
    assert questions([said("hello"), user("a")]) == [[user("a")]]


def test_own_answers_stand_in_place_of_the_given_ones() -> None:
    dialogue = Dialogue(3, [user("a"), said("x"), user("b"), said("y")])
    found = answer(dialogue, [0, 1, Letters.end], [2, Letters.end])
    assert found.messages == [user("a"), said("ab"), user("b"), said("c")]
    assert found.place == 3 and found.left_out is None
    assert [a.tokens for a in found.answers] == [[0, 1, Letters.end], [2, Letters.end]]


def test_an_empty_answer_ends_a_conversation_before_its_question() -> None:
    kept = answer(Dialogue(0, [user("a"), user("b")]), [0, Letters.end], [SPACE, Letters.end])
    assert kept.messages == [user("a"), said("a")] and kept.left_out == "empty answer"
    none = answer(Dialogue(0, [user("a")]), [Letters.end])
    assert none.messages == [user("a")] and not none.answers and none.left_out == "empty answer"


def test_conversations_that_cannot_be_answered_say_why() -> None:
    tool = {"role": "tool", "content": "c"}
    assert Dialogue(0, [user("a"), tool, user("b")]).result().left_out == "tools were called"
    assert Dialogue(0, [said("a")]).result().left_out == "no question"
    refused = Dialogue(0, [user("half of a pair: \ud800")])
    assert refused.ask(FORM, PLAIN_TEMPLATE, None) == []
    assert refused.result().left_out == "refused by the template"


HARMONY = Path(__file__).parents[2] / "data" / "templates" / "harmony.jinja"
THOUGHT = "<|channel|>analysis<|message|>hm<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


def write(form: AnswerFormat, dialogue: Dialogue, text: str) -> list[int]:
    """Let a dialogue be answered with a text and a mark that ends it; return the prompt."""
    prompt = dialogue.ask(form, PLAIN_TEMPLATE, None)
    end = form.tokenizer.eos_token_id
    dialogue.tokens = [*form.tokenizer.encode(text, add_special_tokens=False), end]
    dialogue.end_answer(form, is_cut=False)
    return prompt


def test_thoughts_of_an_answer_are_set_apart_before_the_next_question() -> None:
    form = read_format(demo_tokenizer(HARMONY.read_text()))
    dialogue = Dialogue(0, [user("a?"), user("b?")])
    write(form, dialogue, f"{THOUGHT}{FINAL}One.")
    prompt = form.tokenizer.decode(write(form, dialogue, f"{THOUGHT}{FINAL}Two."))
    assert "final<|message|>One.<|end|>" in prompt and "hm" not in prompt
    found = dialogue.result()
    assert found.left_out is None and len(found.answers) == 2
    assert found.messages[1] == said("One.") | {"reasoning_content": "hm"}


def test_an_answer_of_thoughts_alone_or_a_call_is_the_last_one() -> None:
    form = read_format(demo_tokenizer(HARMONY.read_text()))
    thinking = Dialogue(0, [user("a?"), user("b?")])
    write(form, thinking, THOUGHT)
    assert thinking.is_over and len(thinking.result().answers) == 1
    assert thinking.result().left_out == "an answer of thoughts alone"
    calling = Dialogue(0, [user("a?"), user("b?")], [TOOL])
    call = '<|channel|>commentary to=functions.add <|message|>{"a": 1}'
    assert "tools: add" in form.tokenizer.decode(write(form, calling, call))
    found = calling.result()
    assert found.left_out == "the target called a tool, which nobody runs"
    [made] = found.messages[1]["tool_calls"]
    assert made["function"] == {"name": "add", "arguments": {"a": 1}}
    assert found.tools == (TOOL,)
