"""Servers for tests: a small engine whose answers are written beforehand, and clients for it."""

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import httpx2
import mlx.core as mx
import mlx.nn as nn
import uvicorn

from chat_templates import demo_tokenizer
from mlx_eagle.engine import Engine, EngineInfo
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.server.app import Server, Settings
from mlx_eagle.session.limits import Limits, bytes_per_row
from mlx_eagle.session.prompt import Prompt, encode
from mlx_eagle.session.responses import Responses
from mlx_eagle.session.session import Session
from mlx_eagle.speculation import ON
from mlx_eagle.target.target import Target
from mlx_eagle.tree import TreeShape
from mlx_eagle.worker import Worker
from turning_pair import make_turning_pair

# Thoughts and calls as Qwen3's template has them.
AGENT = r"""{% if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}# Tools
{% for t in tools %}{{ t | tojson }}
{% endfor %}<|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{
raise_exception('system messages stand first') }}{% endif %}{% if m.role == 'user' %}{{
'<|im_start|>user\n' }}{{ m.content }}<|im_end|>
{% elif m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% elif m.role == 'assistant' %}<|im_start|>assistant
{% if m.reasoning_content %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}{{
m.content }}{% for c in m.tool_calls %}{% if m.content or not loop.first %}{{ '\n' }}{% endif %}{{
'<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' }}{{ c.function.arguments | tojson
}}{{ '}\n</tool_call>' }}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""
MARKS = ["<tool_call>", "</tool_call>"]
CONTEXT = 2048
MakePair = Callable[[int, list[int]], tuple[nn.Module, EagleHead]]


class Forced:
    """A processor that lets one text through and nothing else."""

    def __init__(self, script: Sequence[int], n_prompt: int) -> None:
        self.script, self.n_prompt = script, n_prompt

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        place = min(max(tokens.size - self.n_prompt, 0), len(self.script) - 1)
        return mx.where(mx.arange(logits.shape[1]) == self.script[place], logits, -mx.inf)


class ScriptedSession(Session):
    """A conversation whose next answer is written beforehand."""

    def stream_generate(self, prompt: Prompt, **options: Any) -> Responses:
        engine = self._engine
        assert isinstance(engine, ScriptedEngine)
        engine.n_requests += 1
        if engine.tree is not None:
            options["tree"] = engine.tree
        if engine.before is not None:
            engine.before()
        if engine.script is not None:
            ids = encode(engine.tokenizer, prompt)
            if engine.tree is None:  # what is written beforehand cannot be foreseen
                options.setdefault("speculate", False)
            options["logits_processors"] = [Forced(engine.script, len(ids))]
        return super().stream_generate(prompt, **options)


class ScriptedEngine(Engine):
    """An engine that answers with `script`, if there is one; with its own words else."""

    script: list[int] | None = None
    before: Callable[[], None] | None = None  # called before every answer
    tree: TreeShape | None = None  # of every round; None leaves it to the planner
    n_requests = 0

    def session(self, *args: Any, **kwargs: Any) -> Session:
        return ScriptedSession(self, *args, **kwargs)

    def write(self, text: str | None) -> None:
        """Answer with this text from now on; None: with its own words."""
        inner = self.tokenizer._tokenizer
        ids = None if text is None else inner.encode(text, add_special_tokens=False)
        end = inner.convert_tokens_to_ids("<|im_end|>")
        self.script = None if ids is None else [*ids, end]


def make_engine(
    template: str = AGENT,
    context: int = CONTEXT,
    family: str | None = None,
    make_pair: MakePair = make_turning_pair,
) -> ScriptedEngine:
    """Return a small pair with a tokenizer that has marks of thoughts and calls."""
    tokenizer = demo_tokenizer(template, family)
    inner = tokenizer._tokenizer
    inner.add_special_tokens(
        {"additional_special_tokens": MARKS}, replace_extra_special_tokens=False
    )
    texts = [inner.decode([token]) for token in range(len(inner))]
    words = [token for token, text in enumerate(texts) if re.fullmatch(" [a-z]{2,}", text)]
    model, head = make_pair(len(inner), words)
    target = Target(model, taps=head.config.taps)
    info = EngineInfo("maker/turning", "float32", "turning", "float32", ON, "cpu", False)
    limits = Limits(context, None, bytes_per_row(target))
    return ScriptedEngine(target, tokenizer, head, info, limits=limits)


def close_files(engine: Engine) -> None:
    """Let go of the rows on disk, as the end of a process does."""
    kept = engine.prefix_cache
    if kept is not None and kept.files is not None and kept.files._lock is not None:
        kept.files._lock.close()


class Served:
    """An engine on its thread, and servers for it."""

    def __init__(self, **made: Any) -> None:
        self.worker = Worker()
        self.engine = self.worker.call(lambda: make_engine(**made))

    @cached_property
    def usual(self) -> Server:
        """A server that most tests share: each copies a tokenizer, which takes a while."""
        return self.server()

    @property
    def has_rows(self) -> bool:
        """Whether the target has a row per token, and no states."""
        return not self.engine.target.chains_only

    def server(self, settings: Settings | None = None) -> Server:
        return Server(self.engine, self.worker, settings or Settings())

    def ask(self, path: str, body: Any, settings: Settings | None = None) -> httpx2.Response:
        """Return what one request is answered, without a socket."""
        return self.run(lambda client: client.post(path, json=body), settings)

    def get(self, path: str, **headers: str) -> httpx2.Response:
        return self.run(lambda client: client.get(path, headers=headers))

    def run(
        self, use: Callable[[httpx2.AsyncClient], Any], settings: Settings | None = None
    ) -> Any:
        """Return what `use` makes of a client of a new server."""

        async def main() -> Any:
            server = self.usual if settings is None else self.server(settings)
            async with in_process(server) as client:
                return await use(client)

        return asyncio.run(main())


class Held:
    """Holds the engine's thread until it is let go."""

    def __init__(self, served: Served) -> None:
        self.go, self.is_held = threading.Event(), threading.Event()
        served.engine.before = self.hold

    def hold(self) -> None:
        self.is_held.set()
        assert self.go.wait(30)


def in_process(server: Server) -> httpx2.AsyncClient:
    """Return a client that calls a server's application itself."""
    transport = httpx2.ASGITransport(server.app)
    return httpx2.AsyncClient(transport=transport, base_url="http://localhost:8080")


@contextmanager
def on_socket(server: Server) -> Iterator[int]:
    """Serve on a port of loopback, on a thread; yields the port."""
    config = uvicorn.Config(server.app, port=0, log_level="error", lifespan="off")
    runner = uvicorn.Server(config)
    ready = threading.Event()

    async def main() -> None:
        task = asyncio.create_task(runner.serve())
        while not runner.started:
            await asyncio.sleep(0.005)
        ready.set()
        await task

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(20)
    yield runner.servers[0].sockets[0].getsockname()[1]
    runner.should_exit = True
    thread.join(20)


def chunks(response: httpx2.Response) -> list[Any]:
    """Return the JSON of a stream's events; comments are left out, "[DONE]" is text."""
    data = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    return [each if each == "[DONE]" else json.loads(each) for each in data]
