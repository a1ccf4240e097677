"""What the server says of itself is true, and nothing that fits it, or nearly, is too much."""

import asyncio
import json
from typing import Any

import httpx2
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cases import broad
from mlx_eagle.server.app import GETS, POSTS
from served import Served, in_process

BASE: dict[str, Any] = {
    "messages": [{"role": "user", "content": "x"}],
    "prompt": "x",
    "input": "x",
    "model": "m",
    "max_tokens": 1,
    "max_output_tokens": 1,
}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "\0", "x", "auto", "user", "system", "tool", "function", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "role", "content", "name", "text"]), inner)
    ),
    max_leaves=8,
)


def fitting(path: str) -> dict[str, Any]:
    """Return a body that a path takes."""
    return {"text": "x"} if path == "/page/markdown" else BASE


def test_every_path_is_described_and_there(served: Served) -> None:
    async def use(client: httpx2.AsyncClient) -> Any:
        described = (await client.get("/openapi.json")).json()
        got = {path: await client.get(path) for path in GETS}
        wrong = await client.get("/v1/chat/completions")
        unread = [await client.post(path, content=b"no JSON") for path in GETS]
        posted = {}
        for path, body in POSTS.items():
            assert "$ref" in json.dumps(described["paths"][path]), body
            posted[path] = (await client.post(path, json=fitting(path))).status_code
        return described, got, posted, wrong, unread

    described, got, posted, wrong, unread = served.run(use)
    assert set(described["paths"]) == {*GETS, *POSTS}
    for path, answer in got.items():
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(GETS[path])
    assert set(posted.values()) == {200}
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert {answer.status_code for answer in unread} == {405}
    for path in POSTS:
        content = described["paths"][path]["post"]["requestBody"]["content"]
        schema = content["application/json"]["schema"]
        jsonschema.validate(fitting(path), schema | {"components": described["components"]})


@pytest.mark.parametrize("n", [25, broad(3000)])
def test_no_body_makes_the_server_fail(n: int, served: Served) -> None:
    fields = {path: sorted(body.model_fields) for path, body in POSTS.items()}

    @settings(max_examples=n, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: Any) -> None:
        path = data.draw(st.sampled_from(sorted(fields)))
        changes = data.draw(st.dictionaries(st.sampled_from(fields[path]), VALUES, max_size=3))
        text = json.dumps(fitting(path) | changes | {"max_tokens": 1, "max_output_tokens": 1})
        answer = runner.run(client.post(path, content=text, headers=headers))
        assert answer.status_code in (200, 400), (answer.status_code, text)

    headers = {"content-type": "application/json"}
    client = in_process(served.server())
    with asyncio.Runner() as runner:  # whose end is that of all that was begun in it
        check()
        runner.run(client.aclose())
