"""The prompts of a benchmark: the built-in ones by category, and those of a user's file.

The public data sets are in `datasets.py`. Nothing is tokenized here.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from mlx_eagle.bench.metrics import ALL
from mlx_eagle.bench.table_files import Row, parse_lines, read_rows, read_text
from mlx_eagle.errors import EagleError

UNNAMED = "prompts"  # the category of prompts that name none

Messages = list[dict[str, Any]]


class BenchPrompt(NamedTuple):
    """One prompt.

    Attributes:
        category: that it is counted under.
        messages: of the chat; of a later turn only what is new in it.
        later: what is asked afterwards, each once the answer before it is there.
        data_set: the public data set that it is of; "" for none.
        follows: index of the prompt that it goes on after; None for a conversation's first.
    """

    category: str
    messages: Messages
    later: tuple[str, ...] = ()
    data_set: str = ""
    follows: int | None = None

    @property
    def text(self) -> str:
        """All that its messages say."""
        return "\n\n".join(message["content"] for message in self.messages)


def ask(category: str, *turns: str) -> BenchPrompt:
    """Return a question, and what is asked after its answer."""
    return BenchPrompt(category, [_user(turns[0])], turns[1:])


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def with_later_turns(questions: Sequence[BenchPrompt]) -> list[BenchPrompt]:
    """Return every turn as a prompt of its own, right after the turn that it follows."""
    prompts: list[BenchPrompt] = []
    for question in questions:
        prompts.append(question._replace(later=()))
        for text in question.later:
            follows = len(prompts) - 1
            prompts.append(prompts[-1]._replace(messages=[_user(text)], follows=follows))
    return prompts


def builtin_prompts(demo: bool) -> list[BenchPrompt]:
    """Return the prompts that ship here.

    Args:
        demo: those for the demo pair, which knows Python's standard library and nothing else.
    """
    name = "demo.jsonl" if demo else "general.jsonl"
    text = (files("mlx_eagle.bench") / name).read_text(encoding="utf-8")
    return [to_prompt(row, name) for row in parse_lines(text, Path(name))]


def read_prompts(path: Path) -> list[BenchPrompt]:
    """Return the prompts of a file: JSON, JSON Lines or CSV, or plain text with one per line.

    Raises:
        EagleError: if there are none, or one is damaged; the message says which.
    """
    if path.name.endswith((".json", ".jsonl", ".jsonl.gz", ".csv")):
        rows = read_rows(path)
        return [to_prompt(row, f"{path}, row {n}") for n, row in enumerate(rows, start=1)]
    lines = [line.strip() for line in read_text(path).splitlines()]
    prompts = [ask(UNNAMED, line) for line in lines if line]
    if not prompts:
        raise EagleError(f"{path} holds no prompts; write one per line, or JSON Lines")
    return prompts


def to_prompt(row: Row, where: str) -> BenchPrompt:
    """Return the prompt in a row: "prompt", "messages" or MT-bench's "turns".

    Raises:
        EagleError: if it holds none of them; the message begins with `where`.
    """
    category = row.get("category") or UNNAMED
    if not isinstance(category, str):
        raise EagleError(f"{where}: category is {category!r}; expected a string")
    if category == ALL:
        raise EagleError(
            f"{where}: a category is called {ALL!r}, as the report calls all prompts together; "
            "give it another name"
        )
    if "messages" in row:
        return BenchPrompt(category, _check_messages(row["messages"], where))
    question = row.get("prompt", row.get("turns"))
    turns = question if isinstance(question, list) else [question]
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise EagleError(
            f"{where}: expected a text as prompt, messages (role and content) or turns, all of "
            f"them texts; found {', '.join(map(str, row)) or 'nothing'}"
        )
    return ask(category, *turns)


def spread(prompts: list[BenchPrompt], limit: int | None) -> list[BenchPrompt]:
    """Return at most `limit` prompts of every category, spread evenly over it.

    Categories come one after the other, in the order in which they begin.
    """
    by_category: dict[str, list[BenchPrompt]] = {}
    for prompt in prompts:
        by_category.setdefault(prompt.category, []).append(prompt)
    chosen = []
    for group in by_category.values():
        n = min(limit or len(group), len(group))
        chosen += [group[i * len(group) // n] for i in range(n)]
    return chosen


def _check_messages(messages: Any, where: str) -> Messages:
    """Return chat messages, or say which part is not one."""
    if not isinstance(messages, list) or not messages:
        raise EagleError(f"{where}: messages is {messages!r}; expected a list of messages")
    for message in messages:
        parts = message if isinstance(message, dict) else {}
        if not all(isinstance(parts.get(key), str) for key in ("role", "content")):
            raise EagleError(
                f"{where}: the message {message!r} lacks a role or a content that is text"
            )
    return [{"role": m["role"], "content": m["content"]} for m in messages]
