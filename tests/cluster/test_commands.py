"""`bench` and `serve` with a pipeline of two hosts, as a person starts them."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mlx_eagle.load_options import PIPELINE
from turning_pair import write_turning_pair

SECONDS = 240.0  # more than any of it takes on a busy machine


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """How a pair is divided in a pipeline, on the command line."""
    folder = tmp_path_factory.mktemp("pipeline")
    target, head = write_turning_pair(folder, "qwen2")
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}] * 2))
    pair = ["--model", str(target), "--head", str(head), "--dtype", "float32"]
    return [*pair, "--no-calibrate", "--hosts", str(hosts), "--parallel", PIPELINE]


def command(name: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "mlx_eagle.cli", name, *options]


@pytest.mark.broad
@pytest.mark.bitwise
def test_a_benchmark_on_a_pipeline_finds_the_texts_of_plain_decoding(
    options: list[str], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What does zip do?\nAnd map?\n")
    asked = ["--prompts", str(prompts), "--max-tokens", "24", "--temp", "0", "--temp", "0.8"]
    trees = ["--compare", "chain:3", "--compare", "tree:4x2x8", "--json"]
    done = subprocess.run(
        command("bench", *options, *asked, *trees),
        capture_output=True,
        text=True,
        check=True,
        timeout=SECONDS,
    )
    report = json.loads(done.stdout)
    assert report["hosts"].startswith("2 ranks (pipeline): here, 127.0.0.1; ")
    assert report["equality"] == {"n_compared": 8, "n_bugs": 0, "differences": []}
    # A stream that arrives, an output, the taps of others, a canary.
    assert report["communication"]["sums_per_round"] == 4
    assert max(row["acceptance_length"] or 1 for row in report["summary"]) > 1.2


@pytest.mark.broad
def test_a_server_on_a_pipeline_reads_no_conversation_twice(options: list[str]) -> None:
    server = subprocess.Popen(
        command("serve", *options, "--port", "0"), stderr=subprocess.PIPE, text=True
    )
    try:
        first, second = talk(address_of(server))
    finally:
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=SECONDS)
    assert server.returncode == 0, errors
    held = second["prompt_tokens_details"]["cached_tokens"]
    assert held >= first["total_tokens"] - 8
    assert first["prompt_tokens_details"]["cached_tokens"] == 0


def address_of(server: "subprocess.Popen[str]") -> str:
    """Return the server's URL, once it says so."""
    assert server.stderr is not None
    said = ""
    while line := server.stderr.readline():
        said += line
        if " at http" in line:
            return line.partition(" at ")[2].split()[0]
    raise AssertionError(said)


def talk(url: str) -> list[dict[str, Any]]:
    """Ask twice in one conversation; return what each request used."""
    messages, used = list[dict[str, Any]](), list[dict[str, Any]]()
    for question in ("What does zip do? " * 8, "And map?"):
        messages.append({"role": "user", "content": question})
        body = {"messages": messages, "max_tokens": 6, "temperature": 0}
        answer = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=SECONDS)
        assert answer.status_code == 200, answer.text
        used.append(answer.json()["usage"])
        messages.append(answer.json()["choices"][0]["message"])
    return used
