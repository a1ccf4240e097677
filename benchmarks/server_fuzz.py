#!/usr/bin/env python3
"""A server asked what its own description allows and forbids, by schemathesis.

    pip install schemathesis
    python benchmarks/server_fuzz.py [--model demo] [--head HEAD] [--seconds 900]

Starts a server with a context of a few dozen tokens and a moment's time per answer, so that answers
are short, and lets schemathesis make requests from `/openapi.json` until the time is over: valid
ones, and ones that are wrong in one place. Shows what it finds, then says how many requests the
server has counted and with which statuses. Exits with 1 if a status was 500 or above, or a check
failed.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import httpx2
from server_process import PATIENCE, ServerProcess

CONTEXT = 96  # tokens of prompt and answer
LONGEST = 0.02  # seconds of an answer
REQUESTS = re.compile(r'mlx_eagle_requests_total\{api="(\w+)",status="(\d+)"\} ([\d.]+)')
# Bodies that fit the description may be refused all the same: a prompt may be too long, a tool may
# not exist, a template may insist on an order of roles; and what is not known is passed over.
EXCLUDED = "positive_data_acceptance,negative_data_rejection"


def ask_all(url: str, args: argparse.Namespace) -> int:
    """Let schemathesis ask; returns its status."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
    command += ["--checks", "all", "--exclude-checks", EXCLUDED, "--continue-on-failure"]
    command += ["--max-time", str(args.seconds), "--seed", str(args.seed), "--no-shrink"]
    command += ["--suppress-health-check", "all", "--request-timeout", str(PATIENCE)]
    command += ["--max-response-time", str(PATIENCE)]  # how fast it answers is for other commands
    return subprocess.call([*command, "--workers", "2", "--warnings", "off"])


def count(url: str) -> Counter[tuple[str, str]]:
    """Return how many requests were answered, by API and status."""
    text = httpx2.get(f"{url}/metrics", timeout=60).text
    return Counter({(api, status): int(float(n)) for api, status, n in REQUESTS.findall(text)})


def main() -> None:
    """Parse the command line, ask, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--head", help="the smaller both are, the more requests there are")
    parser.add_argument("--seconds", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = ["--model", args.model, "--no-calibrate", "--no-disk-cache"]
        options += ["--max-context", str(CONTEXT), "--max-seconds", str(LONGEST)]
        options += ["--head", args.head] if args.head else []
        server = ServerProcess(Path(folder), *options)
        status = ask_all(server.url, args)
        counted = count(server.url)
        server.stop()
    for (api, code), n in sorted(counted.items()):
        print(f"{api:12} {code} {n:7}")
    n_failed = sum(n for (_, code), n in counted.items() if int(code) >= 500)
    print(f"{counted.total()} requests, {n_failed} answered with 500 or above")
    print("\n".join(line for line in server.log if "failed" in line))
    raise SystemExit(1 if n_failed or status else 0)


if __name__ == "__main__":
    main()
