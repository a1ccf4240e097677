"""The click group: it finds a command by name, and turns errors into a line and an exit status.

A command's module is imported when the command runs or shows its own help, and heavy libraries
only inside the command: `mlx-eagle --help` starts Python and click, nothing else.
"""

import os
import sys
from importlib import import_module, metadata
from typing import Any, NamedTuple

import click

from mlx_eagle.errors import EagleError

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class Entry(NamedTuple):
    """Where a command lives, and its line in the help."""

    module: str
    summary: str


COMMANDS = {
    "chat": Entry("mlx_eagle.cli.chat.command", "Talk with a model in the terminal."),
    "generate": Entry("mlx_eagle.cli.generate", "Answer one prompt; the text goes to stdout."),
    "bench": Entry("mlx_eagle.cli.bench", "Time speculative against plain decoding."),
    "calibrate": Entry("mlx_eagle.cli.calibrate", "Measure what drafting costs on this machine."),
    "convert": Entry("mlx_eagle.cli.convert", "Port a PyTorch draft head or target to MLX."),
    "doctor": Entry("mlx_eagle.cli.doctor", "Measure which taps, rope and norms a head needs."),
    "export": Entry("mlx_eagle.cli.export", "Write a head as SGLang, vLLM and others read it."),
    "explain": Entry("mlx_eagle.cli.explain", "Draw one round: drafted, accepted, gained."),
    "heads": Entry("mlx_eagle.cli.heads", "List published draft heads by target."),
    "inspect": Entry("mlx_eagle.cli.inspect", "Say what a folder with a model or head holds."),
    "serve": Entry("mlx_eagle.cli.serve", "Serve a model to apps and agents on this machine."),
    "launch": Entry("mlx_eagle.cli.launch", "Run Claude Code or Codex with a served model."),
    "cache": Entry("mlx_eagle.cli.cache", "List or remove what is kept of prompts on disk."),
    "train": Entry("mlx_eagle.cli.train", "Make a draft head for a target, from texts."),
    "selftest": Entry("mlx_eagle.cli.selftest", "Test a pair on this machine, for reports."),
}

DIVIDED = ("chat", "generate", "serve", "bench")  # commands whose model may be on several hosts
LIBRARIES = ("mlx", "mlx-lm")

# What libraries print on import or while loading is noise here; users can still ask for it.
QUIET = {
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}

EXAMPLES = """\b
Examples:
  mlx-eagle chat
  mlx-eagle chat --model mlx-community/Qwen3-4B-4bit
  mlx-eagle generate "What is the signature of shutil.copyfile?"
  mlx-eagle convert path/to/eagle3-head --target path/to/target --out my-head
  mlx-eagle chat --model path/to/target --head my-head

`mlx-eagle COMMAND --help` explains a command.
"""


class LazyGroup(click.Group):
    """A group whose commands are the module-level `command` objects of COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command, or return None for a name that is none."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name].module).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments begin with, or fail with the closest name."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
            ctx.fail(f"no command {args[0]}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print the version, and those of the libraries that texts and speeds depend on; leave."""
    if value and not ctx.resilient_parsing:
        libraries = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
        click.echo(f"mlx-eagle {metadata.version('mlx-eagle')} ({libraries})")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the versions and exit.",
)
def group() -> None:
    """Chat with a model on this machine, sooner: drafted by a head, verified by the model."""


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for stream in (sys.stdout, sys.stderr):
        _print_anything(stream)
    try:
        status = run(sys.argv[1:])
    except (KeyboardInterrupt, click.Abort):
        # Library threads, such as those of a download, may not end: do not wait for them.
        os._exit(INTERRUPTED)
    sys.exit(status)


def run(args: list[str]) -> int:
    """Run one command line; returns the exit status and reports errors on stderr."""
    try:
        args, has_followed = _launched(args)
        if has_followed:
            return 0
        result = group.main(args, prog_name="mlx-eagle", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        if isinstance(error, click.UsageError) and error.ctx:
            click.echo(error.ctx.get_usage(), err=True)
        _report(error.format_message())
        return error.exit_code
    except EagleError as error:
        _report(str(error))
        return 1
    except OSError as error:
        _report(f"{error.filename or 'output'}: {error.strerror or error}")
        return 1
    return result if isinstance(result, int) else 0


def _launched(args: list[str]) -> tuple[list[str], bool]:
    """Return the arguments for a process that `mlx.launch` has started, and if it has followed.

    All of these have the same command line and a copy of stdin. Where models are divided, those
    above rank 0 follow, before they read or print anything, and rank 0 leads.
    """
    if not args or args[0] not in DIVIDED:
        return args, False
    from mlx_eagle.cluster.rank import launched_rank

    if (rank := launched_rank()) is None:
        return args, False
    from mlx_eagle.cluster.launched import follow, lead_launched
    from mlx_eagle.load_options import LAUNCHED

    if rank:
        follow()
        return [], True
    lead_launched()  # before anything is fetched or read, for which the others would not wait
    is_given = any(each.partition("=")[0] == "--hosts" for each in args)
    return (args if is_given else [args[0], "--hosts", LAUNCHED, *args[1:]]), False


def _report(message: str) -> None:
    """Print an error as one line without control characters: it may quote an untrusted file."""
    line = " ".join(message.split())
    click.echo(f"error: {''.join(c if c.isprintable() else '?' for c in line)}", err=True)


def _print_anything(stream: Any) -> None:
    """Let a stream of a narrow encoding print a replacement instead of failing."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
