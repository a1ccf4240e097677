#!/usr/bin/env python3
"""Every way to draft for one target, side by side: acceptance length, n-alpha, the planner's speed.

    python benchmarks/lineage.py --target ../shared/fixtures/pydoc-llama
        --prompts ../shared/fixtures/prompts.jsonl --draft-model draft-model
        --medusa heads/medusa/head --eagle heads/eagle1/head --hass heads/hass/head
        --eagle3 heads/eagle3/head --out lineage.json

`draft_model.py` makes the draft model, `train_ablations.py --variants medusa eagle1 hass eagle3`
the heads, each with as many updates. One run of `mlx-eagle bench` measures them: each drafter with
a tree of as many tokens (or a chain), and, with --planner, as the planner drafts with it.
Acceptance lengths of trees and n-alpha are counts, which no load changes; speeds are times.
Texts that differ from plain decoding's by more than a near-tie end it with an error. What is left
out of the drafters is left out of the table. A report that is in --out already is shown again, with
the drafters that it has.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from head_figures import table
from train_fixture import program

STEPS = 5  # of n-alpha, the length of bench's chain
TREE = "5x4x25"  # as many drafted tokens as EAGLE-1's tree has


class Drafter(NamedTuple):
    """A row of the table.

    Attributes:
        name: its title.
        head: the option that names what drafts, and what is put after it.
        tree: of every round, as `bench --compare` takes it.
        published: speed-up and acceptance length on MT-bench, Vicuna 13B, greedy; table 1 of
            EAGLE-3 (arXiv 2503.01840v3).
    """

    name: str
    head: str
    tree: str
    published: tuple[float, float] | None = None


DRAFTERS = (
    Drafter("draft model, chain of 5", "draft:{draft_model}", "chain:5", (1.93, 2.27)),
    Drafter("n-gram lookup", "ngram", f"tree:{TREE}", (1.58, 1.63)),
    Drafter("Medusa", "{medusa}", f"tree:{TREE}", (2.07, 2.59)),
    Drafter("EAGLE-1, its fixed tree", "{eagle}", "tree:eagle1", (3.07, 3.98)),
    Drafter("EAGLE-2", "{eagle}", f"tree:{TREE}", (4.26, 4.83)),
    Drafter("HASS", "{hass}", f"tree:{TREE}"),
    Drafter("EAGLE-3, EAGLE-1's tree", "{eagle3}", "tree:eagle1"),
    Drafter("EAGLE-3", "{eagle3}", f"tree:{TREE}", (5.58, 6.65)),
    Drafter("EAGLE-3 with n-gram lookup", "{eagle3}+ngram", f"tree:{TREE}"),
)
HEADS = {  # by the name that stands in `Drafter.head`
    "draft_model": "--draft-model",
    "medusa": "--medusa",
    "eagle": "--eagle",
    "hass": "--hass",
    "eagle3": "--eagle3",
}


def present(args: argparse.Namespace) -> list[Drafter]:
    """Return the drafters whose files were named, with their names in place."""
    named = {name: str(value) for name in HEADS if (value := getattr(args, name))}
    missing = ["{" + name + "}" for name in HEADS if name not in named]
    kept = [d for d in DRAFTERS if not any(name in d.head for name in missing)]
    return [drafter._replace(head=drafter.head.format(**named)) for drafter in kept]


def run_bench(args: argparse.Namespace, drafters: list[Drafter]) -> dict[str, Any]:
    """Return the report of one run of `mlx-eagle bench`, which is kept in --out.

    Raises:
        SystemExit: with its status, if it fails: where a text differs, for example.
    """
    compare = [f"{drafter.tree}:head:{drafter.head}" for drafter in drafters]
    if args.planner:
        compare += dict.fromkeys(f"head:{drafter.head}" for drafter in drafters)
    options = {"--model": args.target, "--prompts": args.prompts, "--max-tokens": args.tokens}
    if args.limit:
        options["--limit"] = args.limit
    command = [program("mlx-eagle"), "bench", "--head", "none", "--json"]
    command += [str(part) for option in options.items() for part in option]
    command += [word for name in compare for word in ("--compare", name)]
    command += [] if args.planner else ["--no-calibrate"]
    print(shlex.join(command), file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    args.out.write_text(done.stdout)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def contestant(drafter: Drafter) -> str:
    """Return what `mlx-eagle bench` calls a drafter with the tree of the table."""
    return f"{drafter.tree}:head:{drafter.head}"


def check_drafters(report: dict[str, Any], drafters: list[Drafter], out: Path) -> None:
    """Refuse a report that was made with other drafters.

    Raises:
        SystemExit: naming the first one that it lacks.
    """
    missing = [d for d in drafters if contestant(d) not in report["contestants"]]
    if missing:
        raise SystemExit(
            f"error: {out} has no figures of {contestant(missing[0])}: give the drafters that it "
            "was made with, or another --out"
        )


def figures(report: dict[str, Any], drafter: Drafter) -> list[str]:
    """Return the cells of a drafter; empty for what was not measured or is not known."""
    rows = {row["contestant"]: row for row in report["summary"] if row["category"] == "all"}
    alphas = {a["head"]: a["values"] for a in report["n_alpha"] if a["category"] == "all"}
    name = contestant(drafter)
    values = [*alphas[report["heads"][name]], *[None] * STEPS][:STEPS]
    planned = rows.get(f"head:{drafter.head}", {})
    published = drafter.published or (None, None)
    numbers = [rows[name]["acceptance_length"], *values, planned.get("speedup"), *published]
    return [drafter.name, *("" if number is None else f"{number:.2f}" for number in numbers)]


def main() -> None:
    """Parse the command line, measure what is not measured yet, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--target", "--prompts", "--out"):
        parser.add_argument(name, type=Path, required=True)
    for flag in HEADS.values():
        parser.add_argument(flag, type=Path, help="a folder")
    parser.add_argument("--planner", action="store_true", help="time the planner as well")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--limit", type=int, help="prompts of each category")
    args = parser.parse_args()
    drafters = present(args)
    report = json.loads(args.out.read_text()) if args.out.exists() else run_bench(args, drafters)
    check_drafters(report, drafters, args.out)
    alphas = [f"{n}-alpha" for n in range(STEPS)]
    titles = ["drafter", "acceptance length", *alphas, "planner, x plain"]
    titles += ["published, x plain", "published length"]
    print(table(titles, [figures(report, drafter) for drafter in drafters]))


if __name__ == "__main__":
    main()
