"""What verifying N rows costs: published measurements and a few synthetic curves, as data.

Every number is one that its source states; nothing between two of them is made up, so a policy may
verify only the numbers of rows that are listed. Where a source gives a range, both ends are curves
or the dearer end is taken, as the note says. Sources are threads of the repositories named; they
were read for this project in September 2026, none was measured by it but "Linux CPU".

A kernel's curve needs the length of a plain step to set a host synchronisation against. Where the
source measured a model, it is that model's; else that of an 8B target at 4 bits on that chip, whose
4.22 GB of weights are read at 75 % of the chip's bandwidth.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Label = Literal["published", "calculated", "estimate", "synthetic", "measured"]
SYNC_MS = 0.25  # floor of one mx.eval from the host on a GPU; published by several MLX projects
FIRST = 0.06  # drafting at all, in plain steps: taking in the round's tokens; measured on the CPU
LEVEL = 0.047  # each drafted level, in plain steps; measured on the CPU
# Every node but one of each level below the first, which EAGLE-2 runs through the head. Measured on
# the CPU: a tree of depth 4 and width 4 takes 0.379 plain steps to draft, a chain of 4 takes 0.260;
# at width 2, which takes 0.320, this is on the trees' side.
SIBLING = 0.012


@dataclass(frozen=True)
class Curve:
    """What rounds cost on one machine.

    Attributes:
        rows: by number of rows, the cost of verifying them, relative to a plain step.
        plain_ms: milliseconds of a plain step.
        source: where the numbers are from.
        label: what they are: published by others, calculated from what was, an estimate where not
            even that can be, synthetic, or measured by this project.
        sync_ms: milliseconds of one host synchronisation (reading something back).
        build: plain steps that the host takes to build the verification graph. The device idles
            meanwhile, unless it has a draft to work on that nobody waits for.
        first, level, sibling: drafting a chain or a greedy path costs first + depth * level plain
            steps; a tree, (width - 1) * (depth - 1) * sibling more.
    """

    rows: Mapping[int, float]
    plain_ms: float
    source: str
    label: Label = "published"
    sync_ms: float = SYNC_MS
    first: float = FIRST
    level: float = LEVEL
    sibling: float = SIBLING
    build: float = 0.0


def milliseconds(rows: Mapping[int, float], source: str, plain_ms: float | None = None) -> Curve:
    """Return a curve that was published in milliseconds, of a whole model if `plain_ms` is None."""
    relative = {n: ms / rows[1] for n, ms in rows.items()}
    return Curve(relative, plain_ms or rows[1], source)


def line(start: float, slope: float, source: str, plain_ms: float) -> Curve:
    """Return a published fit: a round of K drafts costs start + slope * K plain steps."""
    rows = {1: 1.0} | {k + 1: start + slope * k for k in range(1, 8)}
    return Curve(rows, plain_ms, source)


def _noisy() -> dict[int, float]:
    """Return a line that was measured badly; the same one at every call."""
    draw = random.Random(7).lognormvariate
    return {1: 1.0} | {n: (0.85 + 0.15 * n) * draw(0.0, 0.15) for n in (*range(2, 9), 10, 12, 16)}


# Milliseconds of a plain step of an 8B target at 4 bits.
M3_MAX, M3_ULTRA, M4_PRO, M5_MAX = 14.1, 6.9, 20.6, 9.2
# Of a Gemma4-12B on an M5 Max; it stands in for the Ultras, of which only fits were published.
GEMMA_12B = 23.1

_SYNTHETIC = {
    "flat": Curve({1: 1.0} | dict.fromkeys(range(2, 17), 1.1), M4_PRO, "synthetic"),
    "linear": Curve({n: float(n) for n in range(1, 9)}, M4_PRO, "synthetic: no amortisation"),
    "half linear": Curve({n: 0.5 + 0.5 * n for n in range(1, 13)}, M4_PRO, "synthetic"),
    "stepped": Curve(
        {1: 1.0} | {n: 1.1 + 0.9 * ((n - 1) // 5) for n in range(2, 17)},
        M4_PRO,
        "synthetic: steps at 6, 11 and 16 rows, where qmv_wide reads the weights once more",
    ),
    "noisy": Curve(_noisy(), M4_PRO, "synthetic: 0.85 + 0.15 N with lognormal noise of 15 %"),
}
SYNTHETIC = {name: replace(curve, label="synthetic") for name, curve in _SYNTHETIC.items()}

KERNELS = {
    "M4 Pro 4096x6144": Curve(
        {1: 1.0, 2: 1.25, 3: 1.48, 4: 1.14, 6: 1.47, 8: 1.73}, M4_PRO, "mlx#3839, MLX 0.32.0"
    ),
    "M4 Pro 4096x4096": Curve(
        {1: 1.0, 2: 1.20, 3: 1.35, 4: 1.57, 6: 1.99, 8: 2.01}, M4_PRO, "mlx#3839, MLX 0.32.0"
    ),
    "M4 Pro 4096x24576": Curve(
        {1: 1.0, 2: 1.03, 3: 1.22, 4: 1.47, 6: 2.07, 8: 2.69}, M4_PRO, "mlx#3839, MLX 0.32.0"
    ),
    "M4 Pro 12288x4096": Curve(
        {1: 1.0, 2: 1.18, 3: 1.40, 4: 1.52, 6: 2.05, 8: 2.46}, M4_PRO, "mlx#3839, MLX 0.32.0"
    ),
    "M4 Pro 12288x4096, MLX 0.31.2": Curve(
        {1: 1.0, 4: 1.89, 8: 3.44}, M4_PRO, "mlx#3839, MLX 0.31.2"
    ),
    "M4 Pro 8B": Curve(
        {1: 1.0, 2: 1.10, 3: 1.30, 4: 1.45, 6: 1.99, 8: 2.48},
        M4_PRO,
        "mlx#3839, weighted over the layers of an 8B target",
    ),
    "M4 Pro 8B, flat kernel": Curve(
        {1: 1.0} | dict.fromkeys(range(2, 9), 1.1),
        M4_PRO,
        "derived: the same with a kernel that reads the weights once for 8 rows",
        "calculated",
    ),
    "M4 Pro 5120x17408": Curve(
        {1: 1.0, 2: 0.99, 3: 1.13, 4: 1.43, 5: 1.75, 8: 2.84, 10: 4.5, 32: 4.5},
        M4_PRO,
        "mlx#3852, MLX 0.32.0, groups of 128",
    ),
    "M3 Max 5120x17408": milliseconds(
        {1: 0.129, 2: 0.129, 4: 0.165, 6: 0.263, 8: 0.323, 9: 0.405}
        | dict.fromkeys(range(10, 17), 0.508)
        | {32: 0.513, 33: 1.002},
        "mlx#3863",
        M3_MAX,
    ),
    "M3 Ultra 4-bit": Curve(
        {1: 1.0, 2: 1.83, 4: 3.26, 7: 5.28, 8: 6.12, 16: 6.32},
        M3_ULTRA,
        "mlx#4265, independent kernels in a batch",
    ),
    "M3 Ultra bf16": Curve(
        {1: 1.0, 2: 1.99, 4: 1.99, 7: 1.99, 8: 2.0, 16: 2.0}, M3_ULTRA, "mlx#4265, before gemv_wide"
    ),
    "M3 Ultra 4-bit, chained": milliseconds(
        {1: 0.060, 4: 0.060, 6: 0.077, 8: 0.094}, "mlx#4265, kernels in a dependent chain", M3_ULTRA
    ),
    "M3 Ultra 8-row kernel": milliseconds(
        {1: 0.060, 8: 0.060}, "mlx#4265, an 8x8 matrix kernel in a dependent chain", M3_ULTRA
    ),
    "M5 Max LM head": milliseconds(
        {1: 0.985, 2: 1.020, 3: 1.149, 4: 1.352, 5: 1.846, 8: 3.406, 16: 2.561, 32: 2.452},
        "mlxcel, 262144x3840",
        M5_MAX,
    ),
}

# Where a source timed whole rounds, drafting by its own small drafter is in the numbers; ours is
# charged on top, so that these curves are dearer than what was measured.
MODELS = {
    "M5 Max 70B, before": milliseconds(
        {1: 76, 3: 85, 5: 113, 8: 171, 12: 294.6, 16: 296}, "mlx#3791, dearer end of its ranges"
    ),
    "M5 Max 70B, after": milliseconds(
        {1: 76, 3: 85, 5: 108, 8: 168, 12: 241.5, 16: 296}, "mlx#3791, cheaper end of its ranges"
    ),
    "M5 Max Gemma4-12B": milliseconds(
        {1: 23.1, 2: 23.8, 3: 25.2, 4: 26.2, 5: 28.3, 6: 32.1, 8: 40.1}, "mlxcel#1204, rounds"
    ),
    "M5 Max Qwen3.8-27B": milliseconds(
        {1: 30.7, 4: 39.4, 8: 75.7}, "mlxcel, dearer end of its range of 37 to 39.4 ms at 4 rows"
    ),
    "M5 Max Qwen3.5": Curve({1: 1.0, 4: 1.29, 8: 2.47}, M5_MAX, "mlxcel PR 1182, whole forward"),
    "M1 Ultra Qwen3.8-27B": milliseconds(
        {1: 43.6, 2: 75.7, 3: 106, 4: 135.5, 8: 244}, "mlxcel: no amortisation"
    ),
    "M3 Ultra Gemma4-12B": line(1.14, 0.090, "mlxcel, fit of rounds", GEMMA_12B),
    "M3 Ultra Gemma4-31B": line(0.83, 0.170, "mlxcel, fit of rounds", 2.6 * GEMMA_12B),
    "M1 Ultra Gemma4-12B": line(1.35, 0.346, "mlxcel, fit of rounds", GEMMA_12B),
    "M1 Ultra Qwen3.8-27B, fit": line(0.46, 0.771, "mlxcel, fit of rounds", 43.6),
    "M4 Pro Qwen3-8B, MLX 0.31": milliseconds(
        {1: 34.1, 4: 87.1}, "vllm-metal#503, 8k tokens cached"
    ),
    "M4 Pro Qwen3-8B, MLX 0.32": milliseconds(
        {1: 34.1, 4: 73.0}, "vllm-metal#503, 8k tokens cached"
    ),
    "M4 Qwen3-4B": Curve(
        {1: 1.0, 8: 34.8 / 31.6},
        31.6,
        "Camelid (own kernels), against its best plain step; derived",
        "calculated",
    ),
}

HERE = {
    "Linux CPU": Curve(
        {1: 1.0, 2: 1.18, 3: 1.35, 4: 1.49, 5: 1.54, 6: 1.61, 7: 1.69, 8: 1.79, 9: 1.99, 10: 2.13}
        | {12: 2.55, 14: 2.20, 16: 2.02, 17: 2.15, 20: 2.77, 24: 2.97, 28: 3.74, 32: 3.31}
        | {40: 4.29, 48: 4.35, 60: 6.16},
        37.0,
        "this project: two cores of an AMD EPYC, OpenBLAS, float32, a target of 8B proportions",
        "measured",
        sync_ms=0.0,
    )
}

PUBLISHED: dict[str, Curve] = SYNTHETIC | KERNELS | MODELS | HERE


def _slow_host(name: str, sync: float, build: float) -> Curve:
    """Return a curve with other costs of the host; `sync` and `build` in plain steps."""
    curve = PUBLISHED[name]
    return replace(curve, sync_ms=sync * curve.plain_ms, build=build, label="synthetic")


# What the host costs on real GPUs is not in any published curve: Python builds the graph of 32
# layers in a few milliseconds, and waits were seen to take many times the floor of `mx.eval`.
SLOW_HOSTS = {
    f"{name}, sync {100 * sync:.0f} %, graph {100 * build:.0f} %": _slow_host(name, sync, build)
    for name in ("M4 Pro 8B", "M4 Pro 8B, flat kernel", "M5 Max Qwen3.8-27B")
    for sync, build in ((0.05, 0.0), (0.15, 0.0), (0.3, 0.0), (0.01, 0.1), (0.05, 0.15))
}

CURVES: dict[str, Curve] = PUBLISHED | SLOW_HOSTS
