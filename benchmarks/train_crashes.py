#!/usr/bin/env python3
"""Whether a training that is killed, or shared by two processes, ends with the same head.

    python benchmarks/train_crashes.py --target ../shared/fixtures/pydoc-llama
        --data corpus/heldout.jsonl --out crashes

The whole command runs (answers of the target, features, updates, the head's folders) in --out:
once undisturbed; once killed by SIGKILL at up to --kills random moments and started again each
time, which must give the same bytes; and once in two processes with half of the batch each, whose
weights may differ by rounding, since sums have another order. The exit status is 1 if a head
differs.
"""

import argparse
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import mlx.core as mx
from ring import Ring
from train_fixture import program

ROUNDING = 1e-3  # of a weight's largest number: what two processes may differ by
TINY = 1e-9  # in the place of a weight that is zero everywhere
SOONEST = 0.2  # seconds after which the command may be killed


def command(args: argparse.Namespace, out: Path, batch: int) -> list[str]:
    """Return the command that trains into `out`."""
    options = {
        "--model": args.target,
        "--data": args.data,
        "--out": out,
        "--answers": "target",
        "--answer-tokens": 32,
        "--length": 256,
        "--draft-vocab": 512,
        "--steps": 3,
        "--batch": batch,
        "--epochs": 1000,
        "--max-updates": args.updates,
        "--measure-every": 10,
        "--save-every": 3,
        "--seed": args.seed,
    }
    parts = [str(part) for option in options.items() for part in option]
    return [program("mlx-eagle"), "train", *parts]


def run(args: argparse.Namespace, out: Path, batch: int, n_processes: int = 1) -> float:
    """Train to the end, and return the seconds that it took."""
    start = time.perf_counter()
    ring = Ring(n_processes)
    log = (args.out / f"{out.name}.log").open("w")
    running = [
        subprocess.Popen(command(args, out, batch), env=os.environ | own, stdout=log, stderr=log)
        for own in ring.environments
    ]
    statuses = [process.wait() for process in running]  # all end where one fails
    if any(statuses):
        raise SystemExit(f"error: the training failed: see {log.name}")
    return time.perf_counter() - start


def run_killed(args: argparse.Namespace, out: Path, seconds: float) -> int:
    """Train to the end, killed on the way, and return how often.

    Args:
        args: of the command line.
        out: the folder of the training.
        seconds: that it takes undisturbed.
    """
    moments = random.Random(args.seed)
    log = (args.out / f"{out.name}.log").open("w")
    for n in range(args.kills):
        wait = moments.uniform(SOONEST, 2 * seconds / args.kills)
        running = subprocess.Popen(command(args, out, args.batch), stdout=log, stderr=log)
        try:
            status = running.wait(wait)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.wait()
        else:
            print(f"ended with status {status} before kill {n + 1}: raise --updates", flush=True)
            return n
        print(f"killed after {wait:.1f} s: {progress(out)}", flush=True)
    run(args, out, args.batch)
    return args.kills


def progress(out: Path) -> str:
    """Return how far a training came."""
    table = out / "updates.csv"
    rows = table.read_text().splitlines()[1:] if table.exists() else []
    if rows:
        return f"{len(rows)} updates"
    return "features" if (out / "features").exists() else "answers"


def difference(a: Path, b: Path) -> float:
    """Return by how much two heads differ at most, of the largest number in a weight."""
    first, second = (mx.load(str(path / "head-full" / "model.safetensors")) for path in (a, b))
    if first.keys() != second.keys():
        raise SystemExit(f"error: {a} and {b} have other weights")
    pairs = [(first[name].astype(mx.float32), second[name].astype(mx.float32)) for name in first]
    parts = [mx.abs(x - y).max() / mx.maximum(mx.abs(x).max(), TINY) for x, y in pairs]
    return float(mx.stack(parts).max())  # NaN if anything is


def same_bytes(a: Path, b: Path) -> bool:
    """Say whether the weights of two heads are equal to the bit, also quantized."""
    files = [Path(folder) / "model.safetensors" for folder in ("head", "head-full")]
    return all((a / file).read_bytes() == (b / file).read_bytes() for file in files)


def main() -> int:
    """Train three times, compare, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--target", "--data", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--updates", type=int, default=120)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--batch", type=int, default=2, help="rows of 256 tokens; even")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True)  # a folder that exists may be somebody's
    whole, killed, shared = (args.out / name for name in ("whole", "killed", "shared"))
    seconds = run(args, whole, args.batch)
    print(f"undisturbed: {seconds:.1f} s", flush=True)
    n_kills = run_killed(args, killed, seconds)
    equal = same_bytes(whole, killed)
    print(f"killed {n_kills} times: {'equal to the bit' if equal else 'DIFFERENT'}", flush=True)
    run(args, shared, args.batch // 2, 2)
    away = difference(whole, shared)
    print(f"two processes: largest difference {away:.1e} of a weight's largest number")
    return 0 if equal and away < ROUNDING else 1


if __name__ == "__main__":
    raise SystemExit(main())
