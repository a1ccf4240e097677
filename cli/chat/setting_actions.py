"""The chat's commands about model, settings and display: what each of them does."""

from collections.abc import Callable
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

import click

from mlx_eagle.cli.settings import EXCLUSIVE, fields_by_name, takes_back, text_of, with_text
from mlx_eagle.cli.terminal.display import table
from mlx_eagle.cli.terminal.views import Show
from mlx_eagle.load_options import LoadOptions
from mlx_eagle.option import Option, options_of
from mlx_eagle.sampling.options import LOSSY, TYPICAL
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.speculation import ON

if TYPE_CHECKING:
    from mlx_eagle.cli.chat.repl import Repl

# By the names that users type: the fields of the options, and their descriptions.
GENERATION, LOADING = fields_by_name(GenerationOptions), fields_by_name(LoadOptions)
FIELDS = GENERATION | LOADING
SETTINGS: dict[str, Option] = {
    name: (options_of(GenerationOptions) | options_of(LoadOptions))[field]
    for name, field in FIELDS.items()
}
ALIASES = {option.short: name for name, option in SETTINGS.items() if option.short}
SHOWS = [field.name for field in fields(Show)]
SWITCH = {"on": True, "off": False}


def choose_model(repl: "Repl", rest: str) -> None:
    """Show which model is in use, or go on with another one."""
    repl.announce()
    if not rest:
        repl.print(repl.about())
        return
    repl.reload(repl.conversation.source._replace(model=rest, head=None))


def choose_head(repl: "Repl", rest: str) -> None:
    """Show which head drafts, or go on with another one, or none."""
    repl.announce()
    if not rest:
        info = repl.conversation.wait()
        repl.print(table({"head": info.head or "none", "speculation": info.speculation}))
        return
    name = None if rest == "auto" else rest
    repl.reload(repl.conversation.source._replace(head=name))


def set_value(repl: "Repl", rest: str) -> None:
    """Show or change settings."""
    name, _, text = rest.partition(" ")
    name = ALIASES.get(name, name)
    if not name:
        repl.print(table({name: _text(repl, name) for name in SETTINGS}))
    elif name not in SETTINGS:
        hint = suggestion(name, [*SETTINGS, *ALIASES]) or "; /set lists them"
        repl.note(f"no setting {name}{hint}")
    else:
        change(repl, name, text.strip())


def short_form(name: str) -> Callable[["Repl", str], None]:
    """Return the command that is short for /set NAME."""
    return lambda repl, rest: change(repl, name, rest)


def change(repl: "Repl", name: str, text: str) -> None:
    """Change one setting, if there is something to change it to, and show it."""
    field = FIELDS[name]
    try:
        if text and name in LOADING:
            repl.announce()
            source = repl.conversation.source
            repl.reload(source._replace(loading=with_text(source.loading, field, text)))
        elif text:
            repl.settings = with_text(repl.settings, field, text)
            repl.given.add(field)
    except click.UsageError as error:
        repl.note(f"{name}: {error.message}")
        return
    names = [name]
    if name in EXCLUSIVE and text and not takes_back(SETTINGS[name], text):
        names.append(EXCLUSIVE[name])
    repl.print(table({name: _text(repl, name) for name in names}))
    if name == "acceptance" and repl.settings.acceptance == TYPICAL:
        repl.note(LOSSY)


def choose_show(repl: "Repl", rest: str) -> None:
    """Show or change what is shown; a name alone is switched over."""
    name, *words = rest.split() or [""]
    if not name:
        repl.print(table({name: _on_off(vars(repl.show)[name]) for name in SHOWS}))
    elif name not in SHOWS:
        hint = suggestion(name, SHOWS) or f"; there are {', '.join(SHOWS)}"
        repl.note(f"nothing to show is called {name}{hint}")
    elif len(words) > 1 or (words and words[0] not in SWITCH):
        repl.note(f"/show {name} on or /show {name} off")
    else:
        value = SWITCH[words[0]] if words else not vars(repl.show)[name]
        repl.show = replace(repl.show, **{name: value})
        repl.print(table({name: _on_off(value)}))
        if value and name in ("drafts", "tree"):
            _say_why_nothing(repl)


def _say_why_nothing(repl: "Repl") -> None:
    """Say so if there will be nothing to see, because nothing is drafted."""
    status = repl.conversation.wait().status if repl.conversation.is_loaded else ON
    if not repl.settings.speculate:
        repl.note("but nothing is drafted: /speculate on")
    elif not status.is_on:
        repl.note(f"but nothing is drafted; speculation is {status}")


def suggestion(word: str, known: list[str]) -> str:
    """Return the end of a sentence about an unknown word; empty if nothing comes close."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _text(repl: "Repl", name: str) -> str:
    """Return a setting as a user would type it."""
    owner = repl.conversation.source.loading if name in LOADING else repl.settings
    return text_of(owner, FIELDS[name])


def _on_off(value: bool) -> str:
    return "on" if value else "off"
