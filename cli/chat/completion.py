"""What Tab offers: commands, names, files. Each function gets what stands after the command."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from mlx_eagle.cli.option_types import reading
from mlx_eagle.option import JsonSchema, Option

if TYPE_CHECKING:
    from mlx_eagle.cli.chat.commands import Command

Complete = Callable[[str], Iterable[Completion]]


def nothing(rest: str) -> Iterable[Completion]:
    """Offer nothing."""
    return ()


def among(word: str, candidates: Iterable[str]) -> Iterator[Completion]:
    """Offer the candidates that begin with the word before the cursor."""
    for candidate in candidates:
        if candidate.startswith(word):
            yield Completion(candidate, -len(word))


def words(*candidates: str) -> Complete:
    """Return what offers words for a command that takes one."""
    return lambda rest: among(rest, candidates)


def files(rest: str) -> Iterator[Completion]:
    """Offer files and folders; a path may contain spaces and begin with ~."""
    folder, _, start = rest.rpartition("/")
    place = os.path.expanduser(folder) if folder else "/" if rest.startswith("/") else "."
    try:
        entries = sorted(os.scandir(place), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(start) and (start or not entry.name.startswith(".")):
            name = f"{entry.name}/" if entry.is_dir() else entry.name
            yield Completion(name, -len(start))


def models(rest: str) -> Iterator[Completion]:
    """Offer folders, and the targets for which heads are known."""
    from mlx_eagle.hub.known_heads import all_heads
    from mlx_eagle.hub.packaged import NAMES

    known = sorted({name for heads in all_heads() for head in heads for name in head.targets})
    yield from among(rest, [*NAMES, *known])
    yield from files(rest)


def heads(rest: str) -> Iterator[Completion]:
    """Offer folders, and the heads that are known."""
    from mlx_eagle.hub.known_heads import all_heads

    known = sorted({head.repo for heads in all_heads() for head in heads})
    yield from among(rest, ["none", "auto", *known])
    yield from files(rest)


def values_of(option: Option) -> Complete:
    """Return what offers the values of a setting, where they are few or files."""
    if isinstance(option.kind, JsonSchema):
        return files
    candidates = reading(option.kind).words
    return words(*candidates, option.unset) if option.unset else words(*candidates)


def named(values: Mapping[str, Complete]) -> Complete:
    """Return what offers names, and after a name what belongs to it."""

    def complete(rest: str) -> Iterable[Completion]:
        name, space, value = rest.partition(" ")
        return values.get(name, nothing)(value) if space else among(name, values)

    return complete


class CommandCompleter(Completer):
    """Completes commands, and what comes after them."""

    def __init__(self, commands: Iterable["Command"]) -> None:
        self._commands = {command.name: command for command in commands}

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterator[Completion]:
        """Yield the words that could stand before the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        word, space, rest = text.partition(" ")
        if space:
            if word in self._commands:
                yield from self._commands[word].complete(rest)
            return
        for name, command in self._commands.items():
            if name.startswith(word):
                yield Completion(name, -len(word), display_meta=command.summary)
