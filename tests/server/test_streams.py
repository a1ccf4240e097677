"""The checks of streams that the soak command makes: true streams pass, broken ones do not."""

import re
from typing import Any

import pytest

from benchmark_modules import load_benchmark
from served import Served

BODY: Any = {
    "model": "m",
    "messages": [{"role": "user", "content": "x"}],
    "prompt": "x",
    "input": "x",
    "max_tokens": 6,
    "max_output_tokens": 6,
    "stream": True,
}
PATHS = {"chat": "chat/completions"}
BROKEN = {  # what is taken out of a stream
    "chat": [rb'data: [^\n]*"finish_reason":"length"[^\n]*\n\n', rb"data: \[DONE\]\n\n"],
    "completions": [rb'data: [^\n]*"finish_reason":"length"[^\n]*\n\n'],
    "responses": [
        rb"event: response.created\n[^\n]*\n\n",
        rb"event: response.output_item.done\n[^\n]*\n\n",
        rb"event: response.incomplete\n[^\n]*\n\n",
    ],
    "messages": [
        rb"event: message_start\n[^\n]*\n\n",
        rb"event: content_block_stop\n[^\n]*\n\n",
        rb"event: message_stop\n[^\n]*\n\n",
    ],
}


@pytest.mark.parametrize("api", BROKEN)
def test_a_true_stream_passes_its_check_and_a_broken_one_does_not(api: str, served: Served) -> None:
    checks = load_benchmark("stream_checks")
    body = served.ask(f"/v1/{PATHS.get(api, api)}", BODY).content
    assert checks.CHECKS[api](body, True) == []
    assert checks.said(api, body).strip()
    for length in range(0, len(body), 97):  # as far as a client that went has read it
        assert checks.CHECKS[api](body[:length], False) == []
    for part in BROKEN[api]:
        broken, n = re.subn(part, b"", body)
        assert n == 1, part
        assert checks.CHECKS[api](broken, True), part
