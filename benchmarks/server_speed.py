#!/usr/bin/env python3
"""How fast the server is: its first token beside mlx_lm.server's, its speed beside the library's.

    python benchmarks/server_speed.py [--model FOLDER --head FOLDER] [--runs 5] [--tokens 96]

Both servers answer with the same target in float32, one request at a time and in turns. Prompts are
new to both ("cold") or asked again ("cached"). The speed of whole answers is compared with the
library's in this process: the same prompts, the same tree in every round, the same texts, in turns.
Prints medians in milliseconds, and ratios: of medians for first tokens, the median of ratios for
whole answers.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
from server_process import PATIENCE, ServerProcess

CHAT = "/v1/chat/completions"
TREE = "4x2x6"
SENTENCE = "The function returns an iterator over the items of its argument. "
DEMO = Path(__file__).parents[1] / "mlx_eagle" / "demo"


def in_float32(model: Path, out: Path) -> Path:
    """Return a copy of a target's folder in float32, which both servers load as it is."""
    import mlx.core as mx

    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors"))
    for file in model.glob("*.safetensors"):
        arrays = mx.load(str(file))
        assert isinstance(arrays, dict), "safetensors hold names"
        kinds = (mx.float16, mx.bfloat16)
        arrays = {k: a.astype(mx.float32) if a.dtype in kinds else a for k, a in arrays.items()}
        mx.save_safetensors(str(out / file.name), arrays, {"format": "mlx"})
    config = json.loads((out / "config.json").read_text())
    names = [name for name in ("dtype", "torch_dtype") if name in config]
    (out / "config.json").write_text(json.dumps(config | dict.fromkeys(names, "float32")))
    return out


class StockServer:
    """mlx_lm.server as a process.

    Args:
        model: a folder.
    """

    def __init__(self, model: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [*command, "--port", str(port), "--host", "127.0.0.1"],
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self.url = f"http://127.0.0.1:{port}"
        self._wait()

    def _wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                httpx2.get(f"{self.url}/v1/models", timeout=10)
            except httpx2.HTTPError:
                time.sleep(0.2)
            else:
                return
        self.stop()
        raise SystemExit("mlx_lm.server did not come up")

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


def body(model: str, prompt: str, n_tokens: int, **more: Any) -> dict[str, Any]:
    """Return a request for a greedy answer."""
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "max_tokens": n_tokens, "temperature": 0} | more


def first_seconds(client: httpx2.Client, request: dict[str, Any]) -> float:
    """Return the seconds until the first text of a stream."""
    start = time.perf_counter()
    with client.stream("POST", CHAT, json=request | {"stream": True}) as response:
        first = None
        for line in response.iter_lines():
            if first is None and line.startswith("data: {") and said(json.loads(line[6:])):
                first = time.perf_counter() - start
    if first is None:
        raise SystemExit(f"a stream without text, status {response.status_code}")
    return first


def said(chunk: dict[str, Any]) -> bool:
    """Say whether a chunk has text."""
    delta = chunk["choices"][0].get("delta", {}) if chunk.get("choices") else {}
    return bool(delta.get("content") or delta.get("reasoning") or delta.get("reasoning_content"))


def compare_first(ours: str, theirs: str, model: str, args: argparse.Namespace) -> None:
    """Print seconds to the first token, cold and cached, of both servers."""
    times: dict[str, list[float]] = {}
    clients = {"ours": (ours, "m"), "mlx_lm.server": (theirs, model)}
    for run in range(args.runs + 1):  # the first one warms both up
        prompt = f"Case {run} of {time.time()}. " + SENTENCE * args.sentences
        for name, (url, called) in sorted(clients.items(), reverse=run % 2 == 0):
            with httpx2.Client(base_url=url, timeout=600) as client:
                for kind in ("cold", "cached"):
                    seconds = first_seconds(client, body(called, prompt, 4))
                    if run:
                        times.setdefault(f"{name} {kind}", []).append(seconds)
    medians = {name: statistics.median(each) for name, each in times.items()}
    for name, median in sorted(medians.items()):
        print(f"first token, {name:22} {1000 * median:9.1f} ms")
    stock = medians["mlx_lm.server cold"]
    print(f"cold: {medians['ours cold'] / stock:.3f} of mlx_lm.server's")
    print(f"cached: {medians['ours cached'] / stock:.3f} of mlx_lm.server's cold one, ", end="")
    print(f"{medians['ours cached'] / medians['mlx_lm.server cached']:.3f} of its cached one")


def compare_speed(url: str, engine: Any, args: argparse.Namespace) -> None:
    """Print how fast whole answers of the server are, as shares of the library's speed."""
    from mlx_eagle import TreeShape

    client = httpx2.Client(base_url=url, timeout=600)
    ratios: dict[str, list[float]] = {"at once": [], "streamed": []}

    def library(prompt: str) -> str:
        options = {"max_tokens": args.tokens, "temperature": 0, "tree": TreeShape.parse(TREE)}
        messages = [{"role": "user", "content": prompt}]
        return str(engine.generate(messages, **options).text)

    def served(prompt: str, streams: bool) -> str:
        request = body("m", prompt, args.tokens, tree=TREE)
        if not streams:
            answer = client.post(CHAT, json=request).json()
            return str(answer["choices"][0]["message"]["content"])
        with client.stream("POST", CHAT, json=request | {"stream": True}) as response:
            lines = [json.loads(x[6:]) for x in response.iter_lines() if x.startswith("data: {")]
        return "".join(x["choices"][0]["delta"].get("content", "") for x in lines)

    for run in range(args.runs + 1):
        prompt = f"What does function {run} of itertools do?"
        for name in ratios:
            one, want = timed(library, prompt)
            other, text = timed(served, prompt, name == "streamed")
            assert text == want, f"the texts differ: {text!r}, {want!r}"
            if run:
                ratios[name].append(one / other)
    for name, each in ratios.items():
        print(f"speed {name}: {statistics.median(each):.3f} of the library's", end="")
        print(f" ({', '.join(f'{ratio:.2f}' for ratio in sorted(each))})")


def timed(function: Callable[..., str], *arguments: Any) -> tuple[float, str]:
    """Return the seconds that a function takes, and what it returns."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def main() -> None:
    """Parse the command line, start both, print what is compared."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=DEMO / "target")
    parser.add_argument("--head", type=Path, default=DEMO / "head")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--sentences", type=int, default=60, help="of a prompt, 12 tokens each")
    args = parser.parse_args()
    from mlx_eagle import load

    with tempfile.TemporaryDirectory() as folder:
        model = in_float32(args.model, Path(folder) / "target")
        pair = ("--model", str(model), "--head", str(args.head.absolute()))
        stock = StockServer(model)
        ours = ServerProcess(Path(folder), *pair, "--no-calibrate", "--no-disk-cache")
        compare_first(ours.url, stock.url, str(model), args)
        stock.stop()
        engine = load(str(model), str(args.head), calibrate=False)
        compare_speed(ours.url, engine, args)
        ours.stop()


if __name__ == "__main__":
    main()
