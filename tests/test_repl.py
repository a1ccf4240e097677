"""The conversation loop, with a fake conversation behind it and fake keys in front."""

import contextlib
import io
import stat
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from mlx_eagle.cli import repl as repl_module
from mlx_eagle.cli.display import terminal
from mlx_eagle.cli.options import Settings, Tree
from mlx_eagle.cli.repl import (
    CommandCompleter,
    Repl,
    history_path,
    is_open,
    open_history,
    prompt_session,
    unfenced,
)
from mlx_eagle.engine import EngineInfo
from mlx_eagle.errors import EagleError
from mlx_eagle.responses import GenerationResponse
from mlx_eagle.stats import GenerationStats

INFO = EngineInfo("toy", "8-bit, group 64", "head", "4-bit, group 64", "on", "CPU", True)


def piece(
    text: str, n: int = 1, from_draft: bool = False, stats: GenerationStats | None = None
) -> GenerationResponse:
    """Return a response that carries `text` as the n-th token."""
    return GenerationResponse(
        text=text,
        token=n,
        from_draft=from_draft,
        prompt_tokens=3,
        prompt_tps=30.0,
        generation_tokens=n,
        generation_tps=8.0,
        peak_memory=0.1,
        n_accepted=0,
        finish_reason="stop" if stats else None,
        stats=stats,
    )


class FakeConversation:
    """Echoes what it hears, a token per word; "interrupt" is interrupted after one word."""

    def __init__(self) -> None:
        self.system: str | None = None
        self.heard: list[str] = []
        self.options: dict[str, Any] = {}
        self.closed = 0
        self.error: BaseException | None = None
        self.progress = ("load", 0, 2)

    @property
    def loaded(self) -> bool:
        return True

    def wait(self) -> EngineInfo:
        if self.error:
            raise self.error
        return INFO

    def failure(self) -> BaseException | None:
        return self.error

    def clear(self) -> None:
        self.heard = []

    def ask(self, text: str, **options: Any) -> Generator[GenerationResponse]:
        self.heard.append(text)
        self.options = options
        try:
            if text == "fail":
                raise EagleError("the prompt is too long")
            words = text.split()
            stats = GenerationStats(prompt_tokens=3, generation_tokens=len(words))
            stats.add_round(depth=2, n_drafted=2, n_accepted=1)
            for n, word in enumerate(words, start=1):
                yield piece(word, n, stats=stats if n == len(words) else None)
                if text.startswith("interrupt"):
                    raise KeyboardInterrupt
        finally:
            self.closed += 1


class Chat:
    """A loop with a fake conversation, whose terminal is a buffer."""

    def __init__(self) -> None:
        self.conversation = FakeConversation()
        self.screen = io.StringIO()
        self.repl = Repl(self.conversation, Settings(), terminal(self.screen))

    def say(self, line: str) -> str:
        """Send one line and return what appeared, answer included."""
        self.screen.truncate(0)
        self.screen.seek(0)
        with contextlib.redirect_stdout(self.screen):
            assert self.repl.handle(line)
        return self.screen.getvalue()


@pytest.fixture
def chat() -> Chat:
    return Chat()


def test_the_banner_comes_once_and_before_the_first_answer(chat: Chat) -> None:
    first, second = chat.say("hello"), chat.say("again")
    assert first.index("toy · 8-bit") < first.index("hello")
    assert "toy · 8-bit" not in second
    assert chat.conversation.heard == ["hello", "again"]


def test_an_answer_is_followed_by_one_line_of_statistics(chat: Chat) -> None:
    chat.say("hello")
    assert chat.say("one two three") == (
        "onetwothree\n3 tokens · 8.0 tokens/s · acceptance length 2.00 · 1 round\n\n"
    )


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(chat: Chat) -> None:
    out = chat.say("interrupt me please")
    assert "interrupt\nstopped · 1 token" in out
    assert chat.conversation.closed == 1
    assert "onetwo\n" in chat.say("one two")
    assert chat.conversation.heard == ["interrupt me please", "one two"]


def test_an_error_of_the_engine_is_a_line_and_the_loop_goes_on(chat: Chat) -> None:
    assert "error: the prompt is too long\n" in chat.say("fail")
    assert "onetwo\n" in chat.say("one two")


def test_help_names_every_command_that_works(chat: Chat) -> None:
    out = chat.say("/help")
    for word in ("/help", "/clear", "/system", "/stats", "/set", "/exit"):
        assert f"\n  {word} " in f"\n{out}"


@pytest.mark.parametrize("word", ["/exit", "/quit"])
def test_exit_and_quit_leave(chat: Chat, word: str) -> None:
    assert chat.repl.handle(word) is False


def test_an_unknown_command_is_not_sent_to_the_model(chat: Chat) -> None:
    assert "no command /stat; did you mean /stats?" in chat.say("/stat")
    assert "no command /xyzzy; /help lists them" in chat.say("/xyzzy")
    assert chat.conversation.heard == []


@pytest.mark.parametrize("line", ["/usr/bin/env is what?", " /help", "/help\nme", "//"])
def test_what_only_starts_like_a_command_is_a_message(chat: Chat, line: str) -> None:
    chat.say(line)
    assert chat.conversation.heard == [line]


def test_an_empty_line_does_nothing(chat: Chat) -> None:
    assert chat.say("   ") == ""
    assert chat.conversation.heard == []


def test_clear_forgets_the_conversation(chat: Chat) -> None:
    chat.say("hello")
    assert "forgotten" in chat.say("/clear")
    assert chat.conversation.heard == []


def test_system_shows_changes_and_removes_the_system_prompt(chat: Chat) -> None:
    assert chat.say("/system").endswith("system prompt: none\n")
    assert chat.say("/system Be brief.") == "system prompt: Be brief.\n"
    assert chat.conversation.system == "Be brief."
    chat.say("/system none")
    assert chat.conversation.system is None


def test_set_changes_what_the_next_answer_is_asked_with(chat: Chat) -> None:
    chat.say("/set temperature 0.7")
    chat.say("/set temp 0.8")
    chat.say("/set speculate off")
    assert "tree         4 1 4" in chat.say("/set tree 4 1 4")
    chat.say("hello")
    assert chat.conversation.options["temperature"] == 0.8
    assert chat.conversation.options["speculate"] is False
    assert chat.conversation.options["tree"].depth == 4


def test_set_refuses_a_wrong_value_and_keeps_the_old_one(chat: Chat) -> None:
    assert "temperature: -1.0 is not in the range" in chat.say("/set temperature -1")
    assert "tree: a tree of depth 4 and width 1" in chat.say("/set tree 4 1 9")
    assert "no setting temprature; did you mean temperature?" in chat.say("/set temprature 1")
    assert chat.repl.settings == Settings()


def test_set_alone_lists_all_settings(chat: Chat) -> None:
    chat.repl.settings = Settings(tree=Tree(4, 2, 8))
    out = chat.say("/set")
    assert [line.split()[0] for line in out.splitlines()] == repl_module.SETTINGS
    assert "tree         4 2 8" in out
    assert "speculate    on" in out


def test_stats_tell_about_the_last_answer_and_the_whole_chat(chat: Chat) -> None:
    assert "no answer" in chat.say("/stats")
    chat.say("one two")
    chat.say("one two three")
    out = chat.say("/stats")
    assert "answer       3 tokens in" in out
    assert "this chat    2 answers, 5 tokens, acceptance length 2.00" in out


@pytest.mark.parametrize(
    ("text", "is_unfinished", "message"),
    [
        ("hello", False, "hello"),
        ('"""', True, '"""'),
        ('""""', True, '""""'),
        ('"""one\ntwo', True, '"""one\ntwo'),
        ('"""one\ntwo"""', False, "one\ntwo"),
        ('"""\none\n  two\n"""', False, "one\n  two"),
        ('  """one"""  ', False, "one"),
        ('say """one', False, 'say """one'),
        ("a\nb", False, "a\nb"),
    ],
)
def test_fences_hold_a_message_of_several_lines(
    text: str, is_unfinished: bool, message: str
) -> None:
    assert is_open(text) == is_unfinished
    assert unfenced(text) == message


def test_the_history_lies_where_the_platform_keeps_state(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLX_EAGLE_HISTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert history_path() == tmp_path / "mlx-eagle" / "history"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert history_path() == Path.home() / ".local" / "state" / "mlx-eagle" / "history"
    monkeypatch.setattr(sys, "platform", "darwin")
    library = Path.home() / "Library" / "Application Support"
    assert history_path() == library / "mlx-eagle" / "history"
    monkeypatch.setenv("MLX_EAGLE_HISTORY", str(tmp_path / "h"))
    assert history_path() == tmp_path / "h"
    monkeypatch.setenv("MLX_EAGLE_HISTORY", "")
    assert history_path() is None


def test_the_history_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history"
    open_history(path).append_string("a secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "a secret" in path.read_text()


def test_a_history_that_cannot_be_written_is_kept_in_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    open_history(tmp_path / "file" / "history").append_string("x")
    assert "what you type is not kept" in capsys.readouterr().err


def typed(keys: str, history: Path | None = None) -> str:
    """Return the message that these keys enter."""
    with create_pipe_input() as keyboard:
        keyboard.send_text(keys)
        with create_app_session(input=keyboard, output=DummyOutput()):
            return prompt_session(history).prompt()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("hello\r", "hello"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ('"""one\rtwo\r"""\r', '"""one\ntwo\n"""'),
        ("\x1b[200~one\ntwo\x1b[201~\r", "one\ntwo"),
        ("\x1b[200~one\r\ntwo\x1b[201~ three\r", "one\ntwo three"),
    ],
)
def test_keys_enter_a_message(keys: str, message: str) -> None:
    assert typed(keys) == message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/s", ["/system", "/stats", "/set"]),
        ("/set t", ["temperature", "top_p", "top_k", "tree"]),
        ("what is /s", []),
        ("", []),
    ],
)
def test_tab_completes_commands_and_settings(text: str, words: list[str]) -> None:
    found = CommandCompleter().get_completions(Document(text), CompleteEvent())
    assert [completion.text for completion in found] == words


def test_arrow_keys_recall_what_an_earlier_chat_heard(tmp_path: Path) -> None:
    typed("the first question\r", tmp_path / "history")
    typed('"""two\rlines"""\r', tmp_path / "history")
    assert typed("\x1b[A\r", tmp_path / "history") == '"""two\nlines"""'
    assert typed("\x1b[A\x1b[A\x1b[A\x1b[A\r", tmp_path / "history") == "the first question"


@contextlib.contextmanager
def keyboard_for(chat: Chat, keys: str) -> Iterator[None]:
    """Let the loop read these keys and write to the screen of `chat`."""
    with (
        create_pipe_input() as keyboard,
        create_app_session(input=keyboard, output=DummyOutput()),
        contextlib.redirect_stdout(chat.screen),
    ):
        keyboard.send_text(keys)
        yield


def test_the_loop_ends_with_ctrl_d_and_survives_ctrl_c(chat: Chat) -> None:
    with keyboard_for(chat, "\x03half a line\x03hello\r\x04"):
        chat.repl.run(None)
    assert chat.screen.getvalue().count("Ctrl-D or /exit leaves") == 1
    assert chat.conversation.heard == ["hello"]


def test_a_model_that_cannot_be_loaded_ends_the_prompt_with_its_error(chat: Chat) -> None:
    chat.conversation.error = EagleError("no such head")
    with keyboard_for(chat, ""), pytest.raises(EagleError, match="no such head"):
        chat.repl.run(None)
