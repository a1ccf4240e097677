#!/usr/bin/env python3
"""Make the pair that benchmarks on a CPU run on: the trained pair, grown to a realistic cost.

    python benchmarks/grow_pair.py --fixtures ../shared/fixtures --out grown

The fixtures' `grow.py` adds layers and widths that change nothing, until a draft step costs what it
costs beside an 8B target (needs torch once, to read the published head); the head is converted
without quantization. Prints the options under which `mlx-eagle bench` takes the pair. On Linux
preload OpenBLAS for it: mlx's own wheel links the reference BLAS, in which a second row costs as
much as the first.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from mlx_eagle.convert.heads import convert_head


def main() -> None:
    """Parse the command line, grow, convert."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fixtures", type=Path, required=True, help="folder of the trained pair")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    args = parser.parse_args()
    pair = (args.fixtures / "pydoc-llama", args.fixtures / "pydoc-eagle3")
    subprocess.run([sys.executable, args.fixtures / "grow.py", *pair, args.out], check=True)
    convert_head(args.out / "head", args.out / "target", args.out / "converted-head", bits=None)
    print(f"--model {args.out / 'target'} --head {args.out / 'converted-head'} --dtype float32")


if __name__ == "__main__":
    main()
