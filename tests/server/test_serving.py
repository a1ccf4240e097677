"""A server on a socket, stopped by a signal; the page and its files."""

import json
import os
import re
import signal
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx2
import pytest

import mlx_eagle
from mlx_eagle.errors import ClusterError, EagleError
from mlx_eagle.server.app import OPEN_PATHS, Server, Settings
from mlx_eagle.server.guard import Rules
from mlx_eagle.server.serving import bind, run
from mlx_eagle.session import prefix_files
from mlx_eagle.target.target import Target
from mlx_eagle.tree import TreeShape
from served import Served, chunks, close_files

CHAT = "/v1/chat/completions"
PAGE = Path(mlx_eagle.__file__).parent / "server" / "page"


def test_who_asks_while_the_model_loads_is_told_so_and_a_signal_ends_a_stream_and_the_server(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path))
    monkeypatch.setattr(prefix_files, "BLOCK", 8)
    served.engine.tree = TreeShape.chain(1)
    served.worker.call(served.engine.keep_prefixes, 1 << 30, 1 << 30)
    server = served.server(Settings(grace=0.05))
    listening = bind("127.0.0.1", 0)
    port = listening.getsockname()[1]
    got: list[Any] = []
    asked = [{"role": "user", "content": "zip " * 60}]
    body = {"messages": asked, "max_tokens": 1500, "stream": True}

    loading: Future[Server] = Future()
    early = list[httpx2.Response]()

    def use() -> None:
        home, url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}{CHAT}"
        try:
            with httpx2.Client(timeout=30) as client:
                early.append(client.get(f"{home}/health"))
                early.append(client.post(url, json=body))
                early.append(client.get(f"{home}/health", headers={"host": "evil.test"}))
        finally:
            loading.set_result(server)
        assert is_ready.wait(20)
        with httpx2.stream("POST", url, json=body) as response:
            for line in response.iter_lines():
                got.append(line)
                if len(got) == 12:
                    os.kill(os.getpid(), signal.SIGTERM)

    user, is_ready = threading.Thread(target=use), threading.Event()
    user.start()
    run(loading, listening, Rules(), 0.05, lambda _: is_ready.set())
    user.join(20)
    assert [answer.status_code for answer in early] == [503, 503, 403]
    assert early[0].json() == {"status": "loading"}
    assert [answer.headers.get("retry-after") for answer in early] == ["5", "5", None]
    assert "being loaded" in early[1].json()["error"]["message"]
    data = [line[6:] for line in got if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    assert json.loads(data[-2])["error"]["code"] == "unavailable"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    close_files(served.engine)
    assert list(tmp_path.rglob("*.safetensors")), "rows are written before it ends"
    assert not list(tmp_path.rglob("*.partial*"))


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_error() -> None:
    loading: Future[Server] = Future()
    loading.set_exception(EagleError("there is no such model"))
    with pytest.raises(EagleError, match="no such model"):
        run(loading, bind("127.0.0.1", 0), Rules(), 0.05, lambda _: None)


LOST = "rank 1 on studio-2 has ended or cannot be reached any more"


@pytest.mark.parametrize("notices", ["the answer", "nobody"])
def test_a_host_that_is_lost_is_a_503_by_name_and_the_end_of_the_server(
    notices: str, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, got = threading.Event(), list[httpx2.Response]()

    def lose() -> None:
        monkeypatch.setattr(Target, "lost", LOST)
        if notices == "the answer":
            raise ClusterError(f"{LOST}; nothing more can be computed with these hosts")
        assert held.wait(20)  # the server does not end before this answer does

    served.engine.before = lose
    loading: Future[Server] = Future()
    loading.set_result(served.server(Settings(grace=20)))
    listening = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    body = {"messages": [{"role": "user", "content": "zip"}], "max_tokens": 2}

    def ask() -> None:
        got.append(httpx2.post(url + CHAT, json=body, timeout=20))

    def use() -> None:
        asking = threading.Thread(target=ask)
        asking.start()
        if notices == "nobody":
            while Target.lost != LOST:
                asking.join(0.01)
            got.append(httpx2.get(url + "/health"))
            got.append(httpx2.post(url + CHAT, json=body))
            held.set()
        asking.join(20)

    user = threading.Thread(target=use)
    with pytest.raises(ClusterError, match=f"{LOST}; start the server again"):
        run(loading, listening, Rules(), 20, lambda _: user.start())
    user.join(20)
    if notices == "nobody":
        health, refused, answer = got
        assert (health.status_code, health.json()) == (503, {"status": "lost", "reason": LOST})
        assert answer.status_code == 200
    else:
        [refused] = got
    assert refused.status_code == 503
    assert refused.json()["error"]["message"] == f"{LOST}; start the server again"
    assert refused.headers["x-should-retry"] == "false"


def test_a_port_that_is_taken_is_one_error() -> None:
    first = bind("127.0.0.1", 0)
    with pytest.raises(EagleError, match="cannot listen on 127.0.0.1"):
        bind("127.0.0.1", first.getsockname()[1])
    first.close()


def test_the_page_comes_with_a_policy_and_names_no_other_host(served: Served) -> None:
    rules = Rules(keys=("secret",), open_paths=OPEN_PATHS)

    async def use(client: httpx2.AsyncClient) -> Any:
        files = [await client.get(path) for path in ("/", "/page/app.js", "/page/style.css")]
        return files, await client.post("/page/markdown", json={"text": "x"})

    files, markdown = served.run(use, Settings(rules=rules))
    for file in files:
        assert file.status_code == 200
        assert "default-src 'none'" in file.headers["content-security-policy"]
        assert not re.search(r"https?://(?!\w*:\?)", file.text)
    assert markdown.status_code == 401
    assert sum(len(file.content) for file in files) < 40_000


def test_the_page_makes_no_html_of_what_a_model_wrote() -> None:
    script = (PAGE / "app.js").read_text()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in script
    assert not re.search(
        r"<script(?! type=\"module\" src)|style=|onclick=", (PAGE / "index.html").read_text()
    )


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("**a** `b`", "<p><strong>a</strong> <code>b</code></p>\n"),
        ("<img src=x onerror=alert(1)>", "<p>&lt;img src=x onerror=alert(1)&gt;</p>\n"),
        ("![x](http://evil.test/x.png)", None),
        ("[x](javascript:alert(1))", "<p>[x](javascript:alert(1))</p>\n"),
    ],
)
def test_markdown_lets_no_html_and_no_images_through(
    text: str, html: str | None, served: Served
) -> None:
    answer = served.ask("/page/markdown", {"text": text}).json()["html"]
    assert answer == html or (html is None and "<img" not in answer)


def test_who_asks_sees_what_was_drafted(served: Served) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 12, "stream": True}
    served.engine.tree = TreeShape.chain(2)
    parts = chunks(served.ask(CHAT, body | {"x_eagle": True}))[:-1]
    own = [part["x_eagle"] for part in parts if "x_eagle" in part]
    assert "draft_n" in own[-1]["stats"]
    assert len(own) == 13
    trees = [each["tree"] for each in own[:-1] if each["tree"]]
    assert all(len(tree["tokens"]) == len(tree["parents"]) for tree in trees)
    assert trees
    assert all("x_eagle" not in part for part in chunks(served.ask(CHAT, body))[:-1])


def test_what_is_kept_is_told_and_cleared(served: Served) -> None:
    served.worker.call(lambda: served.engine.keep_prefixes(1 << 30))
    messages = [{"role": "user", "content": "What does zip do? " * 8}]

    async def use(client: httpx2.AsyncClient) -> Any:
        first = await client.post(CHAT, json={"messages": messages, "max_tokens": 4})
        served.worker.call(int)  # rows are kept once the answer is sent
        kept = await client.get("/v1/cache")
        message = first.json()["choices"][0]["message"]
        longer = [*messages, message, {"role": "user", "content": "And map?"}]
        second = await client.post(CHAT, json={"messages": longer, "max_tokens": 4})
        cleared = await client.post("/v1/cache/clear", json={})
        return first.json(), kept.json(), second.json(), cleared.json()

    first, kept, second, cleared = served.run(use)
    served.engine.prefix_cache = None
    assert kept["memory"]["prefixes"] == 1
    counts = second["usage"]
    assert counts["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["total_tokens"] - 8
    assert cleared == {"memory": {"prefixes": 0, "bytes": 0}, "disk": None}


def test_a_long_text_is_not_rendered(served: Served) -> None:
    for n, status in ((1 << 17, 200), ((1 << 17) + 1, 400), (1 << 20, 413)):
        assert served.ask("/page/markdown", {"text": "a" * n}).status_code == status
