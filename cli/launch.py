"""`mlx-eagle launch`: an agent told to use a server that runs here, or how to tell it."""

import json
import os
import shlex
import shutil
import sys
import urllib.request
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import click

from mlx_eagle.cli.serve import KEY_VARIABLE
from mlx_eagle.errors import EagleError

UNAVAILABLE = 503  # what a server answers that loads its model, or stops
NO_KEY = "none"  # some clients insist on one
MOST_BYTES = 1 << 20
EXAMPLES = """\b
Examples:
  mlx-eagle launch claude
  mlx-eagle launch codex --print
  mlx-eagle launch claude --url http://127.0.0.1:8081 -- --continue
"""


class Launch(NamedTuple):
    """How an agent is started: variables and the command."""

    environment: dict[str, str]
    words: list[str]

    def __str__(self) -> str:
        pairs = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " \\\n  ".join([*pairs, shlex.join(self.words)])


@click.command("launch", epilog=EXAMPLES, context_settings={"ignore_unknown_options": True})
@click.argument("agent", type=click.Choice(["claude", "codex"]))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="The server.")
@click.option("--print", "prints", is_flag=True, help="Print what would be run.")
def command(agent: str, arguments: tuple[str, ...], url: str, prints: bool) -> None:
    """Run Claude Code or Codex with the model that `mlx-eagle serve` serves."""
    url = url.rstrip("/")
    key = os.environ.get(KEY_VARIABLE, "")
    model = served_model(url, key)
    make = claude if agent == "claude" else codex
    launch = make(url, model, key or NO_KEY, arguments)
    if prints:
        click.echo(str(launch))
        return
    program = shutil.which(launch.words[0])
    if program is None:
        raise EagleError(f"there is no command {launch.words[0]} here; --print shows what to run")
    sys.stdout.flush()
    os.execve(program, launch.words, os.environ | launch.environment)


def served_model(url: str, key: str) -> dict[str, Any]:
    """Return what a server says of its model.

    Raises:
        EagleError: if there is no such server.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise EagleError(f"{url} is no address of a server: http://127.0.0.1:8080")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{url}/v1/models", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            model: dict[str, Any] = json.loads(response.read(MOST_BYTES))["data"][0]
    except (OSError, ValueError, LookupError, TypeError) as error:
        if getattr(error, "code", None) == UNAVAILABLE:
            raise EagleError(f"the server at {url} loads its model, or stops; try again") from error
        reason = getattr(error, "reason", None) or error
        raise EagleError(
            f"no model is served at {url} ({reason}): start mlx-eagle serve"
        ) from error
    return model


def claude(url: str, model: dict[str, Any], key: str, arguments: tuple[str, ...]) -> Launch:
    """Return how Claude Code is started."""
    name = str(model["id"])
    environment = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": key,
        "ANTHROPIC_MODEL": name,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": name,
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "API_TIMEOUT_MS": "3000000",
    }
    if model.get("context_length"):
        environment["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] = str(model["context_length"])
    return Launch(environment, ["claude", *arguments])


def codex(url: str, model: dict[str, Any], key: str, arguments: tuple[str, ...]) -> Launch:
    """Return how Codex is started: what its configuration file would say, as options."""
    own = "model_providers.mlx-eagle"
    settings = {
        "model": model["id"],
        "model_provider": "mlx-eagle",
        f"{own}.name": "mlx-eagle",
        f"{own}.base_url": f"{url}/v1",
        f"{own}.wire_api": "responses",
        f"{own}.env_key": KEY_VARIABLE,
        f"{own}.stream_idle_timeout_ms": 1_800_000,
        f"{own}.stream_max_retries": 1,
        f"{own}.supports_websockets": False,
        f"{own}.requires_openai_auth": False,
    }
    if model.get("context_length"):
        settings["model_context_window"] = model["context_length"]
    options = [part for k, v in settings.items() for part in ("-c", f"{k}={json.dumps(v)}")]
    return Launch({KEY_VARIABLE: key}, ["codex", *options, *arguments])
