#!/usr/bin/env python3
"""A 70B target on 2 to 4 Macs, with and without drafts: simulated on published link figures.

    python benchmarks/simulate_hosts.py
    python benchmarks/simulate_hosts.py --hosts 2 --hosts 4

Nothing of this ran on Macs, or on several machines. A pass is calculated: the target's weights read
at the bandwidth of one Mac, divided by the hosts; rows as published for an M4 Pro; two sums per
layer over a link whose latency and bandwidth others have published. The head is whole on one
host, so its levels take as long as they would on one Mac. The planner decodes the recorded texts
(`replay.py`) on these costs. Speeds are relative to plain decoding on the same hosts; the last row
of each table is one Mac, if the target fitted.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from curves import FIRST, LEVEL, SIBLING, Curve
from replay import Trace
from simulate import Machine, PlannerRun, run_fixed

from mlx_eagle.planner.cost_model import PUBLISHED_ROWS

# The target: Llama-3-70B's shape at 4 bits with a scale and a bias of 16 bits for 64 numbers.
N_LAYERS, WIDTH, NUMBER_BYTES = 80, 8192, 2
WEIGHT_BYTES = 70.6e9 * 4.5 / 8
MEMORY_BANDWIDTH = 0.8 * 819e9  # bytes per second that reach the weights; M3 Ultra
SUMS = 2 * N_LAYERS  # of a pass


@dataclass(frozen=True)
class Link:
    """A link between hosts.

    Attributes:
        latency: seconds of a sum over two hosts, whatever its size, fences included.
        bandwidth: bytes per second.
        source: where the figures are from.
        is_ring: whether a sum goes around, so that more hosts take longer.
        is_pipeline: whether each host has some of the layers, and hands rows on.
    """

    latency: float
    bandwidth: float
    source: str
    is_ring: bool = False
    is_pipeline: bool = False

    def seconds(self, n_rows: int, n_hosts: int) -> float:
        """Return what a pass of `n_rows` takes for communication."""
        if n_hosts == 1:
            return 0.0
        row = WIDTH * NUMBER_BYTES * n_rows
        if self.is_pipeline:
            return n_hosts * (self.latency + row / self.bandwidth)
        sent = row * 2 * (n_hosts - 1) / n_hosts
        latency = self.latency * (n_hosts - 1) if self.is_ring else self.latency
        return SUMS * (latency + sent / self.bandwidth)


LINKS = {
    "Thunderbolt 5, JACCL, fast fence": Link(30e-6, 6.3e9, "oMLX #3118"),
    "Thunderbolt 5, JACCL, default fence": Link(180e-6, 6.3e9, "oMLX #3118, mlx #4438"),
    "Thunderbolt, TCP ring": Link(450e-6, 5e9, "Geerling; mlx #1773", is_ring=True),
    "10 GbE, TCP ring": Link(450e-6, 1.1e9, "Geerling; mlx #1773", is_ring=True),
    "10 GbE, pipeline": Link(450e-6, 1.1e9, "Geerling; mlx #1773", is_pipeline=True),
}


def curve_of(link: Link, n_hosts: int) -> Curve:
    """Return what rounds cost on so many hosts."""
    alone = WEIGHT_BYTES / MEMORY_BANDWIDTH
    parts = 1 if link.is_pipeline else n_hosts
    seconds = {
        n: alone / parts * ratio + link.seconds(n, n_hosts) for n, ratio in PUBLISHED_ROWS.items()
    }
    plain = seconds[1]
    steps = {"first": FIRST, "level": LEVEL, "sibling": SIBLING}
    head = {name: share * alone / plain for name, share in steps.items()}
    relative = {n: value / plain for n, value in seconds.items()}
    return Curve(relative, 1e3 * plain, link.source, "calculated", **head)


def rows_of(trace: Trace, n_hosts: int) -> Iterator[list[str]]:
    """Yield the rows of a table for so many hosts."""
    for name, link in LINKS.items():
        yield [f"{name} ({link.source})", *_speeds(curve_of(link, n_hosts), trace)]
    yield ["one Mac, if it fitted", *_speeds(curve_of(next(iter(LINKS.values())), 1), trace)]


def _speeds(curve: Curve, trace: Trace) -> list[str]:
    """Return plain decoding's milliseconds and speed, the best fixed shape's and the planner's."""
    machine = Machine(curve)
    runs = run_fixed(machine, trace)
    plain = runs["plain"].rate
    best = max(runs, key=lambda name: runs[name].rate)
    planner = PlannerRun(machine, trace).run().rate
    fixed = f"{runs[best].rate / plain:.2f} ({best})"
    return [
        f"{curve.plain_ms:.0f}",
        f"{plain:.1f}",
        fixed,
        f"{planner / plain:.2f}",
        f"{planner:.1f}",
    ]


def main() -> None:
    """Parse the command line, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--hosts", type=int, action="append", choices=(2, 3, 4), help="default: all"
    )
    trace = Trace.load()
    print("Simulated from published figures; nothing was measured on Macs or on several machines.")
    for n_hosts in parser.parse_args().hosts or (2, 3, 4):
        print(f"\n{n_hosts} hosts\n")
        print("| link | plain ms | plain tok/s | best fixed, x | planner, x | planner tok/s |")
        print("|---" * 6 + "|")
        for row in rows_of(trace, n_hosts):
            print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
