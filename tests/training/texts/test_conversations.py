"""What is read from files, in every style, and what is refused with its file and line."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_eagle.errors import EagleError
from mlx_eagle.training.texts import conversations
from mlx_eagle.training.texts.conversations import Conversation, read_conversations


def read(folder: Path, *rows: Any, name: str = "data.jsonl") -> list[Conversation]:
    """Write rows as JSON Lines, or bytes as they are, and read the file."""
    file = folder / name
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    file.write_bytes(b"\n".join(lines))
    return list(read_conversations([file]))


def said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in conversation.messages]


@pytest.mark.parametrize(
    "row",
    [
        {
            "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
            "id": 5,
        },
        {"conversations": [{"role": "user", "value": "Q"}, {"role": "bard", "content": "A"}]},
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        {
            "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
            "prompt": "Q",
        },
        {"prompt": "Q", "completion": "A"},
        {"prompt": "Q", "response": "A", "system": None, "answer": None},
        {"prompt": "Q", "answer": "A"},
        {"prompt": "Q", "output": "A"},
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"messages": [{"role": "user", "content": "Q"}], "completion": "A"},
        {
            "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
            "answer": "B",
        },
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Q"}]},
                {"role": "assistant", "content": "A", "tool_calls": None},
            ]
        },
    ],
)
def test_a_question_and_its_answer_are_the_same_in_every_style(row: Any, tmp_path: Path) -> None:
    (found,) = read(tmp_path, row)
    assert found.messages == (
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
    )
    assert (found.text, found.tools, found.has_answer) == ("", (), True)
    assert found.where == f"{tmp_path / 'data.jsonl'}:1"


def test_questions_alone_have_no_answer(tmp_path: Path) -> None:
    messages = [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}]
    found = read(
        tmp_path,
        {"prompt": "Q"},
        {"conversations": messages},
        {"conversations": messages, "system": "S "},
        {"prompt": "Q", "system": "S"},
    )
    assert [said(each) for each in found] == [
        [("user", "Q")],
        [("system", "S"), ("user", "Q")],
        [("system", "S"), ("user", "Q")],
        [("system", "S"), ("user", "Q")],
    ]
    assert not any(each.has_answer for each in found)


def test_tools_and_their_calls_are_kept_as_they_are(tmp_path: Path) -> None:
    call = {"type": "function", "id": "a", "function": {"name": "add", "arguments": '{"a": 1}'}}
    tools = [{"type": "function", "function": {"name": "add"}}]
    called = {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"}
    messages = [
        {"role": "user", "content": "Q"},
        called,
        {"role": "tool", "content": "", "tool_call_id": "a"},
    ]
    rows = [{"messages": messages, "tools": value} for value in (tools, json.dumps(tools))]
    for found in read(tmp_path, *rows):
        assert found.tools == tuple(tools)
        assert found.messages[1] == called | {"content": ""}
        assert found.messages[2] == messages[2]
        assert found.has_answer


def test_an_answer_is_one_wherever_it_stands_but_before_every_question() -> None:
    def roles(*names: str) -> Conversation:
        return Conversation(tuple({"role": name, "content": "X"} for name in names))

    assert roles("user", "assistant", "user").has_answer
    assert roles("system", "user", "assistant", "user").has_answer
    assert roles("assistant", "user", "assistant").has_answer
    assert not roles("assistant", "user").has_answer
    assert [roles(*["assistant"] * n, "user").n_opening for n in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("role", "expected"),
    [("chatgpt", "assistant"), ("observation", "tool"), ("function", "tool"), ("system", "system")],
)
def test_roles_have_many_names(role: str, expected: str, tmp_path: Path) -> None:
    messages = [{"from": role, "value": "X"}, {"from": "human", "value": "Q"}]
    (found,) = read(tmp_path, {"conversations": messages})
    assert found.messages[0]["role"] == expected


def test_files_are_read_one_after_the_other_and_blank_lines_passed_over(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.md"
    first.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}\r\n')
    second.write_text("\n\nthree\n")
    found = list(read_conversations([first, second]))
    assert [each.text for each in found] == ["one", "two", "three"]
    assert [each.where for each in found] == [f"{first}:1", f"{first}:3", f"{second}:3"]


def test_plain_text_is_cut_at_blank_lines_into_documents(tmp_path: Path) -> None:
    paragraph = "word " * 300 + "\nand more\n"
    file = tmp_path / "book.txt"
    file.write_text("\n".join([paragraph] * 8))
    found = list(read_conversations([file]))
    assert [each.text.count("and more") for each in found] == [3, 3, 2]
    assert [each.where.rpartition(":")[2] for each in found] == ["1", "10", "19"]
    assert "".join("".join(each.text.split()) for each in found) == "".join(
        file.read_text().split()
    )


def test_plain_text_without_blank_lines_is_cut_at_lines(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_text("x" * 99 + "\n")
    assert len(list(read_conversations([file]))) == 1
    file.write_text(("x" * 99 + "\n") * 200)
    found = list(read_conversations([file]))
    assert [len(each.text) for each in found] == [7999, 7999, 3999]


ASKED = {"role": "user", "content": "Q"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"{", "'{' .. is not readable JSON.*one object a line"),
        (b'{"text": "a", "text": "b"}', "comes twice"),
        (b'{"text": "\xff"}', "not UTF-8 text"),
        (b'{"text": "\\ud83d"}', "not UTF-8 text"),
        (b"[" * 40 + b"]" * 40, "nested more than 24 deep"),
        ([], "expected an object, found list"),
        (5, "expected an object, found int"),
        ({}, "expected one of the keys messages, .*; found nothing"),
        ({"instruction": "Q"}, "expected one of the keys .*found 'instruction'"),
        ({"text": "a", "prompt": "Q"}, "holds prompt and text; expected one"),
        ({"text": 5}, "text is 5; expected a text"),
        ({"text": " "}, "text is empty"),
        ({"prompt": None}, "prompt is missing; expected a text"),
        ({"prompt": "Q", "completion": ""}, "completion is empty"),
        ({"prompt": "Q", "answer": "A", "output": "B"}, "holds answer and output; expected one"),
        ({"prompt": "Q", "chosen": [ASKED]}, "chosen is .*; expected a text"),
        (
            {"messages": [{"role": "system", "content": "S"}, ASKED], "system": "T"},
            "system is 'T', but the messages begin with another system prompt",
        ),
        ({"messages": []}, "messages is an empty list"),
        ({"messages": "Q"}, "messages is 'Q'; expected a list of messages"),
        ({"messages": ["Q"]}, "messages, message 1 is 'Q'; expected an object"),
        ({"messages": [ASKED, {"content": "A"}]}, "message 2: from is missing; expected one of"),
        (
            {"messages": [{"role": "boss", "content": "A"}]},
            "role is 'boss'; expected one of system",
        ),
        ({"messages": [{"role": "user"}]}, "message 1: content is missing; expected a text"),
        ({"messages": [{"role": "user", "content": 5}]}, "content is 5; expected a text"),
        ({"messages": [{"role": "system", "content": "S"}]}, "ends in a system prompt"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "a part that is no text \\('image_url'\\)",
        ),
        ({"messages": [ASKED | {"tool_calls": 5}]}, "tool_calls is not a list of calls"),
        ({"messages": [ASKED | {"tool_calls": [{}]}]}, "tool_calls is not a list of calls"),
        ({"messages": [ASKED | {"thinking": 5}]}, "thinking is int; expected a text"),
        ({"messages": [ASKED], "tools": "x"}, "tools is not a list of JSON schemas"),
        ({"conversations": [{"from": "gpt", "value": ""}]}, "message 1: value is empty"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(EagleError, match=f"^{tmp_path}/data.jsonl:2: ?.*{message}") as caught:
        read(tmp_path, {"text": "fine"}, row)
    assert "\n" not in str(caught.value)


def test_lines_that_cannot_be_used_are_left_out_and_listed_unless_all_are(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n{\n{"text": 5}\n{"text": "two"}\n')
    unusable = list[str]()
    assert [c.text for c in read_conversations([file], unusable)] == ["one", "two"]
    assert [reason.partition(": ")[0] for reason in unusable] == [f"{file}:2", f"{file}:3"]
    other = tmp_path / "b.jsonl"
    other.write_text('{"text": 5}\n{"text": 6}\n')
    with pytest.raises(EagleError, match="b.jsonl:1: text is 5; expected a text"):
        list(read_conversations([file, other], unusable))


def test_line_ends_of_windows_are_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\r\none\r\ntwo\r\n")
    [found] = read_conversations([file])
    assert found.text == "one\ntwo"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b"", "a.jsonl holds no conversation: it is empty; expected an object a line"),
        ("a.txt", b"\n \n", "a.txt holds no conversation: it is empty; expected text"),
        ("a.csv", b"x", "not in a format .* expected .jsonl, .*, found .csv"),
        ("a.txt", b"fine\n\xff\n", "a.txt:2: not UTF-8 text"),
        ("a.json", b'[{"text": "a"}]', "a.json:1: a list in JSON; expected one object a line"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    name: str, data: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(EagleError, match=message):
        read(tmp_path, data, name=name)


def test_a_file_that_is_missing_or_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    for name, message in (("none.jsonl", "No such file"), ("folder.jsonl", "Is a directory")):
        with pytest.raises(EagleError, match=f"{name} cannot be read: {message}"):
            list(read_conversations([tmp_path / name]))


def test_lines_are_bounded_and_read_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "MAX_LINE_BYTES", 40)
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "one"}\n{"text": "' + b"x" * 40 + b'"}\n')
    stream = read_conversations([file])
    assert next(stream).text == "one"
    with pytest.raises(EagleError, match="a.jsonl:2: the line is longer than 40 bytes"):
        next(stream)
