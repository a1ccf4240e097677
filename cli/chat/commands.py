"""The commands of the chat, as a table; help and completion are made from it."""

from collections.abc import Callable
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

from mlx_eagle.cli.chat import actions, setting_actions
from mlx_eagle.cli.chat.completion import (
    Complete,
    files,
    heads,
    models,
    named,
    nothing,
    values_of,
    words,
)
from mlx_eagle.cli.option_types import usage

if TYPE_CHECKING:
    from mlx_eagle.cli.chat.repl import Repl

VALUES: dict[str, Complete] = {
    name: values_of(option) for name, option in setting_actions.SETTINGS.items()
}
HELP_COLUMN, HELP_WIDTH = 32, 86  # of what a setting means, in the list of settings
SHORT = "short for /set"


class Command(NamedTuple):
    """One command.

    Attributes:
        name: with its slash.
        arguments: what may follow, as help shows it.
        summary: a line for the list.
        run: does it, given the loop and what stands after the name.
        group: the heading that it is listed under; of those that are short for /set only names.
        complete: offers what may follow.
        details: what `/help NAME` adds.
    """

    name: str
    arguments: str
    summary: str
    run: Callable[["Repl", str], None]
    group: str
    complete: Complete = nothing
    details: str = ""


def show_help(repl: "Repl", rest: str) -> None:
    """List the commands and keys, or explain one command."""
    if not rest:
        repl.print(overview())
        return
    name = rest if rest.startswith("/") else f"/{rest}"
    command = find(name)
    if command is None:
        hint = setting_actions.suggestion(name, NAMES) or "; /help lists them"
        repl.note(f"no command {name}{hint}")
        return
    text = f"  {command.name} {command.arguments}".rstrip()
    repl.print(f"{text}\n  {command.summary}")
    if command.details:
        repl.print("\n" + "\n".join(f"  {line}" for line in command.details.splitlines()))


def _short_forms() -> list[Command]:
    """Return the commands that are short for /set."""
    return [
        Command(
            f"/{short}",
            f"[{usage(setting_actions.SETTINGS[name])}]",
            f"/set {name}",
            setting_actions.short_form(name),
            SHORT,
            VALUES[name],
        )
        for short, name in setting_actions.ALIASES.items()
    ]


def _all_settings() -> str:
    """Return what every setting takes and means."""
    lines = []
    for name, option in setting_actions.SETTINGS.items():
        use = f"{name} {usage(option)}"
        margin = " " * HELP_COLUMN
        lines += wrap(f"{use:<{HELP_COLUMN}}{option.help}", HELP_WIDTH, subsequent_indent=margin)
    reloading = ", ".join(setting_actions.LOADING)
    return "\n".join([*lines, f"Changing {reloading} loads the model anew."])


TALK, MODEL, VIEW, REST = "conversation", "model and answers", "display", "chat"

COMMANDS = (
    Command(
        "/regen",
        "",
        "answer the last question anew",
        actions.regenerate,
        TALK,
        details="The new answer replaces the old one. A sampled answer gets a new seed, which is\n"
        "shown; at temperature 0 the answer is always the same.",
    ),
    Command(
        "/edit",
        "[TEXT]",
        "ask something else in place of the last question",
        actions.edit,
        TALK,
        details="Without TEXT the last question comes back to the prompt, to be changed there;\n"
        "Ctrl-C leaves it as it was. The old question and its answer are forgotten.",
    ),
    Command("/undo", "", "forget the last question and its answer", actions.undo, TALK),
    Command("/clear", "", "forget the conversation; the system prompt stays", actions.clear, TALK),
    Command(
        "/system",
        "[TEXT]",
        "show or change the system prompt",
        actions.system,
        TALK,
        words("none"),
        "/system none removes it. It holds for what is asked from now on; /regen answers the\n"
        "last question with it.",
    ),
    Command(
        "/save",
        "[FILE]",
        "write the conversation to a file",
        actions.save,
        TALK,
        files,
        "The file holds the messages and what the model computed of them, so that /load goes\n"
        "on at once. Without FILE it is the one of the last /save or /load.",
    ),
    Command(
        "/load",
        "FILE",
        "go on with a conversation that was saved",
        actions.load,
        TALK,
        files,
        "The model and head must be those that it was saved with.",
    ),
    Command(
        "/copy",
        "",
        "put the last answer on the clipboard",
        actions.copy_answer,
        TALK,
        details="With pbcopy, wl-copy, xclip or xsel; over ssh, or without them, by asking the\n"
        "terminal (OSC 52).",
    ),
    Command(
        "/model",
        "[NAME]",
        "show the model, or go on with another one",
        setting_actions.choose_model,
        MODEL,
        models,
        "NAME is a folder, owner/name on the hub, a GGUF file, smollm2 or demo. The head that is\n"
        "known for it comes along. The conversation stays and is read anew. The model in use is\n"
        "given up only when the other one has loaded, so there must be memory for both.",
    ),
    Command(
        "/head",
        "[NAME]",
        "show the draft head, or go on with another one",
        setting_actions.choose_head,
        MODEL,
        heads,
        "NAME is a folder, owner/name on the hub, none for no head, or auto for the one that is\n"
        "known for the model.",
    ),
    Command(
        "/set",
        "[NAME [VALUE]]",
        "show or change settings",
        setting_actions.set_value,
        MODEL,
        named(VALUES),
        _all_settings(),
    ),
    *_short_forms(),
    Command(
        "/show",
        "[NAME [on|off]]",
        "show or change what is shown",
        setting_actions.choose_show,
        VIEW,
        named(dict.fromkeys(setting_actions.SHOWS, words("on", "off"))),
        "drafts     tint the tokens that were drafted and accepted\n"
        "tree       draw the tree of the newest round: ● accepted, ○ not\n"
        "markdown   render answers as Markdown, block by block\n"
        "thinking   show thoughts, dimmed; off shows only that there are some\n"
        "stats      a line of statistics after every answer\n"
        "A name alone is switched over.",
    ),
    Command("/stats", "", "what the last answer cost, what speculation gave", actions.stats, VIEW),
    Command("/context", "", "how much of the context is used", actions.context, VIEW),
    Command(
        "/help",
        "[COMMAND]",
        "this list, or more about a command",
        show_help,
        REST,
        lambda rest: words(*NAMES)(rest),
    ),
    Command("/exit", "", "leave; Ctrl-D does too", actions.leave, REST),
)
ALIASES = {"/quit": "/exit", "/bye": "/exit", "/?": "/help", "/retry": "/regen"}
NAMES: list[str] = [command.name for command in COMMANDS]

KEYS = '''  """              around a message of several lines; a pasted one needs none
  Esc Enter        a new line in a message
  Ctrl-X Ctrl-E    write the message in your editor ($EDITOR)
  Up, Ctrl-R       earlier messages, and a search in them
  Tab              completes commands, settings, files
  Ctrl-C           stop the answer and keep the conversation'''


def find(name: str) -> Command | None:
    """Return the command of a name or of its alias, or None."""
    name = ALIASES.get(name, name)
    return next((command for command in COMMANDS if command.name == name), None)


def overview() -> str:
    """Return all commands, a line each, and the keys."""
    sections = []
    for group in (TALK, MODEL, VIEW, REST):
        lines = [_line(command) for command in COMMANDS if command.group == group]
        if group == MODEL:
            names = [command.name for command in COMMANDS if command.group == SHORT]
            lines += _wrapped(names, f"  {SHORT}: ")
        sections.append("\n".join(lines))
    return "\n\n".join([*sections, KEYS])


def _line(command: Command) -> str:
    """Return a command's line in the list."""
    use = f"{command.name} {command.arguments}".rstrip()
    return f"  {use:<24}{command.summary}"


def _wrapped(names: list[str], lead: str) -> list[str]:
    """Return names in lines of 80 columns, the first after a lead."""
    lines = [lead]
    for name in names:
        if len(lines[-1]) + len(name) > 79:
            lines.append(" " * len(lead))
        lines[-1] += f"{name} "
    return [line.rstrip() for line in lines]
