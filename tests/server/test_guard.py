"""Who may ask: names, pages, keys, kinds and sizes of bodies; what is refused asks no engine."""

import asyncio
from typing import Any

import pytest

from mlx_eagle.server.delivery import send_json
from mlx_eagle.server.guard import Guard, Rules, read_all
from mlx_eagle.server.refusal import RefusalError

HOSTS = {
    "localhost": True,
    "localhost:8080": True,
    "LOCALHOST.:8080": True,
    "127.0.0.1:8080": True,
    "[::1]:8080": True,
    "app.localhost": True,
    "nas.example": True,  # listed
    "evil.test:8080": False,
    "localhost.evil.test": False,
    "127.0.0.1.evil.test": False,
    "user@localhost": False,
    "": False,
}
ORIGINS = {
    None: True,
    "own": True,
    "app://obsidian.md": True,  # listed
    "http://evil.test": False,
    "http://localhost:9999": False,
    "null": False,
}
RULES = Rules(hosts=("nas.example",), origins=("app://obsidian.md",))


class Behind:
    """An application that counts what reaches it."""

    def __init__(self) -> None:
        self.n_requests = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.n_requests += 1
        await send_json(send, 200, {})


def call(
    rules: Rules, method: str, headers: list[tuple[str, str]], path: str = "/v1/chat/completions"
) -> tuple[int, dict[str, str], int]:
    """Return status and headers of what a guard answers, and whether it passed the request on."""
    behind, sent = Behind(), list[Any]()

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}"}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "scheme": "http"}
    asyncio.run(Guard(behind, rules)(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, behind.n_requests


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("host", HOSTS)
def test_only_our_names_and_pages_come_through(host: str, method: str) -> None:
    for origin, is_known in ORIGINS.items():
        said = f"http://{host}" if origin == "own" else origin
        headers = [("host", host), ("content-type", "application/json")]
        headers += [("origin", said)] if said is not None else []
        status, found, n_passed = call(RULES, method, headers)
        is_allowed = HOSTS[host] and is_known
        is_preflight = method == "OPTIONS" and origin == "app://obsidian.md"
        assert status == (403 if not is_allowed else 204 if is_preflight else 200)
        assert n_passed == (is_allowed and not is_preflight)
        shown = found.get("access-control-allow-origin")
        assert shown == (said if is_allowed and origin == "app://obsidian.md" else None)
        assert found["x-request-id"].startswith("req_")


@pytest.mark.parametrize("hosts", [[], ["localhost", "evil.test"], ["localhost", "localhost"]])
def test_a_request_has_one_name(hosts: list[str]) -> None:
    assert call(RULES, "GET", [("host", host) for host in hosts])[0] == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_that_hides_its_origin_is_refused(site: str) -> None:
    headers = [("host", "localhost"), ("sec-fetch-site", site)]
    assert call(RULES, "GET", headers)[0] == 403
    assert call(RULES, "GET", [("host", "localhost"), ("sec-fetch-site", "none")])[0] == 200


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_what_a_foreign_form_could_send_is_refused(media: str) -> None:
    assert call(RULES, "POST", [("host", "localhost"), ("content-type", media)])[0] == 415


def test_sizes_are_limited_by_what_is_said_and_what_comes() -> None:
    rules = RULES._replace(max_body=10)
    json_type = ("content-type", "application/json")
    for length in ("11", "-1", "1e3", "9" * 40):
        headers = [("host", "localhost"), json_type, ("content-length", length)]
        assert call(rules, "POST", headers)[0] == 413


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        (RULES._replace(body_silence=0.01), "nothing of the body came for 0.01 s"),
        (RULES._replace(body_seconds=0.05), "the body did not come within 0.05 s"),
    ],
)
def test_a_body_that_never_ends_is_given_up(rules: Rules, why: str) -> None:
    async def receive() -> Any:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    with pytest.raises(RefusalError, match=why):
        asyncio.run(read_all(receive, rules))


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("authorization", "Bearer secret", 200),
        ("authorization", "bearer secret", 200),
        ("x-api-key", "secret", 200),
        ("authorization", "Bearer other", 401),
        ("authorization", "secret", 401),
        ("x-api-key", "", 401),
    ],
)
def test_a_key_is_asked_for_where_there_is_one(header: str, value: str, status: int) -> None:
    rules = RULES._replace(keys=("secret",), open_paths=frozenset({"/health"}))
    headers = [("host", "localhost"), (header, value)]
    assert call(rules, "GET", headers, "/v1/models")[0] == status
    assert call(rules, "GET", headers[:1], "/health")[0] == 200
    several = rules._replace(keys=("first", "secret", "last"))
    assert call(several, "GET", headers, "/v1/models")[0] == status


def test_a_listed_page_may_read_what_it_is_refused() -> None:
    rules = RULES._replace(keys=("secret",))
    headers = [("host", "localhost"), ("origin", "app://obsidian.md")]
    status, found, _ = call(rules, "GET", headers)
    assert (status, found["access-control-allow-origin"]) == (401, "app://obsidian.md")
    assert found["request-id"] == found["x-request-id"]


def test_what_no_part_of_the_server_caught_is_an_error_and_no_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sent, noted = list[Any](), list[int]()

    async def fail(*_: Any) -> Any:
        raise RuntimeError("words of a prompt")

    async def send(message: Any) -> None:
        sent.append(message)

    guard = Guard(fail, RULES, lambda scope, status, seconds: noted.append(status))
    scope: Any = {"type": "http", "method": "GET", "path": "/v1/models"}
    asyncio.run(guard(scope | {"headers": [(b"host", b"localhost")]}, fail, send))
    assert (sent[0]["status"], noted) == (500, [500])
    assert "words of" not in caplog.text + str(sent)
    assert "RuntimeError" in caplog.text
