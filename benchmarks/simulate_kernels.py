#!/usr/bin/env python3
"""What kernels for few rows would change, by chip: simulated on published and calculated curves.

    python benchmarks/simulate_kernels.py
    python benchmarks/simulate_kernels.py --table "8 bits"

No kernel ran on a Mac: what one costs is calculated (`kernel_curves.py`), what MLX costs without it
is published. The planner decodes the recorded texts (`replay.py`) on both. The first command takes
half a minute. It prints a table for all of the texts, and one for those that are left when
the texts that accept least are dropped until chains of 3 give as many tokens as a published head of
an 8B target does: the fixtures' head is accepted less.
"""

import argparse
from collections.abc import Iterator
from typing import NamedTuple

from curves import Curve
from kernel_curves import BEST_KERNEL, BY_TABLE, KERNEL, MLX
from replay import Trace, accepting
from simulate import Contest, contest

from mlx_eagle.tree import TreeShape

# Tokens a round with chains of 3, Llama-3.1-8B and its published head on MT-bench (vLLM#20780).
PUBLISHED_TOKENS = 2.79


class Gain(NamedTuple):
    """One machine: what MLX alone gives, what a kernel does, and what an ideal one would."""

    machine: str
    label: str  # of the curve with the kernel
    alone: Contest
    kernel: Contest
    ideal: Contest | None

    @property
    def ratio(self) -> float:
        """How many times as fast the kernel makes the planner."""
        return self.kernel.planner / self.alone.planner


def gains(curves: dict[str, Curve], name: str, trace: Trace) -> Iterator[Gain]:
    """Let the planner decode a trace on every machine, without a kernel and with it."""
    for curve in curves:
        if not curve.endswith(f", {MLX}"):
            continue
        machine = curve.removesuffix(f", {MLX}")
        kernel, ideal = f"{machine}, {KERNEL}", f"{machine}, {BEST_KERNEL}"
        best = contest(ideal, name, trace) if ideal in curves else None
        found = contest(curve, name, trace), contest(kernel, name, trace), best
        yield Gain(machine, curves[kernel].label, *found)


def lines(found: list[Gain]) -> Iterator[str]:
    """Yield the lines of a Markdown table; speeds are relative to plain decoding."""
    yield (
        "| machine | MLX: best fixed | MLX: planner | kernel: best fixed | kernel: planner "
        "| planner, kernel / MLX | ideal kernel: planner | kernel's costs |"
    )
    yield "|---" * 8 + "|"
    for gain in found:
        ideal = "" if gain.ideal is None else f"{gain.ideal.planner:.2f}"
        cells = [gain.machine, _best(gain.alone), f"{gain.alone.planner:.2f}", _best(gain.kernel)]
        cells += [f"{gain.kernel.planner:.2f}", f"{gain.ratio:.2f}", ideal, gain.label]
        yield "| " + " | ".join(cells) + " |"


def _best(found: Contest) -> str:
    """Return the best fixed shape in hindsight, and its speed."""
    return f"{found.policies[found.best_fixed]:.2f} ({found.best_fixed})"


def acceptance(trace: Trace) -> str:
    """Return how much chains of a trace accept."""
    chains = (2, 3, 5, 7)
    walks = [trace.walk(TreeShape.chain(depth)) for depth in chains]
    tokens = ", ".join(f"{n / rounds:.2f}" for n, rounds in walks)
    return f"{trace.size[0]} texts; chains of 2, 3, 5 and 7 give {tokens} tokens a round"


def main() -> None:
    """Parse the command line, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", choices=list(BY_TABLE), default="4 bits")
    curves = BY_TABLE[parser.parse_args().table]
    recorded = Trace.load()
    traces = {
        "all recorded texts": recorded,
        "texts accepted as published": accepting(recorded, PUBLISHED_TOKENS),
    }
    print("Simulated on published and calculated curves; speeds relative to plain decoding.")
    for name, trace in traces.items():
        print(f"\n{name}: {acceptance(trace)}\n")
        print("\n".join(lines(list(gains(curves, name, trace)))))


if __name__ == "__main__":
    main()
