#!/usr/bin/env python3
"""Make the pair that benchmarks on a CPU run on: the trained pair, grown to a realistic cost.

    python benchmarks/grow_pair.py --fixtures ../shared/fixtures --out grown
    python benchmarks/grow_pair.py --fixtures ../shared/fixtures --out grown
        --head trained/head-full

The fixtures' `grow.py` adds layers and widths that change nothing, until a draft step costs what it
costs beside an 8B target (needs torch once, to read the published head); the head is converted
without quantization. A head that `mlx-eagle train` made for the small target (--head) comes along:
its taps move to where the same states are found in the grown target, and its MLP grows alike.
Prints the options under which `mlx-eagle bench` takes the pair. On Linux
preload OpenBLAS for it: mlx's own wheel links the reference BLAS, in which a second row costs as
much as the first.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx

from mlx_eagle.convert.heads import convert_head
from mlx_eagle.convert.target_facts import read_target_facts

INTERMEDIATE = 3072  # of the grown head's MLP, as `grow.py` has it


def grow_own_head(head: Path, small: Path, out: Path) -> None:
    """Write a head for the small target into out/own-head, for the grown one.

    Raises:
        SystemExit: if it is quantized, or has a tap where layers are added.
    """
    n, grown = (
        json.loads((target / "config.json").read_text())["num_hidden_layers"]
        for target in (small, out / "target")
    )
    config = json.loads((head / "config.json").read_text())
    if config["quantization"]:
        raise SystemExit(f"error: {head} is quantized: give the one in head-full")
    # Layers are added between these boundaries; what is in front of them and behind stays.
    moved = {2: 2, n // 2: grown // 2} | {n - 3 + i: grown - 3 + i for i in range(5)}
    if between := [tap for tap in config["taps"] if tap not in moved]:
        raise SystemExit(f"error: {head} has the tap {between[0]}; expected some of {list(moved)}")
    config["taps"] = [moved[tap] for tap in config["taps"]]
    config["target"] = read_target_facts(out / "target")._asdict()
    weights = mx.load(str(head / "model.safetensors"))
    config["intermediate_size"] = widen(weights, config["intermediate_size"])
    folder = out / "own-head"
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def widen(weights: dict[str, mx.array], width: int) -> int:
    """Widen a head's MLP, as that of the published head is, by what is multiplied by zero."""
    more = max(0, INTERMEDIATE - width)
    for name, weight in weights.items():
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            added = 0.02 * mx.random.normal((more, weight.shape[1]))
            weights[name] = mx.concatenate([weight, added.astype(weight.dtype)])
        elif name.endswith("down_proj.weight"):
            weights[name] = mx.pad(weight, [(0, 0), (0, more)])
    return width + more


def main() -> None:
    """Parse the command line, grow, convert."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fixtures", type=Path, required=True, help="folder of the trained pair")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--head", type=Path, help="a head of ours for the small target")
    args = parser.parse_args()
    pair = (args.fixtures / "pydoc-llama", args.fixtures / "pydoc-eagle3")
    subprocess.run([sys.executable, args.fixtures / "grow.py", *pair, args.out], check=True)
    convert_head(args.out / "head", args.out / "target", args.out / "converted-head", bits=None)
    if args.head:
        grow_own_head(args.head, pair[0], args.out)
        print(f"--model {args.out / 'target'} --head {args.out / 'own-head'} --dtype float32")
    print(f"--model {args.out / 'target'} --head {args.out / 'converted-head'} --dtype float32")


if __name__ == "__main__":
    main()
