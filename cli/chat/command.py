"""`mlx-eagle chat`: a conversation in the terminal, or one answer for a script."""

import os
import sys
from typing import TYPE_CHECKING

import click

from mlx_eagle.cli.generate import load_engine, read_stdin, stream_answer, to_messages
from mlx_eagle.cli.options import ModelSource, given_options, model_options, settings_options
from mlx_eagle.cli.settings import with_recommended
from mlx_eagle.session.options import GenerationOptions

if TYPE_CHECKING:
    from mlx_eagle.engine import Engine
    from mlx_eagle.hub.download import Progress

EXAMPLES = """\b
Examples:
  mlx-eagle chat
  mlx-eagle chat --model mlx-community/Qwen3-4B-4bit
  mlx-eagle chat --model my-model --head my-head --temp 0.7 --seed 1
  mlx-eagle chat -p "What is the signature of shutil.copyfile?"
  mlx-eagle chat < question.txt
"""


@click.command("chat", epilog=EXAMPLES)
@click.option("--prompt", "-p", metavar="PROMPT", help="Answer this and leave; `-` reads stdin.")
@click.option("--system", "-s", metavar="TEXT", help="System prompt.")
@click.option("--markdown", is_flag=True, help="Render answers as Markdown on a terminal.")
@model_options
@settings_options(max_tokens=2048, without=["ignore_eos"])
def command(
    prompt: str | None,
    system: str | None,
    markdown: bool,
    source: ModelSource,
    settings: GenerationOptions,
) -> None:
    """Talk with a model. Without --model: one that needs no download, SmolLM2 or a toy.

    The history of what you type is kept in a file; MLX_EAGLE_HISTORY names another, and turns
    it off when empty.
    """
    if prompt is None and sys.stdin.isatty():
        if not sys.stdout.isatty():
            raise click.UsageError("a conversation needs a terminal; for a script, give -p PROMPT")
        converse(source, settings, system, markdown)
        return
    question = read_stdin() if prompt in (None, "-") else prompt
    if not question or not question.strip():
        raise click.UsageError("the prompt is empty")
    from mlx_eagle.cli.terminal.display import terminal

    console = terminal(stderr=True)
    engine = load_engine(source.for_settings(settings), console)
    settings = with_recommended(settings, engine.info.recommended, given_options())
    messages = to_messages(question, system)
    answer = stream_answer(engine, messages, settings, console, markdown=markdown)
    for remark in answer.remarks():
        console.print(remark)


def converse(
    source: ModelSource, settings: GenerationOptions, system: str | None, markdown: bool = False
) -> None:
    """Run the conversation loop while the engine loads behind the prompt."""
    from mlx_eagle.cli.chat.editor import history_path
    from mlx_eagle.cli.chat.engine_thread import Conversation
    from mlx_eagle.cli.chat.fetching import fetch_models
    from mlx_eagle.cli.chat.repl import Repl
    from mlx_eagle.cli.terminal.display import terminal
    from mlx_eagle.cli.terminal.views import Show

    console = terminal()
    fetch_models(source, console)
    conversation = Conversation(load, source, system)
    show = Show(markdown=markdown)
    Repl(conversation, settings, console, show, given_options()).run(history_path())
    if conversation.is_busy:
        # An engine that still loads cannot be interrupted, and Python would wait for it.
        sys.stdout.flush()
        os._exit(0)


def load(source: ModelSource, progress: "Progress") -> "Engine":
    """Load a model and a head, which are on this machine."""
    from mlx_eagle.loading import load

    return load(source.model, source.head, progress=progress, **vars(source.loading))
