#!/usr/bin/env python3
"""Make the pair that benchmarks on a CPU run on: the trained pair, grown to a realistic cost.

    python benchmarks/grow_pair.py --fixtures ../shared/fixtures --out grown
    python benchmarks/grow_pair.py --fixtures ../shared/fixtures --out grown --head trained/head

The fixtures' `grow.py` adds layers and widths that change nothing, until a draft step costs what it
costs beside an 8B target (needs torch once, to read the published head); the head is converted
without quantization. A head that `mlx-eagle train` made for the small target (--head) comes along:
its weights stay as they are, its taps move to where the same states are found in the grown target.
Prints the options under which `mlx-eagle bench` takes the pair. On Linux
preload OpenBLAS for it: mlx's own wheel links the reference BLAS, in which a second row costs as
much as the first.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from mlx_eagle.convert.heads import convert_head
from mlx_eagle.convert.target_facts import read_target_facts


def move_taps(head: Path, small: Path, out: Path) -> None:
    """Write a head for the small target into out/own-head, for the grown one."""
    n, grown = (
        json.loads((target / "config.json").read_text())["num_hidden_layers"]
        for target in (small, out / "target")
    )
    # Layers are added between these boundaries; what is in front of them and behind stays.
    moved = {2: 2, n // 2: grown // 2} | {n - 3 + i: grown - 3 + i for i in range(5)}
    config = json.loads((head / "config.json").read_text())
    config["taps"] = [moved[tap] for tap in config["taps"]]
    shutil.copytree(head, out / "own-head")
    target = read_target_facts(out / "target")
    config["target"] = target._asdict()
    (out / "own-head" / "config.json").write_text(json.dumps(config, indent=2) + "\n")


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
        move_taps(args.head, pair[0], args.out)
        print(f"--model {args.out / 'target'} --head {args.out / 'own-head'} --dtype float32")
    print(f"--model {args.out / 'target'} --head {args.out / 'converted-head'} --dtype float32")


if __name__ == "__main__":
    main()
