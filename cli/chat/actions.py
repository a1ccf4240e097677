"""The chat's commands about the conversation itself: what each of them does."""

import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_eagle.answers.history import text_of
from mlx_eagle.cli.chat.clipboard import copy
from mlx_eagle.cli.terminal.display import count, details, gigabytes, printable, table
from mlx_eagle.cli.terminal.plan_report import explain

if TYPE_CHECKING:
    from mlx_eagle.cli.chat.repl import Repl

SHORT = 60  # characters of a message that is mentioned


def regenerate(repl: "Repl", rest: str) -> None:
    """Answer the last question anew; a sampled answer gets a seed of its own."""
    repl.announce()
    options = {}
    if repl.settings.temperature > 0:
        options["seed"] = random.SystemRandom().randrange(2**32)
        repl.note(f"seed {options['seed']}")
    else:
        repl.note("at temperature 0 the answer is always the same; /temp 0.8 samples others")
    repl.answer(repl.conversation.regenerate, **options)


def edit(repl: "Repl", rest: str) -> None:
    """Ask something else in the place of the last question, at once or from the prompt."""
    question = last_question(repl)
    if question is None:
        repl.note("nothing was asked yet")
    elif rest:
        repl.answer(repl.conversation.edit, rest)
    else:
        repl.draft = question


def undo(repl: "Repl", rest: str) -> None:
    """Forget the last question and its answer."""
    repl.announce()
    question = repl.conversation.undo()
    if question is None:
        repl.note("nothing was asked yet")
    else:
        repl.note(f"forgotten: {_short(text_of(question))}")


def clear(repl: "Repl", rest: str) -> None:
    """Forget the conversation."""
    repl.announce()
    repl.conversation.clear()
    repl.note("the conversation is forgotten")


def system(repl: "Repl", rest: str) -> None:
    """Show, change or remove the system prompt."""
    repl.announce()
    if rest:
        repl.conversation.system = None if rest == "none" else rest
    repl.note(f"system prompt: {repl.conversation.system or 'none'}")


def save(repl: "Repl", rest: str) -> None:
    """Write the conversation to a file, the one of last time if none is named."""
    path = _path(repl, rest, "to which file? /save FILE")
    if path is None:
        return
    if os.path.isdir(path):
        repl.note(f"{path} is a folder; name a file in it")
        return
    is_own = path == repl.file  # nobody is asked twice
    if os.path.exists(path) and not is_own and not repl.confirm(f"{path} exists; overwrite it?"):
        repl.note("not saved")
        return
    repl.conversation.save(path)
    repl.file = path
    repl.note(f"saved {_extent(repl)} to {path} ({gigabytes(path.stat().st_size)})")


def load(repl: "Repl", rest: str) -> None:
    """Go on with the conversation in a file."""
    path = _path(repl, rest, "from which file? /load FILE")
    if path is None:
        return
    repl.conversation.load(path)
    repl.file = path
    repl.note(f"loaded {_extent(repl)} from {path}")
    question = last_question(repl)
    if question is not None:
        repl.note(f"the last question was: {_short(question)}")


def copy_answer(repl: "Repl", rest: str) -> None:
    """Put the last answer on the clipboard."""
    said = [text_of(m) for m in _messages(repl) if m["role"] == "assistant"]
    answers = [text for text in said if text]
    if not answers:
        repl.note("there is no answer to copy yet")
        return
    done = copy(answers[-1], repl.console.file)
    repl.note(f"{count(len(answers[-1]), 'character')} {done}")


def stats(repl: "Repl", rest: str) -> None:
    """Print what the last answer cost, the sums of this chat, and what the conversation takes."""
    finished = [answer.stats for answer in repl.answers if answer.stats]
    if not finished:
        repl.note("no answer has been finished yet")
        return
    repl.print(details(finished[-1]))
    if finished[-1].planned is not None:
        repl.print(explain(finished[-1]))
    n_tokens = sum(stats.generation_tokens for stats in finished)
    n_rounds = sum(stats.rounds for stats in finished)
    n_accepted = sum(stats.accepted for stats in finished)
    length = n_accepted / n_rounds + 1 if n_rounds else 0.0
    total = f"{count(len(finished), 'answer')}, {count(n_tokens, 'token')}"
    rows = {"this chat": f"{total}, acceptance length {length:.2f}"}
    repl.print(table(rows | _usage(repl)))


def context(repl: "Repl", rest: str) -> None:
    """Print how much of the context the conversation takes."""
    repl.announce()
    repl.print(table(_usage(repl) | {"messages": str(len(repl.conversation.messages))}))


def leave(repl: "Repl", rest: str) -> None:
    """End the loop."""
    repl.is_over = True


def last_question(repl: "Repl") -> str | None:
    """Return what was asked last, or None."""
    questions = [text_of(m) for m in _messages(repl) if m["role"] == "user"]
    return questions[-1] if questions else None


def _path(repl: "Repl", rest: str, question: str) -> Path | None:
    """Return the file that is named, else the one of last time, else ask; waits for the engine."""
    repl.announce()
    if not rest and repl.file is None:
        repl.note(question)
    return Path(os.path.expanduser(rest)) if rest else repl.file


def _messages(repl: "Repl") -> list[dict[str, Any]]:
    """Return what was said so far; waits for the engine."""
    repl.announce()
    return repl.conversation.messages


def _usage(repl: "Repl") -> dict[str, str]:
    """Return what the conversation takes, as rows of a table."""
    usage = repl.conversation.usage()
    most = "" if usage.max_context is None else f" of {usage.max_context}"
    return {"context": f"{usage.tokens}{most} tokens, cache {gigabytes(usage.cache_bytes)}"}


def _extent(repl: "Repl") -> str:
    """Return how long the conversation is, in words."""
    return count(len(repl.conversation.messages), "message")


def _short(text: str) -> str:
    """Return the beginning of a message on one line."""
    line = " ".join(printable(text).split())
    return line if len(line) <= SHORT else f"{line[: SHORT - 4]} ..."
