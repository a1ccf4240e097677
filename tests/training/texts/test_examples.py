"""Which tokens are trained, on templates of eight publishers: answers, their end, nothing else."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import chat_templates
from chat_templates import CHATML, demo_tokenizer
from mlx_eagle.errors import EagleError
from mlx_eagle.session.prompt import encode
from mlx_eagle.training.batch import Example
from mlx_eagle.training.texts.answer_spans import Span
from mlx_eagle.training.texts.conversations import Conversation
from mlx_eagle.training.texts.examples import Encoder, tokens_and_places

FAMILIES = Path(__file__).parents[2] / "data" / "templates"
ENDS = {
    "CHATML": "<|im_end|>",
    "LLAMA3": "<|eot|>",
    "QWEN3": "<|im_end|>",
    "R1": "<|eot|>",
    "GEMMA": "<end_of_turn>",
    "MISTRAL": "</s>",
    "UNASKED": "<|im_end|>",
}
ANSWERS = ["It opens a file.", "a", "Naïve 🙂 text:\n\n```python\nassistant = 1\n```"]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **rest: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **rest}


def conversation(*messages: dict[str, Any], **rest: Any) -> Conversation:
    return Conversation(tuple(messages), where="data.jsonl:7", **rest)


def turns(*answers: str) -> Conversation:
    return conversation(
        *(m for n, a in enumerate(answers) for m in (user(f"Question {n}?"), assistant(a)))
    )


def trained_texts(tokenizer: Any, example: Example) -> list[str]:
    """The decoded runs of trained tokens."""
    edges = np.flatnonzero(np.diff(example.trained.astype(int), prepend=0, append=0))
    runs = zip(edges[::2], edges[1::2], strict=True)
    return [str(tokenizer.decode(example.tokens[a:b].tolist())) for a, b in runs]


@pytest.mark.parametrize("name", ENDS)
def test_answers_and_their_ends_are_trained_and_nothing_else(name: str) -> None:
    tokenizer = demo_tokenizer(getattr(chat_templates, name))
    encoder = Encoder(tokenizer)
    (example,) = encoder.encode(turns(*ANSWERS))
    space = " " if name == "MISTRAL" else ""  # which its models write
    expected = [space + answer + ENDS[name] for answer in ANSWERS]
    assert trained_texts(tokenizer, example) == expected
    assert example.tokens.dtype == np.int32
    assert (encoder.counts.examples, encoder.counts.last_only) == (1, 0)
    assert encoder.counts.trained == example.trained.sum() < encoder.counts.tokens


@pytest.mark.parametrize("name", [name for name in ENDS if name not in ("R1", "QWEN3", "UNASKED")])
def test_tokens_are_those_of_the_prompt_that_the_target_is_given(name: str) -> None:
    tokenizer = demo_tokenizer(getattr(chat_templates, name))
    (example,) = Encoder(tokenizer).encode(turns(*ANSWERS))
    prompt = encode(tokenizer, list(turns(*ANSWERS).messages[:-1]))
    first_of_last = np.flatnonzero(np.diff(example.trained.astype(int)) == 1)[-1] + 1
    assert example.tokens[:first_of_last].tolist() == prompt


def test_earlier_answers_whose_thoughts_the_template_drops_are_not_trained() -> None:
    tokenizer = demo_tokenizer(chat_templates.QWEN3)
    thought = conversation(
        user("1?"),
        assistant("One.", reasoning_content="hm"),
        user("2?"),
        assistant("Two.", reasoning_content="so"),
    )
    encoder = Encoder(tokenizer)
    (example,) = encoder.encode(thought)
    assert trained_texts(tokenizer, example) == ["<think>\nso\n</think>\n\nTwo.<|im_end|>"]
    assert "hm" not in tokenizer.decode(example.tokens.tolist())
    assert encoder.counts.last_only == 1


@pytest.mark.parametrize("name", ["QWEN3", "R1"])
@pytest.mark.parametrize("args", [{}, {"enable_thinking": False}])
def test_an_empty_thought_that_the_template_writes_is_not_trained(name: str, args: Any) -> None:
    tokenizer = demo_tokenizer(getattr(chat_templates, name))
    encoder = Encoder(tokenizer, template_args=args)
    (example,) = encoder.encode(turns("One.", "Two."))
    assert trained_texts(tokenizer, example) == ["One." + ENDS[name], "Two." + ENDS[name]]
    assert encoder.counts.last_only == 0


def test_a_system_prompt_goes_into_the_question_where_the_template_takes_none() -> None:
    tokenizer = demo_tokenizer(chat_templates.GEMMA)
    encoder = Encoder(tokenizer)
    (example,) = encoder.encode(
        conversation({"role": "system", "content": "Be brief."}, *turns("a").messages)
    )
    assert trained_texts(tokenizer, example) == ["a<end_of_turn>"]
    text = tokenizer.decode(example.tokens.tolist())
    assert "<start_of_turn>user\nBe brief.\n\nQuestion 0?<end_of_turn>" in text
    assert encoder.counts.without_system == 1


def test_an_answer_without_a_mark_gets_the_end_token() -> None:
    tokenizer = demo_tokenizer(chat_templates.VICUNA)
    (example,) = Encoder(tokenizer).encode(turns("One.", "Two."))
    assert trained_texts(tokenizer, example) == [" One.", " Two.<|im_end|>"]
    assert example.tokens[-1] == tokenizer.eos_token_id


CALL = {"type": "function", "id": "a23456789", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
CALLED = {
    "qwen3": [
        "<think>\nhm\n</think>\n\n"
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call></s>',
        "Two.</s>",
    ],
    "llama3": ['{"name": "add", "parameters": {"a": 1}}<eot>', "Two.<eot>"],
    "mistral": [
        '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}, "id": "a23456789"}]</s>',
        "Two.</s>",
    ],
}


@pytest.mark.parametrize("family", CALLED)
def test_calls_of_tools_are_trained_as_the_model_writes_them(family: str) -> None:
    tokenizer = demo_tokenizer((FAMILIES / f"{family}.jinja").read_text())
    called = assistant("", tool_calls=[CALL], reasoning_content="hm")
    result = {"role": "tool", "content": "2", "tool_call_id": "a23456789"}
    given = conversation(user("1 and 1?"), called, result, assistant("Two."), tools=(TOOL,))
    (example,) = Encoder(tokenizer).encode(given)
    assert trained_texts(tokenizer, example) == CALLED[family]
    prompt = tokenizer.decode(example.tokens[: example.trained.argmax()].tolist())
    assert "add" in prompt, "the template is given the tools"


def test_channels_are_written_by_the_model_and_earlier_answers_end_as_the_template_wants() -> None:
    tokenizer = demo_tokenizer((FAMILIES / "harmony.jinja").read_text())
    encoder = Encoder(tokenizer)
    (example,) = encoder.encode(turns("One.", "Two.", "Three."))
    final = "<|channel|>final<|message|>"
    assert trained_texts(tokenizer, example) == [
        f"{final}One.",
        f"{final}Two.",
        f"{final}Three.<|return|>",
    ]
    assert encoder.counts.last_only == 0


def test_all_tokens_are_trained_where_that_is_asked_for() -> None:
    tokenizer = demo_tokenizer(CHATML)
    encoder = Encoder(tokenizer, train_on="all")
    answered, asked = encoder.examples([turns("One."), conversation(user("Two?"))])
    assert answered.trained.all() and asked.trained.all()
    assert tokenizer.decode(asked.tokens.tolist()) == "<|im_start|>user\nTwo?<|im_end|>\n"
    assert encoder.counts.examples == 2


def test_a_question_without_answer_is_counted_and_one_after_answers_left_out() -> None:
    tokenizer = demo_tokenizer(CHATML)
    encoder = Encoder(tokenizer)
    assert encoder.encode(conversation(user("One?"))) == []
    (example,) = encoder.encode(conversation(*turns("One.").messages, user("And?")))
    assert "And?" not in tokenizer.decode(example.tokens.tolist())
    assert (encoder.counts.unanswered, encoder.counts.examples) == (1, 1)


@pytest.mark.parametrize("name", ["CHATML", "LLAMA3"])
@pytest.mark.parametrize("train_on", ["answers", "all"])
def test_an_answer_before_every_question_is_left_out_and_the_others_are_trained(
    name: str, train_on: str
) -> None:
    tokenizer = demo_tokenizer(getattr(chat_templates, name))
    encoder = Encoder(tokenizer, train_on=train_on)
    asked = turns("One.", "Two.")
    (example,) = encoder.encode(conversation(assistant("Hello, ask me."), *asked.messages))
    (plain,) = Encoder(tokenizer, train_on=train_on).encode(asked)
    assert example.tokens.tolist() == plain.tokens.tolist()
    assert example.trained.tolist() == plain.trained.tolist()
    assert (encoder.counts.opened, encoder.counts.last_only) == (1, 0)
    assert not encoder.encode(conversation(assistant("Hello."))) and encoder.counts.unanswered == 1


def test_plain_text_is_trained_from_the_first_token_to_an_end_token() -> None:
    tokenizer = demo_tokenizer(None)
    encoder = Encoder(tokenizer, context=5)
    text = "def f(x):\n    return x + 1\n"
    parts = encoder.encode(Conversation(text=text))
    ids = [*tokenizer.encode(text), tokenizer.eos_token_id]
    assert [len(part.tokens) for part in parts[:-1]] == [5] * (len(parts) - 1)
    assert np.concatenate([part.tokens for part in parts]).tolist() == ids
    assert all(part.trained.all() for part in parts)


def test_plain_text_begins_as_the_tokenizer_has_texts_begin() -> None:
    def ids(text: str, verbose: bool) -> list[int]:
        return [1, *text.encode(), 2]

    tokenizer = SimpleNamespace(has_chat_template=False, encode=ids, eos_token_id=2)
    (example,) = Encoder(tokenizer).encode(Conversation(text="ab"))
    assert example.tokens.tolist() == [1, 97, 98, 2], "no second end"


def test_a_conversation_longer_than_the_context_is_cut_and_counted() -> None:
    tokenizer = demo_tokenizer(CHATML)
    (whole,) = Encoder(tokenizer).encode(turns("One.", "Two."))
    encoder = Encoder(tokenizer, context=len(whole.tokens) - 3)
    (cut,) = encoder.encode(turns("One.", "Two."))
    assert cut.tokens.tolist() == whole.tokens[:-3].tolist()
    assert cut.trained.tolist() == whole.trained[:-3].tolist()
    assert (encoder.counts.cut, encoder.counts.untrained) == (1, 0)
    short = Encoder(tokenizer, context=3)
    assert short.encode(turns("One.")) == []
    assert (short.counts.cut, short.counts.untrained) == (1, 1)


def test_what_cannot_be_encoded_is_named_with_its_line() -> None:
    with pytest.raises(EagleError, match=r"^data.jsonl:7: this target has no chat template.*text"):
        Encoder(demo_tokenizer(None)).encode(turns("One."))
    refusing = demo_tokenizer("{{ raise_exception('no roles\nhere') }}")
    with pytest.raises(EagleError, match="^data.jsonl:7: .* refuses the messages: no roles here"):
        Encoder(refusing).encode(turns("One."))
    silent = demo_tokenizer("{% for m in messages %}{{ m.role }} {% endfor %}")
    with pytest.raises(EagleError, match="does not show where the last answer begins"):
        Encoder(silent).encode(turns("One."))
    called = conversation(user("1?"), assistant("", tool_calls=[CALL]))
    with pytest.raises(EagleError, match="leaves out the calls of tools"):
        Encoder(demo_tokenizer(CHATML)).encode(called)


def test_calls_that_are_left_out_are_noticed_though_the_tools_are_listed() -> None:
    listing = demo_tokenizer("{{ tools | tojson if tools }}" + CHATML)
    called = conversation(user("add?"), assistant("I add.", tool_calls=[CALL]), tools=(TOOL,))
    with pytest.raises(EagleError, match="leaves out the calls of tools"):
        Encoder(listing).encode(called)


def test_calls_of_one_tool_are_given_one_by_one_where_the_template_shows_the_first() -> None:
    tokenizer = demo_tokenizer((FAMILIES / "harmony.jinja").read_text())
    calls = [CALL | {"id": f"a2345678{n}"} for n in range(2)]
    results = [{"role": "tool", "content": "2", "tool_call_id": call["id"]} for call in calls]
    given = conversation(user("add!"), assistant("", tool_calls=calls), *results, assistant("Two."))
    (example,) = Encoder(tokenizer).encode(given._replace(tools=(TOOL,)))
    called = '<|channel|>commentary to=functions.add <|message|>{"a": 1}<|call|>'
    assert tokenizer.decode(example.tokens.tolist()).count(called) == 2


class Slow:
    """A tokenizer without offsets: every pair of letters is a token, and a single last one."""

    is_fast = False

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [int.from_bytes(text[n : n + 2].encode(), "big") for n in range(0, len(text), 2)]


def test_without_offsets_the_tokens_of_beginnings_say_where_a_span_stands() -> None:
    slow: Any = Slow()
    slow._tokenizer = slow
    _, even = tokens_and_places(slow, "abcdefgh", [Span(2, 4), Span(6, 8)])
    assert even == [Span(1, 2), Span(3, 4)]
    _, odd = tokens_and_places(slow, "abcdefgh", [Span(3, 7)])
    assert odd == [Span(2, 4)], "what reaches into it is not of it, what reaches out of it is"


def test_offsets_find_every_token_of_a_text_with_marks() -> None:
    tokenizer = demo_tokenizer(CHATML)
    text = "<|im_start|>user\nHow do I open a file?<|im_end|>\n"
    ids, _ = tokens_and_places(tokenizer, text, [])
    bounds = np.cumsum([0, *(len(tokenizer.decode([i])) for i in ids)]).tolist()
    spans = [Span(a, b) for a, b in pairwise(bounds)]
    _, fast = tokens_and_places(tokenizer, text, spans)
    assert fast == [Span(n, n + 1) for n in range(len(ids))]
