"""The conversation loop, with a fake conversation behind it and fake keys in front."""

import threading
from typing import Any

import pytest

from mlx_eagle.errors import ClusterError, EagleError


def test_the_banner_comes_once_and_before_the_first_answer(chat: Any) -> None:
    first, second = chat.say("hello"), chat.say("again")
    assert first.index("toy · 8-bit") < first.index("hello")
    assert "toy · 8-bit" not in second
    assert first.count("This pair is a toy") == 1
    assert "mlx-eagle chat --model " in first
    assert chat.conversation.heard == ["hello", "again"]


def test_an_answer_is_followed_by_one_line_of_statistics(chat: Any) -> None:
    chat.say("hello")
    assert chat.say("one two three") == (
        "onetwothree\n3 tokens · 8.0 tokens/s · acceptance length 2.00 · 1 round\n\n"
    )


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(chat: Any) -> None:
    out = chat.say("interrupt me please")
    assert "interrupt\nstopped · 1 token" in out
    assert chat.conversation.closed == 1
    assert "onetwo\n" in chat.say("one two")
    assert chat.conversation.heard == ["interrupt me please", "one two"]


def test_an_error_of_the_engine_is_a_line_and_the_loop_goes_on(chat: Any) -> None:
    assert "error: the prompt is too long\n" in chat.say("fail")
    assert "onetwo\n" in chat.say("one two")


@pytest.mark.parametrize("line", ["lost", "/regen"])
def test_a_host_that_is_lost_in_an_answer_ends_the_chat_and_is_not_noted(
    line: str, chat: Any
) -> None:
    roles = ("user", "assistant")
    chat.conversation.messages = [{"role": role, "content": "lost"} for role in roles]
    with chat.keyboard(f"{line}\rhello\r"), pytest.raises(ClusterError, match="rank 1 has ended"):
        chat.repl.run(None)
    assert "hello" not in chat.conversation.heard
    assert chat.conversation.rescued == ["rank 1 has ended"]
    assert "rank 1" not in chat.screen.getvalue()


def test_a_host_that_is_lost_while_nothing_is_asked_ends_the_prompt(chat: Any) -> None:
    with chat.keyboard("half a line"):
        threading.Timer(0.3, lambda: setattr(chat.conversation, "lost", "rank 1 is gone")).start()
        with pytest.raises(ClusterError, match="rank 1 is gone"):
            chat.repl.run(None)
    assert chat.conversation.rescued == ["rank 1 is gone"]


def test_an_unknown_command_is_not_sent_to_the_model(chat: Any) -> None:
    assert "no command /stat; did you mean /stats?" in chat.say("/stat")
    assert "no command /xyzzy; /help lists them" in chat.say("/xyzzy")
    assert chat.conversation.heard == []


@pytest.mark.parametrize("line", ["/usr/bin/env is what?", " /help", "/help\nme", "//"])
def test_what_only_starts_like_a_command_is_a_message(chat: Any, line: str) -> None:
    chat.say(line)
    assert chat.conversation.heard == [line]


def test_an_empty_line_does_nothing(chat: Any) -> None:
    assert chat.say("   ") == ""
    assert chat.conversation.heard == []


def test_the_loop_ends_with_ctrl_d_and_survives_ctrl_c(chat: Any) -> None:
    with chat.keyboard("\x03half a line\x03hello\r\x04"):
        chat.repl.run(None)
    assert chat.screen.getvalue().count("Ctrl-D or /exit leaves") == 1
    assert chat.conversation.heard == ["hello"]


def test_a_model_that_cannot_be_loaded_ends_the_prompt_with_its_error(chat: Any) -> None:
    chat.conversation.error = EagleError("no such head")
    with chat.keyboard(""), pytest.raises(EagleError, match="no such head"):
        chat.repl.run(None)


def test_beside_the_line_stands_how_far_loading_and_measuring_are(chat: Any) -> None:
    assert chat.repl._state() == ""
    chat.conversation.is_loaded = False
    assert chat.repl._state() == "loading the model ..."
    chat.conversation.progress = ("calibrate", 1, 5)
    assert chat.repl._state() == "measuring this machine, once, step 2 of 5 ..."
