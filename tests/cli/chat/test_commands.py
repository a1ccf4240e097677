"""Every command of the chat, with a fake conversation behind it."""

import io
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from mlx_eagle.cli.chat import actions
from mlx_eagle.cli.chat.commands import ALIASES, COMMANDS, NAMES, find
from mlx_eagle.cli.chat.completion import CommandCompleter
from mlx_eagle.cli.chat.setting_actions import SETTINGS, SHOWS
from mlx_eagle.cli.option_types import usage
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.speculation import Speculation
from mlx_eagle.tree_shape import TreeShape


def test_help_names_every_command_that_works(chat: Any) -> None:
    out = chat.say("/help")
    words = out.split()
    assert all(command.name in words for command in COMMANDS)
    assert max(map(len, out.splitlines())) < 80


@pytest.mark.parametrize("word", ["/exit", "/quit", "/bye"])
def test_exit_and_its_other_names_leave(chat: Any, word: str) -> None:
    chat.say(word)
    assert chat.repl.is_over


def test_clear_forgets_the_conversation(chat: Any) -> None:
    chat.say("hello")
    assert "forgotten" in chat.say("/clear")
    assert chat.conversation.heard == []


def test_system_shows_changes_and_removes_the_system_prompt(chat: Any) -> None:
    assert chat.say("/system").endswith("system prompt: none\n")
    assert chat.say("/system Be brief.") == "system prompt: Be brief.\n"
    assert chat.conversation.system == "Be brief."
    chat.say("/system none")
    assert chat.conversation.system is None


def test_set_changes_what_the_next_answer_is_asked_with(chat: Any) -> None:
    chat.say("/set temperature 0.7")
    chat.say("/set temp 0.8")
    chat.say("/set speculate off")
    assert "tree         4x1x4" in chat.say("/set tree 4x1x4")
    chat.say("hello")
    assert chat.conversation.options["temperature"] == 0.8
    assert chat.conversation.options["speculate"] is False
    assert chat.conversation.options["tree"].depth == 4


def test_set_refuses_a_wrong_value_and_keeps_the_old_one(chat: Any) -> None:
    assert "temperature: -1.0 is not in the range" in chat.say("/set temperature -1")
    assert "tree: a tree of depth 4 and width 1" in chat.say("/set tree 4x1x9")
    assert "no setting temprature; did you mean temperature?" in chat.say("/set temprature 1")
    assert chat.repl.settings == GenerationOptions()


def test_set_alone_lists_all_settings(chat: Any) -> None:
    chat.repl.settings = GenerationOptions(tree=TreeShape(4, 2, 8))
    out = chat.say("/set")
    assert [line.split()[0] for line in out.splitlines()] == [*SETTINGS]
    assert ["tree", "4x2x8"] in [line.split() for line in out.splitlines()]
    assert ["kv_bits", "none"] in [line.split() for line in out.splitlines()]


def test_stats_tell_about_the_last_answer_and_the_whole_chat(chat: Any) -> None:
    assert "no answer" in chat.say("/stats")
    chat.say("one two")
    chat.say("one two three")
    out = chat.say("/stats")
    assert "answer       3 tokens in" in out
    assert "this chat    2 answers, 5 tokens, acceptance length 2.00" in out


def test_stats_tell_how_much_of_the_context_is_used(chat: Any) -> None:
    chat.say("one two")
    line = "  context      12 of 2048 tokens, cache 3.4 MB\n"
    assert line in chat.say("/stats")
    assert chat.say("/context") == f"{line}  messages     2\n"


def test_help_explains_every_command(chat: Any) -> None:
    for command in COMMANDS:
        out = chat.say(f"/help {command.name}")
        assert command.summary in out
        assert out == chat.say(f"/help {command.name[1:]}")
        assert max(map(len, out.splitlines())) <= 90
    assert "no command /stat; did you mean /stats?" in chat.say("/help stat")
    assert "/set" in chat.say("/help /temp")


def test_help_of_set_tells_what_every_setting_takes_and_means(chat: Any) -> None:
    out = " ".join(chat.say("/help set").split())
    for name, option in SETTINGS.items():
        assert f" {name} {usage(option)} {option.help}" in out
    assert "Changing kv_bits, head_window, max_context, memory loads the model anew." in out


def test_other_names_are_those_of_commands_and_no_name_is_taken_twice() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert not set(ALIASES) & set(NAMES)
    assert all(find(alias) is find(name) is not None for alias, name in ALIASES.items())


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("/temp 0.5", "temperature", 0.5),
        ("/top_p 0.9", "top_p", 0.9),
        ("/top_k 5", "top_k", 5),
        ("/min_p 0.1", "min_p", 0.1),
        ("/seed 3", "seed", 3),
        ("/tokens 7", "max_tokens", 7),
        ("/penalty 1.1", "repetition_penalty", 1.1),
        ("/speculate off", "speculate", False),
        ("/tree 3x1x3", "tree", TreeShape(3, 1, 3)),
        ("/tree 3", "tree", TreeShape(3, 1, 3)),
        ("/tree 4 2 8", "tree", TreeShape(4, 2, 8)),
        ("/regex [a-z ]+  x", "regex", "[a-z ]+  x"),
        ("/set presence_penalty -1", "presence_penalty", -1.0),
        ("/set overflow truncate", "overflow", "truncate"),
    ],
)
def test_short_forms_change_settings(chat: Any, line: str, name: str, value: Any) -> None:
    chat.say(line)
    assert vars(chat.repl.settings)[name] == value


def test_a_short_form_alone_shows_its_setting(chat: Any) -> None:
    assert chat.say("/temp") == "  temperature  0.0\n"
    assert chat.say("/schema") == "  json_schema  none\n"


def test_a_schema_and_a_pattern_take_each_other_back(chat: Any, tmp_path: Path) -> None:
    file = tmp_path / "my schema.json"
    file.write_text("{}")
    chat.say("/regex a+")
    out = chat.say(f"/schema {file}")
    assert out == f"  json_schema  {file}\n  regex        none\n"
    assert "is a directory" in chat.say(f"/schema {tmp_path}")
    assert chat.repl.settings.json_schema.file == str(file)
    chat.say("hello")
    assert chat.conversation.options["json_schema"] == "{}"
    assert chat.say("/schema none") == "  json_schema  none\n"


def test_regen_says_that_a_greedy_answer_is_always_the_same(chat: Any) -> None:
    assert "error: nothing was asked yet" in chat.say("/regen")
    chat.say("one two")
    assert "at temperature 0 the answer is always the same" in chat.say("/regen")
    assert chat.conversation.heard == ["one two"]
    assert chat.conversation.options["seed"] is None


def test_regen_samples_with_a_new_seed_each_time_and_keeps_the_setting(chat: Any) -> None:
    chat.say("/temp 1")
    chat.say("one two")
    seeds = set()
    for _ in range(3):
        out = chat.say("/regen")
        seeds.add(chat.conversation.options["seed"])
        assert f"seed {chat.conversation.options['seed']}\n" in out
    assert len(seeds) == 3
    assert chat.repl.settings.seed is None


def test_edit_asks_something_else_instead(chat: Any) -> None:
    assert "nothing was asked yet" in chat.say("/edit")
    chat.say("first")
    chat.say("second")
    assert "third" in chat.say("/edit third")
    assert chat.conversation.heard == ["first", "third"]


def test_edit_alone_brings_the_last_question_back_to_the_prompt(chat: Any) -> None:
    with chat.keyboard("one\r/edit\r two\r/edit\r\x03three\r\x04"):
        chat.repl.run(None)
    assert chat.conversation.heard == ["one two", "three"]
    assert "the last question stays as it was" in chat.screen.getvalue()


def test_undo_forgets_turns_from_the_end(chat: Any) -> None:
    chat.say("first")
    chat.say("a second question\x1b[2J of more than one line " + "x" * 100)
    out = chat.say("/undo")
    assert out == "forgotten: a second question␛[2J of more than one line xxxxxxxxxxxx ...\n"
    assert chat.say("/undo") == "forgotten: first\n"
    assert chat.say("/undo") == "nothing was asked yet\n"


def test_save_and_load_remember_the_file(
    chat: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert chat.say("/save").endswith("to which file? /save FILE\n")
    chat.say("first")
    file = tmp_path / "a chat"
    assert chat.say("/save ~/a chat") == f"saved 2 messages to {file} (0 kB)\n"
    chat.say("second")
    assert "saved 4 messages" in chat.say("/save")
    assert file.read_text() == "first second"
    chat.say("/clear")
    assert chat.say("/load").splitlines() == [
        f"loaded 1 message from {file}",
        "the last question was: first second",
    ]


def test_save_asks_before_it_overwrites_a_file(chat: Any, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("precious")
    chat.say("first")
    with chat.keyboard("n"):
        assert "not saved" in chat.say(f"/save {file}")
    with chat.keyboard("\x03"):
        assert "not saved" in chat.say(f"/save {file}")
    assert file.read_text() == "precious"
    with chat.keyboard("y"):
        assert "saved 2 messages" in chat.say(f"/save {file}")
    assert file.read_text() == "first"


def test_what_cannot_be_saved_or_loaded_is_a_line(chat: Any, tmp_path: Path) -> None:
    chat.say("first")
    assert chat.say("/load") == "from which file? /load FILE\n"
    assert "is a folder" in chat.say(f"/save {tmp_path}")
    assert "error: cannot write" in chat.say(f"/save {tmp_path}/none/file")
    assert "error: there is no file" in chat.say(f"/load {tmp_path}/none")
    assert chat.repl.file is None


def test_copy_says_what_was_done(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []

    def copy(text: str, screen: io.StringIO) -> str:
        copied.append(text)
        return "copied with care"

    monkeypatch.setattr(actions, "copy", copy)
    assert "there is no answer to copy yet" in chat.say("/copy")
    chat.say("answer me")
    assert chat.say("/copy") == "6 characters copied with care\n"
    assert copied == ["answer"]


def test_another_model_or_head_is_loaded_and_what_was_said_stays(chat: Any) -> None:
    chat.say("first")
    assert "target       owner/other" in chat.say("/model owner/other")
    assert "head         a-head" in chat.say("/head a-head")
    assert chat.conversation.source[:2] == ("owner/other", "a-head")
    assert chat.conversation.heard == ["first"]
    assert "head         none" in chat.say("/head none")
    chat.say("/head auto")
    assert chat.conversation.source.head is None
    chat.say("/model demo")
    assert chat.conversation.source.model == "demo"


def test_model_and_head_alone_say_what_is_in_use(chat: Any) -> None:
    assert "target       toy" in chat.say("/model")
    assert "speculation  on" in chat.say("/head")
    assert "This pair is a toy" not in chat.say("/model")


@pytest.mark.parametrize("line", ["/model broken", "/head broken"])
def test_a_model_that_cannot_be_loaded_leaves_the_one_in_use(chat: Any, line: str) -> None:
    out = chat.say(line)
    assert out.endswith("error: no such model\nthe model in use stays\n")
    assert chat.conversation.source == chat.conversation.source._replace(model=None, head=None)


def test_what_is_fixed_at_loading_loads_anew(chat: Any) -> None:
    assert "target       demo" in chat.say("/set kv_bits 8")
    assert chat.conversation.source.loading.kv_bits == 8
    assert "kv_bits: '5' is not one of" in chat.say("/set kv_bits 5")
    assert chat.conversation.source.loading.kv_bits == 8


def test_show_switches_what_is_shown(chat: Any) -> None:
    chat.say("hello")
    assert [line.split()[0] for line in chat.say("/show").splitlines()] == SHOWS
    assert chat.say("/show drafts") == "  drafts       on\n"
    assert chat.say("/show drafts") == "  drafts       off\n"
    assert chat.say("/show drafts on") == "  drafts       on\n"
    assert "did you mean tree?" in chat.say("/show trees")
    assert "there are drafts, tree" in chat.say("/show x")
    assert "/show tree on or /show tree off" in chat.say("/show tree maybe")
    chat.say("/show stats off")
    assert chat.say("one two") == "onetwo\n\n"


def test_show_says_so_if_there_will_be_nothing_to_see(chat: Any) -> None:
    chat.say("/speculate off")
    assert "nothing is drafted: /speculate on" in chat.say("/show tree")
    chat.say("/speculate on")
    chat.conversation.info = chat.conversation.info._replace(status=Speculation.off("no head"))
    assert "speculation is off: no head" in chat.say("/show drafts")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/s", ["/system", "/save", "/set", "/seed", "/schema", "/speculate", "/show", "/stats"]),
        ("/set t", ["thinking_budget", "temperature", "top_p", "top_k", "template_args", "tree"]),
        ("/set speculate ", ["on", "off"]),
        ("/set kv_bits ", ["4", "8", "none"]),
        ("/set overflow t", ["truncate"]),
        ("/tree ", ["auto"]),
        ("/speculate o", ["on", "off"]),
        ("/show tree of", ["off"]),
        ("/show d", ["drafts"]),
        ("/help /sys", ["/system"]),
        ("/head no", ["none"]),
        ("/model dem", ["demo"]),
        ("/model mlx-community/Qwen3-4B", []),
        ("/set nothing ", []),
        ("/nothing ", []),
        ("what is /s", []),
        ("/s\n", []),
        ("", []),
    ],
)
def test_tab_completes_commands_and_what_follows_them(
    text: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert completed(text) == words


def completed(text: str) -> list[str]:
    """Return what Tab offers after some text."""
    found = CommandCompleter(COMMANDS).get_completions(Document(text), CompleteEvent())
    return [completion.text for completion in found]


def test_tab_completes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a chat.mlx", "another", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "a folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert completed("/load a") == ["a chat.mlx", "a folder/", "another"]
    assert completed("/save a f") == ["a folder/"]
    assert completed("/schema ~/an") == ["another"]
    assert completed(f"/load {tmp_path}/.h") == [".hidden"]
    assert completed("/load nowhere/") == []
    assert completed("/set json_schema an") == ["another"]


def test_defaults_are_those_of_the_library(chat: Any) -> None:
    assert chat.repl.settings == GenerationOptions()


def test_messages_without_a_text_do_not_end_the_chat(
    chat: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []
    monkeypatch.setattr(actions, "copy", lambda text, screen: copied.append(text) or "copied")
    parts = [{"type": "text", "text": "what is it"}, {"type": "image_url"}]
    chat.conversation.messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "reasoning_content": "hm"},
    ]
    chat.say("/copy")
    assert copied == ["two"], "the last answer that says anything"
    assert "forgotten: what is it" in chat.say("/undo")
