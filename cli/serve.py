"""`mlx-eagle serve`: one model for the apps and agents of this machine."""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_eagle.cli.options import ModelSource, model_options
from mlx_eagle.errors import EagleError

if TYPE_CHECKING:
    from mlx_eagle.engine import Engine
    from mlx_eagle.server.app import Server, Settings
    from mlx_eagle.server.guard import Rules
    from mlx_eagle.server.ids import ServedModel
    from mlx_eagle.worker import Worker

DISK = 10_000_000_000  # bytes for rows of prompts
KEY_VARIABLE = "MLX_EAGLE_API_KEY"
KEY_WORDS = ("any key", "the key you gave", "one of the keys you gave")
EXAMPLES = """\b
Examples:
  mlx-eagle serve
  mlx-eagle serve --model mlx-community/Qwen3-8B-4bit --port 8081
  mlx-eagle serve --allow-origin app://obsidian.md
"""


@click.command("serve", epilog=EXAMPLES)
@model_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port; 0 takes a free one.",
)
@click.option("--no-disk-cache", is_flag=True, help="Keep nothing of prompts on disk.")
@click.option("--served-name", metavar="NAME", help="What clients call the model.")
@click.option(
    "--api-key-file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the key that requests must have; or with several, one a line, which do not "
    f"see what of each other's prompts is kept. Default: the variable {KEY_VARIABLE}.",
)
@click.option("--allow-host", metavar="NAME", multiple=True, help="A further name of this server.")
@click.option(
    "--allow-origin",
    metavar="ORIGIN",
    multiple=True,
    help="A page that may use it, exactly as browsers name it: https://example.org.",
)
@click.option(
    "--queue",
    type=click.IntRange(0, 10_000),
    default=16,
    show_default=True,
    help="Requests that may wait.",
)
@click.option("--max-seconds", type=click.FloatRange(0, min_open=True), help="Longest answer.")
@click.option(
    "--grace",
    type=click.FloatRange(0, 3600),
    default=10,
    show_default=True,
    help="Seconds that answers have to end when the server stops.",
)
def command(
    source: ModelSource,
    host: str,
    port: int,
    no_disk_cache: bool,
    served_name: str | None,
    api_key_file: Path | None,
    allow_host: tuple[str, ...],
    allow_origin: tuple[str, ...],
    queue: int,
    max_seconds: float | None,
    grace: float,
) -> None:
    """Serve a model by the APIs of OpenAI and Anthropic; Ctrl-C stops in good order."""
    from mlx_eagle.server.app import OPEN_PATHS, Settings
    from mlx_eagle.server.guard import Rules

    keys = read_keys(api_key_file)
    check_address(host, keys)
    rules = Rules(host, allow_host, allow_origin, keys, OPEN_PATHS)
    # What one host holds of a prompt's rows is of no use in a file.
    is_divided = source.loading.hosts is not None
    if source.loading.cache_disk is None and not no_disk_cache and not is_divided:
        source = source.with_loading(cache_disk=DISK)
    serve(source, port, Settings(served_name, rules, queue, max_seconds, grace))


def read_keys(file: Path | None) -> tuple[str, ...]:
    """Return the keys of which requests must have one; none: they need none.

    Raises:
        EagleError: if the file does not hold keys.
    """
    if file is None:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        return (key,) if key else ()
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    keys = tuple(dict.fromkeys(filter(None, map(str.strip, lines))))
    if not keys or not all(key.isprintable() and " " not in key for key in keys):
        raise EagleError(f"{file} does not hold a key a line, of printable characters, no spaces")
    return keys


def check_address(host: str, keys: tuple[str, ...]) -> None:
    """Refuse to be reached from other machines without a key.

    Raises:
        click.UsageError: if that was asked for.
    """
    from mlx_eagle.server.guard import LOOPBACK

    if host not in LOOPBACK and not keys:
        raise click.UsageError(
            f"--host {host} can be reached from other machines: give a key with --api-key-file or "
            f"{KEY_VARIABLE}, or stay on 127.0.0.1"
        )


def serve(source: ModelSource, port: int, settings: "Settings") -> None:
    """Load a model on a thread of its own and answer until a signal comes."""
    from mlx_eagle.server.serving import bind, run
    from mlx_eagle.worker import Worker

    rules = settings.rules
    listening = bind(rules.host, port)
    where = address(rules, listening.getsockname()[1])
    log_to_stderr()
    with Worker() as worker:
        loading = worker.submit(make_server, source, worker, settings)
        run(
            loading,
            listening,
            rules,
            settings.grace,
            lambda server: show_banner(server.model, rules, where),
        )


def make_server(source: ModelSource, worker: "Worker", settings: "Settings") -> "Server":
    """Load a model on the worker's thread and return what answers with it."""
    from mlx_eagle.cli.generate import load_engine
    from mlx_eagle.cli.terminal.display import terminal
    from mlx_eagle.server.app import Server

    engine = load_engine(source, terminal(stderr=True))
    if source.loading.cache_memory is None:
        take_a_third(engine, source.loading.cache == "exact")
    show_disk(engine)
    return Server(engine, worker, settings)


def take_a_third(engine: "Engine", is_exact: bool) -> None:
    """Let an engine keep rows in a third of the memory that its weights leave free.

    Args:
        engine: that keeps them.
        is_exact: whether only rows are used that reading anew would give to the last bit.
    """
    import mlx.core as mx

    from mlx_eagle.cache.estimate import device_memory
    from mlx_eagle.session.prefix_cache import PrefixCache

    memory = engine.limits.memory or device_memory()
    files = engine.prefix_cache.files if engine.prefix_cache is not None else None
    third = max(memory - mx.get_active_memory(), 0) // 3
    engine.prefix_cache = PrefixCache(third, files, is_exact=is_exact)


def address(rules: "Rules", port: int) -> str:
    """Return the URL of the server."""
    host = f"[{rules.host}]" if ":" in rules.host else rules.host
    return f"http://{host}:{port}"


def log_to_stderr() -> None:
    """Write a line per request to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("mlx_eagle.server")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def show_disk(engine: "Engine") -> None:
    """Say where prompts are kept on disk, if they are: they are private."""
    from mlx_eagle.session.rows_folder import prefix_folder

    files = engine.prefix_cache.files if engine.prefix_cache is not None else None
    if files is not None:
        role = "" if files.writes else ", read only: another process writes there"
        click.echo(
            f"Rows of prompts are kept in {prefix_folder()} ({files.nbytes / 1e9:.2f} GB{role}); "
            "`mlx-eagle cache --clear` removes them, --no-disk-cache keeps none",
            err=True,
        )
        if n_bad := files.n_damaged + files.n_interrupted:
            word = "file that was" if n_bad == 1 else "files that were"
            click.echo(f"Removed {n_bad} {word} damaged or not written to the end", err=True)


def show_banner(model: "ServedModel", rules: "Rules", where: str) -> None:
    """Say what is served, and how clients are told."""
    from mlx_eagle.server.guard import LOOPBACK

    lines = [
        f"{model.name} at {where} (Ctrl-C stops)",
        f"  OpenAI: base URL {where}/v1, model {model.name}, " + KEY_WORDS[min(len(rules.keys), 2)],
        f"  Anthropic: base URL {where}",
        "  Claude Code and Codex: mlx-eagle launch claude, mlx-eagle launch codex",
    ]
    if rules.host not in LOOPBACK:
        lines.append(
            "  Reachable from other machines, without encryption: put a TLS proxy before it"
        )
    click.echo("\n".join(lines), err=True)
