#!/usr/bin/env python3
"""Host time of one verification with few-row kernels, against MLX's own: graphs built, not run.

    python benchmarks/kernel_host_time.py
    python benchmarks/kernel_host_time.py --layers 36 --rows 8 --passes 60

A round pays for what Python and MLX do before anything is computed. That can be measured on any
machine: while MLX traces a function for export, kernels for Metal can be called without a GPU. The
two kinds of passes take turns; the medians and their ratio are printed.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.llama import Model, ModelArgs

from mlx_eagle.kernels.attention_trial import Heads
from mlx_eagle.kernels.shapes import CONVERT, Variant
from mlx_eagle.kernels.sites import find_sites
from mlx_eagle.kernels.verdicts import Plan
from mlx_eagle.target.target import Target
from mlx_eagle.tree import DraftTree

# An 8B model's layers, as narrow as they can be: what is built does not depend on the widths.
ARGS = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}
N_PREFIX = 33


def main() -> None:
    """Build both kinds of graphs in turns and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=36, help="decoder layers (default: 36)")
    parser.add_argument("--rows", type=int, default=8, help="rows that are verified (default: 8)")
    parser.add_argument("--passes", type=int, default=60, help="of each kind (default: 60)")
    args = parser.parse_args()
    bare, served = (_Bench(args.layers, args.rows) for _ in range(2))
    served.target.few_rows.put_on(served.target.model, _plan(served.target, args.rows))
    found: dict[str, list[float]] = {"MLX alone": [], "switched off": [], "with kernels": []}

    def traced(x: mx.array) -> mx.array:
        for _ in range(args.passes):
            for kind, seconds in found.items():
                served.target.few_rows.is_on = kind == "with kernels"
                seconds.append((bare if kind == "MLX alone" else served).seconds())
        return x

    with tempfile.TemporaryDirectory() as folder:
        mx.export_function(str(Path(folder) / "traced.mlxfn"), traced, mx.array([0]))
    print(f"{args.layers} layers, {args.rows} rows, medians of {args.passes} passes in turns")
    stock = median(found["MLX alone"])
    for kind, seconds in found.items():
        print(f"{kind:13} {1e3 * median(seconds):6.2f} ms, {median(seconds) / stock:.2f} times")


class _Bench:
    """A random target in 16 bits and 4, and a chain that it verifies."""

    def __init__(self, n_layers: int, n_rows: int) -> None:
        model = Model(ModelArgs(num_hidden_layers=n_layers, **ARGS))
        model.set_dtype(mx.float16)
        nn.quantize(model, group_size=64, bits=4)
        mx.eval(model.parameters())
        self.target = Target(model, taps=(2, n_layers // 2, n_layers - 3))
        self._tree = DraftTree.chain(mx.arange(n_rows, dtype=mx.int32))
        self._cache = self.target.make_cache()
        self.target.extend(mx.arange(N_PREFIX, dtype=mx.int32), self._cache)
        # Nothing is evaluated: 16 bits are slow on a CPU, and graphs are all that is looked at.

    def seconds(self) -> float:
        """Return the seconds to build the graph of one verification, which is forgotten."""
        start = time.perf_counter()
        logits = self.target.verify(self._tree, self._cache).logits
        seconds = time.perf_counter() - start
        del logits
        return seconds


def _plan(target: Target, n_rows: int) -> Plan:
    """Return a plan that serves everything that can be served."""
    variants = {n_rows: Variant(4, 8, CONVERT)}
    heads = Heads(8, 2, 64, "float16", 64**-0.5)
    products = {site.shape: variants for site in find_sites(target.model)}
    return Plan(products, {heads: {n_rows: 0}})


if __name__ == "__main__":
    main()
